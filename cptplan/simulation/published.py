"""Published parameter sets of the CPT law as laws that predict: for what-if curves, for virtual campaigns, for tests.

published.yaml has them in the paper's units, where areas are sums of the rate itself. Here they become a CptLaw, whose
areas count steps at a reference rate eta = the peak rate of the set, with T = 1 / (1 - lambda) steps of memory:

    A -> A eta^-alpha,  E -> E eta,  S_pt -> S_pt / eta,  C1 -> C1 eta T,  C2 -> C2 eta T;  L0, B, alpha, beta stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from cptplan.config import parse_yaml
from cptplan.contract import Contract
from cptplan.curves import CurveRecord
from cptplan.errors import ConfigError, suggest
from cptplan.laws.cpt import CptForm, CptLaw, Side
from cptplan.schedule import WsdSchedule
from cptplan.simulation.known_law import KnownLaw

Positive = Annotated[float, Field(gt=0)]
ReplayForm = Literal["exponential", "logarithmic"]

BUILT_IN = Path(__file__).with_name("published.yaml")
DECAY_SHARE = 0.2  # assumed: the paper does not print how long its WSD pre-training decays


class LossParameters(Contract):
    """Parameters of one validation set, in the units of the paper."""

    L0: Positive
    A: Positive
    alpha: Positive
    B: float
    E: Positive
    beta: Positive
    C1: Annotated[float, Field(ge=0)] = 0.0
    C2: Annotated[float, Field(ge=0)]
    S_pt: Positive | None = None
    """Fitted forward area of an unknown pre-training."""
    F: Positive | None = None
    g1: float = 0.0
    g2: float = 0.0
    g3: float = 0.0

    def at_size(self, num_params: int) -> LossParameters:
        """The parameters at one model size: L0 + F N^-g3, C1 N^g1, C2 N^g2 with N in millions.

        Reference: arXiv:2505.07796, eq. 7; the unit of N is not printed (see published.yaml).
        """
        size = num_params / 1e6
        base = self.L0 + (self.F or 0.0) * size**-self.g3
        changed = {"L0": base, "C1": self.C1 * size**self.g1, "C2": self.C2 * size**self.g2}
        return self.model_copy(update={**changed, "F": None, "g1": 0.0, "g2": 0.0, "g3": 0.0})


class PretrainSetting(Contract):
    """The pre-training that a set was fitted on."""

    peak_lr: Positive
    total_steps: Annotated[int, Field(gt=0)]
    batch_tokens: Annotated[int, Field(gt=0)]
    seq_len: Annotated[int, Field(gt=0)]


class ReplayParameters(Contract):
    """How the shift weakens with replay: a of both sides, or epsilon of the general one."""

    general: Positive
    domain: Positive
    source: str
    note: str


class PublishedSet(Contract):
    """One model on one pair of corpora: the parameters of its two validation sets and where they come from."""

    name: str
    title: str
    figure: str
    num_params: Annotated[int, Field(gt=0)] | None = None
    """Non-embedding parameters; None in the fit of several sizes, and where it is not printed."""
    replay_ratio: Annotated[float, Field(ge=0, le=1)] | None = None
    """The one ratio that the set holds for; None: any, by one of the replay forms."""
    pretrain: PretrainSetting | None = None
    """None for an open checkpoint, whose pre-training is unknown."""
    cpt_peak_lr: Positive | None = None
    general: LossParameters
    domain: LossParameters
    notes: tuple[str, ...] = ()
    annealing_decay: Annotated[float, Field(gt=0, lt=1)]
    replay: dict[ReplayForm, ReplayParameters]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.pretrain is None and self.cpt_peak_lr is None:
            raise ConfigError(f"{self.name} must have a peak rate; got neither pretrain nor cpt_peak_lr.")
        return self

    @property
    def peak_lr(self) -> float:
        """Peak rate that the set was fitted at, the unit of its areas."""
        return self.pretrain.peak_lr if self.pretrain else float(self.cpt_peak_lr or 0.0)

    def laws(self, *, replay: ReplayForm = "exponential", num_params: int | None = None) -> dict[str, KnownLaw]:
        """The laws of both validation sets, "general" and "domain".

        Args:      replay: how the shift weakens with replay. num_params: non-embedding parameters, for a set of several
                   sizes.
        Raises:    ConfigError if the size is missing, or given to a set that has its own.
        """
        sized = self.general.F is not None
        if sized == (num_params is None):
            rule = "be given for" if sized else "be left out for"
            got = "none" if num_params is None else num_params
            raise ConfigError(
                f"num_params must {rule} {self.name}; got {got}.",
                hint="such as 106000000" if sized else "knowledge-pile-sizes has the fit of several sizes",
            )
        sides: tuple[Side, Side] = ("general", "domain")
        return {side: self._law(side, replay, num_params) for side in sides}

    def _law(self, side: Side, replay: ReplayForm, num_params: int | None) -> KnownLaw:
        printed = self.general if side == "general" else self.domain
        if num_params is not None:
            printed = printed.at_size(num_params)
        amplitude: Literal["exponential", "logarithmic", "none"] = "none" if self.replay_ratio is not None else replay
        form = CptForm(amplitude=amplitude, clock=False, free_power=False, open_start=self.pretrain is None)
        memory, eta = 1.0 / (1.0 - self.annealing_decay), self.peak_lr
        law = CptLaw(side, eta, form, memory)
        weakening = getattr(self.replay[replay], side)
        values = {
            "alpha": printed.alpha,
            "E": printed.E * eta,
            "beta": printed.beta,
            "forgetting_time": memory,
            "S_pt": (printed.S_pt or 0.0) / eta,
            "a": weakening,
            "epsilon": weakening,
        }
        coefficients = {
            "L0": printed.L0,
            "A": printed.A * eta**-printed.alpha,
            "C1": printed.C1 * eta * memory,
            "C2": printed.C2 * eta * memory,
            "B": printed.B,
        }
        return KnownLaw(
            law=law,
            values=np.array([values[p.name] for p in law.parameters]),
            coefficients=np.array([coefficients[t.name] for t in law.terms]),
            replay_ratio=self.replay_ratio,
        )

    def pretrain_record(self, loss_potential: float = 0.0, decay_share: float = DECAY_SHARE) -> CurveRecord:
        """The set's pre-training as a curve record: WSD at the peak rate, with a linear decay to some share of it.

        Args:      loss_potential: last rate over peak rate, 0 for annealed, 1 for never annealed.
        Raises:    ConfigError if the pre-training is unknown.
        """
        if self.pretrain is None:
            raise ConfigError(
                f"pre-training must be known to be simulated; {self.name} has none.", hint="choose another law"
            )
        steps = self.pretrain.total_steps
        schedule = WsdSchedule(
            kind="wsd",
            peak_lr=self.peak_lr,
            total_steps=steps,
            decay_steps=round(decay_share * steps),
            min_lr=loss_potential * self.peak_lr,
        )
        return CurveRecord(
            phase="pretrain",
            lr=schedule,
            batch_tokens=self.pretrain.batch_tokens,
            seq_len=self.pretrain.seq_len,
            num_params=self.num_params,
        )


class _PublishedFile(Contract):
    """The whole file."""

    schema_version: Literal[1] = 1
    annealing_decay: float
    replay: dict[str, dict[str, str | float]]
    sets: dict[str, dict[str, object]]


@cache
def read_published() -> Mapping[str, PublishedSet]:
    """All published sets by name."""
    content = _PublishedFile.parse(parse_yaml(BUILT_IN.read_text(encoding="utf-8"), str(BUILT_IN)), str(BUILT_IN))
    shared = {"annealing_decay": content.annealing_decay, "replay": content.replay}
    return {
        name: PublishedSet.parse({**values, **shared, "name": name}, f"{BUILT_IN} at {name}")
        for name, values in content.sets.items()
    }


def find_published(name: str) -> PublishedSet:
    """The published set of that name.

    Raises:    ConfigError with the closest name, or all of them.
    """
    known = read_published()
    if name not in known:
        hint = suggest(name, known) or f"known: {', '.join(known)}"
        raise ConfigError(f"law must be a published set; got {name!r}.", hint=hint)
    return known[name]
