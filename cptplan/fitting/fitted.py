"""A fitted law with its uncertainty: draws of the parameters, and what the law is known to miss.

Two parts make an interval. Draws: the fit repeated under random curve weights (Bayesian bootstrap over whole curves,
Rubin 1981), because points of one curve are not independent. Discrepancy: a law is never exact; how far it misses
pilots that were left out of the fit is measured, and is assumed to grow once a run goes on past the pilots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student_t

from cptplan.fitting.separable import Solution, predict, solve
from cptplan.fitting.support import Support
from cptplan.laws.history import Observations, RunHistory
from cptplan.laws.protocol import Law

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

NUM_DRAWS = 64
RATE_BANDWIDTH = 0.5  # assumed: pilots within a factor of e^0.5 of a rate speak for it
GROWTH_PER_DOUBLING = 0.15  # set on 18 real runs and 36 virtual campaigns; checked in reports/benchmarks on others
MANY_CURVES, STRETCHES = 6, 4  # assumed: fewer whole curves make a poor bootstrap; stretches stand in
FLOOR_SHARE = 0.5  # assumed: part of the held-out error that no draw explains away
LATE_SHARE = 0.5  # points after this share of a pilot judge it: the plan is about ends, not about transients


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """Predicted loss after each step: mean and interval, nats per token, each of shape (points,)."""

    mean: FloatArray
    low: FloatArray
    high: FloatArray
    level: float


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """How far the law misses one pilot when it was fitted to the others."""

    curve: str
    peak_lr: float
    late_error: float
    """Root mean square of the relative error over the later half."""
    end_error: float
    """Relative error at the last point, predicted / measured - 1."""
    late_spread: float
    """Root mean square of the relative standard deviation of the draws over the later half."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FittedLaw:
    """The law of one validation set, ready to predict."""

    set_name: str
    law: Law
    best: Solution
    draws: tuple[Solution, ...]
    held_out: tuple[HeldOut, ...]
    in_sample_error: float
    """Root mean square of the relative residuals of the fit."""
    transient_error: float
    """Root mean square of the relative residuals of the CPT points before settled_step, which are not fitted."""
    settled_step: int
    """First CPT step that was fitted."""
    support: Support
    """What the curves that judge span."""
    noise: float
    """Relative standard deviation of one measured loss around a smooth curve."""

    @property
    def discrepancy(self) -> float:
        """Relative standard deviation of what the law misses late in an unseen run as long as the pilots."""
        return rms([h.late_error for h in self.held_out]) if self.held_out else self.in_sample_error

    def discrepancy_near(self, peak_lr: float) -> float:
        """What the law misses in runs at a peak rate, beyond what the draws already say, as a relative deviation.

        Held-out errors less the spread of the draws, weighted by how near the pilots' rates are: at high rates the loss
        is noisier and the law misses more; weights are a normal kernel over the logarithm. A law is never exact, so at
        least FLOOR_SHARE of the held-out error stays.
        Args:      peak_lr: dimensionless, > 0.
        """
        if not self.held_out:
            return self.in_sample_error
        distance = np.log(np.array([h.peak_lr for h in self.held_out]) / peak_lr) / RATE_BANDWIDTH
        weights = np.exp(-0.5 * distance**2) + 1e-3  # far from all pilots, all count alike
        weights /= weights.sum()
        missed = float(weights @ np.array([h.late_error**2 for h in self.held_out]))
        known = float(weights @ np.array([h.late_spread**2 for h in self.held_out]))
        return float(np.sqrt(max(missed - known, FLOOR_SHARE**2 * missed)))

    def mean(self, history: RunHistory, steps: IntArray) -> FloatArray:
        """Best prediction after each of the steps, nats per token, shape (points,)."""
        return predict(self.law, self.best, history, steps)

    def sample(self, history: RunHistory, steps: IntArray, seed: int = 0) -> FloatArray:
        """Possible curves of the run, discrepancy included, nats per token, shape (draws, points).

        The discrepancy of one draw is one relative offset for the whole curve, from a Student t with as many degrees of
        freedom as held-out pilots less one; it fades in with the shift, since the loss before training is known.
        """
        curves = np.stack([predict(self.law, draw, history, steps) for draw in self.draws])
        rng = np.random.default_rng(seed)
        freedom = max(len(self.held_out) - 1, 2)
        # one offset from each slice of the t distribution, so that the tails do not hang on a few lucky draws
        slices = (rng.permutation(len(self.draws)) + 0.5) / len(self.draws)
        offsets = student_t.ppf(slices, freedom)
        return curves * (1.0 + offsets[:, None] * self._discrepancy_along(history, steps))

    def predict(
        self, history: RunHistory, steps: IntArray, level: float = 0.9, seed: int = 0, *, measured: bool = False
    ) -> Prediction:
        """Mean and central interval of the run's loss after each step.

        Args:      history: rates and shares of the run. steps: finished steps, shape (points,). level: such as 0.9.
                   measured: the interval of a measured value, with the noise of one evaluation, not of the mean curve.
        """
        sampled = self.sample(history, steps, seed)
        if measured:
            rng = np.random.default_rng([seed, 1])
            sampled = sampled * (1.0 + self.noise * rng.standard_normal(sampled.shape))
        tail = 50.0 * (1.0 - level)
        low, high = np.percentile(sampled, [tail, 100.0 - tail], axis=0)
        mean = self.mean(history, steps)
        return Prediction(mean=mean, low=np.minimum(low, mean), high=np.maximum(high, mean), level=level)

    def _discrepancy_along(self, history: RunHistory, steps: IntArray) -> FloatArray:
        """Relative standard deviation of what the law misses along a run, shape (points,).

        Nothing before training, the transient's error until it settles, the held-out error at the pilots' length, and
        beyond it 15 % more for each doubling of the steps or of the area, whichever is further out.
        """
        area = np.concatenate([[0.0], np.cumsum(history.lr / self.law.reference_lr)])[steps]
        further = np.maximum(area / max(self.support.longest_area, 1e-12), steps / max(self.support.longest_steps, 1))
        beyond = np.log2(np.maximum(further, 1.0))
        near = self.discrepancy_near(float(history.lr.max()))
        settled = np.full(len(steps), near) * (1.0 + GROWTH_PER_DOUBLING * beyond)
        if history.phase == "pretrain":
            return settled
        extra = max(self.transient_error - near, 0.0)
        fading = np.clip(2.0 - steps / max(self.settled_step, 1), 0.0, 1.0)  # 1 until settled, 0 at twice that
        return np.where(steps == 0, 0.0, settled + extra * fading)


def draw(
    law: Law,
    set_name: str,
    data: Sequence[Observations],
    best: Solution,
    held_out: tuple[HeldOut, ...],
    *,
    support: Support,
    transient: Sequence[Observations] = (),
    settled_step: int = 0,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
) -> FittedLaw:
    """The fitted law with draws of its parameters: the fit repeated from the best one under random curve weights.

    Args:      data: the points that were fitted. transient: the CPT points before settled_step, which were not.
    """
    rng = np.random.default_rng(seed)
    draws = tuple(solve(law, data, point_weights=_bootstrap_weights(rng, data), start=best) for _ in range(num_draws))
    by_name = {d.name: d for d in data}
    return FittedLaw(
        set_name=set_name,
        law=law,
        best=best,
        draws=draws,
        held_out=tuple(replace(h, late_spread=_late_spread(law, draws, by_name[h.curve])) for h in held_out),
        in_sample_error=in_sample_error(law, best, data),
        transient_error=in_sample_error(law, best, transient) if transient else 0.0,
        settled_step=settled_step,
        support=support,
        noise=point_noise(law, best, data),
    )


def targets(data: Sequence[Observations]) -> tuple[Observations, ...]:
    """The curves that a law is judged by: those of CPT, or all when there is none."""
    return tuple(d for d in data if d.history.phase == "cpt") or tuple(data)


def _late_spread(law: Law, draws: Sequence[Solution], points: Observations) -> float:
    late = points.steps[points.steps >= LATE_SHARE * points.steps[-1]]
    curves = np.stack([predict(law, drawn, points.history, late) for drawn in draws])
    return rms(curves.std(axis=0) / curves.mean(axis=0))


def point_noise(law: Law, solution: Solution, data: Sequence[Observations]) -> float:
    """Relative standard deviation of single points, from the differences of neighbouring residuals (median, robust)."""
    jumps = [np.diff(predict(law, solution, d.history, d.steps) / d.loss) for d in data if len(d.loss) > 2]
    if not jumps:
        return 0.0
    return float(1.4826 * np.median(np.abs(np.concatenate(jumps))) / np.sqrt(2.0))


def in_sample_error(law: Law, solution: Solution, data: Sequence[Observations]) -> float:
    """Root mean square of the relative residuals over all points."""
    return rms(np.concatenate([predict(law, solution, d.history, d.steps) / d.loss - 1.0 for d in data]))


def rms(values: ArrayLike) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(values))))


def _bootstrap_weights(rng: np.random.Generator, data: Sequence[Observations]) -> list[FloatArray]:
    """Random weights of mean 1 for the points: one for each curve, or for each stretch of one when curves are few."""
    stretches = 1 if len(data) >= MANY_CURVES else STRETCHES
    drawn = rng.standard_exponential((len(data), stretches))
    drawn *= drawn.size / drawn.sum()
    return [
        weights[np.minimum(np.arange(len(d.loss)) * stretches // len(d.loss), stretches - 1)]
        for weights, d in zip(drawn, data, strict=True)
    ]


def held_out_errors(law: Law, data: Sequence[Observations], start: Solution) -> tuple[HeldOut, ...]:
    """Leave each curve that judges out in turn, fit the others, and see how far its later half is missed."""
    judges = targets(data)
    if len(judges) < 2:
        return ()
    found: list[HeldOut] = []
    for left_out in judges:
        others = [d for d in data if d is not left_out]
        solution = solve(law, others, start=start)
        relative = predict(law, solution, left_out.history, left_out.steps) / left_out.loss - 1.0
        late = left_out.steps >= LATE_SHARE * left_out.steps[-1]
        found.append(
            HeldOut(
                curve=left_out.name,
                peak_lr=float(left_out.history.lr.max()),
                late_error=rms(relative[late]),
                end_error=float(relative[-1]),
                late_spread=0.0,
            )
        )
    return tuple(found)
