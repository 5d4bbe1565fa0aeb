"""The CMR law: how large a domain share may be before general loss rises by more than a tolerance.

    L(R)     = a R^s + b                      final loss by domain share R, at one number of tokens and one size
    L_dom(T) = a T^s + b                      domain loss by tokens, at one share and size
    L_gen(T) = a2 T^s2 + a3 T^s3 + b          general loss: rises, then falls
    R_CMR(T) = a4 T^s4 + b3                   largest share with L_gen <= start + tolerance        (Gu et al. 2024)

All four are powers of one variable. The exponents are of either sign, and at 0 a power and a constant are one, so the
fit uses (x^s - 1) / s, which is smooth there and is log x at s = 0; published_coefficients gives a and b back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from cptplan.laws.final.protocol import FloatArray, Runs, make_runs
from cptplan.laws.final.solve import solve
from cptplan.laws.protocol import Parameter, Term

TOKEN_UNIT = 0.2e9  # published: T counts units of 0.2B tokens, arXiv:2407.17467
TOLERANCE = 0.05  # published: rise of general loss that is allowed, nats per token


class PowerLaw:
    """loss = level + sum_i slope_i ((x / unit)^s_i - 1) / s_i, x the domain share or the tokens."""

    reference = "arXiv:2407.17467"

    def __init__(self, name: str, variable: Literal["domain_share", "tokens"], unit: float, num_terms: int = 1) -> None:
        """A law in one variable; num_terms 2 lets the loss rise and then fall."""
        self.name = name
        self.unit = unit
        self.variables: tuple[str, ...] = (variable,)
        self.falling: tuple[str, ...] = ()
        # published exponents lie between -0.5 and 0.3; widths are assumed
        centres = (0.0,) if num_terms == 1 else (-0.5, 0.5)
        suffixes = ("",) if num_terms == 1 else ("2", "3")
        self.parameters: tuple[Parameter, ...] = tuple(
            Parameter(
                name=f"s{suffix}",
                meaning=f"exponent of {variable}",
                low=-3.0,
                high=3.0,
                start=centre,
                prior_sd=0.7,
                log_scale=False,
            )
            for suffix, centre in zip(suffixes, centres, strict=True)
        )
        self.terms: tuple[Term, ...] = (
            Term(name="level", meaning=f"value at {variable} = {unit:g}", sign=0),
            *(
                Term(name=f"slope{suffix}", meaning=f"change per e-fold of {variable} there", sign=0)
                for suffix in suffixes
            ),
        )

    def columns(self, values: FloatArray, runs: Runs) -> FloatArray:
        """Columns 1, (x^s - 1) / s; see protocol.FinalLaw.columns."""
        log_x = self._log(runs)
        powers = [log_x * _relative_power(s * log_x) for s in values]
        return np.column_stack([np.ones_like(log_x), *powers])

    def derivatives(self, values: FloatArray, runs: Runs) -> FloatArray:
        """Derivatives of the columns; see protocol.FinalLaw.derivatives."""
        log_x = self._log(runs)
        found = np.zeros((len(values), len(runs), len(self.terms)))
        for number, s in enumerate(values):
            found[number, :, number + 1] = log_x**2 * _relative_power_slope(s * log_x)
        return found

    def published_coefficients(self, values: FloatArray, coefficients: FloatArray) -> FloatArray:
        """(b, a_1, ...) of b + sum a_i (x / unit)^s_i, for exponents that are not 0.

        Args:      values: exponents, shape (powers,). coefficients: level and slopes, shape (1 + powers,).
        """
        a = coefficients[1:] / values
        return np.concatenate([[coefficients[0] - np.sum(a)], a])

    def _log(self, runs: Runs) -> FloatArray:
        return np.asarray(np.log(getattr(runs, self.variables[0]) / self.unit))


def _relative_power(u: FloatArray) -> FloatArray:
    """(e^u - 1) / u, and 1 at u = 0."""
    return np.asarray(np.divide(np.expm1(u), u, out=np.ones_like(u), where=u != 0.0))


def _relative_power_slope(u: FloatArray) -> FloatArray:
    """Derivative of (e^u - 1) / u: (u e^u - e^u + 1) / u^2, by its series near 0 where the difference cancels."""
    near = np.abs(u) < 1e-3
    safe = np.where(near, 1.0, u)
    series = 0.5 + u / 3.0 + u**2 / 8.0
    return np.where(near, series, (safe * np.exp(safe) - np.expm1(safe)) / safe**2)


def ratio_law() -> PowerLaw:
    """Final loss by domain share, at one number of tokens."""
    return PowerLaw("cmr_ratio", "domain_share", 1.0)


def tokens_law(*, general: bool) -> PowerLaw:
    """Final loss by tokens, at one domain share."""
    return PowerLaw("cmr_tokens", "tokens", TOKEN_UNIT, num_terms=2 if general else 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class CriticalRatioLaw:
    """R_CMR(T) = a T^s + b, T in units of 0.2B tokens."""

    a: float
    s: float
    b: float

    def at(self, tokens: ArrayLike) -> FloatArray:
        """Critical domain share after CPT tokens, kept in [0, 1]; 0 where no share is allowed.

        Args:      tokens: CPT tokens, > 0, any shape.
        """
        scaled = np.asarray(tokens, dtype=np.float64) / TOKEN_UNIT
        return np.clip(self.a * scaled**self.s + self.b, 0.0, 1.0)


def fit_critical_ratio_law(tokens: FloatArray, ratios: FloatArray) -> CriticalRatioLaw:
    """R_CMR(T) through critical domain shares that were found at several numbers of tokens.

    Args:      tokens: CPT tokens, shape (points,), at least four different. ratios: critical shares, in (0, 1].
    """
    law = PowerLaw("cmr_critical", "tokens", TOKEN_UNIT)
    found = solve(law, make_runs(np.nan, tokens), ratios)
    s = float(found.values[0])
    s = s if abs(s) > 1e-6 else 1e-6  # at 0 the power is a logarithm, which a tiny exponent stands for
    b, a = law.published_coefficients(np.array([s]), found.coefficients)
    return CriticalRatioLaw(a=float(a), s=s, b=float(b))


# published: arXiv:2407.17467, table 5: finance corpus, models pre-trained on 200B tokens, tolerance 0.05 nat, no more
# than 20B CPT tokens. They hold for that recipe, and show the size of the thing; fit your own.
PUBLISHED_CRITICAL_RATIOS = {
    "460M": CriticalRatioLaw(a=0.22524761, s=0.26944345, b=-0.48139982),
    "940M": CriticalRatioLaw(a=0.7520627, s=0.13720245, b=-1.06581937),
    "1.6B": CriticalRatioLaw(a=-2.36384831, s=-0.15125569, b=1.59223649),
    "3.1B": CriticalRatioLaw(a=-2.5368197, s=-0.42071423, b=0.84375368),
}
