"""Repeated data: what a token is worth when it was seen before, and a law of final losses that knows repetition.

Effective tokens: D tokens drawn from U different ones teach as much as D' fresh ones,

    D' = U + U R* (1 - exp(-R / R*)),   R = max(D / U - 1, 0),   R* = 15.39                (Muennighoff et al. 2023)

and nothing is lost in the first epoch, D' = D for D <= U. It was fitted to pre-training from scratch with whole corpora
repeated; a small slice repeated often among fresh data can do harm (arXiv:2205.10487), which it does not know.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from cptplan.errors import DataError
from cptplan.laws.final.protocol import FloatArray, Runs, log_parameter
from cptplan.laws.protocol import Parameter, Term

# published: arXiv:2305.16264, appendix A, 182 runs of 7M to 9B parameters; the text rounds it to 15.39
HALF_LIFE = 15.387756


def effective_tokens(tokens: ArrayLike, unique_tokens: ArrayLike, half_life: float = HALF_LIFE) -> FloatArray:
    """Fresh tokens that teach as much as tokens drawn from a corpus: D' = U + U R* (1 - exp(-R / R*)).

    Args:      tokens: tokens drawn, >= 0. unique_tokens: tokens of the corpus, > 0, inf when it never ends; both of any
               shape, broadcast. half_life: R*, repetitions after which a repeat is worth 1/e of a fresh token.
    Returns:   float64 of the broadcast shape: tokens in the first epoch, then less, at most unique (1 + half_life).
    Raises:    DataError if a corpus is empty or an amount is negative or not a number.
    Reference: Muennighoff et al. 2023, arXiv:2305.16264, section 3.1; no deviation.
    """
    drawn, corpus = _amounts(tokens, unique_tokens, half_life)
    first = np.minimum(drawn, corpus)
    repeated = np.zeros_like(first)
    np.divide(drawn - first, corpus, out=repeated, where=drawn > corpus)
    worth = -half_life * np.expm1(-repeated / half_life)
    return np.asarray(first + np.where(repeated > 0.0, first * worth, 0.0))


def value_of_next_token(tokens: ArrayLike, unique_tokens: ArrayLike, half_life: float = HALF_LIFE) -> FloatArray:
    """What one more token is worth in fresh ones: d D' / d D = exp(-R / R*), 1 in the first epoch.

    Args and Raises: as effective_tokens. Its integral over tokens is effective_tokens.
    """
    drawn, corpus = _amounts(tokens, unique_tokens, half_life)
    repeated = np.zeros_like(drawn)
    np.divide(drawn - corpus, corpus, out=repeated, where=drawn > corpus)
    return np.asarray(np.exp(-repeated / half_life))


def _amounts(tokens: ArrayLike, unique_tokens: ArrayLike, half_life: float) -> tuple[FloatArray, FloatArray]:
    drawn, corpus = np.broadcast_arrays(
        np.asarray(tokens, dtype=np.float64), np.asarray(unique_tokens, dtype=np.float64)
    )
    if not np.all(corpus > 0.0):
        raise DataError(
            f"unique_tokens must be greater than 0; got {np.min(corpus):g}.", hint="leave an empty corpus out"
        )
    if not (np.all(drawn >= 0.0) and np.all(np.isfinite(drawn))):
        raise DataError(f"tokens must be finite and at least 0; got {np.min(drawn):g}.", hint="count tokens drawn")
    if not half_life > 0.0:
        raise DataError(f"half_life must be greater than 0; got {half_life:g}.", hint="15.39 is the published value")
    return drawn, corpus


# Centres: the exponents of arXiv:2203.15556 for capacity and training; the rest assumed and wide.
UNDERCAPACITY = log_parameter("a", "undercapacity at the reference size", (1e-6, 1e3), 0.1, 2.5)
ALPHA = log_parameter("alpha", "exponent of the model size", (0.02, 2.0), 0.34, 0.5)
UNDERTRAINING = log_parameter("b", "undertraining at the reference tokens", (1e-6, 1e3), 0.1, 2.5)
BETA = log_parameter("beta", "exponent of the tokens", (0.02, 2.0), 0.28, 0.5)
OVERFITTING = log_parameter("c", "overfitting at the reference size and unique tokens", (1e-6, 1e3), 0.1, 2.5)
GAMMA = log_parameter("gamma", "power of the model size in overfitting", (0.02, 3.0), 0.3, 0.7)
DELTA = log_parameter("delta", "exponent of the unique tokens", (0.02, 3.0), 0.5, 0.7)


class RepetitionLaw:
    """The closed form for repeated data, bounded above by the loss L_init of a model that learnt nothing.

        L(N, T, D) = E + (L_init - E) h / (1 + h),   h = a / N^alpha + b / T^beta + c N^gamma / D^delta

    T tokens trained on, D different ones among them. N, T and D are counted in reference amounts, so a, b and c are
    what each lack adds to h there. With one model size the terms of N cannot be told from the rest: h = b / T^beta +
    c / D^delta. Overfitting depends on D and not on T: at one D the form does not see how often it was repeated.
    """

    name = "repetition"
    reference = "arXiv:2605.09189; amounts in reference units"

    def __init__(
        self,
        *,
        with_params: bool = True,
        reference_params: float = 1.0,
        reference_tokens: float = 1.0,
        reference_unique: float = 1.0,
    ) -> None:
        """A law in reference amounts (1 is the published form), with or without the model size."""
        self.with_params = with_params
        self.reference_params = reference_params
        self.reference_tokens = reference_tokens
        self.reference_unique = reference_unique
        size = (UNDERCAPACITY, ALPHA)
        self.parameters: tuple[Parameter, ...] = (
            (*size, UNDERTRAINING, BETA, OVERFITTING, GAMMA, DELTA)
            if with_params
            else (UNDERTRAINING, BETA, OVERFITTING, DELTA)
        )
        self.terms: tuple[Term, ...] = (
            Term(name="E", meaning="loss that nothing here removes, nats per token", sign=1),
            Term(name="G", meaning="L_init - E: what can be learnt at all, nats per token", sign=1),
        )
        self.variables: tuple[str, ...] = (
            "tokens",
            "unique_tokens",
            *(("num_params",) if with_params else ()),
        )
        self.falling: tuple[str, ...] = ("tokens", "unique_tokens")

    def columns(self, values: FloatArray, runs: Runs) -> FloatArray:
        """Columns 1, h / (1 + h); see protocol.FinalLaw.columns."""
        lack = sum(self._lacks(values, runs).values())
        return np.column_stack([np.ones_like(runs.tokens), lack / (1.0 + lack)])

    def derivatives(self, values: FloatArray, runs: Runs) -> FloatArray:
        """Derivatives of the columns; see protocol.FinalLaw.derivatives."""
        lacks = self._lacks(values, runs)
        lack = sum(lacks.values())
        log_tokens, log_unique = self._logs(runs.tokens, self.reference_tokens), self._unique(runs)
        factors: dict[str, FloatArray | float] = {"b": 1.0, "beta": -log_tokens, "c": 1.0, "delta": -log_unique}
        if self.with_params:
            log_params = self._logs(runs.num_params, self.reference_params)
            factors |= {"a": 1.0, "alpha": -log_params, "gamma": log_params}
        owner = {"a": "a", "alpha": "a", "b": "b", "beta": "b", "c": "c", "gamma": "c", "delta": "c"}
        found = np.zeros((len(self.parameters), len(runs), 2))
        for number, (parameter, value) in enumerate(zip(self.parameters, values, strict=True)):
            slope = lacks[owner[parameter.name]] * factors[parameter.name]
            if parameter.name in lacks:
                slope = slope / value
            found[number, :, 1] = slope / (1.0 + lack) ** 2
        return found

    def _lacks(self, values: FloatArray, runs: Runs) -> dict[str, FloatArray]:
        """The summands of h by the name of their size, each of shape (rows,)."""
        p = dict(zip((parameter.name for parameter in self.parameters), values.tolist(), strict=True))
        found = {
            "b": p["b"] * np.exp(-p["beta"] * self._logs(runs.tokens, self.reference_tokens)),
            "c": p["c"] * np.exp(-p["delta"] * self._unique(runs)),
        }
        if self.with_params:
            log_params = self._logs(runs.num_params, self.reference_params)
            found["a"] = p["a"] * np.exp(-p["alpha"] * log_params)
            found["c"] = found["c"] * np.exp(p["gamma"] * log_params)
        return found

    def _unique(self, runs: Runs) -> FloatArray:
        return self._logs(runs.unique_tokens, self.reference_unique)

    @staticmethod
    def _logs(amounts: FloatArray, reference: float) -> FloatArray:
        return np.asarray(np.log(amounts / reference))
