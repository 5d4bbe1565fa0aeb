"""The same question on real runs: what a fit loses when some of the eight pilots had not been trained.

python subsets.py writes subsets.json from the curve set, in about two minutes of CPU.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: one process, one thread

import numpy as np

from cptplan.curves import LossCurve, read_curve_directory
from cptplan.files import write_json
from cptplan.fitting.select import select_law
from cptplan.laws.cpt import Side
from cptplan.laws.history import history_of
from cptplan.planning.recipes import COMMON

HERE = Path(__file__).resolve().parent
CURVES = HERE.parent / "04_curve_set" / "curves" / "prose_code"
LOG = logging.getLogger("subsets")
SETS: tuple[Side, Side] = ("general", "domain")
WEIGHTS = (0.2, 0.4, 0.6, 0.8)  # of general loss
LEFT_OUT = (0, 1, 2)


def main() -> None:
    """Fit to every subset."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--curves", type=Path, default=CURVES, help="Base, pilots and what is there of the grid.")
    parser.add_argument("--out", type=Path, default=HERE / "subsets.json")
    options = parser.parse_args()
    curves = read_curve_directory(options.curves)
    rows = []
    for left in subsets(curves):
        rows.append(subset_row(curves, left))
        LOG.info("without %s: %s", ", ".join(left) or "none", rows[-1]["regret"])
    write_json(options.out, {"schema_version": 1, **without_pilots(curves), "subsets": rows})


def subsets(curves: Mapping[str, LossCurve]) -> list[tuple[str, ...]]:
    """The pilots to leave out: none, each, each two."""
    pilots = sorted(name for name in curves if name.startswith("pilot-"))
    return [left for number in LEFT_OUT for left in itertools.combinations(pilots, number)]


def grid_cells(curves: Mapping[str, LossCurve]) -> list[LossCurve]:
    """The runs to choose among: every rate with every ratio from every start, as far as they are there."""
    return [curves[name] for name in sorted(curves) if name.startswith("grid-")]


def subset_row(curves: Mapping[str, LossCurve], left_out: Sequence[str]) -> dict[str, Any]:
    """A fit without some pilots, and how good the cell is that it would choose."""
    cells, phases = grid_cells(curves), {name: curve.record.phase for name, curve in curves.items()}
    seen = {
        name: curves[name]
        for name in curves
        if phases[name] == "pretrain" or (name.startswith("pilot-") and name not in left_out)
    }
    predicted = {name: predictions(seen, curves, cells, name) for name in SETS}
    return {"left_out": list(left_out), **judged(predicted, ends(cells))}


def predictions(
    seen: Mapping[str, LossCurve], curves: Mapping[str, LossCurve], cells: Sequence[LossCurve], set_name: Side
) -> np.ndarray:
    """Final loss of every cell by the fit to what was seen, nats per token, shape (cells,)."""
    fitted = select_law(seen, set_name, set_name).fitted
    return np.array([float(fitted.mean(history_of(cell, curves), cell.steps[-1:])[0]) for cell in cells])


def ends(cells: Sequence[LossCurve]) -> dict[Side, np.ndarray]:
    """Measured final losses, nats per token, shape (cells,)."""
    return {name: np.array([cell.losses[name][-1] for cell in cells]) for name in SETS}


def judged(predicted: Mapping[Side, np.ndarray], true: Mapping[Side, np.ndarray]) -> dict[str, Any]:
    """Regret of the cell that is predicted to be best, nats, and the error of all cells."""
    said, measured = ({w: weighed(losses, w) for w in WEIGHTS} for losses in (predicted, true))
    return {
        "regret": {f"{w:g}": round(float(measured[w][said[w].argmin()] - measured[w].min()), 5) for w in WEIGHTS},
        "rms_error": {
            name: round(float(np.sqrt(np.mean((predicted[name] / true[name] - 1.0) ** 2))), 5) for name in SETS
        },
    }


def weighed(losses: Mapping[Side, np.ndarray], general: float) -> np.ndarray:
    """Weighted loss of every cell, shape (cells,)."""
    return general * losses["general"] + (1.0 - general) * losses["domain"]


def without_pilots(curves: Mapping[str, LossCurve]) -> dict[str, Any]:
    """What costs no pilot: a cell at random, and the cell that is nearest to the rule of thumb; loss of the best."""
    cells = grid_cells(curves)
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


if __name__ == "__main__":
    main()
