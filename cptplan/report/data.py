"""All that a report of a campaign shows, as plain numbers and words: no laws, no drawing.

The HTML page and the PNG figures are both drawn from ReportData, and ReportData survives a trip through report.json.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import ConfigDict, TypeAdapter

from cptplan.contract import parse_as
from cptplan.errors import ConfigError
from cptplan.report.plan_data import STRICT, Account, Numbers, ParetoFront, PlanRow, Surface

Role = Literal["chosen", "rule_of_thumb", "pilot", "base"]
Provenance = Literal["measured", "published", "assumed"]

MAX_DRAWN_POINTS = 400  # assumed: more points than this do not show on a screen and make the file heavy


@dataclass(frozen=True, kw_only=True, slots=True)
class SetCurve:
    """Losses of one run on one validation set, nats per token; measured or predicted may be empty."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    set_name: str
    measured_steps: Numbers = ()
    measured_losses: Numbers = ()
    predicted_steps: Numbers = ()
    predicted_mean: Numbers = ()
    predicted_low: Numbers = ()
    predicted_high: Numbers = ()
    level: float = 0.9
    """Probability that the band between low and high claims to hold."""

    def __post_init__(self) -> None:
        _check_lengths("measured curve", self.measured_steps, self.measured_losses)
        predicted = (self.predicted_mean, self.predicted_low, self.predicted_high)
        _check_lengths("predicted curve", self.predicted_steps, *predicted)

    @classmethod
    def of(
        cls,
        set_name: str,
        *,
        measured: tuple[ArrayLike, ArrayLike] | None = None,
        predicted: tuple[ArrayLike, ArrayLike, ArrayLike, ArrayLike] | None = None,
        level: float = 0.9,
    ) -> Self:
        """A curve from arrays: losses that were not evaluated (NaN) are left out, a long prediction is thinned.

        Args:      measured: steps and losses, each (points,). predicted: steps, mean, low and high, each (points,).
        Raises:    ConfigError if the arrays of one curve differ in length.
        """
        steps, losses = _columns("measured curve", *(measured or ((), ())))
        wide = _columns("predicted curve", *(predicted or ((), (), (), ())))
        keep = _thin_indices(wide[0], also=steps)
        predicted_steps, mean, low, high = (as_numbers(column[keep]) for column in wide)
        known = np.isfinite(losses)
        return cls(
            set_name=set_name,
            measured_steps=as_numbers(steps[known]),
            measured_losses=as_numbers(losses[known]),
            predicted_steps=predicted_steps,
            predicted_mean=mean,
            predicted_low=low,
            predicted_high=high,
            level=level,
        )

    def predicted_at(self, steps: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Mean, low and high at the given steps, by straight lines between the kept points, each shaped as steps."""
        at = np.asarray(steps, dtype=np.float64)
        mean, low, high = (
            np.interp(at, self.predicted_steps, column)
            for column in (self.predicted_mean, self.predicted_low, self.predicted_high)
        )
        return mean, low, high


@dataclass(frozen=True, kw_only=True, slots=True)
class RunView:
    """One training run as the report shows it."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: str
    label: str
    role: Role
    peak_lr: float
    total_steps: int
    batch_tokens: int
    replay_ratio: str
    """In words, because it may change over the run: "12 %", "30 % falling to 5 %"."""
    lr_steps: Numbers = ()
    lr: Numbers = ()
    """Learning rate of the optimiser steps lr_steps (1 is the first), thinned by thin_lr."""
    curves: tuple[SetCurve, ...] = ()

    def __post_init__(self) -> None:
        _check_lengths(f"learning rate of {self.name}", self.lr_steps, self.lr)

    def curve(self, set_name: str) -> SetCurve | None:
        """The curve on one validation set, if the run has it."""
        return next((curve for curve in self.curves if curve.set_name == set_name), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class OutcomeRow:
    """One final number of one run: what was predicted, and what came out once the run is done."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    run: str
    """Name of a RunView."""
    quantity: str
    """loss_general, loss_domain, forgetting_ratio, objective, ..."""
    predicted: float
    low: float
    high: float
    measured: float | None = None

    @property
    def inside(self) -> bool | None:
        """Whether the measured value lies in the interval; None before it is measured."""
        return None if self.measured is None else self.low <= self.measured <= self.high


@dataclass(frozen=True, kw_only=True, slots=True)
class Headline:
    """One number that a reader should take away."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class CostRow:
    """One line of the price, and how the number is known."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    what: str
    value: str
    unit: str
    provenance: Provenance


@dataclass(frozen=True, kw_only=True, slots=True)
class ComputeShare:
    """What one stage of the campaign used. Shares are of flops."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    stage: str
    seconds: float
    tokens: float
    flops: float


@dataclass(frozen=True, kw_only=True, slots=True)
class FitParameter:
    """One parameter of a fitted law; low and high None where the data do not bound it."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class FormRow:
    """One form of the law that was tried on a validation set, with its errors, nats per token."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    form: str
    weight: float
    """What it counts in predictions; the weights of a set sum to 1."""
    in_sample_error: float
    held_out_error: float


@dataclass(frozen=True, kw_only=True, slots=True)
class FitRow:
    """The law of one validation set: the forms that were tried, and the parameters of the one that counts most."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    set_name: str
    law: str
    """The form that counts most."""
    parameters: tuple[FitParameter, ...]
    forms: tuple[FormRow, ...]
    """What counts most first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fact:
    """One thing that a reader needs to repeat the campaign."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    label: str
    value: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportData:
    """The whole report. Everything but title and verdict may be empty: the page then leaves that part out."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    title: str
    verdict: tuple[str, ...]
    """Sentences, the most important first: what was chosen, and whether the prediction held."""
    held: bool | None = None
    """Whether the prediction held; None before the proof runs."""
    objective: str = "weighted loss"
    """The objective in words, such as 0.4 x general + 0.6 x domain."""
    headlines: tuple[Headline, ...] = ()
    plan: tuple[PlanRow, ...] = ()
    account: Account | None = None
    runs: tuple[RunView, ...] = ()
    outcomes: tuple[OutcomeRow, ...] = ()
    surface: Surface | None = None
    pareto: ParetoFront | None = None
    costs: tuple[CostRow, ...] = ()
    compute: tuple[ComputeShare, ...] = ()
    fits: tuple[FitRow, ...] = ()
    fit_notes: tuple[str, ...] = ()
    """What to know of the fit: why these forms, and what the curves cannot tell."""
    warnings: tuple[str, ...] = ()
    facts: tuple[Fact, ...] = ()
    next_commands: tuple[str, ...] = ()
    schema_version: Literal[2] = 2

    def __post_init__(self) -> None:
        names = [run.name for run in self.runs]
        if len(set(names)) < len(names):
            raise ConfigError("runs must have different names; got a repeat in the report data.")
        unknown = {row.run for row in self.outcomes} - set(names)
        if unknown:
            raise ConfigError(f"outcomes must belong to a run; got {sorted(unknown)[0]!r} in the report data.")

    def runs_of(self, *roles: Role) -> tuple[RunView, ...]:
        """Runs of the given roles, in the order of the roles, then of the report."""
        return tuple(run for role in roles for run in self.runs if run.role == role)

    def set_names(self) -> tuple[str, ...]:
        """Validation sets that any run has a curve on, in the order met."""
        return tuple(dict.fromkeys(curve.set_name for run in self.runs for curve in run.curves))

    def drawable(self) -> ReportData:
        """The same report without curves that have no point, and without a surface that has no value."""
        runs = tuple(
            replace(run, curves=tuple(c for c in run.curves if c.measured_steps or c.predicted_steps))
            for run in self.runs
        )
        known = self.surface is not None and any(cell is not None for row in self.surface.objective for cell in row)
        return replace(self, runs=runs, surface=self.surface if known else None)

    def to_json(self) -> dict[str, Any]:
        """JSON values that from_json reads back to an equal report."""
        value: dict[str, Any] = TypeAdapter(ReportData).dump_python(self, mode="json")
        return value

    @classmethod
    def from_json(cls, value: object, where: str = "report.json") -> ReportData:
        """A report from decoded JSON.

        Raises:    ConfigError naming the first broken rule, the value and the field.
        """
        data: ReportData = parse_as(ReportData, value, where)
        return data


def as_numbers(values: ArrayLike) -> Numbers:
    """Any one-dimensional array as a tuple of Python floats."""
    return tuple(float(value) for value in np.asarray(values, dtype=np.float64))


def as_cells(values: ArrayLike) -> tuple[tuple[float | None, ...], ...]:
    """A two-dimensional array as rows of Python floats, None where it is not finite."""
    rows = np.asarray(values, dtype=np.float64)
    return tuple(tuple(float(cell) if np.isfinite(cell) else None for cell in row) for row in rows)


def thin_lr(lr: ArrayLike) -> tuple[Numbers, Numbers]:
    """Steps and rates to draw a schedule from: at most MAX_DRAWN_POINTS, with both ends, the peak and the kinks.

    Args:      lr: learning rate of every optimiser step, shape (steps,).
    Returns:   steps counted from 1, and the rates of those steps, each of shape (points,).
    """
    rates = np.asarray(lr, dtype=np.float64)
    keep = np.arange(len(rates))
    if len(rates) > MAX_DRAWN_POINTS:
        kinks = 1 + np.argsort(np.abs(np.diff(rates, n=2)), kind="stable")[-20:]
        even = np.round(np.linspace(0, len(rates) - 1, MAX_DRAWN_POINTS - 21)).astype(np.int64)
        keep = np.unique(np.concatenate([even, kinks, [int(rates.argmax())]]))
    return as_numbers(keep + 1), as_numbers(rates[keep])


def _thin_indices(steps: NDArray[np.float64], also: NDArray[np.float64]) -> NDArray[np.int64]:
    """Points of a prediction to keep: all if few, else denser early, and those at the steps of also."""
    if len(steps) <= MAX_DRAWN_POINTS // 2:
        return np.arange(len(steps))
    early = np.round(np.linspace(0, 1, MAX_DRAWN_POINTS // 2) ** 2 * (len(steps) - 1)).astype(np.int64)
    return np.unique(np.concatenate([early, np.flatnonzero(np.isin(steps, also))]))


def _columns(what: str, *columns: ArrayLike) -> list[NDArray[np.float64]]:
    arrays = [np.asarray(column, dtype=np.float64) for column in columns]
    _check_lengths(what, *arrays)
    return arrays


def _check_lengths(what: str, *columns: Numbers | NDArray[np.float64]) -> None:
    lengths = [len(column) for column in columns]
    if len(set(lengths)) > 1:
        raise ConfigError(f"{what} must have columns of one length; got {lengths} in the report data.")
