"""A fitted law with its uncertainty: draws of the parameters, and what the law is known to miss.

Two parts make an interval. Draws: the fit repeated under random curve weights (Bayesian bootstrap over whole curves,
Rubin 1981), because points of one curve are not independent. Discrepancy: a law is never exact; how far it misses
pilots that were left out of the fit is measured, and is assumed to grow once a run goes on past the pilots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student_t

from cptplan.fit.separable import Solution, predict, solve
from cptplan.laws.cpt import CptLaw
from cptplan.laws.history import Observations, RunHistory

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

NUM_DRAWS = 64
RATE_BANDWIDTH = 0.5  # assumed: pilots within a factor of e^0.5 of a rate speak for it
GROWTH_PER_DOUBLING = 0.5  # assumed; checked on runs three times as long in experiments/01_predict_longer
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


@dataclass(frozen=True, kw_only=True, slots=True)
class FittedLaw:
    """The law of one validation set, ready to predict."""

    set_name: str
    law: CptLaw
    best: Solution
    draws: tuple[Solution, ...]
    held_out: tuple[HeldOut, ...]
    in_sample_error: float
    """Root mean square of the relative residuals of the fit."""
    transient_error: float
    """Root mean square of the relative residuals of the CPT points before settled_step, which are not fitted."""
    settled_step: int
    """First CPT step that was fitted."""
    longest_area: float
    """Largest CPT area among the pilots, in steps at the reference rate."""
    longest_steps: int
    """Most optimiser steps of a pilot."""

    @property
    def discrepancy(self) -> float:
        """Relative standard deviation of what the law misses late in an unseen run as long as the pilots."""
        return rms([h.late_error for h in self.held_out]) if self.held_out else self.in_sample_error

    def discrepancy_near(self, peak_lr: float) -> float:
        """The discrepancy of runs at a peak rate: held-out errors weighted by how near the pilots' rates are.

        At high rates the loss is noisier and the law misses more; weights are a normal kernel over the logarithm.
        Args:      peak_lr: dimensionless, > 0.
        """
        if not self.held_out:
            return self.in_sample_error
        distance = np.log(np.array([h.peak_lr for h in self.held_out]) / peak_lr) / RATE_BANDWIDTH
        weights = np.exp(-0.5 * distance**2) + 1e-3  # far from all pilots, all count alike
        squares = np.array([h.late_error**2 for h in self.held_out])
        return float(np.sqrt(np.sum(weights * squares) / np.sum(weights)))

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

    def predict(self, history: RunHistory, steps: IntArray, level: float = 0.9, seed: int = 0) -> Prediction:
        """Mean and central interval of the run's loss after each step.

        Args:      history: rates and shares of the run. steps: finished steps, shape (points,). level: such as 0.9.
        """
        sampled = self.sample(history, steps, seed)
        tail = 50.0 * (1.0 - level)
        low, high = np.percentile(sampled, [tail, 100.0 - tail], axis=0)
        mean = self.mean(history, steps)
        return Prediction(mean=mean, low=np.minimum(low, mean), high=np.maximum(high, mean), level=level)

    def _discrepancy_along(self, history: RunHistory, steps: IntArray) -> FloatArray:
        """Relative standard deviation of what the law misses along a run, shape (points,).

        Nothing before training, the transient's error until it settles, the held-out error at the pilots' length, and
        beyond it half as much again for each doubling of the steps or of the area, whichever is further out.
        """
        area = np.concatenate([[0.0], np.cumsum(history.lr / self.law.reference_lr)])[steps]
        further = np.maximum(area / max(self.longest_area, 1e-12), steps / max(self.longest_steps, 1))
        beyond = np.log2(np.maximum(further, 1.0)) if history.phase == "cpt" else 0.0
        near = self.discrepancy_near(float(history.lr.max()))
        settled = np.full(len(steps), near) * (1.0 + GROWTH_PER_DOUBLING * beyond)
        if history.phase == "pretrain":
            return settled
        extra = max(self.transient_error - near, 0.0)
        fading = np.clip(2.0 - steps / max(self.settled_step, 1), 0.0, 1.0)  # 1 until settled, 0 at twice that
        return np.where(steps == 0, 0.0, settled + extra * fading)


def draw(
    law: CptLaw,
    set_name: str,
    data: Sequence[Observations],
    best: Solution,
    held_out: tuple[HeldOut, ...],
    *,
    transient: Sequence[Observations] = (),
    settled_step: int = 0,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
) -> FittedLaw:
    """The fitted law with draws of its parameters: the fit repeated from the best one under random curve weights.

    Args:      data: the points that were fitted. transient: the CPT points before settled_step, which were not.
    """
    rng = np.random.default_rng(seed)
    draws = tuple(solve(law, data, curve_weights=_bootstrap_weights(rng, data), start=best) for _ in range(num_draws))
    pilots = [d for d in data if d.history.phase == "cpt"]
    return FittedLaw(
        set_name=set_name,
        law=law,
        best=best,
        draws=draws,
        held_out=held_out,
        in_sample_error=in_sample_error(law, best, data),
        transient_error=in_sample_error(law, best, transient) if transient else 0.0,
        settled_step=settled_step,
        longest_area=max((float(np.sum(d.history.lr)) / law.reference_lr for d in pilots), default=0.0),
        longest_steps=max((int(d.steps[-1]) for d in pilots), default=0),
    )


def in_sample_error(law: CptLaw, solution: Solution, data: Sequence[Observations]) -> float:
    """Root mean square of the relative residuals over all points."""
    return rms(np.concatenate([predict(law, solution, d.history, d.steps) / d.loss - 1.0 for d in data]))


def rms(values: ArrayLike) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(values))))


def _bootstrap_weights(rng: np.random.Generator, data: Sequence[Observations]) -> FloatArray:
    weights = rng.standard_exponential(len(data))
    return np.asarray(weights * len(data) / weights.sum())


def held_out_errors(law: CptLaw, data: Sequence[Observations], start: Solution) -> tuple[HeldOut, ...]:
    """Leave each CPT curve out in turn, fit the others, and see how far its later half is missed."""
    found: list[HeldOut] = []
    for left_out in data:
        if left_out.history.phase != "cpt":
            continue
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
            )
        )
    return tuple(found)
