"""What a plan says of itself: what holds it back, what each knob is worth, what other budgets and recipes would do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cptplan.pilots.next_pilot import PilotValue
from cptplan.planning.budget import BudgetLimit
from cptplan.planning.forecast import Forecaster
from cptplan.planning.knobs import Knobs, Space
from cptplan.planning.plan import (
    Alternative,
    FrontPoint,
    Limit,
    PilotAdvice,
    Sensitivity,
    SurfaceTable,
    expected,
    planned_run,
)
from cptplan.planning.recipes import nearest_recipe
from cptplan.planning.search import SearchResult, pareto, quick_search

SENSITIVITY_STEP = 0.2
PARETO_POINTS = 24
AT_THE_EDGE = 5e-3  # assumed: nats per token within which a limit on loss holds the plan back
NEARLY_ALL = 0.98  # assumed: share of a limit from which on it holds the plan back


@dataclass(frozen=True, kw_only=True, slots=True)
class Affordable:
    """What the budget pays for, in steps."""

    limits: tuple[BudgetLimit, ...]
    batch_tokens: int
    supported_steps: int | None
    """Longest run that the pilots support; None when that is no limit."""

    @property
    def tokens(self) -> int:
        """Of the tightest amount."""
        return int(self.limits[0].tokens)

    def longest(self, factor: float = 1.0) -> int:
        """Most steps at a multiple of the budget."""
        paid = max(int(factor * self.limits[0].tokens // self.batch_tokens), 1)
        return paid if self.supported_steps is None else min(paid, self.supported_steps)


def limits_of(knobs: Knobs, space: Space, forecaster: Forecaster, afford: Affordable) -> tuple[Limit, ...]:
    """Every limit with what the run uses of it."""
    tokens = knobs.total_steps * forecaster.batch_tokens
    batch = forecaster.batch_tokens
    found = [
        Limit(
            name=limit.name,
            allowed=limit.amount,
            used=limit.amount * tokens / limit.tokens,
            unit=UNITS[limit.name],
            binding=tokens + batch > NEARLY_ALL * limit.tokens,
            basis=None if limit.name == "budget.tokens" else limit.basis,
            source=None if limit.name == "budget.tokens" else limit.source,
        )
        for limit in afford.limits
    ]
    if afford.supported_steps is not None:
        most = float(afford.supported_steps)
        binding = knobs.total_steps >= NEARLY_ALL * most
        found.append(Limit(name="length", allowed=most, used=float(knobs.total_steps), unit="steps", binding=binding))
    for source, there in (("general", forecaster.general_tokens), ("domain", forecaster.domain_tokens)):
        if np.isfinite(there):
            allowed = there * forecaster.max_epochs
            used = allowed * (1.0 + forecaster.token_excess(knobs)[f"{source}_tokens"])
            binding = used > NEARLY_ALL * allowed
            found.append(Limit(name=f"{source} tokens", allowed=allowed, used=used, unit="tokens", binding=binding))
    violations = forecaster.score(knobs).violations
    for name, cap in forecaster.general_caps().items():
        binding = violations[name] > -AT_THE_EDGE
        found.append(Limit(name=f"goal.{name}", allowed=cap, used=cap + violations[name], unit="nats", binding=binding))
    return tuple(found)


UNITS = {
    "budget.tokens": "tokens",
    "budget.flops": "FLOP",
    "budget.gpu_hours": "GPU-hours",
    "budget.usd": "USD",
    "budget.deadline_hours": "hours",
}


def binding_lines(knobs: Knobs, space: Space, limits: Sequence[Limit], *, curved: bool) -> tuple[str, ...]:
    """What holds the run back, and so what to loosen for a better one.

    Args:      curved: whether a longer run would be better, by the law.
    """
    found = []
    for limit in limits:
        if not limit.binding:
            continue
        if limit.name.startswith("budget."):
            found += [f"{limit.name}: a longer run would be better"] * curved
        elif limit.name == "length":
            found += ["length: the pilots support no longer run; longer pilots, or --extrapolate"] * curved
        elif limit.name.endswith(" tokens"):
            found.append(f"{limit.name}: the run reads all that it may; more text, or budget.max_epochs")
        else:
            found.append(f"{limit.name}: more forgetting would be better for the weights")
    for name, value, (low, high) in (
        ("peak_lr", knobs.peak_lr, space.peak_lr),
        ("replay_ratio", knobs.replay_ratio, space.replay_ratio),
    ):
        if (value <= low * 1.02 and low > 0) or value >= high * NEARLY_ALL:
            found.append(f"{name}: at the edge of what the pilots support; what lies beyond only pilots can tell")
    return tuple(found)


def sensitivities(knobs: Knobs, space: Space, forecaster: Forecaster) -> tuple[Sensitivity, ...]:
    """What a fifth less or more of each knob costs."""
    centre = forecaster.score(knobs).objective

    def cost(name: str, value: float) -> float:
        whole = name in ("total_steps", "warmup_steps")
        changed = replace(knobs, **{name: round(value) if whole else value})  # type: ignore[arg-type]
        return forecaster.score(changed).objective - centre

    warmup = forecaster.schedule(knobs).warmup_steps
    ranges: list[tuple[str, float, float, float]] = [
        ("peak_lr", knobs.peak_lr, *space.peak_lr),
        ("replay_ratio", knobs.replay_ratio, *space.replay_ratio),
        ("total_steps", knobs.total_steps, *space.total_steps),
    ]
    if knobs.kind == "wsd":
        ranges.append(("decay_share", knobs.decay_share, *space.decay_share))
    ranges.append(("warmup_steps", warmup, *(space.warmup_steps or (warmup, warmup))))
    if knobs.end_replay is not None:
        ranges.append(("end_replay", knobs.end_replay, *space.replay_ratio))
    found = []
    for name, value, low, high in ranges:
        below, above = value * (1.0 - SENSITIVITY_STEP), value * (1.0 + SENSITIVITY_STEP)
        found.append(
            Sensitivity(
                knob=name,
                lower=cost(name, below) if below >= low and value > 0 else None,
                higher=cost(name, above) if above <= high and value > 0 else None,
            )
        )
    return tuple(found)


def recipe_beside(knobs: Knobs, pretrain_peak_lr: float, forecaster: Forecaster) -> Alternative:
    """The published recipe nearest to the run, at the same length from the base."""
    recipe = nearest_recipe(knobs, pretrain_peak_lr)
    other = recipe.knobs(pretrain_peak_lr, knobs.total_steps, forecaster.base)
    return Alternative(
        name=recipe.name,
        source=recipe.source,
        run=planned_run(other, forecaster),
        difference=expected(forecaster.difference(other, knobs)),
    )


def other_budgets(knobs: Knobs, space: Space, forecaster: Forecaster, afford: Affordable) -> tuple[Alternative, ...]:
    """The best runs at half and at double the budget, against the chosen one."""
    found = []
    for factor, words in ((0.5, "half the budget"), (2.0, "double the budget")):
        longest = afford.longest(factor)
        if longest == space.total_steps[1]:
            continue  # what the pilots support bounds the run, not the budget
        around = replace(space, total_steps=(max(longest // 4, 1), longest))
        rough = forecaster.rough if forecaster.needs_draws else None
        best = quick_search(forecaster.score, around, rough)
        if not best.feasible:
            continue
        found.append(
            Alternative(
                name=words,
                source="searched anew, by grid and polish",
                run=planned_run(best.best.knobs, forecaster),
                difference=expected(forecaster.difference(best.best.knobs, knobs)),
            )
        )
    return tuple(found)


def pilot_advice(best: PilotValue) -> PilotAdvice:
    """The best next pilot as the plan stores it."""
    knobs = best.knobs
    return PilotAdvice(
        peak_lr=knobs.peak_lr,
        replay_ratio=knobs.replay_ratio,
        decay_share=knobs.decay_share,
        total_steps=knobs.total_steps,
        start=knobs.start,
        value=best.value,
        tokens=best.tokens,
        gpu_hours=best.gpu_hours,
    )


def front_of(found: SearchResult, forecaster: Forecaster) -> tuple[FrontPoint, ...]:
    """The front of general against domain loss: the best plan for each weight from 2 to 98 %, without repeats.

    With several domains the first one stands for all. Points that no such weight would choose are left out: beyond them
    a sliver of one loss costs a large piece of the other.
    """
    domain = next(name for name in forecaster.laws if name != "general")
    losses = {
        e.knobs: (e.score.losses["general"], e.score.losses[domain]) for e in found.evaluated if e.score.violation <= 0
    }
    front = pareto(losses)
    kept = supported([losses[knobs] for knobs in front], PARETO_POINTS)
    return tuple(_front_point(front[i], domain, forecaster) for i in kept)


def supported(front: Sequence[tuple[float, float]], most: int) -> list[int]:
    """Positions of the points that some weight from 2 to 98 % would choose, thinned to at most so many."""
    general, domain = np.array(front).T
    weights = np.linspace(0.02, 0.98, 4 * most)[:, None]
    chosen = np.unique(np.argmin(weights * general + (1.0 - weights) * domain, axis=1))
    return [int(chosen[i]) for i in np.unique(np.round(np.linspace(0, len(chosen) - 1, most)).astype(int))]


def _front_point(knobs: Knobs, domain: str, forecaster: Forecaster) -> FrontPoint:
    outlook = forecaster.outlook(knobs)
    return FrontPoint(
        peak_lr=knobs.peak_lr,
        replay_ratio=knobs.replay_ratio,
        end_replay=knobs.end_replay,
        total_steps=knobs.total_steps,
        kind=knobs.kind,
        decay_share=knobs.decay_share,
        start=knobs.start,
        general=expected(outlook.losses["general"]),
        domain=expected(outlook.losses[domain]),
    )


def surface_of(knobs: Knobs, space: Space, forecaster: Forecaster, rates: int = 21, replays: int = 17) -> SurfaceTable:
    """The objective of the best fit around the chosen run, over what was searched."""
    lrs, ratios = np.geomspace(*space.peak_lr, rates), np.linspace(*space.replay_ratio, replays)

    def objective_at(lr: float, ratio: float) -> float:
        changed = replace(knobs, peak_lr=float(lr), replay_ratio=float(ratio), end_replay=None)
        return forecaster.rough(changed).objective

    objective = tuple(tuple(objective_at(lr, ratio) for ratio in ratios) for lr in lrs)
    return SurfaceTable(peak_lrs=tuple(lrs.tolist()), replay_ratios=tuple(ratios.tolist()), objective=objective)
