"""What a law of final losses is, and what it may know of a run: amounts of data and parameters, and nothing else.

    loss = sum_j coefficient_j * column_j(run; nonlinear parameters)

as in laws.protocol, so that only the few nonlinear parameters are searched. The learning-rate schedule and the start
checkpoint are not in it: every row is taken to come from one recipe and one checkpoint per model size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cptplan.laws.protocol import Parameter, Term

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

VARIABLES = ("domain_share", "tokens", "num_params", "unique_tokens")
SAME = 1e-6  # assumed: values within this relative distance are one level of a variable


@dataclass(frozen=True, kw_only=True, slots=True)
class Runs:
    """Finished runs, a row each; every array has shape (rows,), NaN where not given."""

    domain_share: FloatArray
    """Domain tokens / all CPT tokens, in [0, 1]."""
    tokens: FloatArray
    """CPT tokens trained on, repeated ones counted each time, > 0."""
    num_params: FloatArray
    """Parameters of the model, > 0."""
    unique_tokens: FloatArray
    """Different tokens among those trained on, > 0 and at most tokens."""

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, rows: IntArray | NDArray[np.bool_]) -> Runs:
        """Some of the rows."""
        return Runs(**{name: getattr(self, name)[rows] for name in VARIABLES})

    def levels(self, name: str) -> int:
        """How many different values a variable has; 0 when it is not given for every row."""
        values = np.sort(np.asarray(getattr(self, name), dtype=np.float64))
        if not len(values) or not np.all(np.isfinite(values)):
            return 0
        return 1 + int(np.sum(np.diff(values) > SAME * np.abs(values[1:])))


def make_runs(
    domain_share: Sequence[float] | FloatArray | float,
    tokens: Sequence[float] | FloatArray | float,
    num_params: Sequence[float] | FloatArray | float | None = None,
    unique_tokens: Sequence[float] | FloatArray | float | None = None,
) -> Runs:
    """Runs from numbers or sequences, broadcast to one length; None means not given."""
    given = [np.nan if value is None else value for value in (domain_share, tokens, num_params, unique_tokens)]
    arrays = np.broadcast_arrays(*(np.atleast_1d(np.asarray(value, dtype=np.float64)) for value in given))
    return Runs(**{name: np.array(array) for name, array in zip(VARIABLES, arrays, strict=True)})


class FinalLaw(Protocol):
    """A law of the final loss of one validation set."""

    name: str
    reference: str
    parameters: tuple[Parameter, ...]
    terms: tuple[Term, ...]
    variables: tuple[str, ...]
    """What of a run the law uses."""
    falling: tuple[str, ...]
    """Variables in which the loss never rises, whatever the parameters."""

    def columns(self, values: FloatArray, runs: Runs) -> FloatArray:
        """Columns that the coefficients scale.

        Args:      values: nonlinear parameters in the order of parameters, shape (parameters,).
        Returns:   shape (rows, terms).
        """
        ...

    def derivatives(self, values: FloatArray, runs: Runs) -> FloatArray:
        """Derivatives of the columns by each nonlinear parameter, shape (parameters, rows, terms)."""
        ...


def log_parameter(name: str, meaning: str, bounds: tuple[float, float], start: float, prior_sd: float) -> Parameter:
    """A positive nonlinear parameter, searched on a log scale; prior_sd in nats of the logarithm."""
    return Parameter(name=name, meaning=meaning, low=bounds[0], high=bounds[1], start=start, prior_sd=prior_sd)
