"""The Chinchilla form: the baseline that knows only model size and tokens.

    L(N, D) = E + A / N^alpha + B / D^beta                                                 (Hoffmann et al. 2022)

With one model size the term of N cannot be told from E and is left out: a plain power law in tokens.
"""

from __future__ import annotations

import numpy as np

from cptplan.laws.final.d_cpt import ALPHA, BETA
from cptplan.laws.final.protocol import FloatArray, Runs
from cptplan.laws.protocol import Parameter, Term


class ChinchillaLaw:
    """The Chinchilla form of one validation set."""

    name = "chinchilla"
    reference = "arXiv:2203.15556, eq. 2"

    def __init__(self, *, with_params: bool = True) -> None:
        """A law with or without the term of the model size."""
        self.with_params = with_params
        self.parameters: tuple[Parameter, ...] = (ALPHA, BETA) if with_params else (BETA,)
        size = Term(name="A", meaning="size of the model's term", sign=1)
        self.terms: tuple[Term, ...] = (
            Term(name="E", meaning="loss that nothing here removes, nats per token", sign=1),
            *((size,) if with_params else ()),
            Term(name="B", meaning="size of the tokens' term", sign=1),
        )
        self.variables: tuple[str, ...] = ("tokens", "num_params") if with_params else ("tokens",)
        self.falling: tuple[str, ...] = self.variables

    def columns(self, values: FloatArray, runs: Runs) -> FloatArray:
        """Columns 1, N^-alpha, D^-beta; see protocol.FinalLaw.columns."""
        size = [runs.num_params ** -values[0]] if self.with_params else []
        return np.column_stack([np.ones_like(runs.tokens), *size, runs.tokens ** -values[-1]])

    def derivatives(self, values: FloatArray, runs: Runs) -> FloatArray:
        """Derivatives of the columns; see protocol.FinalLaw.derivatives."""
        columns = self.columns(values, runs)
        logs = [np.log(runs.num_params), np.log(runs.tokens)] if self.with_params else [np.log(runs.tokens)]
        found = np.zeros((len(self.parameters), len(runs), len(self.terms)))
        for number, log in enumerate(logs):  # the column of parameter number is the one after that of E
            found[number, :, number + 1] = -log * columns[:, number + 1]
        return found
