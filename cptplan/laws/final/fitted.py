"""A fitted law of final losses: predictions with intervals, errors on rows left out, and what the table cannot tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student_t

from cptplan.laws.cpt import Side
from cptplan.laws.final.protocol import SAME, VARIABLES, FinalLaw, FloatArray, Runs, make_runs
from cptplan.laws.final.solve import SMALLEST_SCALE, Solution, predict, solve

NUM_DRAWS = 200
LEVEL = 0.9
UNDETERMINED = 0.2  # assumed: a parameter less than a fifth narrower than its prior is the prior's, not the table's
FEWEST_INSIDE = 4  # assumed: fewer enclosed rows do not tell an error; then all rows count
MUST_BEAT = 0.9  # assumed: errors within a tenth of the plain mean's are no better than it
OUTLIER = 6.0  # assumed: residuals beyond so many scales are worth a look at the row


@dataclass(frozen=True, kw_only=True, slots=True)
class FinalPrediction:
    """Predicted final losses: mean and interval, nats per token, each of shape (rows,)."""

    mean: FloatArray
    low: FloatArray
    high: FloatArray
    level: float
    outside: tuple[str, ...]
    """In words, where the rows leave the table: the law extrapolates there and the interval does not know it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutRow:
    """One row and what the law, fitted to the others, said of it."""

    name: str
    measured: float
    predicted: float
    inside: bool
    """Whether the other rows enclose it in every variable of the law; else leaving it out asks for extrapolation."""

    @property
    def error(self) -> float:
        """Relative error, predicted / measured - 1."""
        return self.predicted / self.measured - 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class FinalFit:
    """The law of one validation set's final losses, ready to predict."""

    set_name: str
    side: Side
    law: FinalLaw
    runs: Runs
    """The rows that were fitted."""
    best: Solution
    draws: tuple[Solution, ...]
    """Fits under random weights of the rows (Bayesian bootstrap)."""
    held_out: tuple[HeldOutRow, ...]
    in_sample_error: float
    """Root mean square of the relative residuals."""
    baseline_error: float
    """Root mean square of the relative errors of the plain mean of the other rows."""
    unidentified: tuple[str, ...]
    """In words, what the table does not determine."""
    warnings: tuple[str, ...]
    """In words, where the table and the law do not suit each other."""

    @property
    def held_out_error(self) -> float:
        """Root mean square of the relative errors of rows left out of the fit, where the others enclose them."""
        inside = [row.error for row in self.held_out if row.inside]
        return _rms(np.array(inside if len(inside) >= FEWEST_INSIDE else [row.error for row in self.held_out]))

    @property
    def edge_error(self) -> float:
        """The same of the rows at the table's edges: what a little extrapolation costs; NaN when there is none."""
        edge = [row.error for row in self.held_out if not row.inside]
        return _rms(np.array(edge)) if edge else float("nan")

    @property
    def parameters(self) -> dict[str, float]:
        """All parameters by name, linear ones first."""
        return _named(self.law, self.best)

    def parameter_intervals(self, level: float = LEVEL) -> dict[str, tuple[float, float]]:
        """Central interval of every parameter over the draws."""
        drawn = [_named(self.law, draw) for draw in self.draws]
        tail = 50.0 * (1.0 - level)
        found = {name: np.percentile([d[name] for d in drawn], [tail, 100.0 - tail]) for name in self.parameters}
        return {name: (float(low), float(high)) for name, (low, high) in found.items()}

    def mean(self, runs: Runs) -> FloatArray:
        """Best prediction, nats per token, shape (rows,)."""
        return predict(self.law, self.best, runs)

    def sample(self, runs: Runs, seed: int = 0) -> FloatArray:
        """Possible final losses, nats per token, shape (draws, rows).

        Each draw has its own parameters and one relative offset for all rows, of the size of the error on rows left out
        and from a Student t with rows - 1 degrees of freedom: with it 90 % intervals hold 88 to 92 % of new rows of
        synthetic tables of 8 to 30 (docs/final-losses.md).
        """
        losses = np.stack([predict(self.law, draw, runs) for draw in self.draws])
        # one offset from each slice of the distribution, so that the tails do not hang on a few lucky draws
        slices = (np.random.default_rng(seed).permutation(len(losses)) + 0.5) / len(losses)
        offsets = student_t.ppf(slices, max(self.best.freedom, 2.0)) * self.held_out_error
        return losses * np.maximum(1.0 + offsets[:, None], 0.0)

    def predict(self, runs: Runs, level: float = LEVEL, seed: int = 0) -> FinalPrediction:
        """Mean and central interval of the final losses of runs.

        Args:      runs: what is to be known of them; NaN where the law does not use it. level: such as 0.9.
        """
        tail = 50.0 * (1.0 - level)
        mean = self.mean(runs)
        low, high = np.percentile(self.sample(runs, seed), [tail, 100.0 - tail], axis=0)
        return FinalPrediction(
            mean=mean,
            low=np.minimum(low, mean),
            high=np.maximum(high, mean),
            level=level,
            outside=tuple(word for name in VARIABLES for word in self._outside(runs, name)),
        )

    def _outside(self, runs: Runs, name: str) -> list[str]:
        """Words on a variable of which some row lies beyond the table."""
        known, asked = getattr(self.runs, name), getattr(runs, name)
        used = name in self.law.variables
        if not np.all(np.isfinite(known)) or np.all(np.isnan(asked)) or not (used or self.runs.levels(name) == 1):
            return []
        low, high, slack = float(np.min(known)), float(np.max(known)), SAME * float(np.max(np.abs(known)))
        beyond = asked[(asked < low - slack) | (asked > high + slack)]
        if not len(beyond):
            return []
        worst = f"{float(beyond[np.argmax(np.abs(beyond - 0.5 * (low + high)))]):.4g}"
        if used:
            return [f"{name} {worst} lies outside the table's {low:.4g} to {high:.4g}"]
        return [f"{name} {worst} is not the table's {low:.4g}, which never changed: the law has no term for it"]


def fit_law(
    law: FinalLaw,
    runs: Runs,
    losses: FloatArray,
    names: Sequence[str],
    *,
    set_name: str,
    side: Side,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
) -> FinalFit:
    """Fit a law to the rows of a table, leave each row out in turn, and draw from it.

    Args:      losses: final losses, nats per token, > 0, shape (rows,). names: of the rows, for the reader.
    """
    best = solve(law, runs, losses, seed=seed)
    rng = np.random.default_rng(seed)
    weights = rng.standard_exponential((num_draws, len(runs)))
    weights *= len(runs) / weights.sum(axis=1, keepdims=True)
    held_out = _leave_each_out(law, runs, losses, names, best)
    baseline = np.array([np.mean(np.delete(losses, row)) for row in range(len(losses))]) / losses - 1.0
    fit = FinalFit(
        set_name=set_name,
        side=side,
        law=law,
        runs=runs,
        best=best,
        draws=tuple(solve(law, runs, losses, weights=w, start=best) for w in weights),
        held_out=held_out,
        in_sample_error=_rms(predict(law, best, runs) / losses - 1.0),
        baseline_error=_rms(baseline),
        unidentified=_unidentified(law, best, runs),
        warnings=(),
    )
    return _with_warnings(fit, losses, names)


def _leave_each_out(
    law: FinalLaw, runs: Runs, losses: FloatArray, names: Sequence[str], best: Solution
) -> tuple[HeldOutRow, ...]:
    found = []
    for row, name in enumerate(names):
        others = np.arange(len(runs)) != row
        solution = solve(law, runs.take(others), losses[others], start=best)
        predicted = float(predict(law, solution, runs.take(~others))[0])
        inside = all(_encloses(getattr(runs, v)[others], float(getattr(runs, v)[row])) for v in law.variables)
        found.append(HeldOutRow(name=name, measured=float(losses[row]), predicted=predicted, inside=inside))
    return tuple(found)


def _encloses(values: FloatArray, value: float) -> bool:
    slack = SAME * abs(value)
    return bool(np.min(values) - slack <= value <= np.max(values) + slack)


def _unidentified(law: FinalLaw, best: Solution, runs: Runs) -> tuple[str, ...]:
    """What the table leaves open, in words."""
    words = [
        f"{name} never changes in the table: the law has no term for it and says nothing of other values"
        for name in ("tokens", "num_params")
        if name not in law.variables and runs.levels(name) == 1
    ]
    zero = [t.name for t, c in zip(law.terms, best.coefficients, strict=True) if c == 0.0 and t.sign != 0]
    words += [f"{name} is 0: the table shows no such term" for name in zero]
    for parameter, value, determined in zip(law.parameters, best.values, best.determined, strict=True):
        if determined < UNDETERMINED:
            words.append(f"{parameter.name} ({parameter.meaning}) is mostly its prior: the table hardly tells it")
        elif min(abs(value - parameter.low), abs(value - parameter.high)) <= 1e-3 * abs(value):
            words.append(f"{parameter.name} ({parameter.meaning}) stands at its bound {value:.3g}")
    return tuple(words)


def _with_warnings(fit: FinalFit, losses: FloatArray, names: Sequence[str]) -> FinalFit:
    """The fit with words on where the table and the law do not suit each other."""
    law, runs, words = fit.law, fit.runs, []
    if not fit.best.converged:
        words.append("the fit did not converge")
    if fit.held_out_error >= MUST_BEAT * fit.baseline_error:
        words.append(
            f"rows left out are missed by {fit.held_out_error:.1%}; the plain mean of the others misses them by "
            f"{fit.baseline_error:.1%}: do not use this fit"
        )
    words += [
        f"{name} varies, and the law {law.name} does not see it"
        for name in ("domain_share", "tokens", "num_params")
        if name not in law.variables and runs.levels(name) > 1
    ]
    epochs = float(np.nanmax(runs.tokens / runs.unique_tokens, initial=0.0))
    if "unique_tokens" not in law.variables and epochs > 1.0 + SAME:
        words.append(f"data is seen up to {epochs:.3g} times, and the law takes repeats for fresh tokens")
    for name in law.falling:
        rising, pairs = _rising_pairs(runs, losses, name, 2.0 * SMALLEST_SCALE)
        if 2 * rising > pairs:
            words.append(
                f"loss rises with {name} in {rising} of {pairs} like pairs of rows; this law only lets it fall"
            )
    words += _turning(fit)
    residuals = fit.mean(runs) / losses - 1.0
    for row in np.flatnonzero(np.abs(residuals) > OUTLIER * fit.best.scale).tolist():
        words.append(f"row {names[row]} is off by {-residuals[row]:+.1%} and counts less: check it")
    return replace(fit, warnings=tuple(words))


def _rising_pairs(runs: Runs, losses: FloatArray, name: str, margin: float) -> tuple[int, int]:
    """Pairs of rows that differ in one variable alone: those whose loss rises with it by a share > margin, and all."""
    alike: NDArray[np.bool_] = np.ones((len(runs), len(runs)), dtype=bool)
    for other in VARIABLES:
        values = getattr(runs, other)
        if other != name and np.all(np.isfinite(values)):
            alike &= np.abs(values[:, None] - values[None, :]) <= SAME * np.abs(values[:, None])
    values = getattr(runs, name)
    later = alike & (values[:, None] > values[None, :] * (1.0 + SAME))
    return int(np.sum(later & (losses[:, None] > losses[None, :] * (1.0 + margin)))), int(np.sum(later))


def _turning(fit: FinalFit) -> list[str]:
    """Words when the fitted loss turns within the table's shares: more domain data should cost general loss alone."""
    if "domain_share" not in fit.law.variables:
        return []
    share = fit.runs.domain_share
    shares = np.linspace(float(np.min(share)), float(np.max(share)), 201)
    middle = (float(np.median(getattr(fit.runs, name))) for name in VARIABLES[1:])
    losses = fit.mean(make_runs(shares, *middle))
    wanted = losses if fit.side == "general" else -losses
    if np.max((np.maximum.accumulate(wanted) - wanted) / losses) <= 2.0 * fit.best.scale:
        return []
    way = "falls" if fit.side == "general" else "rises"
    return [
        f"fitted loss {way} with the domain share somewhere in {shares[0]:.3g} to {shares[-1]:.3g}: do not use it there"
    ]


def _named(law: FinalLaw, solution: Solution) -> dict[str, float]:
    linear = zip((t.name for t in law.terms), solution.coefficients.tolist(), strict=True)
    return dict([*linear, *zip((p.name for p in law.parameters), solution.values.tolist(), strict=True)])


def _rms(values: FloatArray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))
