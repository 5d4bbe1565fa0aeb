"""Dynamics of continual pre-training: critical point, turning length, loss potential, replay against weight.

All of it follows from the laws of the validation sets for one schedule and horizon, with intervals from the draws of a
fit (a published law has no draws, so its intervals are points). Definitions: arXiv:2505.07796, 3.3, 4.4 and 5.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cptplan.errors import ConfigError
from cptplan.fitting.fitted import OWN_SHARE, FittedLaw
from cptplan.laws.cpt import CptLaw
from cptplan.laws.history import RunHistory
from cptplan.planning.forecast import Interval
from cptplan.planning.limit import at_limit
from cptplan.simulation.known_law import LossModel

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
State = Literal["below", "returns", "beyond", "never"]

GENERAL, WEIGHTED = "general", "weighted"
POINTS = 240  # of a curve, half of them spaced evenly and half by their logarithm
REPLAY_POINTS = 33  # tried along the replay range, denser at little replay, where forgetting is steepest
REPLAY_WEIGHTS = tuple(round(0.05 * number, 2) for number in range(1, 20))


@runtime_checkable
class _Uncertain(Protocol):
    """A law with draws."""

    def sample(self, history: RunHistory, steps: IntArray, seed: int = 0) -> FloatArray:
        """Possible curves, shape (draws, points)."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One schedule and horizon with the laws that judge it."""

    laws: Mapping[str, LossModel]
    """By validation set; "general" is among them."""
    weights: Mapping[str, float]
    """By validation set, sum 1."""
    history: Callable[[str, float], RunHistory]
    """The run from a start at a replay ratio."""
    start: str
    """Name of the checkpoint that CPT begins from."""
    others: tuple[str, ...] = ()
    """Checkpoints that it could begin from instead."""
    replay_ratio: float
    replay_range: tuple[float, float]
    """Ratios that the laws hold for; equal ends where there is only one."""
    level: float = 0.9


@dataclass(frozen=True, kw_only=True, slots=True)
class Band:
    """A curve with its interval, each of shape (points,)."""

    mean: FloatArray
    low: FloatArray
    high: FloatArray


@dataclass(frozen=True, kw_only=True, slots=True)
class CriticalPoint:
    """Where a loss goes when CPT goes on for ever; begun below it, a run never regains its first loss."""

    asymptote: Interval
    """Without any credit for annealing, as published: L0 + B h(r), nats per token."""
    limit: Interval
    """With the annealing of pre-training and of this schedule paid in full: what the start is held against."""
    start: Interval
    """Loss at step 0 by the law."""
    post_critical: float
    """Share of the draws in which the start lies below the limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Turning:
    """When a loss that CPT raised is back at its first value."""

    state: State
    """below: never above its first value; returns: within the horizon; beyond: after it; never: post-critical."""
    steps: Interval
    """Optimiser steps; 0 when never above, infinite when not back within the horizon."""
    within_horizon: float
    """Share of the draws in which it is back, or never was above."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StartEffect:
    """What another start would change in the final losses, nats per token."""

    start: str
    losses: Mapping[str, Interval]
    weighted: Interval


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayChoice:
    """The replay ratio that suits a weight of general loss."""

    general_weight: float
    replay_ratio: Interval


@dataclass(frozen=True, kw_only=True, slots=True)
class Dynamics:
    """What the laws say of one schedule and horizon. Changes are against step 0 of the same start."""

    steps: IntArray
    """Finished optimiser steps of the curves, shape (points,)."""
    changes: Mapping[str, Band]
    """Change of loss by validation set and "weighted", nats per token."""
    critical: Mapping[str, CriticalPoint]
    turning: Mapping[str, Turning]
    """By validation set and "weighted"."""
    break_even_weight: Interval
    """Largest weight of general loss at which the whole run pays."""
    starts: tuple[StartEffect, ...]
    replay: tuple[ReplayChoice, ...]
    """Empty where the laws hold for one ratio only."""
    notes: tuple[str, ...]
    """Where the run leaves what the laws were fitted to."""


def study(setting: Setting) -> Dynamics:
    """The dynamics of a setting.

    Raises:    ConfigError if a law is none of CPT, or knows no general loss.
    """
    if GENERAL not in setting.laws:
        raise ConfigError(
            f"laws must hold one of loss_general; got {', '.join(setting.laws)}.", hint="fit curves that have it"
        )
    history = setting.history(setting.start, setting.replay_ratio)
    steps = step_grid(len(history.lr))
    means, draws = _losses(setting, history, steps)
    changes = {name: values - values[:, :1] for name, values in draws.items()}
    centre = {name: values - values[0] for name, values in means.items()}
    critical = {name: critical_point(setting, name, history) for name in setting.laws}
    turning = {
        name: _turning(steps, centre[name], changes[name], setting.level, post=_post(name, setting, critical))
        for name in centre
    }
    return Dynamics(
        steps=steps,
        changes={name: _band(centre[name], changes[name], setting.level) for name in centre},
        critical=critical,
        turning=turning,
        break_even_weight=interval(
            float(_break_even(_ends(centre), setting.weights)),
            _break_even({name: values[:, -1] for name, values in changes.items()}, setting.weights),
            setting.level,
        ),
        starts=tuple(start_effect(setting, name) for name in setting.others),
        replay=replay_by_weight(setting),
        notes=_notes(setting.laws, history),
    )


def step_grid(total_steps: int, points: int = POINTS) -> IntArray:
    """Finished steps to look at, from 0: half spaced evenly and half by their logarithm, shape (<= points,)."""
    even = np.linspace(0, total_steps, points // 2)
    early = np.geomspace(1, max(total_steps, 1), points // 2)
    return np.unique(np.round(np.concatenate([even, early])).astype(np.int64))


def turning_lengths(steps: IntArray, change: ArrayLike) -> FloatArray:
    """Steps until each curve that rose above its first value is back at it: min{t : L(t) <= L(0), L > L(0) before}.

    Args:      steps: rising, the first is 0, shape (points,). change: loss less its first value, nats per token, shape
               (curves, points) or (points,).
    Returns:   by straight lines between the points, shape (curves,): 0 where the curve is never above, infinite where
               it is above at its last point and was not back before.
    Reference: arXiv:2505.07796, 4.4, the least number of steps; deviation: a dip before the rise is no return.
    """
    found = []
    for curve in np.atleast_2d(np.asarray(change, dtype=np.float64)):
        above = np.flatnonzero(curve > 0.0)
        if not len(above):
            found.append(0.0)
            continue
        back = np.flatnonzero(curve[above[0] :] <= 0.0)
        if not len(back):
            found.append(np.inf)
            continue
        at = above[0] + back[0]
        left, right = curve[at - 1], curve[at]
        found.append(float(steps[at - 1] + (steps[at] - steps[at - 1]) * left / (left - right)))
    return np.array(found)


def critical_point(setting: Setting, set_name: str, history: RunHistory) -> CriticalPoint:
    """Where the loss of a set goes: L(inf) = L0 + B h(r) - C1 S2_pt(inf) - C2 S2_cpt(inf).

    Raises:    ConfigError if the law is none of CPT.
    Reference: arXiv:2505.07796, 4.4; deviation: start and limit both keep the credit of annealing, so that a run turns
               if and only if its start lies above the limit (of a constant rate, exactly).
    """
    model, seed = setting.laws[set_name], list(setting.laws).index(set_name)
    if not isinstance(model.law, CptLaw):
        raise ConfigError(
            f"law must be one of CPT; got {model.law.name} for loss_{set_name}.", hint="fit with --law cpt or auto"
        )
    end = np.array([len(history.lr)])
    found: dict[str, tuple[float, FloatArray]] = {}
    for name, judge, steps in (
        ("asymptote", at_limit(model, annealed=False), end),
        ("limit", at_limit(model, annealed=True), end),
        ("start", model, np.array([0])),
    ):
        found[name] = float(judge.mean(history, steps)[0]), draw(judge, history, steps, seed)[:, 0]
    return CriticalPoint(
        **{name: interval(mean, values, setting.level) for name, (mean, values) in found.items()},
        post_critical=float(np.mean(found["start"][1] < found["limit"][1])),
    )


def start_effect(setting: Setting, other: str) -> StartEffect:
    """Final losses from another start less those from the setting's, at the same schedule and replay ratio."""
    there, here = (setting.history(start, setting.replay_ratio) for start in (other, setting.start))
    losses, weighted = difference(setting.laws, there, here, setting.weights, setting.level)
    return StartEffect(start=other, losses=losses, weighted=weighted)


def difference(
    laws: Mapping[str, LossModel], there: RunHistory, here: RunHistory, weights: Mapping[str, float], level: float = 0.9
) -> tuple[dict[str, Interval], Interval]:
    """Final losses of one run less those of another, nats per token, by set and weighted.

    What the fits do not know moves both runs alike; what each run has of its own does not, and is added.
    """
    means: dict[str, float] = {}
    draws: dict[str, FloatArray] = {}
    for number, (name, model) in enumerate(laws.items()):
        first, second = np.array([len(there.lr)]), np.array([len(here.lr)])
        one, two = float(model.mean(there, first)[0]), float(model.mean(here, second)[0])
        shared = draw(model, there, first, number)[:, 0] - draw(model, here, second, number)[:, 0]
        own = np.random.default_rng([3, number]).standard_normal(len(shared))
        means[name] = one - two
        draws[name] = shared + own_error(model) * np.hypot(one, two) * own
    weighted = interval(float(_weigh(means, weights)), np.asarray(_weigh(draws, weights)), level)
    return {name: interval(means[name], draws[name], level) for name in means}, weighted


def replay_by_weight(setting: Setting, weights: Sequence[float] = REPLAY_WEIGHTS) -> tuple[ReplayChoice, ...]:
    """The replay ratio with the least weighted final loss, for each weight w of general loss.

    argmin_r w G(r) + (1 - w) D(r), where D weighs the other sets as the setting does. A parabola through the best ratio
    tried and its neighbours places the optimum between them.
    Reference: arXiv:2505.07796, 5.1 and figure 8c, where from scratch it would be r = w.
    """
    low, high = setting.replay_range
    if high - low < 1e-9:
        return ()
    position = np.linspace(0.0, 1.0, REPLAY_POINTS)  # the ratio's place is the square of it
    means: dict[str, list[float]] = {name: [] for name in setting.laws}
    draws: dict[str, list[FloatArray]] = {name: [] for name in setting.laws}
    for ratio in low + (high - low) * position**2:
        history = setting.history(setting.start, float(ratio))
        end = np.array([len(history.lr)])
        for number, (name, model) in enumerate(setting.laws.items()):
            means[name].append(float(model.mean(history, end)[0]))
            draws[name].append(draw(model, history, end, number)[:, 0])
    tables = {name: np.vstack([means[name], np.column_stack(draws[name])]) for name in setting.laws}
    general, domain = tables[GENERAL], _domain_part(tables, setting.weights)
    chosen = []
    for weight in weights:
        best = low + (high - low) * _argmin(position, weight * general + (1.0 - weight) * domain) ** 2
        chosen.append(
            ReplayChoice(general_weight=weight, replay_ratio=interval(float(best[0]), best[1:], setting.level))
        )
    return tuple(chosen)


def draw(model: LossModel, history: RunHistory, steps: IntArray, seed: int) -> FloatArray:
    """Possible losses after each of the steps, shape (draws, points); one, the mean, where a law has no draws."""
    if isinstance(model, _Uncertain):
        return model.sample(history, steps, seed)
    return model.mean(history, steps)[None, :]


def own_error(model: LossModel) -> float:
    """Relative error that a run has of its own, beyond what its law does not know; 0 for a law without draws."""
    return OWN_SHARE * float(np.hypot(model.noise, model.discrepancy)) if isinstance(model, FittedLaw) else 0.0


def interval(mean: float, values: ArrayLike, level: float) -> Interval:
    """A number with the central interval of its draws, infinite ones included, the mean inside."""
    tail = 0.5 * (1.0 - level)
    low, high = np.quantile(np.asarray(values, dtype=np.float64), [tail, 1.0 - tail], method="inverted_cdf")
    return Interval(mean=mean, low=min(float(low), mean), high=max(float(high), mean))


def _losses(
    setting: Setting, history: RunHistory, steps: IntArray
) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
    """Mean curve and draws by validation set, and of the weighted loss."""
    means, draws = {}, {}
    for number, (name, model) in enumerate(setting.laws.items()):
        means[name] = np.asarray(model.mean(history, steps))
        draws[name] = draw(model, history, steps, number)
    means[WEIGHTED], draws[WEIGHTED] = (np.asarray(_weigh(parts, setting.weights)) for parts in (means, draws))
    return means, draws


def _weigh(values: Mapping[str, Any], weights: Mapping[str, float]) -> Any:
    """Weighted sum over the sets; of mean and draws alike."""
    return sum(weight * values[name] for name, weight in weights.items() if name in values)


def _domain_part(values: Mapping[str, Any], weights: Mapping[str, float]) -> Any:
    """What stands against general loss: the other sets in the proportion of their weights, or alike when all are 0."""
    others = [name for name in values if name not in (GENERAL, WEIGHTED)]
    whole = sum(weights.get(name, 0.0) for name in others)
    shares = {name: weights.get(name, 0.0) / whole if whole > 0 else 1.0 / len(others) for name in others}
    return _weigh(values, shares)


def _break_even(changes: Mapping[str, Any], weights: Mapping[str, float]) -> FloatArray:
    """Weight w in [0, 1] at which w G + (1 - w) D = 0, with G, D the changes of general and domain loss."""
    general = np.asarray(changes[GENERAL], dtype=np.float64)
    domain = np.asarray(_domain_part(changes, weights), dtype=np.float64)
    rises = general > 0.0
    gap = np.where(rises & (domain < 0.0), domain - general, -1.0)
    return np.where(rises, np.where(domain < 0.0, domain / gap, 0.0), np.where(domain <= 0.0, 1.0, 0.0))


def _ends(curves: Mapping[str, FloatArray]) -> dict[str, float]:
    return {name: float(curve[-1]) for name, curve in curves.items()}


def _post(name: str, setting: Setting, critical: Mapping[str, CriticalPoint]) -> bool:
    """Whether the mean loss (or its weighted sum) starts below where it goes."""
    rise = {one: point.limit.mean - point.start.mean for one, point in critical.items()}
    return bool((_weigh(rise, setting.weights) if name == WEIGHTED else rise[name]) > 0.0)


def _turning(steps: IntArray, centre: FloatArray, changes: FloatArray, level: float, *, post: bool) -> Turning:
    mean, lengths = float(turning_lengths(steps, centre)[0]), turning_lengths(steps, changes)
    state: State = "below" if mean == 0.0 else "returns"
    if not np.isfinite(mean):
        state = "never" if post else "beyond"
    return Turning(
        state=state, steps=interval(mean, lengths, level), within_horizon=float(np.mean(np.isfinite(lengths)))
    )


def _band(mean: FloatArray, draws: FloatArray, level: float) -> Band:
    tail = 50.0 * (1.0 - level)
    low, high = np.percentile(draws, [tail, 100.0 - tail], axis=0)
    return Band(mean=mean, low=np.minimum(low, mean), high=np.maximum(high, mean))


def _argmin(position: FloatArray, table: FloatArray) -> FloatArray:
    """Place of the least value of each row, by a parabola through it and its neighbours, shape (rows,)."""
    at = np.argmin(table, axis=1)
    inner = np.clip(at, 1, len(position) - 2)
    rows = np.arange(len(table))
    left, here, right = (table[rows, inner + offset] for offset in (-1, 0, 1))
    curvature = left - 2.0 * here + right
    step = position[1] - position[0]
    move = np.where(curvature > 0.0, 0.5 * (left - right) / np.where(curvature > 0.0, curvature, 1.0), 0.0)
    between = position[inner] + step * np.clip(move, -1.0, 1.0)
    return np.asarray(np.where(at == inner, between, position[at]))


def _notes(laws: Mapping[str, LossModel], history: RunHistory) -> tuple[str, ...]:
    found: list[str] = []
    for model in laws.values():
        if isinstance(model, FittedLaw):
            found += model.support.flags(history, model.law.reference_lr)
    return tuple(dict.fromkeys(found))
