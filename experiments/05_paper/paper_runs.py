"""What all parts share: a row of the table, runs of the paper's setting, and its eq. 4 written out step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from cptplan.curves import CurveRecord, LossCurve
from cptplan.laws.history import RunHistory, history_of
from cptplan.mixture import ConstantMixture
from cptplan.schedule import ConstantSchedule, CosineSchedule, LinearSchedule, WsdSchedule
from cptplan.simulation.known_law import LossModel
from cptplan.simulation.published import LossParameters, PublishedSet
from cptplan.simulation.simulation import simulate_curves

Verdict = Literal["reproduces", "does not", "paper gives no number"]
SIDES = ("general", "domain")  # the paper's D_pt and D_cpt
PEAK = 2e-4  # published: table 1
WARMUP = 500  # assumed: steps of the re-warm-up; the paper does not print them
BASE, RUN = "base", "run"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One line of the table."""

    part: str
    what: str
    place: str
    """Figure, table or section of the paper."""
    paper: float | str | None = None
    """What it prints; None where it prints nothing, or only a curve."""
    other: float | str | None = None
    """A second computation from the same printed parameters, made before this tool, by other code."""
    ours: float | str
    difference: float | None = None
    """Ours less the paper's number, or less the second computation where the paper has none."""
    verdict: Verdict


def judged(part: str, what: str, place: str, paper: float, ours: float, tolerance: float) -> Row:
    """A row held against a printed number."""
    verdict: Verdict = "reproduces" if abs(ours - paper) <= tolerance else "does not"
    return Row(part=part, what=what, place=place, paper=paper, ours=ours, difference=ours - paper, verdict=verdict)


def claimed(part: str, what: str, place: str, paper: str, ours: float | str, *, holds: bool) -> Row:
    """A row held against a statement in words, or the shape of a curve."""
    verdict: Verdict = "reproduces" if holds else "does not"
    return Row(part=part, what=what, place=place, paper=paper, ours=ours, verdict=verdict)


def unprinted(part: str, what: str, place: str, ours: Sequence[float] | float | str, other: Any = None) -> Row:
    """A row that the paper has no number for.

    Args:      ours: a number, several of a series, or words. other: the same by the second computation.
    """
    gap: float | None = None
    if other is not None and not isinstance(ours, str):
        gaps = np.atleast_1d(np.asarray(ours, dtype=np.float64)) - np.asarray(other, dtype=np.float64)
        gap = float(gaps[np.argmax(np.abs(gaps))])
    told, second = (_series(values) for values in (ours, other))
    verdict: Verdict = "paper gives no number"
    return Row(part=part, what=what, place=place, other=second, ours=told or "", difference=gap, verdict=verdict)


def _series(values: Any) -> float | str | None:
    if values is None or isinstance(values, str | float):
        return values
    return ", ".join(f"{value:.3f}" for value in values)


def constant(steps: int, peak_lr: float = PEAK) -> ConstantSchedule:
    """One rate from the first step to the last."""
    return ConstantSchedule(kind="constant", peak_lr=peak_lr, total_steps=steps)


def cosine(steps: int, peak_lr: float = PEAK, warmup: int = WARMUP) -> CosineSchedule:
    """Re-warm-up from 0, then a cosine to 0."""
    return CosineSchedule(kind="cosine", peak_lr=peak_lr, total_steps=steps, warmup_steps=warmup)


def linear(steps: int, peak_lr: float, warmup: int = 0) -> LinearSchedule:
    """A straight fall to 0, from the first step or after a warm-up from 0."""
    return LinearSchedule(kind="linear", peak_lr=peak_lr, total_steps=steps, warmup_steps=warmup)


def wsd(steps: int, peak_lr: float = PEAK, warmup: int = 0, decay: float = 0.2) -> WsdSchedule:
    """Stable, then a straight fall to 0 over a share of the steps."""
    return WsdSchedule(
        kind="wsd", peak_lr=peak_lr, total_steps=steps, warmup_steps=warmup, decay_steps=round(decay * steps)
    )


def pretraining(schedule: Any) -> CurveRecord:
    """A pre-training run of the paper's batch with any schedule."""
    return CurveRecord(phase="pretrain", lr=schedule, batch_tokens=4_194_304, seq_len=4096)


def continued(
    base: CurveRecord, schedule: Any, replay: float = 0.0, parent: str = BASE, step: int | None = None
) -> CurveRecord:
    """A CPT run from a step of a pre-training run, its end when None."""
    mixture = ConstantMixture(replay_ratio=replay)
    changes = {"phase": "cpt", "parent": parent, "parent_step": step, "lr": schedule, "replay_ratio": mixture}
    return base.model_copy(update=changes)


def curve(
    laws: Mapping[str, LossModel],
    base: CurveRecord,
    schedule: Any,
    replay: float = 0.0,
    *,
    step: int | None = None,
    steps: np.ndarray | None = None,
) -> LossCurve:
    """The curve of one CPT run."""
    records = {BASE: base, RUN: continued(base, schedule, replay, step=step)}
    grid = None if steps is None else {RUN: np.asarray(steps, dtype=np.int64)}
    return simulate_curves(laws, records, steps=grid)[RUN]


def ends(laws: Mapping[str, LossModel], base: CurveRecord, schedule: Any, replay: float = 0.0) -> dict[str, float]:
    """Losses of one CPT run after its last step, and "general_start", "domain_start" before its first."""
    found = curve(laws, base, schedule, replay, steps=np.array([0, schedule.total_steps]))
    return {f"{s}{end}": float(found.losses[s][k]) for s in laws for k, end in ((0, "_start"), (1, ""))}


def changes(laws: Mapping[str, LossModel], base: CurveRecord, schedule: Any, replay: float = 0.0) -> dict[str, float]:
    """Loss after the last step less loss before the first, nats per token."""
    found = ends(laws, base, schedule, replay)
    return {side: found[side] - found[f"{side}_start"] for side in laws}


def history(base: CurveRecord, schedule: Any, replay: float = 0.0) -> RunHistory:
    """What a law may know of one CPT run."""
    none = np.zeros(0, dtype=np.int64)
    runs = {
        name: LossCurve(name=name, record=record, steps=none, losses={})
        for name, record in ((BASE, base), (RUN, continued(base, schedule, replay)))
    }
    return history_of(runs[RUN], runs)


def shift(p: LossParameters, area: float) -> float:
    """B (1 - (1 + E S)^-beta), nats per token, at a forward area of CPT in the paper's unit."""
    return power_shift(p.B, p.E, p.beta, area)


def power_shift(size: float, pace: float, power: float, time: float) -> float:
    """size (1 - (1 + pace time)^-power)."""
    return size * (1.0 - (1.0 + pace * time) ** -power)


def rounding(size: float, pace: float, power: float, time: float, half_pace: float = 0.5) -> float:
    """How far half a unit of the last printed digit of each number moves power_shift, nats per token.

    Args:      half_pace: of E; the other two have three decimals everywhere in the paper.
    """
    here = power_shift(size, pace, power, time)
    near = ((size - 5e-4, pace, power), (size, pace - half_pace, power), (size, pace, power - 5e-4))
    return sum(abs(power_shift(*numbers, time) - here) for numbers in near)


def shift_rounding(p: LossParameters, area: float) -> float:
    """rounding of a fit's shift at a forward area of CPT in the paper's unit."""
    return rounding(p.B, p.E, p.beta, area)


def written_out(
    p: LossParameters, before: np.ndarray, after: np.ndarray, steps: np.ndarray, *, frozen: bool = False
) -> np.ndarray:
    """Eq. 1 and 4 in the paper's units, one step after another, with none of cptplan's sums.

    Args:      before, after: rates of pre-training and CPT. steps: of CPT, >= 0. frozen: S2_pt stops at the change of
               data instead of going on.
    """
    split, rates = len(before), np.concatenate([before, after])
    falls = np.concatenate([[0.0], rates[:-1] - rates[1:]])
    momentum, area = [0.0, 0.0], [0.0, 0.0]
    table = np.empty((len(rates) + 1, 2))
    table[0] = 0.0
    for number, fall in enumerate(falls.tolist()):
        own = int(number >= split)
        for phase in (0, 1):
            momentum[phase] = 0.999 * momentum[phase] + (fall if phase == own else 0.0)
            area[phase] += momentum[phase]
        table[number + 1] = area
    forward = np.concatenate([[0.0], np.cumsum(rates)])
    at = split + np.asarray(steps)
    clock = forward[at] - forward[split]
    s2_pt = np.full(len(at), table[split, 0]) if frozen else table[at, 0]
    learnt = p.L0 + p.A * forward[at] ** -p.alpha - p.C1 * s2_pt - p.C2 * table[at, 1]
    return np.asarray(learnt + p.B * (1.0 - (1.0 + p.E * clock) ** -p.beta))


def sized_laws(published: PublishedSet) -> tuple[Mapping[str, LossModel], Mapping[str, LossParameters]]:
    """Laws and printed parameters of a set by side, the fit of several sizes taken at 106M."""
    size = 106_000_000 if published.general.F is not None else None
    printed = {side: getattr(published, side) for side in SIDES}
    if size is not None:
        printed = {side: p.at_size(size) for side, p in printed.items()}
    return published.laws(num_params=size), printed
