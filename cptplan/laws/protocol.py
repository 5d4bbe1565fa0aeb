"""What every law is: a few nonlinear parameters with bounds and priors, and columns that the other parameters scale.

    loss(t) = sum_j coefficient_j * column_j(t; nonlinear parameters)

Most parameters of all these laws are linear once a few are given, which is what makes fitting them fast and safe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cptplan.laws.history import RunHistory

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameter:
    """A nonlinear parameter: searched in z, value = exp(z) on a log scale, else z."""

    name: str
    meaning: str
    low: float
    high: float
    start: float
    """Where the prior is centred."""
    prior_sd: float
    """Width of the weak prior, in z (nats of the logarithm, or the parameter's own unit)."""
    log_scale: bool = True

    def to_value(self, z: float) -> float:
        """The parameter from its search coordinate, inside the bounds."""
        value = float(np.exp(z)) if self.log_scale else z
        return min(max(value, self.low), self.high)

    def to_z(self, value: float) -> float:
        """The search coordinate of a value."""
        return float(np.log(value)) if self.log_scale else value


@dataclass(frozen=True, kw_only=True, slots=True)
class Term:
    """A linear parameter: the coefficient of one column. sign +1: >= 0, -1: <= 0, 0: free."""

    name: str
    meaning: str
    sign: int


class Law(Protocol):
    """A law of one validation set."""

    name: str
    reference: str
    parameters: tuple[Parameter, ...]
    terms: tuple[Term, ...]

    def columns(self, values: FloatArray, history: RunHistory, steps: IntArray) -> FloatArray:
        """Columns that the coefficients scale.

        Args:      values: nonlinear parameters in the order of parameters, shape (parameters,).
                   history: rates and shares of the run. steps: finished steps of its phase, shape (points,).
        Returns:   shape (points, terms).
        """
        ...
