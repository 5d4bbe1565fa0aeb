"""The plan: the chosen run beside the rule of thumb, what is expected of both, why, and what would change it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from cptplan.config import ScheduleKind
from cptplan.contract import Contract
from cptplan.errors import ConfigError
from cptplan.files import read_json, write_json
from cptplan.mixture import ConstantMixture, RampMixture
from cptplan.planning.forecast import Forecaster, Interval
from cptplan.planning.knobs import Knobs, PlannedSchedule
from cptplan.price.hardware import Basis

VERSION = 2


class Expected(Contract):
    """A predicted number with its interval."""

    mean: float
    low: float
    high: float


class PlannedRun(Contract):
    """One run that could be launched, with what is expected of it."""

    peak_lr: float
    replay_ratio: float
    """At the first step, and at all of them without end_replay."""
    end_replay: float | None = None
    total_steps: int
    warmup_steps: int
    kind: ScheduleKind
    decay_share: float
    """Of wsd."""
    start: str
    schedule: PlannedSchedule = Field(discriminator="kind")
    mixture: ConstantMixture | RampMixture = Field(discriminator="kind")
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
            kind=self.kind,
            warmup_steps=self.warmup_steps,
            end_replay=self.end_replay,
        )


class Limit(Contract):
    """One constraint on the plan and how much of it the chosen run uses."""

    name: str
    """Key in the project file, such as budget.usd or goal.max_general_increase; or what else bounds the run."""
    allowed: float
    used: float
    unit: str
    binding: bool
    basis: Basis | None = None
    """How the price behind it is known; None where there is none."""
    source: str | None = None


class Sensitivity(Contract):
    """What a fifth less or more of one knob costs, in objective, nats per token; null outside the searched range."""

    knob: str
    lower: float | None = None
    higher: float | None = None


class Alternative(Contract):
    """Another run, and its objective less that of the chosen one: positive is worse."""

    name: str
    source: str
    run: PlannedRun
    difference: Expected


class PilotAdvice(Contract):
    """The one more pilot that is expected to remove most regret of this decision for its cost."""

    peak_lr: float
    replay_ratio: float
    decay_share: float
    total_steps: int
    start: str
    value: float
    """Expected reduction of the regret, nats of the weighted objective."""
    tokens: int
    gpu_hours: float | None = None


class FrontPoint(Contract):
    """One plan that no other beats on both general and domain loss."""

    peak_lr: float
    replay_ratio: float
    """At the first step, and at all of them without end_replay."""
    end_replay: float | None = None
    total_steps: int
    kind: ScheduleKind
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

    schema_version: Literal[2] = 2
    project: str
    fit: str
    weights: dict[str, float]
    risk: str
    base: str
    """Start that changes are measured against."""
    base_losses: dict[str, float]
    level: float
    """Probability that the intervals claim."""
    budget_tokens: int
    """Tokens that the tightest amount of the budget pays for."""
    batch_tokens: int
    chosen: PlannedRun
    rule_of_thumb: PlannedRun
    gain: Expected
    """Objective of the rule of thumb less that of the chosen run: positive means that planning pays."""
    nearest_recipe: Alternative
    """The published rule of thumb that is nearest to the chosen run."""
    limits: tuple[Limit, ...]
    chance: float | None = None
    """Share of the draws in which all limits on general loss hold."""
    binding: tuple[str, ...]
    sensitivities: tuple[Sensitivity, ...]
    budgets: tuple[Alternative, ...]
    """What half and double the budget would do."""
    regret: float
    """What the chosen run is expected to lose against the best one, were the law known perfectly; nats."""
    next_pilot: PilotAdvice
    pareto: tuple[FrontPoint, ...]
    surface: SurfaceTable
    extrapolations: tuple[str, ...]
    """Where the chosen run lies outside what the pilots span."""
    assumptions: tuple[str, ...]
    """What no pilot showed and the plan takes from elsewhere."""
    warnings: tuple[str, ...]


def planned_run(knobs: Knobs, forecaster: Forecaster) -> PlannedRun:
    """A candidate as a run that could be launched, with what is expected of it."""
    outlook, schedule = forecaster.outlook(knobs), forecaster.schedule(knobs)
    return PlannedRun(
        peak_lr=knobs.peak_lr,
        replay_ratio=knobs.replay_ratio,
        end_replay=knobs.end_replay,
        total_steps=knobs.total_steps,
        warmup_steps=schedule.warmup_steps,
        kind=knobs.kind,
        decay_share=knobs.decay_share,
        start=knobs.start,
        schedule=schedule,
        mixture=knobs.mixture(),
        losses={name: expected(interval) for name, interval in outlook.losses.items()},
        objective=expected(outlook.objective),
        forgetting_ratio=expected(outlook.forgetting_ratio),
    )


def expected(interval: Interval) -> Expected:
    """An interval as the plan stores it."""
    return Expected(mean=interval.mean, low=interval.low, high=interval.high)


def write_plan(path: Path, plan: Plan) -> None:
    """Write plan.json."""
    write_json(path, plan.to_json())


def read_plan(path: Path) -> Plan:
    """Read plan.json.

    Raises:    ConfigError if it is missing, not a plan, or of another version.
    """
    value = read_json(path)
    version = value.get("schema_version") if isinstance(value, dict) else None
    if version != VERSION and isinstance(version, int):
        raise ConfigError(
            f"schema_version must be {VERSION}; got {version} in {path}.", hint="run cptplan optimize again"
        )
    return Plan.parse(value, str(path))
