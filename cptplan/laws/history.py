"""What a law may know of a run: the rates and the data shares of every step, before and after the change of data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cptplan.curves import LossCurve
from cptplan.errors import CurveError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RunHistory:
    """Per-step rates of pre-training and of the run itself.

    In phase "pretrain" the run itself is the pre-training and pretrain_lr is empty. In phase "cpt" pretrain_lr holds
    the rates of all steps before the change of data, or is empty with pretrain_known False for an open checkpoint.
    """

    phase: str
    pretrain_lr: FloatArray
    """Rates of the steps before this phase, shape (pretrain_steps,)."""
    pretrain_known: bool
    lr: FloatArray
    """Rates of this phase, shape (steps,)."""
    replay_ratio: FloatArray
    """General share of the tokens of this phase's steps, in [0, 1], shape (steps,)."""
    domain_passes: FloatArray | None = None
    """Domain tokens read before each step over the unique ones, shape (steps,); None: every token is fresh."""
    batch_tokens: int | None = None
    """Tokens of one optimiser step; None when not known. Laws count steps, so runs of another batch are refused."""
    last_lr: float | None = None
    """Rate of the last step of an unknown pre-training; None: taken as annealed to 0."""
    known_area: float | None = None
    """Forward area of a pre-training whose rates are not known, lr x steps; None: a law has to estimate it."""
    num_params: float | None = None
    """Non-embedding parameters of the model; None when not known."""

    @property
    def previous_lr(self) -> float:
        """Rate before the first step: the last one of pre-training; 0 (taken as annealed) when unknown."""
        return float(self.pretrain_lr[-1]) if len(self.pretrain_lr) else self.last_lr or 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Observations:
    """The points of one validation set on one run that a law is fitted to."""

    name: str
    history: RunHistory
    steps: IntArray
    """Finished optimiser steps of this phase, shape (points,)."""
    loss: FloatArray
    """Validation loss, nats per token, finite, shape (points,)."""


def history_of(curve: LossCurve, curves: Mapping[str, LossCurve]) -> RunHistory:
    """The history of a curve, its pre-training followed through the parents.

    Args:      curve: the run. curves: the directory it belongs to, which holds its parents.
    Raises:    CurveError if the parents go in a circle, or a CPT run continues another CPT run.
    """
    lr, replay = curve.lr(), curve.replay_ratios()
    if curve.record.phase == "pretrain" and curve.record.parent is None:
        return RunHistory(
            phase="pretrain",
            pretrain_lr=np.zeros(0),
            pretrain_known=True,
            lr=lr,
            replay_ratio=np.ones_like(replay),
            num_params=_size(curve),
            batch_tokens=curve.record.batch_tokens,
        )
    chunks: list[FloatArray] = []
    seen, current = {curve.name}, curve
    while current.record.parent is not None:
        parent = curves[current.record.parent]
        if parent.name in seen or parent.record.phase != "pretrain":
            raise CurveError(
                f"parent must be a pre-training run; got {parent.name!r} for {current.name!r}.",
                hint="the law describes one change of data; merge the phases into one curve with segments",
            )
        seen.add(parent.name)
        stop = current.record.parent_step if current.record.parent_step is not None else parent.total_steps
        chunks.insert(0, parent.lr()[:stop])
        current = parent
    pretrain_lr = np.concatenate(chunks) if chunks else np.zeros(0)
    told = curve.record.pretrain
    return RunHistory(
        phase=curve.record.phase,
        pretrain_lr=pretrain_lr,
        pretrain_known=bool(chunks),
        last_lr=told.last_lr if told is not None and not chunks else None,
        known_area=told.forward_area if told is not None and not chunks else None,
        lr=lr,
        replay_ratio=replay if curve.record.phase == "cpt" else np.ones_like(replay),
        domain_passes=_domain_passes(curve, replay) if curve.record.phase == "cpt" else None,
        num_params=_size(curve),
        batch_tokens=curve.record.batch_tokens,
    )


def _size(curve: LossCurve) -> float | None:
    return float(curve.record.num_params) if curve.record.num_params else None


def _domain_passes(curve: LossCurve, replay: FloatArray) -> FloatArray | None:
    """Passes over the unique domain tokens before each step, or None where the record does not tell."""
    record = curve.record
    unique = sum(count for name, count in (record.unique_tokens or {}).items() if name != "general")
    if not unique or record.batch_tokens is None:
        return None
    tokens = (1.0 - replay) * record.batch_tokens
    return (np.cumsum(tokens) - tokens) / unique


def observations(curves: Mapping[str, LossCurve], set_name: str, *, skip_steps: int = 0) -> tuple[Observations, ...]:
    """The points of one validation set on all curves that have it, warm-up of pre-training left out.

    Args:      curves: a curve directory. set_name: validation set. skip_steps: first steps of each CPT run left out,
               except step 0 (see fit.transient_steps).
    Raises:    CurveError if no curve has the set.
    """
    found: list[Observations] = []
    # a CPT law is about ends: it leaves out what a law of pre-training alone is also asked for
    margin = 2 if any(curve.record.phase == "cpt" for curve in curves.values()) else 1
    for curve in curves.values():
        if set_name not in curve.losses:
            continue
        history = history_of(curve, curves)
        loss = curve.losses[set_name]
        keep = np.isfinite(loss)
        if history.phase == "pretrain" and not len(history.pretrain_lr):
            keep &= curve.steps > margin * (int(np.argmax(history.lr)) + 1)  # inside the warm-up the laws do not hold
        elif history.phase == "cpt":
            keep &= (curve.steps == 0) | (curve.steps >= skip_steps)
        if keep.any():
            found.append(Observations(name=curve.name, history=history, steps=curve.steps[keep], loss=loss[keep]))
    if not found:
        sets = sorted({name for curve in curves.values() for name in curve.losses})
        raise CurveError(f"curves must have loss_{set_name}; got {', '.join(sets)}.", hint="name a set that was logged")
    return tuple(found)


def transient_points(data: Sequence[Observations], settled_step: int) -> tuple[Observations, ...]:
    """The points of CPT curves after step 0 and before settled_step."""
    found = []
    for points in data:
        keep = (points.steps > 0) & (points.steps < settled_step)
        if points.history.phase == "cpt" and keep.any():
            found.append(replace(points, steps=points.steps[keep], loss=points.loss[keep]))
    return tuple(found)
