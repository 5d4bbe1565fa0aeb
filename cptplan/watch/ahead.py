"""Where a run goes from here: its curve and its end, as it runs or in any other way, from the law and its points."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cptplan.laws.history import RunHistory
from cptplan.planning.forecast import Interval
from cptplan.planning.plan import Expected, Plan
from cptplan.watch.alarm import Verdict
from cptplan.watch.model import CurveModel, Points
from cptplan.watch.options import ways_on
from cptplan.watch.view import Option, SetView

FloatArray = NDArray[np.float64]
Price = Callable[[int], tuple[float | None, float | None]]
"""Device hours and money of so many training tokens; None where they are not known."""

NONE = Points(steps=np.zeros(0, dtype=np.int64), loss=np.zeros(0))
GRID = 120  # points of a drawn band
LIKELY = 0.5  # share of the evidence from which on a cause is taken for true


@dataclass(frozen=True, kw_only=True, slots=True)
class Ahead:
    """A run with what is known of it."""

    plan: Plan
    models: Mapping[str, CurveModel]
    """By validation set, as the run makes them look."""
    history: RunHistory
    """What the run is taken to do."""
    points: Mapping[str, Points]
    """Measured, usable."""
    price: Price

    def view(self, planned_model: CurveModel, planned: RunHistory, measured: Points, end: Expected) -> SetView:
        """One validation set beside the plan.

        Args:      planned_model, planned: before the run. measured: every point of the set. end: as the plan has it.
        """
        name, level = planned_model.law.set_name, self.plan.level
        total, last_step = len(self.history.lr), len(planned.lr)
        settled = min(planned_model.law.settled_step, last_step)
        steps = np.unique(np.concatenate([np.linspace(settled, last_step, GRID).astype(np.int64), [last_step]]))
        band = planned_model.sample(planned, NONE, planned, steps, seed=self._seed(name), measured=True)
        low, high = _tails(band, level)
        last = int(measured.steps[-1]) if len(measured.steps) else 0
        rest = np.unique(np.linspace(min(max(last, settled), total), total, GRID // 2).astype(np.int64))
        coming = self.models[name].sample(self.history, self._seen(name), self.history, rest, seed=self._seed(name))
        rest_low, rest_high = _tails(coming, level)
        return SetView(
            steps=steps,
            mean=planned_model.law.mean(planned, steps),
            low=low,
            high=high,
            measured=measured,
            ahead=rest,
            ahead_mean=coming.mean(axis=0),
            ahead_low=rest_low,
            ahead_high=rest_high,
            planned_end=as_interval(end),
            now_end=_interval(self.draws(name, self.history), level),
        )

    def draws(self, name: str, coming: RunHistory) -> FloatArray:
        """Last losses of a set if the run goes on in some way, nats per token, shape (draws,); measured if it is there.

        Args:      coming: the whole run then, which until now is history.
        """
        seen, end = self._seen(name), len(coming.lr)
        if coming is self.history and end in seen.steps:
            return np.full(1, float(seen.loss[-1]))
        return self.models[name].sample(self.history, seen, coming, np.array([end]), seed=self._seed(name))[:, 0]

    def objective(self) -> Interval:
        """Weighted change of loss against the base model if the run goes on as it does, nats per token."""
        return self._weighted({name: self.draws(name, self.history) for name in self.models})

    def _weighted(self, draws: Mapping[str, FloatArray]) -> Interval:
        base, weights = self.plan.base_losses, self.plan.weights
        drawn = {name: values for name, values in draws.items() if weights.get(name, 0.0) > 0}
        size = max(len(values) for values in drawn.values())
        rng = np.random.default_rng(7)
        # draws come sorted by the scale of their spread: sets are independent of each other, so their orders must be
        mixed = {name: rng.permutation(np.resize(values, size)) for name, values in drawn.items()}
        total = sum(weights[name] * (values - base[name]) for name, values in mixed.items())
        return _interval(np.asarray(total), self.plan.level)

    def options(self, done: int, decay_share: float) -> Iterable[Option]:
        """Going on, annealing now, more replay, a lower rate, stopping: what each would give and cost.

        Args:      done: steps. decay_share: of an annealed run's steps.
        """
        for name, coming in ways_on(self.history, done, decay_share).items():
            total, batch = len(coming.lr), self.plan.batch_tokens
            left = max(total - done, 0) * batch
            hours, usd = self.price(left) if left else (0.0, 0.0)
            draws = {one: self.draws(one, coming) for one in self.models}
            yield Option(
                name=name,
                total_steps=total,
                losses={one: _interval(values, self.plan.level) for one, values in draws.items()},
                objective=self._weighted(draws),
                tokens_left=left,
                tokens_saved=(len(self.history.lr) - total) * batch,
                gpu_hours_left=hours,
                usd_left=usd,
            )

    def _seen(self, name: str) -> Points:
        return self.points.get(name, NONE)

    def _seed(self, name: str) -> int:
        return list(self.models).index(name)


def look_ahead(
    plan: Plan,
    models: Mapping[str, CurveModel],
    history: RunHistory,
    points: Mapping[str, Points],
    verdict: Verdict,
    price: Price,
) -> Ahead:
    """A run as it says it runs; after an alarm as its likely cause says.

    Where nothing known is likely the law counts less, and the points more.
    """
    if verdict.alarm_step is not None:
        best = verdict.causes[0]
        if best.rival is None or best.share < LIKELY:
            models = {name: model.loosened(history, points.get(name, NONE)) for name, model in models.items()}
        else:
            gains, history = best.rival.gains, best.rival.history
            models = {name: replace(model, gain=gains.get(name, 1.0)) for name, model in models.items()}
    return Ahead(plan=plan, models=models, history=history, points=points, price=price)


def as_interval(expected: Expected) -> Interval:
    """An interval as the plan stores it."""
    return Interval(mean=expected.mean, low=expected.low, high=expected.high)


def _tails(draws: FloatArray, level: float) -> tuple[FloatArray, FloatArray]:
    low, high = np.percentile(draws, [50.0 * (1.0 - level), 50.0 * (1.0 + level)], axis=0)
    return low, high


def _interval(draws: FloatArray, level: float) -> Interval:
    low, high = _tails(draws, level)
    return Interval(mean=float(draws.mean()), low=float(low), high=float(high))
