"""A fitted law with its uncertainty, from what the fit would have been without each of its curves.

Points of one curve are not independent, and a law is never exact; whole curves are what is independent. So the spread
is the jackknife's over curves (Tukey 1958): the fits without one curve each differ by what one curve can teach, by the
law's own misfit, and the more the further a run goes beyond the curves. Tails are Student's t, since curves are few.

Where curves do not tell which form of the law is right, forms are averaged: the mean is theirs by weight, and how far
they are apart is part of the spread. A plan is the best of many runs, so it finds the form that is wrong in its favour;
the average does not let one form have its way (reports/decisions/0006).

A run longer than the curves needs more: fits that agree at the curves' length share what is wrong with the law later.
How much a law errs in doubling the length is measured where it can be: from the first half of every curve to its end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import chi2, norm, qmc

from cptplan.contract import Contract
from cptplan.fitting.separable import Solution, predict, solve
from cptplan.fitting.support import Support
from cptplan.laws.history import Observations, RunHistory
from cptplan.laws.protocol import Law

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

NUM_SAMPLES = 256
MANY_CURVES, STRETCHES = 3, 4  # of fewer curves, a stretch of one is left out; measured: of three, stretches cover less
OWN_SHARE = 0.2  # assumed: of point noise and held-out error; what a run has of its own even where all fits agree
LATE_SHARE = 0.5  # points after this share of a pilot judge it: the plan is about ends, not about transients
HALF = 0.5  # of each curve, from which its end is predicted


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
    late_bias: float
    """Mean relative error over the later half."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """One form of a law, fitted; what it counts in an average."""

    law: Law
    best: Solution
    left_out: tuple[Solution, ...]
    """The fits without one curve each, or without one stretch of one."""
    weight: float

    def spread(self, history: RunHistory, steps: IntArray) -> FloatArray:
        """What each left-out fit adds to the jackknife's spread, nats per token, shape (fits, points)."""
        without = np.stack([predict(self.law, one, history, steps) for one in self.left_out])
        return np.asarray(np.sqrt((len(without) - 1) / len(without)) * (without - without.mean(axis=0)))


class Reach(Contract):
    """How long the curves that judge are, and what the law errs beyond."""

    phase: str
    """Of those curves: pretrain or cpt."""
    steps: int
    """Of the longest of them."""
    doubling_error: float
    """Relative standard deviation of what the law errs for every doubling of the length, beyond what its fits span."""

    def error(self, history: RunHistory, steps: IntArray) -> FloatArray:
        """Relative standard deviation after each step, shape (points,): linear in the doublings beyond the curves."""
        if history.phase != self.phase:
            return np.zeros(len(steps))
        return np.asarray(self.doubling_error * np.log2(np.maximum(steps / self.steps, 1.0)))


@dataclass(frozen=True, kw_only=True, slots=True)
class FittedLaw:
    """The law of one validation set, ready to predict: the form that counts most, and its rivals."""

    set_name: str
    law: Law
    best: Solution
    left_out: tuple[Solution, ...]
    """The fits without one curve each, or without one stretch of one."""
    rivals: tuple[Form, ...] = ()
    """Other forms that are averaged with this one; their weights leave the rest of 1 to it."""
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
    reach: Reach | None = None
    """None: nothing is known of lengths beyond the curves'."""

    @property
    def discrepancy(self) -> float:
        """Relative standard deviation of what the law misses late in an unseen run as long as the pilots."""
        return rms([h.late_error for h in self.held_out]) if self.held_out else self.in_sample_error

    @property
    def forms(self) -> tuple[Form, ...]:
        """All forms that count, this one first; their weights sum to 1."""
        own = Form(
            law=self.law, best=self.best, left_out=self.left_out, weight=1.0 - sum(r.weight for r in self.rivals)
        )
        return (own, *self.rivals)

    def mean(self, history: RunHistory, steps: IntArray) -> FloatArray:
        """Best prediction after each of the steps, nats per token, shape (points,)."""
        means = [form.weight * predict(form.law, form.best, history, steps) for form in self.forms]
        return np.asarray(sum(means[1:], start=means[0]))

    def directions(self, history: RunHistory, steps: IntArray) -> tuple[FloatArray, FloatArray]:
        """The mean, shape (points,), and what spreads about it, nats per token, shape (directions, points).

        Their outer products sum to the covariance of the average, sum_f w_f (jackknife of f + (mean of f - mean)^2),
        and of what comes with length, which is the same for all runs, so that it cancels between two of one length.
        Before settled_step no point was fitted and left-out fits may say anything: the spread is that of settled_step.
        """
        early = (steps > 0) & (steps < self.settled_step) & (history.phase == "cpt")
        _, spread = averaged(self.forms, history, np.where(early, min(self.settled_step, len(history.lr)), steps))
        mean = self.mean(history, steps)
        if self.reach is None:
            return mean, spread
        # also where it is 0: as many directions for every run, so that one draw means the same for all
        return mean, np.vstack([spread, self.reach.error(history, steps) * mean])

    @property
    def freedom(self) -> int:
        """Degrees of freedom of the spread: one less than there are left-out fits."""
        return max(len(self.left_out) - 1, 2)

    def sample(self, history: RunHistory, steps: IntArray, seed: int = 0) -> FloatArray:
        """Possible curves of the run, nats per token, shape (NUM_SAMPLES, points).

        mean + t sum_i z_i direction_i, z normal, t of the jackknife's degrees of freedom. To it come what a run has of
        its own and, until the first jump has settled, the error that the law makes there.
        """
        mean, spread = self.directions(history, steps)
        count = len(spread)
        z, heavy = _standard_draws(count, self.freedom, seed)
        own = OWN_SHARE * np.hypot(self.noise, self.discrepancy) * z[:, count : count + 1]
        own = own + self._unsettled(history, steps) * z[:, count + 1 :]
        return np.asarray(mean + heavy * (z[:, :count] @ spread) + own * mean)

    def predict(
        self, history: RunHistory, steps: IntArray, level: float = 0.9, seed: int = 0, *, measured: bool = False
    ) -> Prediction:
        """Mean and central interval of the run's loss after each step.

        Args:      history: rates and shares of the run. steps: finished steps, shape (points,). level: such as 0.9.
                   measured: the interval of a measured value, with the noise of one evaluation.
        """
        sampled = self.sample(history, steps, seed)
        if measured:
            rng = np.random.default_rng([seed, 1])
            sampled = sampled * (1.0 + self.noise * rng.standard_normal(sampled.shape))
        tail = 50.0 * (1.0 - level)
        low, high = np.percentile(sampled, [tail, 100.0 - tail], axis=0)
        mean = self.mean(history, steps)
        return Prediction(mean=mean, low=np.minimum(low, mean), high=np.maximum(high, mean), level=level)

    def parameter_spread(self) -> tuple[FloatArray, FloatArray]:
        """Jackknife standard deviations of nonlinear and linear parameters of the first form, in its order."""
        found = []
        for rows in ([s.values for s in self.left_out], [s.coefficients for s in self.left_out]):
            table = np.stack(rows)
            found.append(np.sqrt((len(table) - 1) * np.mean((table - table.mean(axis=0)) ** 2, axis=0)))
        return found[0], found[1]

    def _unsettled(self, history: RunHistory, steps: IntArray) -> FloatArray:
        """Relative error of the law in the first steps of CPT, which are not fitted: whole until settled, then less."""
        if history.phase == "pretrain":
            return np.zeros(len(steps))
        fading = np.clip(2.0 - steps / max(self.settled_step, 1), 0.0, 1.0)  # 1 until settled, 0 at twice that
        return np.where(steps == 0, 0.0, self.transient_error * fading)


@lru_cache(maxsize=32)
def _standard_draws(count: int, freedom: int, seed: int) -> tuple[FloatArray, FloatArray]:
    """Normal draws, shape (NUM_SAMPLES, count + 2), and what makes them Student's t, shape (NUM_SAMPLES, 1)."""
    # a Sobol set: the tails do not hang on a few lucky samples
    unit = np.clip(qmc.Sobol(count + 3, seed=seed).random(NUM_SAMPLES), 1e-6, 1.0 - 1e-6)
    return norm.ppf(unit[:, :-1]), np.sqrt(freedom / chi2.ppf(unit[:, -1:], freedom))


def targets(data: Sequence[Observations]) -> tuple[Observations, ...]:
    """The curves that a law is judged by: those of CPT, or all when there is none."""
    return tuple(d for d in data if d.history.phase == "cpt") or tuple(data)


def point_noise(law: Law, solution: Solution, data: Sequence[Observations]) -> float:
    """Relative standard deviation of single points around a smooth curve, from neighbouring residuals (median, robust).

    Neighbours share part of their noise; how much tells the difference to the second neighbour.
    """
    residuals = [predict(law, solution, d.history, d.steps) / d.loss for d in data if len(d.loss) > 3]
    if not residuals:
        return 0.0
    near = 1.4826 * np.median(np.abs(np.concatenate([r[1:] - r[:-1] for r in residuals])))
    far = 1.4826 * np.median(np.abs(np.concatenate([r[2:] - r[:-2] for r in residuals])))
    shared = np.clip((far / near) ** 2 - 1.0, 0.0, 0.8) if near > 0 else 0.0
    return float(near / np.sqrt(2.0 * (1.0 - shared)))


def averaged(forms: Sequence[Form], history: RunHistory, steps: IntArray) -> tuple[FloatArray, FloatArray]:
    """The mean of forms, shape (points,), and what spreads about it, (directions, points), see FittedLaw.directions."""
    means = np.stack([predict(form.law, form.best, history, steps) for form in forms])
    weights = np.array([form.weight for form in forms])
    mean = weights @ means
    within = [np.sqrt(form.weight) * form.spread(history, steps) for form in forms]
    between = np.sqrt(weights)[:, None] * (means - mean)
    return mean, np.vstack([*within, *([between] if len(forms) > 1 else [])])


def reach_of(forms: Sequence[Form], data: Sequence[Observations], held_out_error: float) -> Reach | None:
    """What an average of forms errs in doubling the length: it is fitted to the first halves and predicts the ends.

    mean of e^2 - s^2, at least 0, over the curves that judge: e the relative error at the end, s the relative spread
    that the first halves themselves give, which an interval has already. These ends share one fit, so together they
    are hardly more than one draw: the variance is the mean of theirs and of what the law misses on left-out curves,
    which stands for what one expects of it before looking (reports/decisions/0008). None when no curve has points in
    its first half.
    Args:      held_out_error: relative, such as FittedLaw.discrepancy.
    """
    judges = targets(data)
    judged = {id(one) for one in judges}
    cut = [_until(one, HALF * one.steps[-1]) if id(one) in judged else one for one in data]
    if not judges or any(not len(one.steps) for one in cut):
        return None
    early = [_refitted(form, cut) for form in forms]
    excess = []
    for one in judges:
        mean, spread = averaged(early, one.history, one.steps[-1:])
        excess.append(float((mean[0] / one.loss[-1] - 1.0) ** 2 - np.sum(np.square(spread / mean))))
    longest = max(judges, key=lambda one: int(one.steps[-1]))
    error = float(np.sqrt(0.5 * (max(float(np.mean(excess)), 0.0) + held_out_error**2)))
    return Reach(phase=longest.history.phase, steps=int(longest.steps[-1]), doubling_error=error)


def _refitted(form: Form, data: Sequence[Observations]) -> Form:
    """The form fitted to other points, with its left-out fits; without spread when too few curves judge."""
    best = solve(form.law, data, start=form.best)
    return replace(form, best=best, left_out=leave_one_out(form.law, data, best).solutions or (best,))


def _until(one: Observations, step: float) -> Observations:
    keep = one.steps <= step
    return replace(one, steps=one.steps[keep], loss=one.loss[keep])


def in_sample_error(law: Law, solution: Solution, data: Sequence[Observations]) -> float:
    """Root mean square of the relative residuals over all points."""
    return rms(np.concatenate([predict(law, solution, d.history, d.steps) / d.loss - 1.0 for d in data]))


def rms(values: ArrayLike) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(values))))


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaveOneOut:
    """The fits without each of the curves that judge, and how far each misses the curve it has not seen."""

    held_out: tuple[HeldOut, ...]
    solutions: tuple[Solution, ...]


def leave_one_out(law: Law, data: Sequence[Observations], start: Solution) -> LeaveOneOut:
    """Leave each curve that judges out in turn and fit the others; nothing when there is only one."""
    judges = targets(data)
    if len(judges) < 2:
        return LeaveOneOut(held_out=(), solutions=())
    solutions = tuple(solve(law, [d for d in data if d is not one], start=start) for one in judges)
    return LeaveOneOut(
        held_out=tuple(_held_out(law, s, one) for s, one in zip(solutions, judges, strict=True)), solutions=solutions
    )


def _held_out(law: Law, solution: Solution, points: Observations) -> HeldOut:
    relative = predict(law, solution, points.history, points.steps) / points.loss - 1.0
    late = relative[points.steps >= LATE_SHARE * points.steps[-1]]
    return HeldOut(
        curve=points.name,
        peak_lr=float(points.history.lr.max()),
        late_error=rms(late),
        end_error=float(relative[-1]),
        late_bias=float(late.mean()),
    )


def leave_stretches_out(law: Law, data: Sequence[Observations], start: Solution) -> tuple[Solution, ...]:
    """The fits without one stretch of one curve each: what stands in for whole curves when they are few."""
    found = []
    for one in targets(data):
        stretch = np.arange(len(one.loss)) * STRETCHES // len(one.loss)
        for number in np.unique(stretch):
            keep = stretch != number
            rest = replace(one, steps=one.steps[keep], loss=one.loss[keep])
            left = [rest if d is one else d for d in data if d is not one or keep.any()]
            found.append(solve(law, left, start=start))
    return tuple(found)
