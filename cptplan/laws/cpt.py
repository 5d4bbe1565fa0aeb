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

from dataclasses import dataclass
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


class CptLaw:
    """The CPT law of one validation set. side says which way the shift goes and how replay weakens it."""

    reference = "arXiv:2505.07796, eq. 4 and 8 (corrected orientation)"

    def __init__(self, side: Side, reference_lr: float, form: CptForm | None = None) -> None:
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
        found = [
            # published range of alpha 0.44-0.70 (arXiv:2505.07796 fits), prior wide
            Parameter(name="alpha", meaning="exponent of the base term", low=0.05, high=2.0, start=0.5, prior_sd=0.5),
            Parameter(
                name="E",
                meaning="pace of the shift per step at the reference rate",
                low=1e-4,
                high=1e2,
                start=0.05,
                prior_sd=2.5,
            ),
            Parameter(name="beta", meaning="exponent of the shift", low=0.02, high=2.0, start=0.2, prior_sd=0.7),
            Parameter(
                name="forgetting_time",
                meaning="1 / (1 - lambda): steps an annealing takes to pay",
                low=5.0,
                high=5000.0,
                start=20.0,
                prior_sd=0.7,
            ),
        ]
        if self.form.free_power:
            found.append(
                Parameter(
                    name="p",
                    meaning="power of the rate in the areas",
                    low=0.2,
                    high=1.2,
                    start=0.8,
                    prior_sd=0.2,
                    log_scale=False,
                )
            )
        if self.form.open_start:
            found.append(
                Parameter(
                    name="S_pt",
                    meaning="forward area of the unknown pre-training, in steps at the reference rate",
                    low=1.0,
                    high=1e8,
                    start=1e4,
                    prior_sd=2.0,
                )
            )
        if self.form.clock:
            found.append(
                Parameter(
                    name="gamma",
                    meaning="power of the domain share in the shift's clock",
                    low=0.0,
                    high=2.0,
                    start=0.7,
                    prior_sd=0.4,
                    log_scale=False,
                )
            )
        if self.form.amplitude == "exponential":
            found.append(
                Parameter(
                    name="a",
                    meaning="curvature of the shift in the domain share",
                    low=0.05,
                    high=20.0,
                    start=3.0,
                    prior_sd=0.8,
                )
            )
        elif self.form.amplitude == "logarithmic" and self.side == "general":
            found.append(
                Parameter(
                    name="epsilon",
                    meaning="replay share that counts as none",
                    low=1e-6,
                    high=10.0,
                    start=1e-2,
                    prior_sd=3.0,
                )
            )
        elif self.form.amplitude == "logarithmic":
            found.append(
                Parameter(
                    name="a",
                    meaning="curvature of the shift in the domain share",
                    low=0.05,
                    high=20.0,
                    start=3.0,
                    prior_sd=0.8,
                )
            )
        return tuple(found)

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
