"""The D-CPT law: final loss by model size, CPT tokens and the share of the corpus whose loss it is.

    L(N, D, r) = E + A / N^alpha + B r^eta / D^beta + C / (r + eps)^gamma                    (Que et al. 2024)

r is the domain share for domain loss and the replay ratio for general loss. The published fit needs several sizes and
token counts; a term whose variable never changes cannot be told from E and is left out. The loss always falls in N and
in D; the paper asks that it also falls in r, which the form grants only where C gamma / (r + eps)^(gamma + 1) outweighs
B eta r^(eta - 1) / D^beta. So it cannot describe forgetting that goes on growing with D.
"""

from __future__ import annotations

import numpy as np

from cptplan.laws.cpt import Side
from cptplan.laws.final.protocol import FloatArray, Runs, log_parameter
from cptplan.laws.protocol import Parameter, Term

# Centres: alpha and beta of arXiv:2203.15556; the paper prints no fitted values. Widths: assumed.
ALPHA = log_parameter("alpha", "exponent of the model size", (0.02, 2.0), 0.34, 0.5)
BETA = log_parameter("beta", "exponent of the tokens", (0.02, 2.0), 0.28, 0.5)
ETA = log_parameter("eta", "power of the share in the tokens' term", (0.05, 10.0), 1.0, 0.7)
EPSILON = log_parameter("eps", "share that counts as none", (1e-6, 1.0), 1e-2, 3.0)
GAMMA = log_parameter("gamma", "exponent of the share", (0.01, 10.0), 0.3, 1.0)


class DCptLaw:
    """The D-CPT law of one validation set."""

    name = "d_cpt"
    reference = "arXiv:2406.01375"

    def __init__(self, side: Side, *, with_params: bool = True, with_tokens: bool = True) -> None:
        """The law of one side.

        Args:      with_params: whether it has the term of the model size. with_tokens: and that of the tokens.
        """
        self.side = side
        self.with_params, self.with_tokens = with_params, with_tokens
        self.parameters: tuple[Parameter, ...] = (
            *((ALPHA,) if with_params else ()),
            *((BETA, ETA) if with_tokens else ()),
            EPSILON,
            GAMMA,
        )
        self.terms: tuple[Term, ...] = (
            Term(name="E", meaning="loss that nothing here removes, nats per token", sign=1),
            *((Term(name="A", meaning="size of the model's term", sign=1),) if with_params else ()),
            *((Term(name="B", meaning="size of the tokens' term", sign=1),) if with_tokens else ()),
            Term(name="C", meaning="size of the share's term", sign=1),
        )
        self.variables: tuple[str, ...] = (
            "domain_share",
            *(("tokens",) if with_tokens else ()),
            *(("num_params",) if with_params else ()),
        )
        self.falling: tuple[str, ...] = self.variables[1:]

    def columns(self, values: FloatArray, runs: Runs) -> FloatArray:
        """Columns 1, N^-alpha, r^eta D^-beta, (r + eps)^-gamma; see protocol.FinalLaw.columns."""
        by_name, share = self._named(values), self._share(runs)
        found = [np.ones_like(share)]
        if self.with_params:
            found.append(runs.num_params ** -by_name["alpha"])
        if self.with_tokens:
            found.append(share ** by_name["eta"] * runs.tokens ** -by_name["beta"])
        found.append((share + by_name["eps"]) ** -by_name["gamma"])
        return np.column_stack(found)

    def derivatives(self, values: FloatArray, runs: Runs) -> FloatArray:
        """Derivatives of the columns; see protocol.FinalLaw.derivatives."""
        by_name, share = self._named(values), self._share(runs)
        column = dict(zip((t.name for t in self.terms), self.columns(values, runs).T, strict=True))
        log_share = np.log(np.maximum(share, 1e-300))  # times a column that is 0 there
        by_parameter = {"eps": ("C", -by_name["gamma"] / (share + by_name["eps"]))}
        by_parameter["gamma"] = ("C", -np.log(share + by_name["eps"]))
        by_parameter["alpha"] = ("A", -np.log(runs.num_params))
        by_parameter["beta"] = ("B", -np.log(runs.tokens))
        by_parameter["eta"] = ("B", log_share)
        found = np.zeros((len(self.parameters), len(runs), len(self.terms)))
        place = {term.name: number for number, term in enumerate(self.terms)}
        for number, parameter in enumerate(self.parameters):
            term, factor = by_parameter[parameter.name]
            found[number, :, place[term]] = column[term] * factor
        return found

    def _named(self, values: FloatArray) -> dict[str, float]:
        return dict(zip((p.name for p in self.parameters), values.tolist(), strict=True))

    def _share(self, runs: Runs) -> FloatArray:
        return 1.0 - runs.domain_share if self.side == "general" else runs.domain_share
