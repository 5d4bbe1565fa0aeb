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

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cptplan.errors import CurveError
from cptplan.laws.grid import Grid, clock_sums, forward_sums, grid_of, momentum_sums, rewarming_sums
from cptplan.laws.history import RunHistory
from cptplan.laws.protocol import Columns, LawBase, Parameter, Term

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Side = Literal["general", "domain"]

HARM_POWER = 2.0  # of the passes beyond the first; measured: reports/decisions/0010


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
    repetition: bool = False
    """Repeated domain tokens count less in the domain's clock (arXiv:2305.16264), and harm by O (passes - 1)^2."""
    undo: bool = False
    """The rate's way to its first peak counts with pre-training's annealing, C1: re-warming undoes it. Else with C2."""
    transient: bool = False
    """General loss jumps in the first steps (cold optimiser moments, re-warm-up) and relaxes: a term of its own."""
    sizes: bool = False
    """Runs of several model sizes: annealing gains N^g, base F N^-g3 (arXiv:2505.07796, eq. 7)."""

    @property
    def name(self) -> str:
        """The form in a word: published, or what it has instead."""
        if self.amplitude == "exponential" and not self.clock and not self.free_power:
            parts = ["published"]
        else:
            parts = {"exponential": ["exp"], "logarithmic": ["log"], "none": []}[self.amplitude]
        parts += ["clock"] if self.clock else []
        parts += ["power"] if self.free_power else []
        parts += ["undo"] if self.undo else []
        parts += ["transient"] if self.transient else []
        parts += ["repetition"] if self.repetition else []
        parts += ["sizes"] if self.sizes else []
        return "+".join(parts) or "plain"


RELAXED = 7.0  # relaxation times after which the first jump counts as gone
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
# arXiv:2403.08763 up to 1e-2 on small ones; forgetting_time a fortieth of the steps (reports/decisions/0002);
# T 1 / (1 - beta2) of Adam, 19 to 32 on four campaigns; R 15.39 (arXiv:2305.16264); g1, g2, g3 0.01 to 0.24 and 0.19
# (arXiv:2505.07796, figure 15, N in millions).
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
        _parameter("T", "steps in which the first jump of general loss relaxes", (3.0, 500.0), 20.0, 0.5),
        _parameter("R", "passes after which a repeated token is worth 1/e", (0.3, 300.0), 15.39, 0.7),
        _parameter(
            "g1", "power of the size in the gain of pre-training's annealing", (0.0, 1.0), 0.2, 0.2, log_scale=False
        ),
        _parameter("g2", "power of the size in the gain of CPT's annealing", (0.0, 1.0), 0.2, 0.2, log_scale=False),
        _parameter("g3", "exponent of the size in the base loss", (0.05, 1.0), 0.19, 0.3),
    )
}


class CptLaw(LawBase):
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
        self.jumps = self.form.transient and side == "general"
        self.repeats = self.form.repetition and side == "domain"
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
        if self.jumps:
            self.terms += (Term(name="D", meaning="size of the first jump of general loss, nats", sign=1),)
        if self.repeats:
            self.terms += (Term(name="O", meaning="harm of one pass more over the same domain tokens, nats", sign=1),)
        if self.form.sizes:
            self.terms += (Term(name="F", meaning="size of the base loss that more parameters remove, nats", sign=1),)

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
        names += ["T"] if self.jumps else []
        names += ["R"] if self.repeats else []
        names += ["g1", "g2", "g3"] if self.form.sizes else []
        centred = {**PARAMETERS, "forgetting_time": replace(PARAMETERS["forgetting_time"], start=self.memory_steps)}
        return tuple(centred[name] for name in names)

    def spec(self) -> dict[str, Any]:
        """See protocol.Law."""
        return {
            "law": "cpt",
            "side": self.side,
            "reference_lr": self.reference_lr,
            "memory_steps": self.memory_steps,
            "form": asdict(self.form),
        }

    def evaluate(self, values: FloatArray, history: RunHistory, steps: IntArray) -> Columns:
        """Columns 1, S^-alpha, -S2_pt, -S2_cpt, h(r)(1 - (1 + E X)^-beta) and their slopes; see protocol.Law."""
        p, grid = self._named(values), grid_of(history, self.reference_lr)
        power = p.get("p", 1.0)
        area, area_by_power = (grid.at(steps, part) for part in forward_sums(grid, power))
        guessed = history.phase == "cpt" and not history.pretrain_known and history.known_area is None
        if guessed:
            area = area + p.get("S_pt", 0.0)
        elif history.known_area is not None:
            area = area + history.known_area / self.reference_lr
        inside = area > 1.0  # one step at the reference rate is where the power law begins
        area = np.maximum(area, 1.0)
        base = area ** -p["alpha"]
        base_by_area = -p["alpha"] * base / area * inside
        slopes = {
            ("A", "alpha"): -base * np.log(area),
            ("A", "p"): base_by_area * area_by_power,
            ("A", "S_pt"): base_by_area * guessed,
        }
        momentum = momentum_sums(grid, p["forgetting_time"])
        before, before_slope = grid.at(steps, momentum.before), grid.at(steps, momentum.before_slope)
        own, own_slope = grid.at(steps, momentum.own), grid.at(steps, momentum.own_slope)
        if self.form.undo and history.phase == "cpt":
            rewarm, rewarm_slope = (grid.at(steps, part) for part in rewarming_sums(grid, p["forgetting_time"]))
            before, own = before + rewarm, own - rewarm
            before_slope, own_slope = before_slope + rewarm_slope, own_slope - rewarm_slope
        if history.phase == "pretrain":
            before, own = before + own, np.zeros_like(own)
            before_slope, own_slope = before_slope + own_slope, np.zeros_like(own)
        size, log_size = self._size(history)
        scale = {"C1": size ** p.get("g1", 0.0), "C2": size ** p.get("g2", 0.0)}
        for name, column, slope in (("C1", before, before_slope), ("C2", own, own_slope)):
            slopes[name, "forgetting_time"] = -slope * scale[name] / p["forgetting_time"]
            slopes[name, name.replace("C", "g")] = -column * scale[name] * log_size
        shift, harm = np.zeros(len(steps)), np.zeros(len(steps))
        if history.phase == "cpt":
            shift, shift_slopes = self._shift(p, grid, steps)
            slopes.update({("B", name): slope for name, slope in shift_slopes.items()})
            harm = grid.at(steps, grid.extra_passes) ** HARM_POWER
        columns = [np.ones(len(steps)), base, -before * scale["C1"], -own * scale["C2"], shift]
        if self.jumps:
            jump = self._jump(p["T"], grid, steps) if history.phase == "cpt" else np.zeros(len(steps))
            columns.append(jump)
            slopes["D", "T"] = jump * steps / p["T"] ** 2
        columns += [harm] if self.repeats else []
        if self.form.sizes:
            columns.append(np.full(len(steps), size ** -p["g3"]))
            slopes["F", "g3"] = -log_size * columns[-1]
        return self._columns(values, columns, slopes)

    @staticmethod
    def _jump(time: float, grid: Grid, steps: IntArray) -> FloatArray:
        """The transient sqrt(rate) s e^(-t / T), of the rate of the last step and the domain share s so far.

        0 past 7 T: what is left then is a thousandth; a term that only such points see could have any size before.
        """
        rate = grid.at(steps, np.concatenate([[0.0], grid.own.lr]))
        left = np.where(steps > RELAXED * time, 0.0, np.exp(-steps / time))
        return np.asarray(np.sqrt(rate) * grid.at(steps, grid.mean_share) * left)

    def _size(self, history: RunHistory) -> tuple[float, float]:
        """Model size in millions of parameters and its logarithm; 1 and 0 when the form does not ask for it."""
        if not self.form.sizes:
            return 1.0, 0.0
        if history.num_params is None:
            raise CurveError(
                "num_params must be known for a law of several sizes; got none.", hint="add it to the .json"
            )
        return history.num_params / 1e6, float(np.log(history.num_params / 1e6))

    def _shift(self, p: dict[str, float], grid: Grid, steps: IntArray) -> tuple[FloatArray, dict[str, FloatArray]]:
        """h(r)(1 - (1 + E X)^-beta) and its derivatives by parameter, each of shape (points,)."""
        sums = clock_sums(grid, p.get("p", 1.0), p.get("gamma", 0.0), p["R"] if self.repeats else None)
        clock, by_power, by_gamma, by_passes = (grid.at(steps, part) for part in sums)
        growth, beta, pace = np.log1p(p["E"] * clock), p["beta"], p["E"]
        left = np.exp(-beta * growth)
        amplitude, amplitude_slope = self._amplitude(p, grid.at(steps, grid.mean_share))
        by_clock = amplitude * beta * left * pace / (1.0 + pace * clock)
        slopes = {
            "E": amplitude * beta * left * clock / (1.0 + pace * clock),
            "beta": amplitude * growth * left,
            "p": by_clock * by_power,
            "gamma": by_clock * by_gamma,
            "R": by_clock * by_passes,
        }
        slopes.update({name: slope * (1.0 - left) for name, slope in amplitude_slope.items()})
        return amplitude * (1.0 - left), slopes

    def _amplitude(self, p: dict[str, float], share: FloatArray) -> tuple[FloatArray, dict[str, FloatArray]]:
        """What is left of the shift at a domain share in [0, 1] (0 at share 0, 1 at share 1), and its derivative."""
        if self.form.amplitude == "none":
            return np.ones_like(share), {}
        if self.form.amplitude == "logarithmic" and self.side == "general":
            # small-replay form: ln((1 + e) / (r + e)) / ln((1 + e) / e), r = 1 - share
            e, rest = p["epsilon"], 1.0 - share + p["epsilon"]
            above, whole = np.log1p(share / rest), np.log1p(1.0 / e)
            slope = (1.0 / (1.0 + e) - 1.0 / rest) / whole + above / whole**2 / (e * (1.0 + e))
            return above / whole, {"epsilon": slope}
        # general: (e^{a s} - 1) / (e^a - 1); domain: the same with -a
        a = p["a"] if self.side == "general" else -p["a"]
        above, whole = np.expm1(a * share), np.expm1(a)
        slope = share * np.exp(a * share) / whole - above * np.exp(a) / whole**2
        return above / whole, {"a": slope if self.side == "general" else -slope}
