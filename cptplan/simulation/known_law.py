"""A law whose parameters are known: what a simulation takes for the truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cptplan.errors import ConfigError
from cptplan.laws.cpt import CptLaw
from cptplan.laws.history import RunHistory
from cptplan.laws.protocol import Law

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


class LossModel(Protocol):
    """Anything that says what a run would give: a known law, or a fitted one."""

    @property
    def law(self) -> Law:
        """Its form."""
        ...

    def mean(self, history: RunHistory, steps: IntArray) -> FloatArray:
        """Loss after each of the steps, nats per token, shape (points,)."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownLaw:
    """A CPT law with its parameters."""

    law: CptLaw
    values: FloatArray
    """Nonlinear parameters in the order of law.parameters, shape (parameters,)."""
    coefficients: FloatArray
    """Linear parameters in the order of law.terms, shape (terms,)."""
    replay_ratio: float | None = None
    """The only replay ratio that the law holds for; None for any."""

    def mean(self, history: RunHistory, steps: IntArray) -> FloatArray:
        """Loss after each of the steps, nats per token, shape (points,).

        Raises:    ConfigError if the run has another replay ratio than the law.
        """
        if history.phase == "cpt" and self.replay_ratio is not None:
            other = history.replay_ratio[history.replay_ratio != self.replay_ratio]
            if len(other):
                raise ConfigError(
                    f"replay_ratio must be {self.replay_ratio:g}, the ratio that this law was fitted at; got "
                    f"{other[0]:g}.",
                    hint="choose a law that holds for any ratio, such as knowledge-pile",
                )
        return np.asarray(self.law.columns(self.values, history, steps) @ self.coefficients)


def needs_pretraining(law: Law) -> bool:
    """Whether a law was fitted with the rates before the change of data, and so cannot do without them."""
    return isinstance(law, CptLaw) and not law.form.open_start


def check_start(law: Law, history: RunHistory, name: str) -> None:
    """Raise ConfigError if a law needs the pre-training of a run and it is not known."""
    unknown = history.phase == "cpt" and not history.pretrain_known and history.known_area is None
    if unknown and needs_pretraining(law):
        raise ConfigError(
            f"pre-training must be known to a law that was fitted with it; got none for {name}.",
            hint="name the run's parent, and give the curve directory that holds it",
        )
