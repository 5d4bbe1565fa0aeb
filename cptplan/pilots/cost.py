"""What pilots cost, each and as a share of the final run, and which number to change when they cost too much."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cptplan.config import Project
from cptplan.errors import ModelError
from cptplan.pilots.design import default_eval_tokens
from cptplan.planning.budget import Rates, budget_tokens, known_rates, price
from cptplan.planning.planner import CHECKED_LENGTH, SUPPORTED_LENGTH
from cptplan.price.cost import TrainingCost

EVAL_COST = 1.0 / 3.0  # of a training token: the forward pass of three equal parts
LEAST_STEPS = 20  # assumed: fewer are all warm-up


@dataclass(frozen=True, kw_only=True, slots=True)
class RunCost:
    """The cost of one run with its evaluation."""

    tokens: int
    """Training tokens."""
    gpu_hours: float | None
    """None where the base model is not on this machine."""
    usd: float | None
    share: float
    """Of the final run's cost: in GPU-hours, or else in tokens with evaluated ones at a third."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PilotBill:
    """What the pilots of a project cost together."""

    each: RunCost
    num_runs: int
    source: str
    """How the price is known."""

    @property
    def share(self) -> float:
        """Of the final run's cost."""
        return self.num_runs * self.each.share

    def line(self) -> str:
        """The whole bill in a sentence."""
        one, all_runs = (self._amounts(number) for number in (1, self.num_runs))
        return f"Each costs {one}; all {self.num_runs}: {all_runs}, {self.share:.1%} of the final run ({self.source})."

    def _amounts(self, number: int) -> str:
        parts = [f"{number * self.each.tokens:,} tokens"]
        if self.each.gpu_hours is not None:
            parts.append(f"{number * self.each.gpu_hours:.3g} GPU-hours")
        if self.each.usd is not None:
            parts.append(f"{number * self.each.usd:.3g} USD")
        return ", ".join(parts)


def run_cost(project: Project, steps: int, runs_dir: Path | None = None) -> tuple[RunCost, str]:
    """The cost of a run of so many steps beside the final run of the whole budget, and how it is known.

    Raises:    ModelError when the budget needs the base model and that is not on this machine; as budget_limits.
    """
    tokens, final = steps * project.pilot.batch_tokens, budget_tokens(project, runs_dir)
    try:
        rates = known_rates(project, runs_dir)
    except ModelError:
        rates = None  # an architecture that cannot be priced may still be trained
    if rates is None:
        share = _equivalent(project, tokens) / _equivalent(project, final)
        return RunCost(
            tokens=tokens, gpu_hours=None, usd=None, share=share
        ), "in tokens: no price without the base model"
    own, whole = price(project, rates, tokens), price(project, rates, final)
    cost = RunCost(tokens=tokens, gpu_hours=own.gpu_hours, usd=own.price_usd, share=own.gpu_hours / whole.gpu_hours)
    return cost, _source(rates, own)


def _source(rates: Rates, cost: TrainingCost) -> str:
    known = cost.provenance["gpu_hours"]
    return f"{rates.hardware.name}, speed {known.basis}"


def _equivalent(project: Project, tokens: int) -> float:
    return tokens + EVAL_COST * default_eval_tokens(project, max(tokens // project.pilot.batch_tokens, 1))


def pilot_bill(project: Project, runs_dir: Path | None = None) -> PilotBill:
    """The designed pilots, which are all of one length."""
    each, source = run_cost(project, project.pilot.total_steps, runs_dir)
    return PilotBill(each=each, num_runs=project.pilot.num_runs, source=source)


def bill_lines(project: Project, bill: PilotBill, runs_dir: Path | None = None) -> Sequence[str]:
    """What to change when the pilots cost more than they should, and how long a run they support."""
    pilot, found = project.pilot, []
    longest = budget_tokens(project, runs_dir) // pilot.batch_tokens
    if bill.share > pilot.max_share:
        steps = _steps_within(project, runs_dir)
        shorter = f"pilot.total_steps={steps}" if steps else "a larger budget (no pilot is short enough)"
        found.append(
            f"The pilots cost {bill.share:.1%} of the final run; pilot.max_share is {pilot.max_share:.1%}. "
            f"To keep it: {shorter}; to accept it: --set pilot.max_share={_rounded_up(bill.share)}."
        )
    if longest > SUPPORTED_LENGTH * pilot.total_steps:
        found.append(
            f"The budget pays for {longest:,} steps; pilots of {pilot.total_steps:,} support a plan of "
            f"{round(SUPPORTED_LENGTH * pilot.total_steps):,}. Longer ones need cptplan optimize --extrapolate; "
            "cptplan rehearse says what that costs."
        )
    elif longest > CHECKED_LENGTH * pilot.total_steps:
        found.append(
            f"The budget pays for {longest:,} steps, {longest / pilot.total_steps:.0f} times a pilot: intervals of "
            f"such a plan are wide, and unchecked beyond {CHECKED_LENGTH:g} times. One longer pilot narrows them."
        )
    return found


def _steps_within(project: Project, runs_dir: Path | None) -> int | None:
    """Longest pilots that keep pilot.max_share; None when nothing above the least does."""
    low, high = 0, project.pilot.total_steps
    while high - low > 1:
        middle = (low + high) // 2
        within = project.pilot.num_runs * run_cost(project, middle, runs_dir)[0].share <= project.pilot.max_share
        low, high = (middle, high) if within else (low, middle)
    return low if low >= max(LEAST_STEPS, 2 * project.pilot.warmup_steps) else None


def _rounded_up(share: float) -> str:
    """A share that is typed, no smaller than the one given."""
    return f"{-(-share * 1000 // 1) / 1000:g}"
