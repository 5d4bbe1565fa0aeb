"""Areas of a learning-rate schedule: the time (forward area S1) and the annealing (S2) that the laws are written in.

Always from the rate of every optimiser step, never from logged rows. Units: learning rate x steps for both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from cptplan.errors import CurveError

FloatArray = NDArray[np.float64]

ANNEALING_DECAY = 0.999  # published: lambda of arXiv:2408.11029 and arXiv:2505.07796, in all their experiments


def check_lr(lr: FloatArray) -> FloatArray:
    """The rates as float64.

    Raises:    CurveError if they are empty, not one-dimensional, not finite or negative.
    """
    rates = np.asarray(lr, dtype=np.float64)
    if rates.ndim != 1 or not len(rates) or not np.all(np.isfinite(rates)) or rates.min() < 0:
        raise CurveError(
            f"lr must hold one finite rate >= 0 for each step; got shape {rates.shape}.",
            hint="check the schedule",
        )
    return rates


def forward_area(lr: FloatArray, power: float = 1.0) -> FloatArray:
    """Forward area S1(t) = sum_{i <= t} lr_i ** power, in units of lr ** power.

    Args:      lr: learning rate of every optimiser step, dimensionless, shape (steps,), >= 0; not the logged subset.
               power: 1 is the published law; 0 counts steps; between, see reports/decisions.
    Returns:   S1 after 0, 1, .. steps, shape (steps + 1,); the first is 0.
    Raises:    CurveError if lr is empty, negative or not finite.
    Reference: Tissue et al. 2024, arXiv:2408.11029, eq. 1; power is ours.
    """
    rates = check_lr(lr)
    return np.concatenate([[0.0], np.cumsum(rates if power == 1.0 else rates**power)])


@dataclass(frozen=True, kw_only=True, slots=True)
class AnnealingArea:
    """S2 after each step, and the momentum it ends with, which a following phase lets relax."""

    area: FloatArray
    momentum: float


def annealing_area(
    lr: FloatArray, *, decay: float = ANNEALING_DECAY, previous_lr: float | None = None, first_step: int = 0
) -> AnnealingArea:
    """Annealing area S2(t) = sum_{i <= t} m_i with m_i = decay * m_{i-1} + (lr_{i-1} - lr_i), in units of lr.

    Positive after a fall of the rate, negative after a rise (re-warm-up).
    Args:      lr: learning rate of every optimiser step, shape (steps,), >= 0. decay: lambda in (0, 1), per step.
               previous_lr: rate before the first step; None counts no change at the first step.
               first_step: changes before this step do not count (the warm-up of pre-training, arXiv:2408.11029).
    Returns:   area after 0, 1, .. steps, shape (steps + 1,), and the momentum at the end.
    Raises:    CurveError if lr is empty, negative or not finite.
    Reference: Wang et al. 2025, arXiv:2505.07796, eq. 1, in its recursive form; no deviation.
    """
    rates = check_lr(lr)
    before = rates[0] if previous_lr is None else previous_lr
    drops = -np.diff(rates, prepend=before)
    drops[:first_step] = 0.0
    momentum = lfilter([1.0], [1.0, -decay], drops)
    return AnnealingArea(area=np.concatenate([[0.0], np.cumsum(momentum)]), momentum=float(momentum[-1]))


def relaxed_area(end: AnnealingArea, steps: FloatArray, decay: float = ANNEALING_DECAY) -> FloatArray:
    """S2 of a finished phase, some steps later: its last momentum goes on decaying.

    S2(t) = S2(end) + m_end * decay * (1 - decay^t) / (1 - decay)
    Args:      end: areas of the finished phase. steps: optimiser steps since its end, shape (points,).
    Returns:   S2, units of lr, shape (points,). With it the areas of two phases add up to those of the joint schedule.
    """
    elapsed = np.asarray(steps, dtype=np.float64)
    return float(end.area[-1]) + end.momentum * decay * (1.0 - decay**elapsed) / (1.0 - decay)


def loss_potential(lr: FloatArray) -> float:
    """Last rate over peak rate of pre-training: 0 is fully annealed, 1 never annealed (arXiv:2505.07796, 3.3)."""
    rates = check_lr(lr)
    peak = float(rates.max())
    return float(rates[-1]) / peak if peak > 0 else 0.0
