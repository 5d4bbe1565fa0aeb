"""The law of continual pre-training: base curve, annealing, and a distribution shift that replay weakens.

Symbols (published form, Wang et al. 2025, arXiv:2505.07796, eq. 4 and 8):

    L(t) = L0 + A S(t)^-alpha - C1 S2_pt(t) - C2 S2_cpt(t) + B h(r) (1 - (1 + E X(t))^-beta)

    S      forward area of pre-training and CPT together          S2_pt, S2_cpt   annealing area by the phase of the change
    X      the shift's clock: area of CPT alone                   h(r)            what the replay ratio leaves of the shift
    B      > 0 on general data (forgetting), < 0 on the domain (learning)

Deviations from the paper, each switched by CptForm and judged in reports/decisions: areas count (lr / reference_lr)^p,
so that S is in steps at the reference rate and p = 1 is the paper; the clock may run at the domain share's pace,
X = sum (lr / reference_lr)^p (1 - r)^gamma; h has the published exponential in the corrected orientation, or the
logarithm that also holds below 10 % replay. S2_pt goes on relaxing after the change of data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cptplan.areas import annealing_area, forward_area, relaxed_area
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


PUBLISHED = CptForm(amplitude="exponential", clock=False, free_power=False)


class CptLaw:
    """The CPT law of one validation set. side says which way the shift goes and how replay weakens it."""

    reference = "arXiv:2505.07796, eq. 4 and 8 (corrected orientation)"

    def __init__(self, side: Side, reference_lr: float, form: CptForm | None = None) -> None:
        self.side = side
        self.reference_lr = reference_lr
        self.form = form or CptForm()
        self.name = f"cpt_{self.form.amplitude}" + ("_clock" if self.form.clock else "") + ("_power" if self.form.free_power else "")
        self.parameters = self._parameters()
        self.terms = (
            Term(name="L0", meaning="loss that no training removes, nats per token", sign=1),
            Term(name="A", meaning="size of the base term", sign=1),
            Term(name="C1", meaning="gain per annealing area of pre-training", sign=1),
            Term(name="C2", meaning="gain per annealing area of CPT", sign=1),
            Term(name="B", meaning="size of the distribution shift, nats per token", sign=1 if side == "general" else -1),
        )

    def _parameters(self) -> tuple[Parameter, ...]:
        found = [
            # published range of alpha 0.44-0.70 (arXiv:2505.07796 fits), prior wide
            Parameter(name="alpha", meaning="exponent of the base term", low=0.05, high=2.0, start=0.5, prior_sd=0.5),
            Parameter(name="E", meaning="pace of the shift per step at the reference rate", low=1e-4, high=1e2, start=0.05, prior_sd=2.5),
            Parameter(name="beta", meaning="exponent of the shift", low=0.02, high=2.0, start=0.2, prior_sd=0.7),
            Parameter(name="forgetting_time", meaning="1 / (1 - lambda): steps an annealing takes to pay", low=5.0, high=5000.0, start=300.0, prior_sd=1.5),
        ]
        if self.form.free_power:
            found.append(Parameter(name="p", meaning="power of the rate in the areas", low=0.2, high=1.2, start=0.8, prior_sd=0.2, log_scale=False))
        if self.form.clock:
            found.append(Parameter(name="gamma", meaning="power of the domain share in the shift's clock", low=0.0, high=2.0, start=0.7, prior_sd=0.4, log_scale=False))
        if self.form.amplitude == "exponential":
            found.append(Parameter(name="a", meaning="curvature of the shift in the domain share", low=0.05, high=20.0, start=3.0, prior_sd=0.8))
        elif self.form.amplitude == "logarithmic" and self.side == "general":
            found.append(Parameter(name="epsilon", meaning="replay share that counts as none", low=1e-6, high=10.0, start=1e-2, prior_sd=3.0))
        elif self.form.amplitude == "logarithmic":
            found.append(Parameter(name="a", meaning="curvature of the shift in the domain share", low=0.05, high=20.0, start=3.0, prior_sd=0.8))
        return tuple(found)

    def columns(self, values: FloatArray, history: RunHistory, steps: IntArray) -> FloatArray:
        """Columns 1, S^-alpha, -S2_pt, -S2_cpt, h(r)(1 - (1 + E X)^-beta); see protocol.Law.columns."""
        by_name = dict(zip((p.name for p in self.parameters), values.tolist(), strict=True))
        power = by_name.get("p", 1.0)
        rate = history.lr / self.reference_lr
        before = float(np.sum((history.pretrain_lr / self.reference_lr) ** power))
        area = before + forward_area(rate, power)[steps]
        s2_pretrain, s2_cpt = self._annealing(by_name["forgetting_time"], history, steps)
        clock, domain_share = self._clock(by_name, power, rate, history)
        shift = -np.expm1(-by_name["beta"] * np.log1p(by_name["E"] * clock[steps]))
        if history.phase == "pretrain":
            shift = np.zeros_like(shift)
        base = np.maximum(area, 1.0) ** -by_name["alpha"]
        return np.column_stack(
            [np.ones_like(base), base, -s2_pretrain, -s2_cpt, self._amplitude(by_name, domain_share[steps]) * shift]
        )

    def _annealing(self, time: float, history: RunHistory, steps: IntArray) -> tuple[FloatArray, FloatArray]:
        """S2 of pre-training and of CPT at the steps, in units of reference rate * forgetting time."""
        decay = 1.0 - 1.0 / time
        scale = self.reference_lr * time
        if history.phase == "pretrain" and not len(history.pretrain_lr):
            warmed = int(np.argmax(history.lr))
            own = annealing_area(history.lr, decay=decay, first_step=warmed + 1).area[steps]
            return own / scale, np.zeros(len(steps))
        own = annealing_area(history.lr, decay=decay, previous_lr=history.previous_lr).area[steps]
        if not len(history.pretrain_lr):
            return np.zeros(len(steps)), own / scale
        warmed = int(np.argmax(history.pretrain_lr))
        pretrain = annealing_area(history.pretrain_lr, decay=decay, first_step=warmed + 1)
        relaxing = relaxed_area(pretrain, steps.astype(np.float64), decay)
        if history.phase == "pretrain":
            return (relaxing + own) / scale, np.zeros(len(steps))
        return relaxing / scale, own / scale

    def _clock(
        self, by_name: dict[str, float], power: float, rate: FloatArray, history: RunHistory
    ) -> tuple[FloatArray, FloatArray]:
        """The shift's clock and the mean domain share so far, after 0, 1, .. steps, shape (steps + 1,)."""
        pace = rate**power
        share = 1.0 - history.replay_ratio
        gamma = by_name.get("gamma", 0.0)
        slowed = pace * np.where(share > 0, share, 0.0) ** gamma if gamma else pace
        clock = np.concatenate([[0.0], np.cumsum(slowed)])
        weight = np.cumsum(np.maximum(pace, 1e-12))
        mean_share = np.cumsum(np.maximum(pace, 1e-12) * share) / weight
        return clock, np.concatenate([mean_share[:1], mean_share])

    def _amplitude(self, by_name: dict[str, float], share: FloatArray) -> FloatArray:
        """What is left of the shift at a domain share in [0, 1]: 0 at share 0, 1 at share 1."""
        if self.form.amplitude == "none":
            return np.ones_like(share)
        if self.form.amplitude == "logarithmic" and self.side == "general":
            # laws.md 7.2's form: ln((1 + e) / (r + e)) / ln((1 + e) / e), r = 1 - share
            epsilon = by_name["epsilon"]
            return np.log1p(share / (1.0 - share + epsilon)) / np.log1p(1.0 / epsilon)
        a = by_name["a"]
        if self.side == "general":
            return np.expm1(a * share) / np.expm1(a)
        return np.expm1(-a * share) / np.expm1(-a)
