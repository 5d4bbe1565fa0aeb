"""Laws of one data set: the loss of a schedule without a change of data. On CPT curves they are baselines.

Power law:       L = L0 + A S^-alpha, S the steps (tokens at a fixed batch; Chinchilla's form at one size)
LR annealing:    L = L0 + A S^-alpha - C S2                                         arXiv:2408.11029
Multi-power:     L = L0 + A S^-alpha - B sum_k d_k G(eta_k^-gamma S_k)               arXiv:2503.12811
                 G(x) = 1 - (1 + C x)^-beta
FSL:             L = L0 + A S^-s - sum_k d_k (c2 + c3 S^k^-s)(1 - (1 + c4 S_k)^-gamma)   arXiv:2509.19189, eq. 30

d_k = eta_{k-1} - eta_k is the k-th fall of the rate, S_k the forward area since, S^k the area before it. Rates are in
units of the reference rate. The true area of the warm-up is in S; its rise of the rate is not in the sums. A CPT run is
taken together with its pre-training as one schedule, which is what these laws know of it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cptplan.laws.grid import Grid, forward_sums, grid_of, grouped_drops, momentum_sums
from cptplan.laws.history import RunHistory
from cptplan.laws.protocol import Columns, LawBase, Parameter, Term

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

SOURCE_POWER = 0.1
"""Measured: 0.11 on the nine public 25M curves of arXiv:2503.12811 fitted together; between noise that follows the loss
(0.04 there) and its square (0.09), the reason that arXiv:2509.19189 gives. Fixed: three curves cannot tell it."""


def _log_parameter(name: str, meaning: str, start: float, prior_sd: float, low: float, high: float) -> Parameter:
    return Parameter(name=name, meaning=meaning, start=start, prior_sd=prior_sd, low=low, high=high)


ALPHA = _log_parameter("alpha", "exponent of the base term", 0.5, 0.5, 0.05, 2.0)
POWER = Parameter(
    name="p", meaning="power of the rate in the area", start=0.9, prior_sd=0.1, low=0.2, high=1.5, log_scale=False
)
BASE_TERMS = (
    Term(name="L0", meaning="loss that no training removes, nats per token", sign=1),
    Term(name="A", meaning="size of the base term", sign=1),
)


@lru_cache(maxsize=512)
def joint(history: RunHistory) -> tuple[RunHistory, int]:
    """Pre-training and the run itself as one schedule, and the steps before the run."""
    before = len(history.pretrain_lr)
    if not before and history.phase == "pretrain":
        return history, 0
    both = np.concatenate([history.pretrain_lr, history.lr])
    whole = replace(
        history, phase="pretrain", pretrain_lr=np.zeros(0), lr=both, replay_ratio=np.ones(len(both)), domain_passes=None
    )
    return whole, before


class _ScheduleLaw(LawBase):
    """A law over one schedule with a base term in the forward area."""

    def __init__(self, name: str, reference: str, reference_lr: float) -> None:
        self.name, self.reference, self.reference_lr = name, reference, reference_lr

    def spec(self) -> dict[str, Any]:
        """See protocol.Law."""
        return {"law": self.name, "reference_lr": self.reference_lr, **self._options()}

    def _options(self) -> dict[str, Any]:
        return {}

    def _grid(self, history: RunHistory, steps: IntArray) -> tuple[Grid, IntArray]:
        whole, before = joint(history)
        return grid_of(whole, self.reference_lr), np.asarray(steps) + before

    def _base(
        self, p: dict[str, float], grid: Grid, steps: IntArray
    ) -> tuple[list[FloatArray], dict[tuple[str, str], FloatArray]]:
        area, by_power = (grid.at(steps, part) for part in forward_sums(grid, p.get("p", self._power)))
        inside = area > 1.0  # one step at the reference rate is where the power law begins
        area = np.maximum(area, 1.0)
        base = area ** -p["alpha"]
        slopes = {("A", "alpha"): -base * np.log(area), ("A", "p"): -p["alpha"] * base / area * by_power * inside}
        return [np.ones(len(steps)), base], slopes

    _power = 1.0


class PowerLaw(_ScheduleLaw):
    """Loss as a power of the steps: knows nothing of the schedule, a baseline to be beaten."""

    _power = 0.0

    def __init__(self, reference_lr: float) -> None:
        super().__init__("power", "arXiv:2203.15556, at one size and batch", reference_lr)
        self.parameters = (ALPHA,)
        self.terms = BASE_TERMS

    def evaluate(self, values: FloatArray, history: RunHistory, steps: IntArray) -> Columns:
        """Columns 1, steps^-alpha."""
        grid, at = self._grid(history, steps)
        return self._columns(values, *self._base(self._named(values), grid, at))


class AnnealingLaw(_ScheduleLaw):
    """The learning-rate annealing law."""

    def __init__(self, reference_lr: float, memory_steps: float = 1000.0) -> None:
        super().__init__("annealing", "arXiv:2408.11029, eq. 1", reference_lr)
        self.memory_steps = memory_steps
        time = _log_parameter("forgetting_time", "1 / (1 - lambda), steps", memory_steps, 1.0, 2.0, 1e5)
        self.parameters = (ALPHA, time)
        self.terms = (*BASE_TERMS, Term(name="C", meaning="gain of annealing per reference rate, nats", sign=1))

    def _options(self) -> dict[str, Any]:
        return {"memory_steps": self.memory_steps}

    def evaluate(self, values: FloatArray, history: RunHistory, steps: IntArray) -> Columns:
        """Columns 1, S^-alpha, -S2 / time."""
        p = self._named(values)
        grid, at = self._grid(history, steps)
        columns, slopes = self._base(p, grid, at)
        momentum = momentum_sums(grid, p["forgetting_time"])
        slopes["C", "forgetting_time"] = -grid.at(at, momentum.own_slope) / p["forgetting_time"]
        return self._columns(values, [*columns, -grid.at(at, momentum.own)], slopes)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Pairs:
    """Every point with every group of falls: what does not depend on parameters."""

    since: FloatArray
    """Forward area from the fall to the point, 0 for falls still to come, shape (points, falls)."""
    size: FloatArray
    """What has fallen by then, shape (points, falls)."""
    log_rate: FloatArray
    source: FloatArray
    """Forward area before each fall."""
    steps: IntArray


_PAIRS: dict[tuple[int, int], tuple[Grid, _Pairs]] = {}


def _pairs(grid: Grid, steps: IntArray) -> _Pairs:
    """The pairs of a run's points; the last few hundred are kept, since a fit asks for the same ones each time."""
    key = (id(grid), hash(steps.tobytes()))
    found = _PAIRS.get(key)
    if found is not None and found[0] is grid and np.array_equal(found[1].steps, steps):
        return found[1]
    drops = grouped_drops(grid)
    area = grid.at(steps, forward_sums(grid, 1.0)[0])
    # of a group that is still falling a share counts, and the middle of that share
    share = np.clip((steps[:, None] - drops.begin) / drops.span, 0.0, 1.0)
    since = np.maximum(area[:, None] - drops.area + (1.0 - share) * drops.reach, 0.0)
    pairs = _Pairs(
        since=np.where(share > 0.0, since, 0.0),
        size=share * drops.size,
        log_rate=np.log(np.maximum(drops.rate, 1e-6)),  # a rate of 0: gains of falls to 0 stay finite
        source=np.maximum(drops.area, 1.0),
        steps=steps.copy(),
    )
    if len(_PAIRS) > 256:
        _PAIRS.clear()
    _PAIRS[key] = (grid, pairs)
    return pairs


class MultiPowerLaw(_ScheduleLaw):
    """The multi-power law, as published or with a gain that falls with the source time (see SOURCE_POWER)."""

    def __init__(self, reference_lr: float, *, late: bool = False) -> None:
        super().__init__("multi_power_late" if late else "multi_power", "arXiv:2503.12811", reference_lr)
        self.late = late
        # published: C 2.03 to 2.13, beta 0.583 to 0.598, gamma 0.635 to 0.655 at rates in units of 1; here areas are in
        # steps at the reference rate, so that C becomes C reference_lr^(1 - gamma)
        pace = 2.07 * reference_lr ** (1.0 - 0.645)
        self.parameters = (
            ALPHA,
            _log_parameter("C", "pace of the gain per reference step", pace, 0.15, 1e-5, 1e3),
            _log_parameter("beta", "exponent of the gain", 0.59, 0.15, 0.02, 3.0),
            _log_parameter("gamma", "how much a lower rate slows the gain less", 0.645, 0.15, 0.02, 2.0),
            *((POWER,) if late else ()),
        )
        self.terms = (*BASE_TERMS, Term(name="B", meaning="gain of annealing per reference rate, nats", sign=1))

    def evaluate(self, values: FloatArray, history: RunHistory, steps: IntArray) -> Columns:
        """Columns 1, S^-alpha, -sum of falls times G."""
        p = self._named(values)
        grid, at = self._grid(history, steps)
        columns, slopes = self._base(p, grid, at)
        pairs = _pairs(grid, at)
        size = pairs.size
        if self.late:
            size = size * pairs.source**-SOURCE_POWER
        x = p["C"] * np.exp(-p["gamma"] * pairs.log_rate) * pairs.since
        growth = np.log1p(x)
        left = np.exp(-p["beta"] * growth)
        by_log_x = p["beta"] * left * (x / (1.0 + x)) * size
        slopes["B", "C"] = -by_log_x.sum(axis=1) / p["C"]
        slopes["B", "gamma"] = by_log_x @ pairs.log_rate
        slopes["B", "beta"] = -(growth * left * size).sum(axis=1)
        return self._columns(values, [*columns, -((1.0 - left) * size).sum(axis=1)], slopes)


class FslLaw(_ScheduleLaw):
    """The functional scaling law in its practical form at a fixed size."""

    def __init__(self, reference_lr: float) -> None:
        super().__init__("fsl", "arXiv:2509.19189, eq. 30", reference_lr)
        self.parameters = (
            ALPHA,
            _log_parameter("c4", "pace of the gain per reference step", 0.1, 1.0, 1e-5, 1e2),
            _log_parameter("gamma", "exponent of the gain", 0.4, 0.7, 0.02, 3.0),
        )
        self.terms = (
            *BASE_TERMS,
            Term(name="c2", meaning="gain of annealing per reference rate, nats", sign=1),
            Term(name="c3", meaning="the part of it that falls with the source time", sign=1),
        )

    def evaluate(self, values: FloatArray, history: RunHistory, steps: IntArray) -> Columns:
        """Columns 1, S^-alpha, and the two sums over falls."""
        p = self._named(values)
        grid, at = self._grid(history, steps)
        columns, slopes = self._base(p, grid, at)
        pairs = _pairs(grid, at)
        early = pairs.size * pairs.source ** -p["alpha"]
        x = p["c4"] * pairs.since
        growth = np.log1p(x)
        left = np.exp(-p["gamma"] * growth)
        by_pace = p["gamma"] * left * pairs.since / (1.0 + x)
        for term, size in (("c2", pairs.size), ("c3", early)):
            slopes[term, "c4"] = -(by_pace * size).sum(axis=1)
            slopes[term, "gamma"] = -(growth * left * size).sum(axis=1)
        slopes["c3", "alpha"] = ((1.0 - left) * early) @ np.log(pairs.source)
        gains = [-((1.0 - left) * size).sum(axis=1) for size in (pairs.size, early)]
        return self._columns(values, [*columns, *gains], slopes)
