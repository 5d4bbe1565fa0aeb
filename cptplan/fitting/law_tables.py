"""Rows and JSON of the verbs predict, simulate and laws."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cptplan.curves import LossCurve
from cptplan.fitting.predictions import PredictedRun
from cptplan.importers import Imported
from cptplan.laws.registry import LAWS
from cptplan.simulation.published import read_published

Row = tuple[str, ...]

PUBLISHED_COLUMNS = ("published set", "what it is", "in arXiv:2505.07796")


@dataclass(frozen=True, kw_only=True, slots=True)
class End:
    """Where a simulated run ends on one validation set, nats per token."""

    run: str
    set_name: str
    start: float | None
    """Loss before the change of data; None for pre-training."""
    end: float
    low: float | None = None
    high: float | None = None

    @property
    def change(self) -> float | None:
        """End less start."""
        return None if self.start is None else self.end - self.start


def law_lines() -> list[str]:
    """The laws that a fit may use, a paragraph for each."""
    lines: list[str] = []
    for law in LAWS.values():
        lines += [
            f"{law.name}: {law.title} ({law.reference})",
            f"  choose it when  {law.choose_when}",
            f"  it needs        {law.needs}",
            f"  it ignores      {law.ignores}",
        ]
    return lines


def published_rows() -> list[Row]:
    """The published sets that can be simulated."""
    return [(s.name, s.title, s.figure) for s in read_published().values()]


def laws_json() -> dict[str, Any]:
    """Laws and published sets, with notes."""
    return {
        "laws": [asdict(law) for law in LAWS.values()],
        "published": [published.to_json() for published in read_published().values()],
    }


def predict_columns(level: float) -> Row:
    """Names of the columns of predict_rows."""
    return ("run", "loss", "at step", "predicted", f"{level:.0%} interval", "measured", "inside")


def predict_rows(runs: Iterable[PredictedRun]) -> list[Row]:
    """The end of every run on every validation set."""
    rows: list[Row] = []
    for run in runs:
        for name, end in _ends_of(run).items():
            measured, inside = end["measured"], end["inside"]
            rows.append(
                (
                    run.name,
                    name,
                    f"{end['step']:,}",
                    f"{end['predicted']:.4f}",
                    f"{end['low']:.4f} to {end['high']:.4f}",
                    "-" if measured is None else f"{measured:.4f}",
                    {True: "yes", False: "NO", None: "-"}[inside],
                )
            )
    return rows


def run_notes(runs: Iterable[PredictedRun]) -> list[str]:
    """Where the runs leave what the laws were fitted to, each sentence with the runs that it holds for."""
    by_note: dict[str, list[str]] = {}
    for run in runs:
        for note in run.notes:
            by_note.setdefault(note, []).append(run.name)
    return [f"{', '.join(names)}: {note}" for note, names in by_note.items()]


def predict_json(runs: Iterable[PredictedRun], files: Mapping[str, str]) -> dict[str, Any]:
    """Final losses with intervals, and where the whole curves are."""
    return {run.name: {"file": files.get(run.name), "sets": _ends_of(run), "notes": list(run.notes)} for run in runs}


def _ends_of(run: PredictedRun) -> dict[str, dict[str, Any]]:
    """The last step at which a set was measured; the last of the run where it was not."""
    ends: dict[str, dict[str, Any]] = {}
    for name, band in run.bands.items():
        measured = run.measured.get(name, np.full(len(run.steps), np.nan))
        known = np.flatnonzero(np.isfinite(measured))
        at = int(known[-1]) if len(known) else len(run.steps) - 1
        value = float(measured[at]) if len(known) else None
        low, high = float(band.low[at]), float(band.high[at])
        ends[name] = {
            "step": int(run.steps[at]),
            "predicted": float(band.mean[at]),
            "low": low,
            "high": high,
            "level": band.level,
            "measured": value,
            "inside": None if value is None else low <= value <= high,
        }
    return ends


def ends(curves: Mapping[str, LossCurve], predicted: Mapping[str, PredictedRun] | None = None) -> list[End]:
    """Start and end of simulated runs on every set.

    Args:      predicted: the same runs with intervals, when the law was fitted.
    """
    found = []
    for name, curve in curves.items():
        for set_name, loss in curve.losses.items():
            band = predicted[name].bands[set_name] if predicted else None
            found.append(
                End(
                    run=name,
                    set_name=set_name,
                    start=float(loss[0]) if curve.record.phase == "cpt" else None,
                    end=float(loss[-1]),
                    low=None if band is None else float(band.low[-1]),
                    high=None if band is None else float(band.high[-1]),
                )
            )
    return found


def end_columns(found: Iterable[End]) -> Row:
    """Names of the columns of end_rows."""
    return ("run", *dict.fromkeys(f"loss_{end.set_name}" for end in found))


def end_rows(found: Sequence[End]) -> list[Row]:
    """The common start, then the end of every run with its change, a column for each set."""
    names = list(dict.fromkeys(end.set_name for end in found))
    by_run: dict[str, dict[str, End]] = {}
    for end in found:
        by_run.setdefault(end.run, {})[end.set_name] = end
    first = by_run[found[0].run]
    starts = [first[name].start for name in names]
    rows: list[Row] = [] if None in starts else [("before CPT", *(f"{start:.4f}" for start in starts))]
    return rows + [(run, *(_end_words(of_set[name]) for name in names)) for run, of_set in by_run.items()]


def _end_words(end: End) -> str:
    """Such as 3.3447 [3.31, 3.38] (+0.156)."""
    interval = "" if end.low is None else f" [{end.low:.3f}, {end.high:.3f}]"
    return f"{end.end:.4f}{interval}" + ("" if end.change is None else f" ({end.change:+.3f})")


def ends_json(found: Iterable[End]) -> dict[str, Any]:
    """Ends by run and set."""
    runs: dict[str, Any] = {}
    for end in found:
        runs.setdefault(end.run, {})[end.set_name] = {
            "start": end.start,
            "end": end.end,
            "change": end.change,
            "low": end.low,
            "high": end.high,
        }
    return runs


def imported_rows(imported: Imported) -> list[Row]:
    """What an imported curve holds."""
    curve, losses = imported.curve, imported.curve.losses
    return [
        ("phase", curve.record.phase),
        ("schedule", f"{curve.record.lr.kind}, peak {curve.lr().max():.3g}, {curve.total_steps:,} steps"),
        *(
            (f"loss_{name}", f"{np.isfinite(loss).sum()} points, last {curve.final_loss(name):.4f}")
            for name, loss in losses.items()
        ),
    ]


def imported_json(imported: Imported, directory: Path) -> dict[str, Any]:
    """Where an imported curve is, and what must be known of it."""
    return {
        "curve": str(directory / f"{imported.curve.name}.csv"),
        "record": str(directory / f"{imported.curve.name}.json"),
        "final_loss": {name: imported.curve.final_loss(name) for name in imported.curve.losses},
        "warnings": [{"code": warning.code, "message": warning.message} for warning in imported.warnings],
    }
