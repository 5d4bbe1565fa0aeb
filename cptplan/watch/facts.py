"""What a run's own record and log say against the plan: rate, replay, length, start, spikes. No statistics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cptplan.laws.history import RunHistory
from cptplan.watch.run import WatchedRun

FloatArray = NDArray[np.float64]

SAME_RATE = 1e-3  # assumed: rates are logged with at least so many digits
SAME_SHARE = 0.01  # of all tokens
SAME_START = 5.0  # evaluation noises: two readings of one checkpoint do not lie further apart
SHOWN_EVENTS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Alarm:
    """One way in which a run is not as planned."""

    kind: str
    """losses, lr, replay, length, start, event, diverged, not_finite or failed."""
    step: int
    """Where it was first seen."""
    text: str
    causes: tuple[tuple[str, float], ...] = ()
    """What may be behind it and the share of the evidence that it has, best first; empty where the log tells it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """What the run was meant to be."""

    history: RunHistory
    start: str
    start_losses: Mapping[str, float]
    """Of the planned start, measured before the plan."""
    parent: tuple[str | None, int | None]
    """Run and step of the planned start; None where the project does not tell."""
    noise: Mapping[str, float]
    """Standard deviation of one evaluation by set, nats per token."""


def told_alarms(run: WatchedRun, planned: Planned) -> tuple[Alarm, ...]:
    """Everything in which the run's record and log differ from the plan, and what was done about it."""
    found = [*_length(run, planned), *_rate(run, planned), *_replay(run, planned), *_start(run, planned)]
    if run.not_finite_step is not None:
        text = f"training loss was not finite at step {run.not_finite_step:,}"
        found.append(Alarm(kind="not_finite", step=run.not_finite_step, text=text))
    kinds = dict.fromkeys(kind for _, kind, _ in run.events if kind != "warn")
    for kind in kinds:
        mine = [(step, text) for step, found_kind, text in run.events if found_kind == kind]
        times = f"{len(mine)} times, " if len(mine) > 1 else ""
        found.append(Alarm(kind="event", step=mine[0][0], text=f"{times}the last: {mine[-1][1] or kind}"))
    return tuple(found)


def actual_rates(run: WatchedRun) -> FloatArray:
    """Rate of every step: as recorded, times by what the log departs from it.

    A step that was not logged departs as the next logged one does, the rest of the run as the last.
    """
    rates = run.curve.lr().copy()
    inside = (run.lr_steps > 0) & (run.lr_steps <= len(rates))
    steps, logged = run.lr_steps[inside], run.lr[inside]
    if not len(steps):
        return rates
    recorded = rates[steps - 1]
    factors = np.where(recorded > 0, logged / np.where(recorded > 0, recorded, 1.0), 1.0)
    factors = np.where(np.abs(factors - 1.0) > SAME_RATE, factors, 1.0)
    nearest = np.minimum(np.searchsorted(steps, np.arange(1, len(rates) + 1)), len(steps) - 1)
    rates *= factors[nearest]
    rates[steps - 1] = logged
    return rates


def actual_replay(run: WatchedRun) -> FloatArray:
    """General share of every step: as recorded, moved by what the counted tokens say beyond rounding."""
    recorded = run.curve.replay_ratios()
    if run.general_share is None or run.tokens_step == 0:
        return recorded
    off = run.general_share - float(recorded[: run.tokens_step].mean())
    return np.clip(recorded + off, 0.0, 1.0) if abs(off) > _rounding(run) else recorded


def as_it_runs(run: WatchedRun, history: RunHistory) -> RunHistory:
    """A history with the rates and shares that the run really has."""
    return replace(history, lr=actual_rates(run), replay_ratio=actual_replay(run))


def _length(run: WatchedRun, planned: Planned) -> Iterable[Alarm]:
    here, there = run.curve.total_steps, len(planned.history.lr)
    if here != there:
        yield Alarm(kind="length", step=0, text=f"the run's schedule has {here:,} steps, the plan's {there:,}")


def _rate(run: WatchedRun, planned: Planned) -> Iterable[Alarm]:
    rates, wanted = actual_rates(run), planned.history.lr
    both = min(len(rates), len(wanted))
    rates, wanted = rates[:both], wanted[:both]
    highest = float(wanted.max())
    off = np.flatnonzero(np.abs(rates - wanted) > SAME_RATE * np.maximum(wanted, 1e-3 * highest))
    if not len(off):
        return
    known = off[wanted[off] > 0]
    factors = rates[known] / wanted[known]
    factor = f"{float(np.median(factors)):.3g} times" if len(known) else "not"
    where = "from the first step" if off[0] == 0 else f"from step {off[0] + 1:,}"
    yield Alarm(
        kind="lr",
        step=int(off[0]) + 1,
        text=f"the learning rate is {factor} the planned one {where}: peak {rates.max():.3g} in place of {highest:.3g}",
    )


def _replay(run: WatchedRun, planned: Planned) -> Iterable[Alarm]:
    shares, wanted = actual_replay(run), planned.history.replay_ratio
    both = min(len(shares), len(wanted))
    off = np.flatnonzero(np.abs(shares[:both] - wanted[:both]) > max(SAME_SHARE, _rounding(run)))
    if len(off):
        text = (
            f"the replay ratio is {shares[off].mean():.1%} in place of {wanted[off].mean():.1%}"
            f"{'' if off[0] == 0 else f' from step {off[0] + 1:,}'}"
        )
        yield Alarm(kind="replay", step=int(off[0]) + 1, text=text)


def _rounding(run: WatchedRun) -> float:
    """Share by which whole sequences may miss the ratio so far."""
    record = run.curve.record
    if record.seq_len is None or record.batch_tokens is None or not run.tokens_step:
        return SAME_SHARE
    return max(SAME_SHARE, record.seq_len / (record.batch_tokens * run.tokens_step))


def _start(run: WatchedRun, planned: Planned) -> Iterable[Alarm]:
    record = run.curve.record
    if record.parent is not None and None not in planned.parent:
        begun = record.parent, record.parent_step
        if record.parent_step is not None and begun != planned.parent:
            text = f"the run began from step {begun[1]} of {begun[0]}, not from {planned.start}"
            yield Alarm(kind="start", step=0, text=text)
            return
    for name, known in planned.start_losses.items():
        if run.curve.steps[0] != 0 or name not in run.curve.losses:
            continue
        loss = float(run.curve.losses[name][0])
        if abs(loss - known) > SAME_START * planned.noise[name]:
            text = f"loss_{name} was {loss:.3f} before the first step, {planned.start} has {known:.3f}"
            yield Alarm(kind="start", step=0, text=text)
