"""Answer the question from the kept curves: python analyse.py [--curves DIR] [--out DIR] [--fast].

Writes results.json, results.md and figure.png.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from contenders import CHOSEN, Predict, Task, combination, contenders
from figure import draw
from numpy.typing import NDArray
from questions import TIMES, batch_rows, change_rows, lambda_rows, noise_floor, repetition_rows, replay_rows
from tables import COUNTED, markdown

from cptplan.curves import LossCurve, read_curve_directory
from cptplan.files import write_json, write_text
from cptplan.fitting.fitted import FittedLaw, rms
from cptplan.fitting.select import select_law, sets_of, side_of
from cptplan.fitting.support import passes_of
from cptplan.laws.history import history_of

FloatArray = NDArray[np.float64]

HERE = Path(__file__).resolve().parent
CURVES = HERE.parent / "04_curve_set" / "curves"
LABS = ("prose_code", "wiki_medicine")
UNTRAINED = {"novels"}  # sets that no run trains on
FAST_RUNS = 4


def main(curves_dir: Path = CURVES, out: Path = HERE, *, fast: bool = False) -> None:
    """Fit to base and pilots of each lab, predict every other run, compare the laws."""
    labs = {lab: read_lab(curves_dir / lab) for lab in LABS if (curves_dir / lab).is_dir()}
    results: dict[str, Any] = {
        key: [] for key in ("ends", "lambda", "replay", "repetition", "change", "batch", "noise")
    }
    results["runs"] = {lab: run_facts(curves) for lab, curves in labs.items()}
    for lab, curves in list(labs.items())[: 1 if fast else None]:
        study(lab, curves, results, fast=fast)
    write_json(out / "results.json", {"schema_version": 1, **compact(kept(results))})
    write_text(out / "results.md", markdown(results))
    draw(results, out / "figure.png")


def read_lab(directory: Path) -> dict[str, LossCurve]:
    """The curves of a lab. The record lists every corpus that a run has opened; those it never draws from are left out,
    or the passes over the domain would be counted over their tokens too."""
    return {name: _without_untrained(curve) for name, curve in read_curve_directory(directory).items()}


def _without_untrained(curve: LossCurve) -> LossCurve:
    unique = {name: n for name, n in (curve.record.unique_tokens or {}).items() if name not in UNTRAINED}
    return replace(curve, record=curve.record.model_copy(update={"unique_tokens": unique}))


def is_seen(name: str) -> bool:
    """Base and pilots: all that a fit sees."""
    return name == "base" or name.startswith("pilot-")


def group_of(name: str) -> str:
    """The group of experiments/04_curve_set/cells.py that a run belongs to."""
    return name.split("-")[0]


def run_facts(curves: Mapping[str, LossCurve]) -> dict[str, dict[str, Any]]:
    """What every unseen run is."""
    last = max(curve.record.parent_step or 0 for curve in curves.values())
    return {
        name: {
            "group": group_of(name),
            "schedule": curve.record.lr.kind,
            "peak_lr": float(curve.lr().max()),
            "replay": float(curve.replay_ratios().mean()),
            "start": "annealed" if curve.record.parent_step == last else "stable",
            "steps": curve.total_steps,
        }
        for name, curve in curves.items()
        if not is_seen(name)
    }


def study(lab: str, curves: Mapping[str, LossCurve], results: dict[str, Any], *, fast: bool) -> None:
    """Everything about one lab, appended to the results."""
    seen = {name: curve for name, curve in curves.items() if is_seen(name)}
    unseen = [curve for name, curve in curves.items() if not is_seen(name)]
    if fast:
        unseen = [curve for curve in unseen if group_of(curve.name) in COUNTED][:FAST_RUNS]
    same_batch = [curve for curve in unseen if group_of(curve.name) != "batch"]
    counted = [curve for curve in unseen if group_of(curve.name) in COUNTED]
    sets = sets_of(seen)[: 1 if fast else None]
    laws = {s: select_law(seen, s, side_of(s, seen), where=lab).fitted for s in sets}
    for set_name, chosen in laws.items():
        task = Task(lab=lab, set_name=set_name, curves=curves, seen=seen)
        found = contenders(task, chosen, fast=fast)
        if set_name not in ("general", "domain"):
            found["combination of general and domain"] = combination(task, laws)
        results["ends"] += [judged(task, name, law, chosen, run) for name, law in found.items() for run in same_batch]
        results["lambda"] += lambda_rows(task, counted, TIMES[-1:] if fast else TIMES)
        if set_name in ("general", "domain"):
            results["replay"] += replay_rows(task, counted)
        for run in (run for run in unseen if group_of(run.name) == "batch"):
            results["batch"] += batch_rows(task, chosen, run, twin_of(run, curves))
        repeated = sorted(
            (run for run in unseen if group_of(run.name) == "repeat"),
            key=lambda run: passes_of(history_of(run, curves)),
        )
        if len(repeated) > 1 and task.side == "domain":
            results["repetition"] += repetition_rows(task, chosen, repeated)
            results["change"] += change_rows(task, repeated)
        floor = noise_floor(set_name, seed_cells(unseen))
        if floor is not None:
            results["noise"].append({"lab": lab, "set": set_name, **asdict(floor)})


def judged(task: Task, law_name: str, law: Predict, chosen: FittedLaw, run: LossCurve) -> dict[str, Any]:
    """One run against one law, from the first fitted step on."""
    steps = run.steps[run.steps >= chosen.settled_step]
    loss = run.losses[task.set_name][-len(steps) :]
    band = law(run, steps)
    errors = band.mean / loss - 1.0
    row = {
        "lab": task.lab,
        "set": task.set_name,
        "law": law_name,
        "run": run.name,
        "group": group_of(run.name),
        "measured": float(loss[-1]),
        "end_error": float(errors[-1]),
        "along_rms": rms(errors),
        "along_mean": float(errors.mean()),
    }
    if band.low is not None and band.high is not None:
        inside = (band.low <= loss) & (loss <= band.high)
        row["inside"], row["points_inside"] = bool(inside[-1]), float(inside.mean())
        row["half_width"] = float((band.high[-1] - band.low[-1]) / 2.0 / loss[-1])
        row["low"], row["high"] = float(band.low[-1] / loss[-1] - 1.0), float(band.high[-1] / loss[-1] - 1.0)
    if law_name == CHOSEN:
        row["flags"] = list(chosen.support.flags(history_of(run, task.curves), chosen.law.reference_lr))
    return row


def cell_key(run: LossCurve, **changed: Any) -> str:
    """What two runs of one cell have in common."""
    facts = {
        "lr": [round(float(v), 12) for v in run.lr()[:: max(run.total_steps // 16, 1)]],
        "steps": run.total_steps,
        "replay": round(float(run.replay_ratios().mean()), 6),
        "start": run.record.parent_step,
        "batch": run.record.batch_tokens,
        "domain": (run.record.unique_tokens or {}).get("domain"),
    }
    return str(facts | changed)


def seed_cells(runs: Sequence[LossCurve]) -> list[list[LossCurve]]:
    """Runs of one cell that differ in their seed."""
    cells: dict[str, list[LossCurve]] = {}
    for run in runs:
        cells.setdefault(cell_key(run), []).append(run)
    return [cell for cell in cells.values() if len({run.record.seed for run in cell}) > 1]


def twin_of(run: LossCurve, curves: Mapping[str, LossCurve]) -> LossCurve | None:
    """The run with the same tokens, peak rate, replay and start at the pilots' batch, when it is there."""
    tokens = run.total_steps * (run.record.batch_tokens or 0)
    for other in curves.values():
        if (
            group_of(other.name) == "grid"
            and other.total_steps * (other.record.batch_tokens or 0) == tokens
            and other.record.parent_step == run.record.parent_step
            and np.isclose(other.lr().max(), run.lr().max())
            and np.isclose(other.replay_ratios().mean(), run.replay_ratios().mean())
        ):
            return other
    return None


def kept(results: Mapping[str, Any]) -> dict[str, Any]:
    """What results.json keeps: all about what cptplan fit gives, of the other laws the end errors."""
    ends = results["ends"]
    errors: dict[str, Any] = {}
    for row in ends:
        errors.setdefault(row["lab"], {}).setdefault(row["set"], {}).setdefault(row["law"], {})[row["run"]] = row[
            "end_error"
        ]
    return {**results, "ends": [row for row in ends if row["law"] == CHOSEN], "end_errors": errors}


def compact(values: Any) -> Any:
    """The results with six digits, so that a change of them can be read."""
    if isinstance(values, dict):
        return {key: compact(value) for key, value in values.items()}
    if isinstance(values, list):
        return [compact(value) for value in values]
    if isinstance(values, float):
        return float(f"{values:.6g}") if np.isfinite(values) else None
    return values


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--curves", type=Path, default=CURVES)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--fast", action="store_true")
    options = parser.parse_args()
    main(options.curves, options.out, fast=options.fast)
