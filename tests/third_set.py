"""Curves with a third validation set that is made of the other two in a known way."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cptplan.curves import CurveRecord, LossCurve
from cptplan.mixture import ConstantMixture
from cptplan.schedule import read_schedule

CELLS = [(0.0, 1.0), (0.1, 1.0), (0.3, 0.5), (0.6, 1.0), (0.03, 0.3), (0.3, 1.5)]  # replay ratio, relative rate
Extra = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def nothing(general: np.ndarray, domain: np.ndarray, steps: np.ndarray) -> np.ndarray:
    return np.zeros_like(general)


def campaign(
    weights: tuple[float, float], constant: float = 0.0, *, extra: Extra = nothing, noise: float = 0.001, seed: int = 0,
    cells: list[tuple[float, float]] = CELLS,
) -> dict[str, LossCurve]:  # fmt: skip
    """Curves that forget and learn as CPT does, and a third set made of both by weights (domain, general)."""
    rng, curves = np.random.default_rng(seed), {}
    for number, (replay, rate) in enumerate(cells):
        steps = np.unique(np.round(np.linspace(0, 1, 25) ** 2 * 400)).astype(int)
        left = np.log(1.01 / (replay + 0.01)) / np.log(101)
        general = 3.2 + 0.6 * left * (1 - (1 + 0.05 * rate * steps) ** -0.2) - 0.02 * steps / 400
        domain = 3.1 - 0.8 * (1 - (1 + 0.2 * rate * steps * (1 - replay) ** 0.7) ** -0.2)
        third = weights[0] * domain + weights[1] * general + constant + extra(general, domain, steps)
        third = third * (1 + noise * rng.standard_normal(len(steps)))
        record = CurveRecord(
            phase="cpt",
            lr=read_schedule({"kind": "constant", "peak_lr": 1e-3 * rate, "total_steps": 400}, "test"),
            replay_ratio=ConstantMixture(replay_ratio=replay),
        )
        losses = {"general": general, "domain": domain, "third": third}
        curves[f"run-{number}"] = LossCurve(name=f"run-{number}", record=record, steps=steps, losses=losses)
    return curves
