"""The law of continual pre-training: base curve, annealing, and a distribution shift that replay weakens.

Symbols (published form, Wang et al. 2025, arXiv:2505.07796, eq. 4 and 8):

    L(t) = L0 + A S(t)^-alpha - C1 S2_pt(t) - C2 S2_cpt(t) + B h(r) (1 - (1 + E X(t))^-beta)

    S              forward area of pre-training and CPT together
    S2_pt, S2_cpt  annealing area, by the phase in which the rate changed
    X              the shift's clock: area of CPT alone
    h(r)           what the replay ratio r leaves of the shift
    B              > 0 on general data (forgetting), < 0 on the domain (learning)

Deviations from the paper, each switched by CptForm and judged in reports/decisions: areas count (lr / reference_lr)^p,
so that S is in steps at the reference rate and p = 1 is the paper; the clock may run at the domain share's pace,
X = sum (lr / reference_lr)^p (1 - r)^gamma; h has the published exponential in the corrected orientation, or the
logarithm that also holds below 10 % replay. S2_pt goes on relaxing after the change of data.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cptplan.areas import annealing_area, relaxed_area
from cptplan.laws.history import RunHistory
from cptplan.laws.protocol import Parameter, Term

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Side = Literal["general", "domain"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CptForm:
    """Which deviations from the published law are on."""

    amplitude: Literal["exponential", "logarithmic", "none"] = "logarithmic"
    clock: bool = True
    """X runs at (1 - r)^gamma."""
    free_power: bool = True
    """p is estimated; else 1."""
    open_start: bool = False
    """Pre-training is unknown: its forward area S_pt is estimated (arXiv:2505.07796, section 6), not interpreted."""

    @property
    def name(self) -> str:
        """The form in a word: published, or what it has instead."""
        if self.amplitude == "exponential" and not self.clock and not self.free_power:
            return "published"
        parts = {"exponential": ["exp"], "logarithmic": ["log"], "none": []}[self.amplitude]
        return (
            "+".join([*parts, *(["clock"] if self.clock else []), *(["power"] if self.free_power else [])]) or "plain"
        )


PUBLISHED = CptForm(amplitude="exponential", clock=False, free_power=False)


def memory_prior(total_steps: int) -> float:
    """Centre of the prior of forgetting_time: a fortieth of all steps, which is what lambda = 0.999 was fixed for.

    Args:      total_steps: most optimiser steps of a run, its pre-training included.
    Reference: arXiv:2505.07796: 1 / (1 - 0.999) = 1,000 steps on runs of 40,000 and more; reports/decisions/0002.
    """
    return float(np.clip(total_steps / 40.0, 10.0, 1000.0))


def _parameter(
    name: str, meaning: str, bounds: tuple[float, float], start: float, prior_sd: float, *, log_scale: bool = True
) -> Parameter:
    return Parameter(
        name=name, meaning=meaning, low=bounds[0], high=bounds[1], start=start, prior_sd=prior_sd, log_scale=log_scale
    )


# Priors are weak and centred on the published fits where there are any: alpha 0.44 to 0.70, beta 0.07 to 0.9
# (arXiv:2505.07796); p and gamma near 0.7 to 0.8 (measured on small campaigns); epsilon 6e-7 to 4e-5 from the tables of
# arXiv:2403.08763 up to 1e-2 on small ones; forgetting_time a fortieth of the steps (reports/decisions/0002).
PARAMETERS = {
    parameter.name: parameter
    for parameter in (
        _parameter("alpha", "exponent of the base term", (0.05, 2.0), 0.5, 0.5),
        _parameter("E", "pace of the shift per step at the reference rate", (1e-4, 1e2), 0.05, 2.5),
        _parameter("beta", "exponent of the shift", (0.02, 2.0), 0.2, 0.7),
        _parameter("forgetting_time", "1 / (1 - lambda): steps an annealing takes to pay", (5.0, 5000.0), 20.0, 0.7),
        _parameter("p", "power of the rate in the areas", (0.2, 1.2), 0.8, 0.2, log_scale=False),
        _parameter("S_pt", "forward area of an unknown pre-training, in reference steps", (1.0, 1e8), 1e4, 2.0),
        _parameter("gamma", "power of the domain share in the shift's clock", (0.0, 2.0), 0.7, 0.4, log_scale=False),
        _parameter("epsilon", "replay share that counts as none", (1e-6, 10.0), 1e-2, 3.0),
        _parameter("a", "curvature of the shift in the domain share", (0.05, 20.0), 3.0, 0.8),
    )
}


class CptLaw:
    """The CPT law of one validation set. side says which way the shift goes and how replay weakens it."""

    reference = "arXiv:2505.07796, eq. 4 and 8 (corrected orientation)"

    def __init__(
        self, side: Side, reference_lr: float, form: CptForm | None = None, memory_steps: float = 20.0
    ) -> None:
        """A law of one side.

        Args:      reference_lr: rate that areas are counted in. memory_steps: where the prior of forgetting_time is
                   centred, see memory_prior.
        """
        self.memory_steps = memory_steps
        self.side = side
        self.reference_lr = reference_lr
        self.form = form or CptForm()
        self.name = self.form.name
        self.parameters: tuple[Parameter, ...] = self._parameters()
        self.terms: tuple[Term, ...] = (
            Term(name="L0", meaning="loss that no training removes, nats per token", sign=1),
            Term(name="A", meaning="size of the base term", sign=1),
            Term(name="C1", meaning="gain per annealing area of pre-training", sign=1),
            Term(name="C2", meaning="gain per annealing area of CPT", sign=1),
            Term(
                name="B", meaning="size of the distribution shift, nats per token", sign=1 if side == "general" else -1
            ),
        )

    def _parameters(self) -> tuple[Parameter, ...]:
        """The nonlinear parameters that the form has."""
        names = ["alpha", "E", "beta", "forgetting_time"]
        names += ["p"] if self.form.free_power else []
        names += ["S_pt"] if self.form.open_start else []
        names += ["gamma"] if self.form.clock else []
        if self.form.amplitude == "logarithmic" and self.side == "general":
            names.append("epsilon")
        elif self.form.amplitude != "none":
            names.append("a")
        centred = {**PARAMETERS, "forgetting_time": replace(PARAMETERS["forgetting_time"], start=self.memory_steps)}
        return tuple(centred[name] for name in names)

    def columns(self, values: FloatArray, history: RunHistory, steps: IntArray) -> FloatArray:
        """Columns 1, S^-alpha, -S2_pt, -S2_cpt, h(r)(1 - (1 + E X)^-beta); see protocol.Law.columns."""
        by_name = dict(zip((p.name for p in self.parameters), values.tolist(), strict=True))
        power = by_name.get("p", 1.0)
        area = _areas(history, self.reference_lr, power)[steps]
        if history.phase == "cpt" and not history.pretrain_known:
            area = area + by_name.get("S_pt", 0.0)
        s2_pretrain, s2_cpt = _annealing(history, self.reference_lr, by_name["forgetting_time"])
        clock, domain_share = self._clock(by_name.get("gamma", 0.0), power, history)
        shift = -np.expm1(-by_name["beta"] * np.log1p(by_name["E"] * clock[steps]))
        if history.phase == "pretrain":
            shift = np.zeros_like(shift)
        base = np.maximum(area, 1.0) ** -by_name["alpha"]
        amplitude = self._amplitude(by_name, domain_share[steps])
        return np.column_stack([np.ones_like(base), base, -s2_pretrain[steps], -s2_cpt[steps], amplitude * shift])

    def _clock(self, gamma: float, power: float, history: RunHistory) -> tuple[FloatArray, FloatArray]:
        """The shift's clock and the mean domain share so far, after 0, 1, .. steps, each of shape (steps + 1,)."""
        pace, share = _pace(history, self.reference_lr, power), 1.0 - history.replay_ratio
        slowed = pace * share**gamma if gamma else pace
        clock = np.concatenate([[0.0], np.cumsum(slowed)])
        weight = pace + 1e-12  # a mean over steps of rate 0 is the plain mean
        mean_share = np.cumsum(weight * share) / np.cumsum(weight)
        return clock, np.concatenate([mean_share[:1], np.clip(mean_share, 0.0, 1.0)])

    def _amplitude(self, by_name: dict[str, float], share: FloatArray) -> FloatArray:
        """What is left of the shift at a domain share in [0, 1]: 0 at share 0, 1 at share 1."""
        if self.form.amplitude == "none":
            return np.ones_like(share)
        if self.form.amplitude == "logarithmic" and self.side == "general":
            # laws.md 7.2's form: ln((1 + e) / (r + e)) / ln((1 + e) / e), r = 1 - share
            epsilon = by_name["epsilon"]
            return np.asarray(np.log1p(share / (1.0 - share + epsilon)) / np.log1p(1.0 / epsilon))
        a = by_name["a"]
        if self.side == "general":
            return np.asarray(np.expm1(a * share) / np.expm1(a))
        return np.asarray(np.expm1(-a * share) / np.expm1(-a))


# The same areas are asked for again and again while one parameter after another is varied; a RunHistory is one by
# identity, so the caches cannot mix runs up.


@lru_cache(maxsize=256)
def _pace(history: RunHistory, reference_lr: float, power: float) -> FloatArray:
    """(lr / reference_lr)^p of every step of the phase, shape (steps,)."""
    return np.asarray((history.lr / reference_lr) ** power, dtype=np.float64)


@lru_cache(maxsize=256)
def _areas(history: RunHistory, reference_lr: float, power: float) -> FloatArray:
    """Forward area of pre-training and this phase after 0, 1, .. steps, in reference steps, shape (steps + 1,)."""
    before = float(np.sum((history.pretrain_lr / reference_lr) ** power))
    return before + np.concatenate([[0.0], np.cumsum(_pace(history, reference_lr, power))])


@lru_cache(maxsize=256)
def _annealing(history: RunHistory, reference_lr: float, time: float) -> tuple[FloatArray, FloatArray]:
    """S2 of pre-training and of CPT after 0, 1, .. steps, in units of reference rate * time, each (steps + 1,)."""
    decay, scale = 1.0 - 1.0 / time, reference_lr * time
    count = np.arange(len(history.lr) + 1, dtype=np.float64)
    nothing = np.zeros_like(count)
    if not len(history.pretrain_lr):
        first = int(np.argmax(history.lr)) + 1 if history.phase == "pretrain" else 0
        previous = None if history.phase == "pretrain" else history.previous_lr
        own = annealing_area(history.lr, decay=decay, previous_lr=previous, first_step=first).area / scale
        return (own, nothing) if history.phase == "pretrain" else (nothing, own)
    warmed = int(np.argmax(history.pretrain_lr)) + 1
    pretrain = annealing_area(history.pretrain_lr, decay=decay, first_step=warmed)
    relaxing = relaxed_area(pretrain, count, decay) / scale
    own = annealing_area(history.lr, decay=decay, previous_lr=history.previous_lr).area / scale
    return (relaxing + own, nothing) if history.phase == "pretrain" else (relaxing, own)
