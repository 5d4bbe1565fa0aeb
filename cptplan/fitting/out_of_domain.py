"""Loss on a third set from the losses that a plan predicts, with a test that can say no.

    L_ood(t) = w_g L_general(t) + w_d L_domain(t)  [+ constant]              (Wang et al. 2025, arXiv:2505.07796, eq. 6)

The weights belong to the set, not to a run, so what was learnt on pilots holds for the planned run, if it holds at all.
The paper states no test of that and says that it may fail on a very special domain. Here each curve is predicted from
the others and must be missed by less than by two baselines that need no fit: the loss stays as it was before CPT; it
changes as general loss does. A constant, or a transient of the first steps, that predicts unseen curves better, and
residuals that go in waves, speak against the plain form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student_t

from cptplan.curves import LossCurve
from cptplan.errors import CurveError, suggest

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Form = Literal["plain", "constant", "transient"]
FORMS: tuple[Form, ...] = get_args(Form)

NUM_DRAWS = 200
LEVEL = 0.9
MIN_CURVES = 3  # assumed: fewer leave nothing to hold out
TOLERANCE = 0.01  # assumed: unseen curves must be predicted within this share of their loss
ACCURATE = 0.003  # assumed: structure in smaller residuals does no harm; the paper shows errors below 0.003 nat
WAVES = 0.5  # assumed: correlation of neighbouring residuals that is structure rather than noise
WAVE_SHARE = 0.25  # assumed: and matters when the error is more than this share of the better baseline's
MOST_OF_IT = 0.5  # assumed: a transient explains the misses when it halves them
SIGNIFICANT = 0.05
WORTHWHILE = 0.1  # assumed: another form must lower the error by a tenth
LARGEST_CONDITION = 15.0  # assumed: correlation 0.99 of general and domain loss
WIDEST_WEIGHT = 0.25  # assumed: half the interval of a weight that may still be interpreted
TRANSIENT_TIMES = (0.01, 0.02, 0.05, 0.1)  # of the shortest curve: where the transient may peak


@dataclass(frozen=True, kw_only=True, slots=True)
class OutOfDomainPrediction:
    """Predicted loss of the third set: mean and interval, nats per token, each of the shape that was asked for."""

    mean: FloatArray
    low: FloatArray
    high: FloatArray
    level: float
    outside: bool
    """Whether general and domain loss go together somewhere as in no curve that was fitted: an extrapolation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OutOfDomainFit:
    """The combination of one third set, and whether it may be used."""

    set_name: str
    form: Form
    """plain, or constant when a constant predicts unseen curves better; never transient, which only tests."""
    valid: bool
    reason: str
    """In words, why it may or may not be used."""
    weights: Mapping[str, float] | None
    """Weight of each loss by its set; None when the fit is not valid or the curves cannot tell them apart."""
    coefficients: FloatArray
    """Of general loss, domain loss and the constant (0 in the plain form), shape (3,)."""
    draws: FloatArray
    """Possible coefficients, shape (draws, 3): Student's t with the spread of the fits without one curve each."""
    held_out: Mapping[str, float]
    """Root mean square of the relative errors of each curve when it was left out."""
    held_out_error: float
    unchanged_error: float
    """The same of: the loss stays as it was before CPT."""
    same_as_general_error: float
    """The same of: it changes by what general loss changes."""
    plain_error: float
    constant_error: float
    transient_error: float
    """The same of the plain form, with a constant, and with a transient besides."""
    residual_correlation: float
    """Of neighbouring held-out residuals along a curve, -1 to 1."""
    condition_number: float
    """Of general and domain loss, centred and scaled: sqrt((1 + |rho|) / (1 - |rho|))."""
    spread: FloatArray
    """Inverse second moments of (general, domain, 1) over the fitted points, for leverage, shape (3, 3)."""
    largest_leverage: float

    def sample(self, general: ArrayLike, domain: ArrayLike, seed: int = 0) -> FloatArray:
        """Possible losses, nats per token, shape (draws, points).

        Each draw has its own weights and one relative offset of the size of the error on curves left out.
        Args:      general, domain: losses, shape (points,), or (draws, points) when they are themselves drawn.
        """
        stacked = np.stack(np.broadcast_arrays(np.asarray(general, dtype=np.float64), domain, 1.0), axis=-1)
        losses = self.draws @ stacked.T if stacked.ndim == 2 else np.einsum("dpk,dk->dp", stacked, self.draws)
        slices = (np.random.default_rng(seed).permutation(len(losses)) + 0.5) / len(losses)
        offsets = student_t.ppf(slices, max(len(self.held_out) - 1, 2)) * self.held_out_error
        return np.asarray(losses * (1.0 + offsets[:, None]))

    def predict(
        self, general: ArrayLike, domain: ArrayLike, level: float = LEVEL, seed: int = 0
    ) -> OutOfDomainPrediction:
        """Mean and central interval of the loss where general and domain loss are known.

        Args:      general, domain: losses, nats per token, shape (points,). level: such as 0.9.
        """
        points = np.stack(np.broadcast_arrays(np.atleast_1d(np.asarray(general, dtype=np.float64)), domain, 1.0), -1)
        mean = points @ self.coefficients
        tail = 50.0 * (1.0 - level)
        low, high = np.percentile(self.sample(points[:, 0], points[:, 1], seed), [tail, 100.0 - tail], axis=0)
        leverage = np.einsum("pi,ij,pj->p", points, self.spread, points)
        return OutOfDomainPrediction(
            mean=mean,
            low=np.minimum(low, mean),
            high=np.maximum(high, mean),
            level=level,
            outside=bool(np.any(leverage > self.largest_leverage * (1.0 + 1e-9))),
        )

    def to_json(self) -> dict[str, Any]:
        """The verdict and its numbers as JSON values."""
        return {
            "schema_version": 1,
            "set": self.set_name,
            "form": self.form,
            "valid": self.valid,
            "reason": self.reason,
            "weights": None if self.weights is None else dict(self.weights),
            "held_out": dict(self.held_out),
            "held_out_error": self.held_out_error,
            "unchanged_error": self.unchanged_error,
            "same_as_general_error": self.same_as_general_error,
            "plain_error": self.plain_error,
            "constant_error": self.constant_error,
            "transient_error": self.transient_error,
            "residual_correlation": self.residual_correlation,
            "condition_number": self.condition_number,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class _Points:
    """The points of one curve that have all three losses, each array of shape (points,)."""

    name: str
    steps: IntArray
    general: FloatArray
    domain: FloatArray
    target: FloatArray


def fit_out_of_domain(
    curves: Mapping[str, LossCurve],
    set_name: str,
    *,
    general: str = "general",
    domain: str = "domain",
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
) -> OutOfDomainFit:
    """Fit and judge the combination on the CPT curves that have all three sets.

    Args:      set_name: the third set. general, domain: the two that a plan predicts.
               num_draws, seed: of the possible coefficients.
    Raises:    CurveError if fewer than three CPT curves have the three sets at three points or more.
    Reference: arXiv:2505.07796, eq. 6 and section 5.2; the constant and the test are ours. Spread by the jackknife
               over curves (Tukey 1958), as of every law here.
    """
    data = _collect(curves, set_name, general, domain)
    tau = _transient_time(data)
    without = {form: _left_out(data, form, tau) for form in FORMS}
    residuals = {form: _held_out_residuals(data, form, tau, without[form]) for form in FORMS}
    errors = {form: np.array([_rms(r) for r in found]) for form, found in residuals.items()}
    form: Form = "constant" if _better(errors["constant"], errors["plain"]) else "plain"
    condition, spread, leverage = _geometry(data)
    coefficients = _pad(_solve(data, form, tau))
    draws = _draws(coefficients, _pad(without[form]), num_draws, seed)
    told_apart = condition <= LARGEST_CONDITION and _half_width(draws) <= WIDEST_WEIGHT
    judged = {
        "held_out_error": _rms(errors[form]),
        "unchanged_error": _baseline_error(data, 0.0),
        "same_as_general_error": _baseline_error(data, 1.0),
        "plain_error": _rms(errors["plain"]),
        "constant_error": _rms(errors["constant"]),
        "transient_error": _rms(errors["transient"]),
        "residual_correlation": _neighbour_correlation(residuals[form]),
    }
    valid, reason = _judge(judged, form, transient=_better(errors["transient"], errors[form]))
    if not told_apart:
        reason += "; general and domain loss move too much alike in these curves to tell their weights apart"
    return OutOfDomainFit(
        set_name=set_name,
        form=form,
        valid=valid,
        reason=reason,
        weights={general: float(coefficients[0]), domain: float(coefficients[1])} if valid and told_apart else None,
        coefficients=coefficients,
        draws=draws,
        held_out={d.name: float(e) for d, e in zip(data, errors[form], strict=True)},
        condition_number=condition,
        spread=spread,
        largest_leverage=leverage,
        **judged,
    )


def _collect(curves: Mapping[str, LossCurve], set_name: str, general: str, domain: str) -> list[_Points]:
    found = []
    for curve in curves.values():
        if curve.record.phase != "cpt" or not {set_name, general, domain} <= set(curve.losses):
            continue
        three = np.stack([curve.losses[name] for name in (general, domain, set_name)])
        keep = np.all(np.isfinite(three), axis=0)
        if np.sum(keep) >= 3:
            g, d, target = three[:, keep]
            found.append(_Points(name=curve.name, steps=curve.steps[keep], general=g, domain=d, target=target))
    if len(found) < MIN_CURVES:
        sets = sorted({name for curve in curves.values() for name in curve.losses})
        raise CurveError(
            f"at least {MIN_CURVES} CPT curves must have loss_{set_name}, loss_{general} and loss_{domain}; got "
            f"{len(found)}.",
            hint=suggest(set_name, [s for s in sets if s != set_name]) or "evaluate the set on more pilots",
        )
    return found


def _columns(points: _Points, form: Form, tau: float) -> FloatArray:
    """General, domain, and what the form has besides, each divided by the target, shape (points, terms)."""
    columns = [points.general, points.domain]
    if form != "plain":
        columns.append(np.ones_like(points.general))
    if form == "transient":  # rises from 0 at step 0 to 1 at tau and fades
        columns.append(points.steps / tau * np.exp(1.0 - points.steps / tau))
    return np.column_stack(columns) / points.target[:, None]


def _solve(data: Sequence[_Points], form: Form, tau: float) -> FloatArray:
    """Coefficients by least squares of relative residuals, every curve of one weight however often it was logged."""
    root = [1.0 / np.sqrt(len(d.target)) for d in data]
    matrix = np.concatenate([_columns(d, form, tau) * r for d, r in zip(data, root, strict=True)])
    target = np.concatenate([np.full(len(d.target), r) for d, r in zip(data, root, strict=True)])
    robust = np.ones_like(target)
    for _ in range(4):  # Huber's reweighting: spikes do not move the weights
        found, *_ = np.linalg.lstsq(matrix * robust[:, None], target * robust, rcond=None)
        size = np.abs(matrix @ found / target - 1.0)
        knee = max(1.345 * 1.4826 * float(np.median(size)), 1e-6)
        robust = 1.0 / np.sqrt(np.maximum(size / knee, 1.0))
    return np.asarray(found, dtype=np.float64)


def _transient_time(data: Sequence[_Points]) -> float:
    """The peak of the transient that describes the curves best, in steps."""
    shortest = float(min(d.steps[-1] for d in data))
    times = [max(share * shortest, 1.0) for share in TRANSIENT_TIMES]

    def misfit(tau: float) -> float:
        found = _solve(data, "transient", tau)
        return _rms(np.array([_rms(_columns(d, "transient", tau) @ found - 1.0) for d in data]))

    return min(times, key=misfit)


def _left_out(data: Sequence[_Points], form: Form, tau: float) -> FloatArray:
    """Coefficients fitted without one curve each, shape (curves, terms)."""
    return np.stack([_solve([d for d in data if d is not left_out], form, tau) for left_out in data])


def _held_out_residuals(data: Sequence[_Points], form: Form, tau: float, without: FloatArray) -> list[FloatArray]:
    """Relative residuals of each curve after its first point, the coefficients fitted to the others."""
    return [(_columns(d, form, tau) @ found - 1.0)[1:] for d, found in zip(data, without, strict=True)]


def _baseline_error(data: Sequence[_Points], general_weight: float) -> float:
    """Error after the first point of: the loss moves from there by a multiple of what general loss moves by."""
    moved = [d.target[0] + general_weight * (d.general[1:] - d.general[0]) for d in data]
    return _rms(np.array([_rms(m / d.target[1:] - 1.0) for m, d in zip(moved, data, strict=True)]))


def _better(errors: FloatArray, reference: FloatArray) -> bool:
    """Whether errors of the curves are lower by a tenth or more, and by a paired one-sided t test not by chance."""
    if _rms(errors) > (1.0 - WORTHWHILE) * _rms(reference):
        return False
    gain = np.log(np.maximum(reference, 1e-9) / np.maximum(errors, 1e-9))
    standard_error = float(np.std(gain, ddof=1)) / np.sqrt(len(gain))
    return bool(np.mean(gain) > student_t.ppf(1.0 - SIGNIFICANT, len(gain) - 1) * standard_error)


def _judge(judged: Mapping[str, float], form: Form, *, transient: bool) -> tuple[bool, str]:
    """The verdict and its reason: the first test that fails, or that none does."""
    error, waves = judged["held_out_error"], judged["residual_correlation"]
    unchanged, same = judged["unchanged_error"], judged["same_as_general_error"]
    name, baseline = (
        ("it does not change", unchanged) if unchanged <= same else ("it changes as general loss does", same)
    )
    if error >= baseline:
        return False, f"unseen curves are missed by {error:.2%}; to say that {name} misses them by {baseline:.2%}"
    if transient and error > ACCURATE and judged["transient_error"] <= MOST_OF_IT * error:
        return False, (
            f"the first steps follow another path: a transient lowers the error on unseen curves from {error:.2%} to "
            f"{judged['transient_error']:.2%}"
        )
    if waves > WAVES and error > max(ACCURATE, WAVE_SHARE * baseline):
        return False, f"residuals go in waves (correlation {waves:.2f}): something is missing from the combination"
    if error > TOLERANCE:
        return False, f"unseen curves are missed by {error:.2%}, more than {TOLERANCE:.0%}"
    words = f"unseen curves are missed by {error:.2%}; to say that {name} misses them by {baseline:.2%}"
    without = f"; only with a constant, without it {judged['plain_error']:.2%}" if form == "constant" else ""
    return True, words + without


def _draws(coefficients: FloatArray, without: FloatArray, number: int, seed: int) -> FloatArray:
    """Possible coefficients about those of all curves, shape (number, 3); without: those of _left_out, padded."""
    count = len(without)
    directions = np.sqrt((count - 1) / count) * (without - without.mean(axis=0))
    rng = np.random.default_rng(seed)
    freedom = count - 1
    heavy = np.sqrt(freedom / rng.chisquare(freedom, (number, 1)))
    return np.asarray(coefficients + heavy * (rng.standard_normal((number, count)) @ directions))


def _pad(coefficients: FloatArray) -> FloatArray:
    """Coefficients with a constant of 0 when the form has none, and no transient, shape (..., 3)."""
    short = 3 - coefficients.shape[-1]
    return np.concatenate([coefficients, np.zeros((*coefficients.shape[:-1], short))], axis=-1)


def _half_width(draws: FloatArray) -> float:
    """Half the 90 % interval of the less certain weight."""
    low, high = np.percentile(draws[:, :2], [5.0, 95.0], axis=0)
    return float(np.max(high - low)) / 2.0


def _geometry(data: Sequence[_Points]) -> tuple[float, FloatArray, float]:
    """Condition number of general and domain loss, inverse second moments with a constant, and largest leverage."""
    points = np.concatenate([np.column_stack([d.general, d.domain, np.ones_like(d.general)]) for d in data])
    sd = points[:, :2].std(axis=0)
    together = float(np.corrcoef(points[:, 0], points[:, 1])[0, 1]) if np.all(sd > 1e-12) else 1.0
    condition = float(np.sqrt((1.0 + abs(together)) / max(1.0 - abs(together), 1e-12)))
    spread = np.linalg.pinv(points.T @ points / len(points))
    return condition, spread, float(np.max(np.einsum("pi,ij,pj->p", points, spread, points)))


def _neighbour_correlation(residuals: Sequence[FloatArray]) -> float:
    """Sum of products of neighbours over sum of squares, over all curves; 0 for residuals of 0."""
    squares = sum(float(np.sum(r[:-1] ** 2 + r[1:] ** 2)) / 2.0 for r in residuals)
    return sum(float(np.sum(r[:-1] * r[1:])) for r in residuals) / squares if squares > 0.0 else 0.0


def _rms(values: FloatArray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
