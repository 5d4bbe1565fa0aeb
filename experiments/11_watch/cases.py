"""Runs to be watched: what each is told to be, what it measured, and what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from cptplan.curves import LossCurve, read_curve_directory
from cptplan.errors import ConfigError
from cptplan.fitting.select import select_law, sets_of, side_of
from cptplan.laws.history import RunHistory, history_of
from cptplan.simulation.virtual_lab import draw_lab, run_lab
from cptplan.watch.alarm import OTHER_REPLAY
from cptplan.watch.model import CurveModel, Points

PILOT = re.compile(r"p(ilot-)?\d+")
HEALTHY = "none"
MOST_SICK = 24  # of a lab, drawn: wrong plans take most of the time
LEFT_OUT, FORGOTTEN = 0.01, 0.2  # a run with at most so much replay, watched as one that should have had so much


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """What a run really does, against what it is told to do."""

    name: str
    kind: str
    """Of the cause that watch should name: lr, replay, start; "" for a healthy run."""
    value: float
    """Factor of the rate, or replay ratio, that it should name; 0 where there is none."""
    told: RunHistory


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One real or virtual run under one plan."""

    run: str
    fault: Fault
    starts: Mapping[str, RunHistory]
    """The told run begun elsewhere, by name of the start."""
    points: Mapping[str, Points]
    """What was measured, by validation set."""
    ends: Mapping[str, float]
    """What watch should find in the end: the last measured loss; of a virtual run the one without noise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lab:
    """A campaign whose fit has seen the pilots alone, and the runs after them."""

    source: str
    """curve set, kept or virtual."""
    name: str
    models: Mapping[str, CurveModel]
    curves: Mapping[str, LossCurve]
    unseen: tuple[str, ...]
    exact: Mapping[str, Mapping[str, float]]
    """Losses at the end of the unseen runs without noise, where they are known."""


def real_lab(source: str, directory: Path) -> Lab:
    """A lab from a directory of curves: base, pilots, and the runs that no fit sees."""
    curves = read_curve_directory(directory)
    seen = {n: c for n, c in curves.items() if c.record.phase == "pretrain" or PILOT.fullmatch(n)}
    return Lab(
        source=source,
        name=directory.name if directory.name != "curves" else directory.parent.name,
        models=_fit(seen),
        curves=curves,
        unseen=tuple(name for name in curves if name not in seen),
        exact={},
    )


def virtual_lab(seed: int) -> Lab:
    """A virtual campaign whose truth is a published law."""
    campaign = run_lab(draw_lab(seed))
    return Lab(
        source="virtual",
        name=f"virtual-{seed}",
        models=_fit(campaign.seen),
        curves={**campaign.seen, **campaign.finals},
        unseen=tuple(campaign.finals),
        exact={run: {name: float(loss[-1]) for name, loss in sets.items()} for run, sets in campaign.exact.items()},
    )


def _fit(seen: Mapping[str, LossCurve]) -> dict[str, CurveModel]:
    return {name: CurveModel(law=select_law(seen, name, side_of(name, seen)).fitted) for name in sets_of(seen)}


def cases(lab: Lab, runs: Sequence[str] | None = None) -> Iterator[Case]:
    """Every unseen run that watch takes, under its own plan, and at most MOST_SICK of them under each wrong one.

    Args:      runs: names of those wanted; all when None.
    """
    starts, wanted = _starts(lab.curves), lab.unseen if runs is None else tuple(runs)
    sick = np.random.default_rng(0).permutation(len(wanted))[:MOST_SICK].tolist()
    for number, run in enumerate(wanted):
        curve = lab.curves[run]
        history = history_of(curve, lab.curves)
        if not _is_taken(lab, history, run):
            continue
        points = {
            name: Points(steps=curve.steps[known], loss=curve.losses[name][known])
            for name in lab.models
            if name in curve.losses and (known := np.isfinite(curve.losses[name])).any()
        }
        ends = lab.exact.get(run) or {name: float(one.loss[-1]) for name, one in points.items()}
        found = faults(history, _elsewhere(history, curve, starts))
        for fault in found if number in sick else islice(found, 1):
            others = _elsewhere(fault.told, curve, starts)
            if fault.kind == "start":
                others = {"the real start": history}
            yield Case(run=run, fault=fault, starts=others, points=points, ends=ends)


def _is_taken(lab: Lab, history: RunHistory, run: str) -> bool:
    """Whether watch takes the run: it refuses another batch."""
    try:
        for model in lab.models.values():
            model.law.support.check_batch(history, run)
    except ConfigError:
        return False
    return True


def _starts(curves: Mapping[str, LossCurve]) -> dict[tuple[str | None, int | None], RunHistory]:
    """The checkpoints that runs of the lab began from, each as the history of one of them."""
    return {
        (curve.record.parent, curve.record.parent_step): history_of(curve, curves)
        for curve in curves.values()
        if curve.record.phase == "cpt"
    }


def _elsewhere(
    told: RunHistory, curve: LossCurve, starts: Mapping[tuple[str | None, int | None], RunHistory]
) -> dict[str, RunHistory]:
    own = curve.record.parent, curve.record.parent_step
    return {
        f"step {key[1]} of {key[0]}": replace(
            told, pretrain_lr=one.pretrain_lr, last_lr=one.last_lr, known_area=one.known_area
        )
        for key, one in starts.items()
        if key != own
    }


def faults(real: RunHistory, elsewhere: Mapping[str, RunHistory]) -> Iterator[Fault]:
    """The run as it is, and every wrong plan that a misconfigured launch would leave it with.

    Replay ratios nearer than OTHER_REPLAY are the same plan to watch, so they are no fault here.
    """
    yield Fault(name=HEALTHY, kind="", value=0.0, told=real)
    for factor in (2.0, 0.5):
        yield Fault(name=f"rate x {factor:g}", kind="lr", value=factor, told=replace(real, lr=real.lr / factor))
    ratio = float(real.replay_ratio.mean())
    wrong = {"replay x 0.5": 2.0 * ratio, "replay x 2": 0.5 * ratio}
    wrong |= {"replay left out": FORGOTTEN} if ratio <= LEFT_OUT else {}
    for name, told in wrong.items():
        if abs(told - ratio) >= OTHER_REPLAY and told <= 1.0:
            yield Fault(name=name, kind="replay", value=ratio, told=_with_replay(real, told))
    for told_history in list(elsewhere.values())[:1]:
        yield Fault(name="other start", kind="start", value=0.0, told=told_history)


def _with_replay(history: RunHistory, ratio: float) -> RunHistory:
    """The run with a constant ratio, and the passes over the domain that go with it."""
    passes, real = history.domain_passes, float(history.replay_ratio.mean())
    return replace(
        history,
        replay_ratio=np.full_like(history.replay_ratio, ratio),
        domain_passes=None if passes is None or real >= 1.0 else passes * (1.0 - ratio) / (1.0 - real),
    )
