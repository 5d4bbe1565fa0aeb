"""What the losses of one curve show by themselves: a wrong unit, a broken run, a lonely outlier, a hole.

Every finding holds for what is in the file: a guess is worded as a question.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import numpy as np

from cptplan.curves import LOSS_PREFIX, FloatArray, IntArray, LossCurve
from cptplan.errors import CurveError

BITS = math.log2(math.e)  # bits in a nat
BLIND_GUESS = math.log(300_000)  # nats per token of a uniform guess over as large a vocabulary as models have; assumed
NOT_NATS = 20.0  # assumed: e^20 is a vocabulary of half a billion
HIGH_FOR_CPT = 8.0  # assumed: a pre-trained model is far better than this, perplexity 2,981
JUMP = 0.5  # nats; assumed: more than a change of data or rate does between two evaluations of the data trained on
SPIKE = 0.3  # nats; assumed: a point this far off both its neighbours is no noise of a validation loss
SPIKE_NOISE = 10.0  # assumed: and this many times the curve's own roughness
HOLE = 4.0  # assumed: a gap this many times both its neighbours is a hole, not a logarithmic grid
HOLE_SHARE = 0.1  # assumed: of the curve's length; smaller holes do not matter


@dataclass(frozen=True, kw_only=True, slots=True)
class CurveWarning:
    """Something that a reader of the fit must know. code is stable, for programs; message is for people."""

    code: str
    message: str
    curves: tuple[str, ...]


def check_units(curve: LossCurve, set_names: Iterable[str], where: Path | str) -> None:
    """Raise CurveError if losses cannot be nats per token, or two sets are one loss in two units."""
    losses = {name: curve.losses[name] for name in set_names if name in curve.losses}
    for one, other in permutations(losses, 2):
        unit = _unit_beside(losses[one], losses[other])
        if unit is not None:
            raise CurveError(
                f"loss columns must each be a validation set in nats per token; got {LOSS_PREFIX}{one} as the {unit} "
                f"of {LOSS_PREFIX}{other} in {curve.name} in {where}.",
                hint=f"remove {LOSS_PREFIX}{one}, or mend it if {LOSS_PREFIX}{other} is the copy",
            )
    for name, loss in losses.items():
        known = loss[np.isfinite(loss)]
        typical = float(np.median(known))
        if typical > NOT_NATS or known[0] > NOT_NATS:
            raise CurveError(
                f"{LOSS_PREFIX}{name} must be in nats per token; got {known[0]:.4g} at first and {typical:.4g} in the "
                f"middle of {curve.name} in {where}, where guessing blindly costs at most {BLIND_GUESS:.1f}.",
                hint="if it is perplexity, take the logarithm (curves import --unit perplexity); a sum must be divided "
                "by its tokens",
            )


def _unit_beside(loss: FloatArray, nats: FloatArray) -> str | None:
    """What a column is of another, if it follows from it at every one of three or more different points."""
    both = np.isfinite(loss) & np.isfinite(nats)
    if both.sum() < 3 or np.ptp(nats[both]) < 1e-3:
        return None
    if np.allclose(np.log(loss[both]), nats[both], rtol=1e-3, atol=0):
        return "perplexity"
    return "value in bits" if np.allclose(loss[both], BITS * nats[both], rtol=1e-4, atol=0) else None


def unit_doubts(curves: Sequence[LossCurve], set_names: Sequence[str]) -> Iterator[CurveWarning]:
    """Levels that nats per token can have, but hardly do."""
    for name in set_names:
        for phase, limit in (("pretrain", BLIND_GUESS), ("cpt", HIGH_FOR_CPT)):
            high = {c.name: _typical(c, name) for c in curves if c.record.phase == phase and name in c.losses}
            high = {curve: level for curve, level in high.items() if level > limit}
            if high:
                level = max(high.values())
                yield CurveWarning(
                    code="high_loss",
                    message=f"{LOSS_PREFIX}{name} is {level:.4g} in the middle of {first_names(tuple(high))}: as nats "
                    f"per token that is a perplexity of {math.exp(level):,.0f}. Is it perplexity or bits already?",
                    curves=tuple(high),
                )


def _typical(curve: LossCurve, set_name: str) -> float:
    return float(np.nanmedian(curve.losses[set_name]))


def _learnt_sets(curve: LossCurve, set_names: Sequence[str]) -> list[str]:
    """Sets whose loss should fall: in CPT all but general, unless there is no other."""
    names = [name for name in set_names if name in curve.losses]
    if curve.record.phase == "pretrain":
        return names
    return [name for name in names if name != "general"] or names


def _points(curve: LossCurve, set_name: str) -> tuple[IntArray, FloatArray]:
    known = np.isfinite(curve.losses[set_name])
    return curve.steps[known], curve.losses[set_name][known]


def jumps(curves: Sequence[LossCurve], set_names: Sequence[str]) -> Iterator[CurveWarning]:
    """Loss that rises at once and never comes back, as when training breaks; early in CPT it is the change of data."""
    for curve in curves:
        for name in _learnt_sets(curve, set_names):
            steps, loss = _points(curve, name)
            settled = steps[-1] / 4 if curve.record.phase == "cpt" else 0
            for row in np.flatnonzero((np.diff(loss) > JUMP) & (steps[:-1] > settled)) + 1:
                level = float(np.median(loss[max(row - 3, 0) : row]))  # one low outlier before does not make a jump
                if row == len(loss) - 1 or loss[row:].min() <= level + JUMP:  # a lonely last point may be an outlier
                    continue
                yield CurveWarning(
                    code="jump",
                    message=f"{LOSS_PREFIX}{name} of {curve.name} jumps from {loss[row - 1]:.4g} to {loss[row]:.4g} at "
                    f"step {steps[row]} and stays up: did training diverge? Then cut the curve before it",
                    curves=(curve.name,),
                )
                break


def outliers(curves: Sequence[LossCurve], set_names: Sequence[str]) -> Iterator[CurveWarning]:
    """Single points far above or below both their neighbours."""
    for curve in curves:
        for name in (name for name in set_names if name in curve.losses):
            steps, loss = _points(curve, name)
            if len(loss) < 5:
                continue
            before, here, after = loss[:-2], loss[1:-1], loss[2:]
            off = np.maximum(here - np.maximum(before, after), np.minimum(before, after) - here)
            roughness = float(np.median(np.abs(here - (before + after) / 2)))
            for row in np.flatnonzero(off > max(SPIKE, SPIKE_NOISE * roughness)) + 1:
                yield CurveWarning(
                    code="outlier",
                    message=f"{LOSS_PREFIX}{name} of {curve.name} is {loss[row]:.4g} at step {steps[row]}, between "
                    f"{loss[row - 1]:.4g} and {loss[row + 1]:.4g}",
                    curves=(curve.name,),
                )


def holes(curves: Sequence[LossCurve]) -> Iterator[CurveWarning]:
    """Long stretches without a point between stretches that have them."""
    for curve in curves:
        gaps = np.diff(curve.steps)
        if len(gaps) < 3:
            continue
        around = np.maximum(gaps[:-2], gaps[2:])
        inner = gaps[1:-1]
        length = int(curve.steps[-1] - curve.steps[0])
        for row in np.flatnonzero((inner > HOLE * around) & (inner > HOLE_SHARE * length)) + 1:
            yield CurveWarning(
                code="hole",
                message=f"{curve.name} has no point between step {curve.steps[row]} and {curve.steps[row + 1]}",
                curves=(curve.name,),
            )


def first_names(names: Sequence[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
