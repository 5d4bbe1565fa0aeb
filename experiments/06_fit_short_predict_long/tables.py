"""results.md: the tables of the comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from contenders import CHOSEN
from numpy.typing import NDArray

from cptplan.fitting.fitted import rms

FloatArray = NDArray[np.float64]
Row = Mapping[str, Any]

# Inside what the pilots span, save for length, schedule and the pairing of settings; every cell once. Runs beyond the
# pilots' ranges, other batches, repeated tokens and further seeds have tables of their own.
COUNTED = ("grid", "half", "schedules", "longer", "long")
RESAMPLES = 2000
HEAD = """# Fit short, predict long

Base and eight pilots of 160 steps are fitted; every other run is predicted. Relative errors, predicted / measured - 1,
at the end and along the curve from the first fitted step on. Brackets: 90 % of a bootstrap over runs, which share one
fit, so the true uncertainty over labs is larger. "Inside": the 90 % interval of a measured value."""


def markdown(results: Mapping[str, Any]) -> str:
    """All tables."""
    ends: list[Row] = results["ends"]
    counted = [row for row in ends if row["group"] in COUNTED]
    parts = [HEAD, "## By law", f"Runs of {', '.join(COUNTED)}.", *by_law(counted)]
    parts += ["## By group", "Root mean square end error; in brackets the runs.", *by_group(ends)]
    parts += ["## Where cptplan fit errs", *by_fact(counted, results["runs"])]
    parts += ["## Noise floor", noise(results["noise"])]
    parts += ["## Annealing memory", "Trusted form; rms end error and, in brackets, mean.", memory(results["lambda"])]
    parts += ["## How replay acts", replay(results["replay"])]
    parts += ["## Repeated domain tokens", repetition(results["repetition"])]
    parts += [
        "Change of the final loss from the first of these cuts to the shorter ones, nats per token.",
        change(results["change"]),
    ]
    parts += ["## Another batch", batch(results["batch"])]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A markdown table; a sentence when it is empty."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(head)} |", "|" + " --- |" * len(head), *lines]) if lines else "No such run yet."


def resampled(errors: FloatArray) -> FloatArray:
    """Root mean squares of bootstrap samples of runs; the same samples for every law, shape (RESAMPLES,)."""
    picks = np.random.default_rng(0).integers(len(errors), size=(RESAMPLES, len(errors)))
    return np.asarray(np.sqrt(np.mean(errors[picks] ** 2, axis=1)))


def spread(values: FloatArray, form: str = ".2%") -> str:
    """The central 90 % as text."""
    low, high = np.percentile(values, [5.0, 95.0])
    return f"{low:{form}} to {high:{form}}"


def column(rows: Iterable[Row], key: str) -> FloatArray:
    """One field of all rows."""
    return np.array([row[key] for row in rows], dtype=np.float64)


def unique(rows: Iterable[Row], key: str) -> list[Any]:
    """Values of a field in their order."""
    return list(dict.fromkeys(row[key] for row in rows))


def by_law(rows: Sequence[Row]) -> list[str]:
    """A table for each validation set of each lab."""
    head = (
        "law",
        "runs",
        "rms end",
        "over cptplan fit",
        "mean end",
        "rms along",
        "ends inside",
        "points inside",
        "half width",
    )
    found = []
    for lab, set_name in dict.fromkeys((row["lab"], row["set"]) for row in rows):
        here = [row for row in rows if (row["lab"], row["set"]) == (lab, set_name)]
        ours = resampled(column([r for r in here if r["law"] == CHOSEN], "end_error"))
        lines = []
        for law in unique(here, "law"):
            own = [row for row in here if row["law"] == law]
            errors = column(own, "end_error")
            drawn = resampled(errors)
            ratio = drawn / np.maximum(ours, 1e-12)
            lines.append(
                (
                    law,
                    str(len(own)),
                    f"{rms(errors):.2%} [{spread(drawn)}]",
                    "1" if law == CHOSEN else f"{np.median(ratio):.2f} [{spread(ratio, '.2f')}]",
                    f"{errors.mean():+.2%}",
                    f"{rms(column(own, 'along_rms')):.2%}",
                    *_inside(own),
                )
            )
        found += [f"### {lab}, {set_name}", table(head, lines)]
    return found


def _inside(rows: Sequence[Row]) -> tuple[str, str, str]:
    if "inside" not in rows[0]:
        return "no interval", "", ""
    return (
        f"{column(rows, 'inside').mean():.0%}",
        f"{column(rows, 'points_inside').mean():.0%}",
        f"{np.median(column(rows, 'half_width')):.1%}",
    )


def by_group(rows: Sequence[Row]) -> list[str]:
    """End errors of every law in every group of runs, a table for each validation set of each lab."""
    found = []
    for lab, set_name in dict.fromkeys((row["lab"], row["set"]) for row in rows):
        here = [row for row in rows if (row["lab"], row["set"]) == (lab, set_name)]
        groups = {g: [r for r in here if r["group"] == g] for g in unique(here, "group")}
        head = ["law", *(f"{g} ({len({r['run'] for r in own})})" for g, own in groups.items())]
        lines = [
            [law, *(f"{rms(column([r for r in own if r['law'] == law], 'end_error')):.2%}" for own in groups.values())]
            for law in unique(here, "law")
        ]
        inside = [f"{column([r for r in own if r['law'] == CHOSEN], 'inside').mean():.0%}" for own in groups.values()]
        found += [f"### {lab}, {set_name}", table(head, [*lines, [f"{CHOSEN}: ends inside", *inside]])]
    return found


FACTS: Mapping[str, Callable[[Row], str]] = {
    "peak rate": lambda run: f"{run['peak_lr']:.0e}".replace("e-0", "e-"),
    "replay": lambda run: "0" if run["replay"] == 0 else "under 5 %" if run["replay"] < 0.0499 else "5 % and more",
    "start": lambda run: run["start"],
    "schedule": lambda run: run["schedule"],
    "steps": lambda run: str(run["steps"]),
}


def by_fact(rows: Sequence[Row], runs: Mapping[str, Mapping[str, Row]]) -> list[str]:
    """Rms and mean end error of what cptplan fit gives, by one fact of the run at a time."""
    ours = [row for row in rows if row["law"] == CHOSEN]
    places = list(dict.fromkeys((row["lab"], row["set"]) for row in ours))
    lines = []
    for fact, name_of in FACTS.items():
        values = sorted({name_of(runs[row["lab"]][row["run"]]) for row in ours})
        for value in values:
            cells = []
            for place in places:
                own = [r for r in ours if (r["lab"], r["set"]) == place and name_of(runs[r["lab"]][r["run"]]) == value]
                errors = column(own, "end_error")
                cells.append(f"{rms(errors):.2%} ({errors.mean():+.2%}, {len(own)})" if own else "")
            lines.append([f"{fact} {value}", *cells])
    return ["Rms end error (mean, runs).", table(["runs with", *(f"{lab}, {s}" for lab, s in places)], lines)]


def noise(rows: Sequence[Row]) -> str:
    """Spread over seeds."""
    lines = [
        (r["lab"], r["set"], str(r["cells"]), str(r["runs"]), f"{r['sd']:.2%} [{r['low']:.2%} to {r['high']:.2%}]")
        for r in rows
    ]
    return table(("lab", "set", "cells", "runs", "relative standard deviation of the end"), lines)


def memory(rows: Sequence[Row]) -> str:
    """End errors by memory, a column for each validation set of each lab."""
    places = list(dict.fromkeys((row["lab"], row["set"]) for row in rows))
    lines = []
    for name in unique(rows, "memory"):
        own = {(r["lab"], r["set"]): r for r in rows if r["memory"] == name}
        label = "fitted" if name == "fitted" else f"{name} steps, lambda {1.0 - 1.0 / float(name):.4g}"
        cells = [own.get(place) for place in places]
        told = name == "fitted"
        lines.append(
            [
                label,
                *(
                    "" if c is None else f"{c['rms']:.2%} ({c['mean']:+.2%})" + (f", {c['steps']:.0f} steps" * told)
                    for c in cells
                ),
            ]
        )
    return table(["memory", *(f"{lab}, {s}" for lab, s in places)], lines)


def replay(rows: Sequence[Row]) -> str:
    """End errors by how replay acts."""
    lines = [
        (
            r["lab"],
            r["set"],
            r["replay"],
            f"{r['in_sample']:.2%}",
            f"{r['rms']:.2%}",
            _percent(r["rms_little"]),
            _percent(r["rms_more"]),
        )
        for r in rows
    ]
    return table(("lab", "set", "replay acts on", "in sample", "rms end", "under 5 % replay", "5 % and more"), lines)


def repetition(rows: Sequence[Row]) -> str:
    """Errors of the runs that repeat, by how the law takes it."""
    if not rows:
        return table((), ())
    lines = [
        [
            r["fitted_to"],
            r["repetition"] + (f" (R {r['R']:.1f}, harm {r['harm']:.3f})" if np.isfinite(r.get("R", np.nan)) else ""),
            *(f"{e:+.2%}" for e in r["errors"]),
            f"{r['rms']:.2%}",
        ]
        for r in rows
    ]
    return table(["fitted to", "repetition", *(f"{p:g} passes" for p in rows[0]["passes"]), "rms"], lines)


def change(rows: Sequence[Row]) -> str:
    """Changes of the final loss with the passes, measured and predicted."""
    if not rows:
        return table((), ())
    first, *passes = rows[0]["passes"]
    lines = [["measured", "", "", *(f"{value:+.3f}" for value in rows[0]["measured"])]]
    lines += [
        [
            r["repetition"],
            f"{r['R']:.1f}" if r["R"] < 1e6 else "",
            f"{r['harm']:.3f}",
            *(f"{v:+.3f}" for v in r["predicted"]),
        ]
        for r in rows
    ]
    return table(["repetition", "R", "harm", *(f"{first:g} to {p:g} passes" for p in passes)], lines)


def batch(rows: Sequence[Row]) -> str:
    """What a conversion would have said of the run of another batch."""
    lines = [
        (
            r["lab"],
            r["set"],
            r["areas"],
            f"{r['predicted']:.3f}",
            f"{r['measured']:.3f}",
            f"{r['error']:+.2%}",
            "" if r["twin_measured"] is None else f"{r['twin_measured']:.3f} ({r['twin_error']:+.2%})",
        )
        for r in rows
    ]
    head = ("lab", "set", "areas", "predicted", "measured", "error", "same tokens at the pilots' batch (its error)")
    return table(head, lines)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"
