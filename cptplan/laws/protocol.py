"""What every law is: a few nonlinear parameters with bounds and priors, and columns that the other parameters scale.

    loss(t) = sum_j coefficient_j * column_j(t; nonlinear parameters)

Most parameters of all these laws are linear once a few are given, which is what makes fitting them fast and safe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """What the coefficients scale, and how it turns with the nonlinear parameters."""

    values: FloatArray
    """Shape (points, terms)."""
    slopes: FloatArray
    """Derivative of each column with respect to each parameter's search coordinate z, (points, terms, parameters)."""


class Law(Protocol):
    """A law of one validation set."""

    name: str
    reference: str
    reference_lr: float
    parameters: tuple[Parameter, ...]
    terms: tuple[Term, ...]

    def evaluate(self, values: FloatArray, history: RunHistory, steps: IntArray) -> Columns:
        """Columns and slopes.

        Args:      values: nonlinear parameters in the order of parameters, shape (parameters,).
                   history: rates and shares of the run. steps: finished steps of its phase, shape (points,).
        """
        ...

    def columns(self, values: FloatArray, history: RunHistory, steps: IntArray) -> FloatArray:
        """The columns alone, shape (points, terms)."""
        ...

    def spec(self) -> dict[str, Any]:
        """What registry.law_from_spec makes an equal law from, as JSON."""
        ...


class LawBase:
    """What all laws share: columns from evaluate, and slopes by name."""

    parameters: tuple[Parameter, ...]
    terms: tuple[Term, ...]

    def evaluate(self, values: FloatArray, history: RunHistory, steps: IntArray) -> Columns:
        """See Law."""
        raise NotImplementedError

    def columns(self, values: FloatArray, history: RunHistory, steps: IntArray) -> FloatArray:
        """See Law."""
        return self.evaluate(values, history, steps).values

    def _named(self, values: FloatArray) -> dict[str, float]:
        return dict(zip((p.name for p in self.parameters), values.tolist(), strict=True))

    def _columns(
        self, values: FloatArray, columns: Sequence[FloatArray], slopes: Mapping[tuple[str, str], FloatArray]
    ) -> Columns:
        """Columns with slopes put in place.

        Args:      columns: in the order of terms, each of shape (points,). slopes: by (term, parameter), derivative
                   with respect to the parameter's value; parameters that the law does not have are left out.
        """
        table = np.column_stack(list(columns))
        found = np.zeros((*table.shape, len(self.parameters)))
        term_at = {term.name: number for number, term in enumerate(self.terms)}
        for number, parameter in enumerate(self.parameters):
            per_z = float(values[number]) if parameter.log_scale else 1.0
            for (term, name), slope in slopes.items():
                if name == parameter.name:
                    found[:, term_at[term], number] = slope * per_z
        return Columns(values=table, slopes=found)
