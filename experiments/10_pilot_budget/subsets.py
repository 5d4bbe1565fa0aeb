"""The same question on real runs: what a fit loses when some of the eight pilots had not been trained."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cptplan.curves import LossCurve
from cptplan.fitting.select import select_law
from cptplan.laws.history import history_of
from cptplan.planning.recipes import COMMON

SETS = ("general", "domain")
WEIGHTS = (0.2, 0.4, 0.6, 0.8)  # of general loss
LEFT_OUT = (0, 1, 2)


def subset_rows(curves: Mapping[str, LossCurve], *, fast: bool) -> list[dict[str, Any]]:
    """Every fit to six or more of eight pilots, and how good a cell of the grid each would choose.

    Args:      curves: base, pilots and what is there of the grid. fast: all pilots, and all but the first.
    """
    pilots = sorted(name for name, curve in curves.items() if name.startswith("pilot-"))
    base = [name for name, curve in curves.items() if curve.record.phase == "pretrain"]
    cells = [curves[name] for name in sorted(curves) if name.startswith("grid-")]
    lefts = [left for number in LEFT_OUT for left in itertools.combinations(pilots, number)]
    rows = []
    for left in lefts[:2] if fast else lefts:
        seen = {name: curves[name] for name in (*base, *pilots) if name not in left}
        predicted = {name: predictions(seen, curves, cells, name) for name in SETS}
        rows.append({"left_out": list(left), **judged(predicted, ends(cells))})
    return rows


def predictions(
    seen: Mapping[str, LossCurve], curves: Mapping[str, LossCurve], cells: Sequence[LossCurve], set_name: str
) -> np.ndarray:
    """Final loss of every cell by the fit to what was seen, nats per token, shape (cells,)."""
    fitted = select_law(seen, set_name, set_name).fitted
    return np.array([float(fitted.mean(history_of(cell, curves), cell.steps[-1:])[0]) for cell in cells])


def ends(cells: Sequence[LossCurve]) -> dict[str, np.ndarray]:
    """Measured final losses, nats per token, shape (cells,)."""
    return {name: np.array([cell.losses[name][-1] for cell in cells]) for name in SETS}


def judged(predicted: Mapping[str, np.ndarray], true: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Regret of the cell that is predicted to be best, nats, and the error of all cells."""
    said, measured = ({w: weighed(losses, w) for w in WEIGHTS} for losses in (predicted, true))
    return {
        "regret": {f"{w:g}": round(float(measured[w][said[w].argmin()] - measured[w].min()), 5) for w in WEIGHTS},
        "rms_error": {
            name: round(float(np.sqrt(np.mean((predicted[name] / true[name] - 1.0) ** 2))), 5) for name in SETS
        },
    }


def weighed(losses: Mapping[str, np.ndarray], general: float) -> np.ndarray:
    """Weighted loss of every cell, shape (cells,)."""
    return general * losses["general"] + (1.0 - general) * losses["domain"]


def without_pilots(curves: Mapping[str, LossCurve]) -> dict[str, Any]:
    """What costs no pilot: a cell at random, and the cell that is nearest to the rule of thumb; loss of the best."""
    cells = [curve for name, curve in sorted(curves.items()) if name.startswith("grid-")]
    true = ends(cells)
    base = next(curve for curve in curves.values() if curve.record.phase == "pretrain")
    thumb = COMMON.knobs(float(base.lr().max()), cells[0].total_steps, "annealed")

    def distance(cell: LossCurve) -> tuple[bool, float, float]:
        rate, replay = float(cell.lr().max()), float(cell.replay_ratios().mean())
        starts_last = cell.record.parent_step == base.total_steps
        return not starts_last, abs(np.log(rate / thumb.peak_lr)), abs(replay - thumb.replay_ratio)

    nearest = min(range(len(cells)), key=lambda number: distance(cells[number]))
    objective = {w: weighed(true, w) for w in WEIGHTS}
    return {
        "cells": len(cells),
        "rule_of_thumb": {"cell": cells[nearest].name}
        | {f"{w:g}": round(float(objective[w][nearest] - objective[w].min()), 5) for w in WEIGHTS},
        "random": {f"{w:g}": round(float(objective[w].mean() - objective[w].min()), 5) for w in WEIGHTS},
        "best_loss": {f"{w:g}": round(float(objective[w].min()), 4) for w in WEIGHTS},
    }
