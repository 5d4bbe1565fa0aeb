"""The plan: the chosen run beside the rule of thumb, what is expected of both, why, and what would change it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from cptplan.config import Project
from cptplan.contract import Contract
from cptplan.design import run_schedule
from cptplan.files import read_json, write_json
from cptplan.forecast import Forecaster, Interval, Outlook
from cptplan.schedule import Schedule
from cptplan.search import Knobs, SearchResult, Space, search

RULE_REPLAY = 0.3  # the common recipe: 30 % general data
RULE_RATE = 0.1  # the common recipe: a tenth of pre-training's peak rate
RULE_DECAY = 0.9  # a linear decay over nine tenths of the run stands for the common cosine
SENSITIVITY_STEP = 0.2
PARETO_POINTS = 24
AT_THE_EDGE = 5e-3  # assumed: nats per token, or share of the tokens, within which a constraint holds the plan back


class Expected(Contract):
    """A predicted number with its interval."""

    mean: float
    low: float
    high: float


class PlannedRun(Contract):
    """One run that could be launched, with what is expected of it."""

    peak_lr: float
    replay_ratio: float
    total_steps: int
    warmup_steps: int
    decay_share: float
    start: str
    schedule: Schedule
    losses: dict[str, Expected]
    """Final loss by validation set, nats per token."""
    objective: Expected
    """Weighted change of loss against the base model, nats per token; negative is better than the base model."""
    forgetting_ratio: Expected

    def knobs(self) -> Knobs:
        """The choices alone."""
        return Knobs(
            peak_lr=self.peak_lr,
            replay_ratio=self.replay_ratio,
            total_steps=self.total_steps,
            decay_share=self.decay_share,
            start=self.start,
        )


class Sensitivity(Contract):
    """What a fifth less or more of one knob costs, in objective, nats per token; null outside the searched range."""

    knob: str
    lower: float | None = None
    higher: float | None = None


class FrontPoint(Contract):
    """One plan that no other beats on both general and domain loss."""

    peak_lr: float
    replay_ratio: float
    total_steps: int
    decay_share: float
    start: str
    general: Expected
    domain: Expected


class SurfaceTable(Contract):
    """Objective over rate and replay, all else as in the chosen run; shape (peak_lrs, replay_ratios)."""

    peak_lrs: tuple[float, ...]
    replay_ratios: tuple[float, ...]
    objective: tuple[tuple[float, ...], ...]


class Plan(Contract):
    """plan.json."""

    schema_version: Literal[1] = 1
    project: str
    fit: str
    weights: dict[str, float]
    base: str
    """Start that changes are measured against."""
    base_losses: dict[str, float]
    level: float
    """Probability that the intervals claim."""
    budget_tokens: int
    batch_tokens: int
    chosen: PlannedRun
    rule_of_thumb: PlannedRun
    gain: Expected
    """Objective of the rule of thumb less that of the chosen run: positive means that planning pays."""
    binding: tuple[str, ...]
    sensitivities: tuple[Sensitivity, ...]
    pareto: tuple[FrontPoint, ...]
    surface: SurfaceTable
    warnings: tuple[str, ...]


def plan_space(project: Project) -> Space:
    """What may be chosen: no further than the pilots span in rate and replay, no longer than the budget."""
    longest = max(project.budget.tokens // project.pilot.batch_tokens, 1)
    return Space(
        peak_lr=project.peak_lr_range,
        replay_ratio=project.pilot.replay_range,
        total_steps=(max(longest // 4, min(project.pilot.total_steps, longest)), longest),
        decay_share=(0.0, 0.8),
        starts=tuple(start.name for start in project.model.starts),
    )


def make_plan(
    project: Project, forecaster: Forecaster, fit_name: str, storage: Path, *, trials: int = 120, seed: int = 0
) -> Plan:
    """Search for the best run and say what is expected of it.

    Args:      fit_name: hash of the fit that the forecaster holds. storage: journal of the Optuna study. trials: TPE
               trials after the grid.
    Raises:    InfeasiblePlanError if no run keeps the constraints.
    """
    space = plan_space(project)
    found = search(forecaster.score, space, storage=storage, trials=trials, seed=seed)
    knobs = _rounded(found.best.knobs)
    if forecaster.score(knobs).violation > 0:
        knobs = found.best.knobs  # a run on the very edge of a constraint must not be rounded over it
    rule = Knobs(
        peak_lr=RULE_RATE * project.model.pretrain_peak_lr,
        replay_ratio=RULE_REPLAY,
        total_steps=knobs.total_steps,
        decay_share=RULE_DECAY,
        start=forecaster.base,
    )
    chosen, thumb = forecaster.outlook(knobs), forecaster.outlook(rule)
    return Plan(
        project=project.name,
        fit=fit_name,
        weights=dict(forecaster.weights),
        base=forecaster.base,
        base_losses=dict(forecaster.starts[forecaster.base].losses),
        level=forecaster.level,
        budget_tokens=project.budget.tokens,
        batch_tokens=project.pilot.batch_tokens,
        chosen=_planned(knobs, chosen, forecaster),
        rule_of_thumb=_planned(rule, thumb, forecaster),
        gain=_gain(chosen, thumb),
        binding=_binding(knobs, space, forecaster),
        sensitivities=_sensitivities(knobs, space, forecaster),
        pareto=_pareto(found, forecaster),
        surface=_surface(knobs, space, forecaster),
        warnings=_warnings(knobs, rule, space, project, forecaster),
    )


def _rounded(knobs: Knobs) -> Knobs:
    """Knobs with as many digits as anyone would type."""
    return Knobs(
        peak_lr=float(f"{knobs.peak_lr:.3g}"),
        replay_ratio=round(knobs.replay_ratio, 3),
        total_steps=knobs.total_steps,
        decay_share=round(knobs.decay_share, 2),
        start=knobs.start,
    )


def _planned(knobs: Knobs, outlook: Outlook, forecaster: Forecaster) -> PlannedRun:
    warmup = min(forecaster.warmup_steps, knobs.total_steps)
    return PlannedRun(
        peak_lr=knobs.peak_lr,
        replay_ratio=knobs.replay_ratio,
        total_steps=knobs.total_steps,
        warmup_steps=warmup,
        decay_share=knobs.decay_share,
        start=knobs.start,
        schedule=run_schedule(
            peak_lr=knobs.peak_lr,
            total_steps=knobs.total_steps,
            warmup_steps=warmup,
            decay_share=knobs.decay_share,
        ),
        losses={name: _expected(interval) for name, interval in outlook.losses.items()},
        objective=_expected(outlook.objective),
        forgetting_ratio=_expected(outlook.forgetting_ratio),
    )


def _expected(interval: Interval) -> Expected:
    return Expected(mean=interval.mean, low=interval.low, high=interval.high)


def _gain(chosen: Outlook, rule: Outlook) -> Expected:
    """Difference of two independent predictions: half-widths add in squares on each side."""
    mean = rule.objective.mean - chosen.objective.mean
    down = np.hypot(rule.objective.mean - rule.objective.low, chosen.objective.high - chosen.objective.mean)
    up = np.hypot(rule.objective.high - rule.objective.mean, chosen.objective.mean - chosen.objective.low)
    return Expected(mean=mean, low=mean - float(down), high=mean + float(up))


def _binding(knobs: Knobs, space: Space, forecaster: Forecaster) -> tuple[str, ...]:
    """The limits that the chosen run sits on: what to loosen for a better one."""
    found = []
    if knobs.total_steps >= 0.98 * space.total_steps[1]:
        found.append("budget.tokens: a longer run would be better")
    for name, value, (low, high) in (
        ("peak_lr", knobs.peak_lr, space.peak_lr),
        ("replay_ratio", knobs.replay_ratio, space.replay_ratio),
    ):
        if (value <= low * 1.02 and low > 0) or value >= high * 0.98:
            found.append(f"{name}: at the edge of what the pilots span; what lies beyond only pilots can tell")
    if forecaster.token_excess(knobs) > -AT_THE_EDGE:
        found.append("corpora: the run reads all tokens that are there; more text would be better")
    if forecaster.general_excess(knobs) > -AT_THE_EDGE:
        found.append("max_general_increase: more forgetting would be better for the weights")
    return tuple(found)


def _sensitivities(knobs: Knobs, space: Space, forecaster: Forecaster) -> tuple[Sensitivity, ...]:
    centre = forecaster.score(knobs).objective

    def cost(**change: float) -> float:
        return forecaster.score(replace(knobs, **change)).objective - centre  # type: ignore[arg-type]

    found = []
    for name, (low, high) in (
        ("peak_lr", space.peak_lr),
        ("replay_ratio", space.replay_ratio),
        ("total_steps", space.total_steps),
        ("decay_share", space.decay_share),
    ):
        whole = round if name == "total_steps" else float
        below, above = (whole(getattr(knobs, name) * factor) for factor in (1 - SENSITIVITY_STEP, 1 + SENSITIVITY_STEP))
        found.append(
            Sensitivity(
                knob=name,
                lower=cost(**{name: below}) if below >= low else None,
                higher=cost(**{name: above}) if above <= high else None,
            )
        )
    return tuple(found)


def _pareto(found: SearchResult, forecaster: Forecaster) -> tuple[FrontPoint, ...]:
    """The front of general against domain loss: the best plan for each weight from 2 to 98 %, without repeats.

    With several domains the first one stands for all. Points that no such weight would choose are left out: beyond them
    a sliver of one loss costs a large piece of the other.
    """
    domain = next(name for name in forecaster.laws if name != "general")
    front = found.pareto("general", domain)
    general_loss, domain_loss = (np.array([e.score.losses[name] for e in front]) for name in ("general", domain))
    weights = np.linspace(0.02, 0.98, 4 * PARETO_POINTS)[:, None]
    best = np.argmin(weights * general_loss + (1.0 - weights) * domain_loss, axis=1)
    supported = np.unique(best)
    keep = supported[np.unique(np.round(np.linspace(0, len(supported) - 1, PARETO_POINTS)).astype(int))]
    points = []
    for candidate in (front[i] for i in keep):
        outlook = forecaster.outlook(candidate.knobs)
        knobs = candidate.knobs
        points.append(
            FrontPoint(
                peak_lr=knobs.peak_lr,
                replay_ratio=knobs.replay_ratio,
                total_steps=knobs.total_steps,
                decay_share=knobs.decay_share,
                start=knobs.start,
                general=_expected(outlook.losses["general"]),
                domain=_expected(outlook.losses[domain]),
            )
        )
    return tuple(points)


def _surface(knobs: Knobs, space: Space, forecaster: Forecaster, rates: int = 25, replays: int = 21) -> SurfaceTable:
    lrs, ratios = np.geomspace(*space.peak_lr, rates), np.linspace(*space.replay_ratio, replays)

    def objective_at(lr: float, ratio: float) -> float:
        return forecaster.score(replace(knobs, peak_lr=float(lr), replay_ratio=float(ratio))).objective

    objective = tuple(tuple(objective_at(lr, ratio) for ratio in ratios) for lr in lrs)
    return SurfaceTable(peak_lrs=tuple(lrs.tolist()), replay_ratios=tuple(ratios.tolist()), objective=objective)


def _warnings(knobs: Knobs, rule: Knobs, space: Space, project: Project, forecaster: Forecaster) -> tuple[str, ...]:
    found = []
    ratio = knobs.total_steps / project.pilot.total_steps
    if ratio > 1.5:
        found.append(f"The run is {ratio:.1f} times as long as the pilots; intervals are widened for it.")
    if not space.peak_lr[0] <= rule.peak_lr <= space.peak_lr[1]:
        found.append("The rule of thumb's rate lies outside what the pilots span; its prediction is an extrapolation.")
    for name, law in forecaster.laws.items():
        if law.discrepancy > 0.05:
            found.append(f"The law of loss_{name} misses left-out pilots by {law.discrepancy:.0%}: treat it with care.")
        if not law.best.converged:
            found.append(f"The fit of loss_{name} stopped before it converged.")
    return tuple(found)


def write_plan(path: Path, plan: Plan) -> None:
    """Write plan.json."""
    write_json(path, plan.to_json())


def read_plan(path: Path) -> Plan:
    """Read plan.json.

    Raises:    ConfigError if it is missing or not a plan.
    """
    return Plan.parse(read_json(path), str(path))
