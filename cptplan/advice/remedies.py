"""What a fitted law says that a remedy would change: the run as it was against the run with one knob turned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cptplan.advice.diagnosis import Finding, Remedy
from cptplan.advice.run_log import RunLog
from cptplan.curves import LossCurve, read_curve_directory
from cptplan.dynamics.dynamics import difference
from cptplan.errors import ConfigError, CurveError
from cptplan.fitting.fitted import FittedLaw
from cptplan.laws.history import RunHistory, history_of
from cptplan.planning.forecast import Interval
from cptplan.simulation.known_law import check_start

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Effect:
    """What a change of a run is predicted to do to its final losses, nats per token."""

    change: str
    """In words, such as "lower peak_lr to 1e-3"."""
    losses: Mapping[str, Interval]
    weighted: Interval
    notes: tuple[str, ...]
    """Where the changed run leaves what the law was fitted to."""


def predicted_effect(
    finding: Finding, log: RunLog, laws: Mapping[str, FittedLaw], curves_dir: Path, weights: Mapping[str, float]
) -> Effect | None:
    """The law's word on a finding's remedy; None where there is no change to judge, or the law cannot know the run.

    Args:      curves_dir: curve directory of the fit, which holds the runs that this one continues.
    """
    history = _history(log, curves_dir)
    if finding.remedy is None or history is None or not set(laws) & set(log.losses):
        return None
    changed, words = turned(history, finding.remedy)
    try:
        for law in laws.values():
            check_start(law.law, history, log.name)
            law.support.check_batch(history, log.name)
        losses, weighted = difference(laws, changed, history, weights)
    except (ConfigError, CurveError):
        return None
    notes = [note for law in laws.values() for note in law.support.flags(changed, law.law.reference_lr)]
    return Effect(change=words, losses=losses, weighted=weighted, notes=tuple(dict.fromkeys(notes)))


def turned(history: RunHistory, remedy: Remedy) -> tuple[RunHistory, str]:
    """The history with one knob turned, and the change in words."""
    steps, peak = len(history.lr), float(history.lr.max())
    factor = remedy.factor or 1.0
    if remedy.knob == "peak_lr":
        verb = "lower" if factor < 1.0 else "raise"
        return replace(history, lr=factor * history.lr), f"{verb} peak_lr to {factor * peak:.2g}"
    if remedy.knob == "replay_ratio":
        ratio = remedy.value or 0.0
        passes = None
        if history.domain_passes is not None:
            kept = (1.0 - ratio) / max(1.0 - float(history.replay_ratio.mean()), 1e-9)
            passes = kept * history.domain_passes
        mixed = replace(history, replay_ratio=np.full(steps, ratio), domain_passes=passes)
        return mixed, f"set replay_ratio to {ratio:.0%}"
    if remedy.knob == "decay_share":
        lr, decay = history.lr.copy(), max(round((remedy.value or 0.0) * steps), 1)
        lr[-decay:] = lr[-decay] * np.arange(decay, 0, -1) / decay
        return replace(history, lr=lr), f"let the rate fall to 0 over the last {decay:,} steps"
    longer = max(round(factor * steps), 1)
    passes = None if history.domain_passes is None else factor * _stretched(history.domain_passes, longer)
    stretched = replace(
        history,
        lr=_stretched(history.lr, longer),
        replay_ratio=_stretched(history.replay_ratio, longer),
        domain_passes=passes,
    )
    return stretched, f"train {longer:,} steps instead of {steps:,}"


def _stretched(values: FloatArray, steps: int) -> FloatArray:
    """Per-step values over another number of steps, the same shape, shape (steps,)."""
    return np.interp(np.linspace(0.0, 1.0, steps), np.linspace(0.0, 1.0, len(values)), values)


def _history(log: RunLog, curves_dir: Path) -> RunHistory | None:
    """Rates and shares of the run with its pre-training; None when its curve or its parents are not there."""
    if log.curve is None:
        return None
    curves: dict[str, LossCurve] = {}
    if log.curve.record.parent is not None:
        try:
            curves = dict(read_curve_directory(curves_dir, [log.curve.record.parent]))
        except CurveError:
            return None
    return history_of(log.curve, curves)
