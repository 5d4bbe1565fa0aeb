"""What a law says of one run before and after its first points: a Gaussian model of the whole curve.

loss(t) = mean(t) (1 + h sum_i z_i s_i(t) + own + misfit(t) + noise)

mean is the law's and s_i the directions in which it is not sure (how the fit without the i-th curve differs, and how
rival forms do, see fitting.fitted); z are normal, h makes them Student's t, own is what one run has for itself. misfit
is what no parameters of the law can follow: a process along the run that forgets with the logarithm of the step and
with the rate.
Given h all of it is normal, so measured points are taken in exactly (Gaussian conditioning, h summed over a grid): no
draws are reweighted, and no weights can collapse.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular
from scipy.special import logsumexp
from scipy.stats import chi2, norm

from cptplan.fitting.fitted import OWN_SHARE, FittedLaw
from cptplan.laws.history import RunHistory

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

NUM_SCALES = 12  # of h; measured: ends of intervals within half a hundredth of their width of those with 48
NUM_DRAWS = 1024
# The next two were chosen on 28 real runs on CPU, several of one campaign: with them 90 % intervals of the end held in
# 95, 93 and 93 % of cases at 25, 50 and 75 % of the run. The rms residual of the pilots is the size of the misfit.
MISFIT_MEMORY = 2.0  # in the logarithm of the step: half of the run says 70 % of its end
RATE_MEMORY = 0.5  # in shares of the peak rate: what is missed at the peak says 14 % of what is missed annealed
NEAR_MEMORY = (
    0.15  # assumed: in the logarithm of the step, of the half of an evaluation's noise that its neighbours share
)
MISFITS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
LARGEST_SPREAD = 1.0  # fits that differ by more than the loss itself say nothing
MOST_TRANSIENT = 3.0  # times the late error: the first jump, where the law is not fitted, cannot swallow what follows


@dataclass(frozen=True, kw_only=True, slots=True)
class Points:
    """Measured losses of one validation set on one run."""

    steps: IntArray
    """Finished steps, rising, shape (points,)."""
    loss: FloatArray
    """Nats per token, finite, shape (points,)."""

    def until(self, step: int) -> Points:
        """The points up to a step."""
        return Points(steps=self.steps[self.steps <= step], loss=self.loss[self.steps <= step])


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """How probable the points of a curve are, one after the other."""

    log_density: FloatArray
    """Of all points up to each, natural logarithm, shape (points,)."""
    innovations: FloatArray
    """Each point against its prediction from those before it: standard normal when the model is right, (points,)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CurveModel:
    """The model of one validation set."""

    law: FittedLaw
    misfit: float = 1.0
    """Factor of the misfit: 1 for a run of the pilots' kind."""
    gain: float = 1.0
    """Factor of all that the run changes since its first step: 1 for data of the pilots' kind."""

    def loosened(self, history: RunHistory, points: Points) -> CurveModel:
        """The model with the misfit that makes the points most probable: for a run that nothing known explains.

        Then the law's word counts less, the run's own points more, and intervals are as wide as it takes.
        """
        if not len(points.steps):
            return self
        models = [replace(self, misfit=factor) for factor in MISFITS]
        return max(models, key=lambda model: float(model.evidence(history, points).log_density[-1]))

    def usable(self, points: Points) -> Points:
        """The points that the law is asked about: step 0 and from where it was fitted."""
        keep = (points.steps == 0) | (points.steps >= self.law.settled_step)
        return Points(steps=points.steps[keep], loss=points.loss[keep])

    def evidence(self, history: RunHistory, points: Points) -> Evidence:
        """log p(y_1 .. y_k) for every k, and the innovations Phi^-1(P(y_k | y_1 .. y_k-1)).

        Args:      history: what the run is taken to do. points: those that are usable.
        """
        mean, spread = self._features(history, points.steps)
        relative = points.loss / mean - 1.0
        fixed = self._covariance(history, points.steps, history, points.steps) + self._own_noise(len(mean))
        log_density, scaled = np.zeros((2, NUM_SCALES, len(mean)))
        for number, scale in enumerate(self._scales()):
            lower = np.linalg.cholesky(fixed + scale**2 * spread @ spread.T)
            scaled[number] = solve_triangular(lower, relative, lower=True)
            each = norm.logpdf(scaled[number]) - np.log(np.diag(lower) * mean)
            log_density[number] = np.cumsum(each)
        before = np.hstack([np.zeros((NUM_SCALES, 1)), log_density[:, :-1]])
        before = before - logsumexp(before, axis=0)
        below, above = (logsumexp(before + tail, axis=0) for tail in (norm.logcdf(scaled), norm.logsf(scaled)))
        return Evidence(
            log_density=logsumexp(log_density, axis=0) - np.log(NUM_SCALES),
            innovations=np.where(below < above, _quantile(below), -_quantile(above)),
        )

    def sample(
        self,
        history: RunHistory,
        points: Points,
        coming: RunHistory,
        steps: IntArray,
        *,
        seed: int = 0,
        measured: bool = False,
    ) -> FloatArray:
        """Possible losses at some steps given the measured points, nats per token, shape (NUM_DRAWS, steps).

        Args:      history: what the run did until now. points: usable ones, none for the prediction before the run.
                   coming: what it does in all, such as another decay from here on. measured: with the noise of an
                   evaluation.
        """
        mean, spread = self._features(coming, steps)
        fixed = self._covariance(coming, steps, coming, steps) + self._own_noise(len(steps)) * measured
        before, seen_spread = self._features(history, points.steps)
        relative = points.loss / before - 1.0
        seen = self._covariance(history, points.steps, history, points.steps) + self._own_noise(len(before))
        crossed = self._covariance(history, points.steps, coming, steps)
        log_density, centres, roots = [], [], []
        for scale in self._scales():
            lower = np.linalg.cholesky(seen + scale**2 * seen_spread @ seen_spread.T)
            scaled = solve_triangular(lower, relative, lower=True)
            gain = solve_triangular(lower, crossed + scale**2 * seen_spread @ spread.T, lower=True)
            values, vectors = np.linalg.eigh(fixed + scale**2 * spread @ spread.T - gain.T @ gain)
            log_density.append(float(np.sum(norm.logpdf(scaled) - np.log(np.diag(lower)))))
            centres.append(gain.T @ scaled)
            roots.append(vectors * np.sqrt(np.maximum(values, 0.0)))
        weights = np.exp(np.array(log_density) - logsumexp(log_density))
        counts = np.diff(np.floor(np.cumsum([0.0, *weights]) * NUM_DRAWS + 0.5).astype(np.int64))
        rng, drawn = np.random.default_rng(seed), []
        for centre, root, count in zip(centres, roots, counts.tolist(), strict=True):
            half = rng.standard_normal((count - count // 2, len(steps)))
            both = np.vstack([half, -half])[:count]  # mirrored, so that the mean is exact
            drawn.append(centre + both @ root.T)
        return np.asarray(mean * (1.0 + np.concatenate(drawn)))

    def _scales(self) -> FloatArray:
        """h of Student's t with as many degrees of freedom as the jackknife has, equally probable values."""
        freedom = self.law.freedom
        return np.asarray(np.sqrt(freedom / chi2.ppf((np.arange(NUM_SCALES) + 0.5) / NUM_SCALES, freedom)))

    def _features(self, history: RunHistory, steps: IntArray) -> tuple[FloatArray, FloatArray]:
        """The law's mean, nats, shape (points,), and its directions over it, shape (points, directions)."""
        mean, spread = self.law.directions(history, steps)
        if self.gain != 1.0:
            first = float(self.law.mean(history, np.zeros(1, dtype=np.int64))[0])
            mean = first + self.gain * (mean - first)
        return mean, np.clip(spread / mean, -LARGEST_SPREAD, LARGEST_SPREAD).T

    def _covariance(self, one: RunHistory, at: IntArray, other: RunHistory, to: IntArray) -> FloatArray:
        """What is not the law's parameters, relative: own, misfit, first jump and the shared half of the noise."""
        law = self.law
        apart = np.abs(self._clock(at)[:, None] - self._clock(to))
        turned = np.abs(_share_of_peak(one, at)[:, None] - _share_of_peak(other, to))
        own = OWN_SHARE**2 * (law.noise**2 + law.discrepancy**2)
        # what goes beyond the pilots' misfit has another reason, which need not pass when the rate falls
        more = (self.misfit**2 - 1.0) * np.exp(-apart / MISFIT_MEMORY)
        misfit = law.in_sample_error**2 * (np.exp(-apart / MISFIT_MEMORY - turned / RATE_MEMORY) + more)
        jump = self._jump(at)[:, None] * self._jump(to) * np.exp(-apart / MISFIT_MEMORY)
        return np.asarray(own + misfit + jump + 0.5 * law.noise**2 * np.exp(-apart / NEAR_MEMORY))

    def _own_noise(self, count: int) -> FloatArray:
        # 1e-12: a law without noise (simulated curves) still has a covariance that can be inverted
        return np.eye(count) * (0.5 * self.law.noise**2 + 1e-12)

    def _clock(self, steps: IntArray) -> FloatArray:
        return np.asarray(np.log(steps + max(self.law.settled_step, 1.0)))

    def _jump(self, steps: IntArray) -> FloatArray:
        """Relative error that is left of the first jump, as FittedLaw.sample fades it."""
        size = min(self.law.transient_error, MOST_TRANSIENT * max(self.law.discrepancy, self.law.in_sample_error))
        fading = np.clip(2.0 - steps / max(self.law.settled_step, 1), 0.0, 1.0)
        return np.where(steps == 0, 0.0, size * fading)


def _share_of_peak(history: RunHistory, steps: IntArray) -> FloatArray:
    """Rate of the last step before each point over the run's highest, in [0, 1]."""
    rates = np.concatenate([history.lr[:1], history.lr])
    return np.asarray(rates[steps] / max(float(history.lr.max()), 1e-300))


def _quantile(log_probability: FloatArray) -> FloatArray:
    """Standard normal quantile of a probability given as its logarithm."""
    # beyond 1e-300 a float64 has no more digits: 37 standard deviations are enough of a surprise
    return np.asarray(norm.ppf(np.exp(np.clip(log_probability, -690.0, -1e-300))))
