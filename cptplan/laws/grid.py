"""A run's schedule as the laws read it: one block for each step, or blocks of equal width when it is very long.

Laws sum over steps. A schedule of at most MAX_BLOCKS steps is kept step by step, so that all sums are exact; a longer
one is cut into blocks of equal width (the first may be shorter) with the mean rate of each, and the sums are read off
between block edges by straight lines. That keeps time and memory linear in the length, whatever it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from cptplan.laws.history import RunHistory

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

MAX_BLOCKS = 4096  # measured: losses of 40,000-step runs move by 1e-4 of themselves at most, 1e-6 in the median
MAX_DROPS = 160  # measured: with 160 groups the gain of a cosine is within 2e-5 of the whole sum


@dataclass(frozen=True, kw_only=True, eq=False)
class Blocks:
    """Steps in blocks: rates and widths, and the drops of the rate between blocks."""

    lr: FloatArray
    """Mean rate of each block, shape (blocks,)."""
    width: FloatArray
    """Steps of each block, shape (blocks,)."""
    unit: int
    """Width of all blocks but the first."""

    @cached_property
    def edges(self) -> FloatArray:
        """Finished steps at the block edges, shape (blocks + 1,)."""
        return np.concatenate([[0.0], np.cumsum(self.width)])

    @cached_property
    def drops(self) -> FloatArray:
        """Fall of the rate at the start of each block of a pre-training, after its warm-up, shape (blocks,)."""
        if not len(self.lr):
            return np.zeros(0)
        fall = -np.diff(self.lr, prepend=self.lr[0])
        fall[: int(np.argmax(self.lr)) + 1] = 0.0
        return np.asarray(fall)


def cut(values: FloatArray, limit: int = MAX_BLOCKS) -> Blocks:
    """Blocks of a sequence of per-step values.

    Args:      values: shape (steps,). limit: most blocks.
    """
    steps = len(values)
    unit = max(-(-steps // limit), 1)
    if unit == 1:
        return Blocks(lr=np.asarray(values, dtype=np.float64), width=np.ones(steps), unit=1)
    blocks = -(-steps // unit)
    width = np.full(blocks, float(unit))
    width[0] = steps - unit * (blocks - 1)
    starts = np.concatenate([[0], np.cumsum(width[:-1])]).astype(np.int64)
    return Blocks(lr=np.add.reduceat(values, starts) / width, width=width, unit=unit)


@dataclass(frozen=True, kw_only=True, eq=False)
class Grid:
    """A run's history in blocks, in units of a reference rate, with what does not depend on any parameter."""

    before: Blocks
    """Rates of pre-training over the reference rate; no blocks when there was none or it is unknown."""
    own: Blocks
    """Rates of the phase itself over the reference rate."""
    share: FloatArray
    """Domain share of the tokens of each block, shape (blocks,)."""
    passes: FloatArray
    """Passes over the domain's unique tokens that are behind each block beyond the first, >= 0, shape (blocks,)."""
    previous: float
    """Rate before the phase over the reference rate."""
    pretraining: bool
    """The phase is pre-training itself: its warm-up is no annealing, and nothing shifts."""

    @cached_property
    def edges(self) -> FloatArray:
        """Finished steps of the phase at the block edges."""
        return self.own.edges

    @cached_property
    def drops(self) -> FloatArray:
        """Fall of the rate at the start of each block of the phase, shape (blocks,); a rise is negative."""
        fall: FloatArray = self.own.drops if self.pretraining else -np.diff(self.own.lr, prepend=self.previous)
        return fall

    @cached_property
    def mean_share(self) -> FloatArray:
        """Domain share of the training so far, weighted by the rate, at the block edges, shape (blocks + 1,)."""
        weight = (self.own.lr + 1e-12) * self.own.width  # a mean over steps of rate 0 is the plain mean
        mean = np.cumsum(weight * self.share) / np.cumsum(weight)
        return np.asarray(np.clip(np.concatenate([mean[:1], mean]), 0.0, 1.0))

    @cached_property
    def extra_passes(self) -> FloatArray:
        """passes at the block edges, shape (blocks + 1,); after the last one by the growth before it."""
        growth = np.diff(self.passes[-2:]).sum()
        return np.append(self.passes, self.passes[-1] + growth)

    def at(self, steps: IntArray, values: FloatArray) -> FloatArray:
        """Values after the steps from values at the block edges, shape (points,)."""
        if self.own.unit == 1:
            return np.asarray(values[steps])
        return np.interp(steps, self.edges, values)


@lru_cache(maxsize=512)
def grid_of(history: RunHistory, reference_lr: float) -> Grid:
    """The blocks of a history; a RunHistory is one by identity, so the cache cannot mix runs up."""
    own = cut(history.lr / reference_lr)
    return Grid(
        before=_shared((history.pretrain_lr / reference_lr).tobytes()),
        own=own,
        share=cut(1.0 - history.replay_ratio).lr,
        passes=np.zeros(len(own.lr))
        if history.domain_passes is None
        else cut(np.maximum(history.domain_passes - 1.0, 0.0)).lr,
        previous=history.previous_lr / reference_lr,
        pretraining=history.phase == "pretrain" and not len(history.pretrain_lr),
    )


@lru_cache(maxsize=64)
def _shared(rates: bytes) -> Blocks:
    """One Blocks for all runs that continue the same pre-training, so that its sums are made once."""
    return cut(np.frombuffer(rates, dtype=np.float64))


@lru_cache(maxsize=128)
def forward_sums(grid: Grid, power: float) -> tuple[FloatArray, FloatArray]:
    """Sum of rate^power up to each block edge, pre-training included, and its derivative with respect to power."""
    own, slope = _powers(grid.own, power)
    start, start_slope = _total(grid.before, power)
    return (
        start + np.concatenate([[0.0], np.cumsum(own)]),
        start_slope + np.concatenate([[0.0], np.cumsum(slope)]),
    )


@lru_cache(maxsize=128)
def _total(blocks: Blocks, power: float) -> tuple[float, float]:
    pace, slope = _powers(blocks, power)
    return float(np.sum(pace)), float(np.sum(slope))


@lru_cache(maxsize=128)
def clock_sums(
    grid: Grid, power: float, gamma: float, worth: float | None
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Sum of rate^power share^gamma v of the phase up to each block edge, and its derivatives (power, gamma, worth).

    v is what a token is worth that has been seen before: exp(-passes / worth), the derivative of the effective tokens
    of arXiv:2305.16264; 1 when worth is None.
    """
    own, slope = _powers(grid.own, power)
    there = grid.share > 0
    log_share = np.log(np.where(there, grid.share, 1.0))
    factor = np.where(there, np.exp(gamma * log_share), 0.0 if gamma > 0 else 1.0)
    tilt = np.zeros_like(own)
    if worth is not None:
        factor = factor * np.exp(-grid.passes / worth)
        tilt = own * factor * grid.passes / worth**2
    parts = (own * factor, slope * factor, own * factor * log_share, tilt)
    clock, by_power, by_gamma, by_worth = (np.concatenate([[0.0], np.cumsum(part)]) for part in parts)
    return clock, by_power, by_gamma, by_worth


def _powers(blocks: Blocks, power: float) -> tuple[FloatArray, FloatArray]:
    """width * rate^power of each block and its derivative with respect to power; rate 0 counts nothing."""
    positive = blocks.lr > 0
    log_rate = np.log(np.where(positive, blocks.lr, 1.0))
    pace = np.where(positive, np.exp(power * log_rate), 0.0) * blocks.width
    return pace, pace * log_rate


FALLEN = 1e-3  # assumed: a rate this far under its highest so far has passed its peak; less is rounding of logged rates


def before_first_fall(lr: FloatArray) -> BoolArray:
    """Where the rate is on its way to its first peak or stays there, shape of lr; the first value is True."""
    return ~np.logical_or.accumulate(lr < (1.0 - FALLEN) * np.maximum.accumulate(lr))


@dataclass(frozen=True, kw_only=True, slots=True)
class Momentum:
    """Annealing gain of the momentum form at the block edges, and its derivative with respect to log time."""

    before: FloatArray
    before_slope: FloatArray
    own: FloatArray
    own_slope: FloatArray


@lru_cache(maxsize=128)
def momentum_sums(grid: Grid, time: float) -> Momentum:
    """S2 (1 - lambda) of pre-training and of the phase, in reference rates, with 1 / (1 - lambda) = time.

    A fall d that was n steps ago has paid d (1 - lambda^n). Falls of pre-training go on paying in the phase.
    Reference: arXiv:2408.11029, eq. 1, in closed form.
    """
    decay = 1.0 - 1.0 / time
    elapsed = grid.edges
    left, left_slope = _left(grid.before, decay)
    # the last block's mean is not the last rate: what it fell on below the mean has not paid yet
    rest = float(grid.before.lr[-1]) - grid.previous if len(grid.before.lr) else 0.0
    left, total = left + rest, float(np.sum(grid.before.drops)) + rest
    fading = decay**elapsed
    per_log_time = 1.0 / time  # d lambda / d log time
    own, own_slope = _paid(grid.drops, decay, grid.own, per_log_time)
    return Momentum(
        before=total - left * fading,
        before_slope=-(left_slope * fading + left * elapsed * fading / decay) * per_log_time,
        own=own,
        own_slope=own_slope,
    )


@lru_cache(maxsize=128)
def rewarming_sums(grid: Grid, time: float) -> tuple[FloatArray, FloatArray]:
    """What of Momentum.own comes from the rate's way to its first peak, below 0 where it rises, and its slope."""
    return _paid(np.where(before_first_fall(grid.own.lr), grid.drops, 0.0), 1.0 - 1.0 / time, grid.own, 1.0 / time)


def _paid(drops: FloatArray, decay: float, blocks: Blocks, per_log_time: float) -> tuple[FloatArray, FloatArray]:
    """What falls have paid at the block edges, and its derivative with respect to log time."""
    unpaid, slope = _unpaid(drops, decay, blocks)
    return np.concatenate([[0.0], np.cumsum(drops) - unpaid]), np.concatenate([[0.0], -slope * per_log_time])


@lru_cache(maxsize=128)
def _left(before: Blocks, decay: float) -> tuple[float, float]:
    """What of the falls of pre-training has not paid at its end, and its derivative with respect to lambda."""
    if not len(before.lr):
        return 0.0, 0.0
    unpaid, slope = _unpaid(before.drops, decay, before)
    return float(unpaid[-1]), float(slope[-1])


def _unpaid(drops: FloatArray, decay: float, blocks: Blocks) -> tuple[FloatArray, FloatArray]:
    """What of all falls so far has not paid after each block, and its derivative with respect to lambda.

    u_b = lambda^width_b (u_{b-1} + d_b): the means of two blocks put a fall where its share of them says, nearly.
    """
    pole = decay**blocks.unit
    unpaid = lfilter([1.0], [1.0, -pole], decay**blocks.width * drops)
    return unpaid, lfilter([1.0], [1.0, -pole], blocks.width * unpaid) / decay


@dataclass(frozen=True, kw_only=True, slots=True)
class Drops:
    """Falls of the rate in groups: how much, at which rate, after which forward area, from which step to which."""

    size: FloatArray
    rate: FloatArray
    area: FloatArray
    begin: FloatArray
    """Finished steps before the first fall of a group."""
    span: FloatArray
    """Steps from there until all of the group has fallen."""
    reach: FloatArray
    """Half of the forward area between the first fall and the last."""


@lru_cache(maxsize=512)
def grouped_drops(grid: Grid) -> Drops:
    """The falls of a pre-training run in at most MAX_DROPS groups with their mean rate and area.

    For laws whose sums do not obey a recursion. Up to MAX_DROPS falls each stay alone; more are grouped in order.
    """
    at = np.flatnonzero(grid.drops)
    area = np.concatenate([[0.0], np.cumsum(grid.own.lr * grid.own.width)])[:-1]
    if len(at) > MAX_DROPS:
        group = np.floor(np.linspace(0, MAX_DROPS, len(at), endpoint=False)).astype(np.int64)
    else:
        group = np.arange(len(at))
    size: FloatArray = np.bincount(group, weights=grid.drops[at]).astype(np.float64) if len(at) else np.zeros(0)
    count = np.bincount(group).astype(np.float64) if len(at) else np.zeros(0)

    def mean(values: FloatArray) -> FloatArray:
        """Over a group, weighted by the falls, or plain where they cancel."""
        if not len(at):
            return np.zeros(0)
        signed = np.bincount(group, weights=grid.drops[at] * values[at])
        plain = np.bincount(group, weights=values[at]) / count
        solid = np.abs(size) > 1e-9 * np.bincount(group, weights=np.abs(grid.drops[at]))
        return np.where(solid, signed / np.where(solid, size, 1.0), plain)

    first, last = at[np.diff(group, prepend=-1) > 0], at[np.diff(group, append=group[-1:] + 1) > 0]
    return Drops(
        size=size,
        rate=mean(grid.own.lr),
        area=mean(area),
        begin=grid.edges[first],
        span=grid.edges[last + 1] - grid.edges[first],
        reach=0.5 * (area[last] - area[first]),
    )
