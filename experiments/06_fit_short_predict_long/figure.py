"""figure.png: error by law, and every predicted end beside the measured one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt
from contenders import CHOSEN
from matplotlib.axes import Axes
from tables import COUNTED, column, resampled, unique

from cptplan.fitting.fitted import rms

Row = Mapping[str, Any]
TICKS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
OURS, OTHER, OUT, FLOOR = "#4477aa", "#888888", "#cc3311", "#ccbb44"


def draw(results: Mapping[str, Any], path: Path) -> None:
    """One row of two panels for each validation set of each lab."""
    places = list(dict.fromkeys((row["lab"], row["set"]) for row in results["ends"]))
    floors = {(r["lab"], r["set"]): r for r in results["noise"]}
    figure, axes = plt.subplots(
        len(places), 2, figsize=(11.0, 2.7 * len(places)), squeeze=False, gridspec_kw={"width_ratios": (1.0, 1.5)}
    )
    for (left, right), place in zip(axes, places, strict=True):
        rows = [row for row in results["ends"] if (row["lab"], row["set"]) == place]
        laws_panel(left, [row for row in rows if row["group"] in COUNTED], floors.get(place))
        left.set_title(f"{place[0]}, {place[1]}: rms end error by law", fontsize=8)
        ends_panel(right, [row for row in rows if row["law"] == CHOSEN])
        right.set_title("cptplan fit: error of every end with its 90 % interval (red: outside)", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=140)
    plt.close(figure)


def laws_panel(axis: Axes, rows: Sequence[Row], floor: Row | None) -> None:
    """A dot and a bar for each law."""
    laws = unique(rows, "law")
    for number, law in enumerate(laws):
        errors = 100.0 * column([row for row in rows if row["law"] == law], "end_error")
        low, high = np.percentile(resampled(errors), [5.0, 95.0])
        colour = OURS if law == CHOSEN else OTHER
        axis.plot([low, high], [number, number], color=colour, linewidth=2)
        axis.plot(rms(errors), number, "o", color=colour, markersize=4)
    if floor is not None:
        axis.axvline(100.0 * floor["sd"], color=FLOOR, linewidth=1.5, label="spread over seeds")
        axis.legend(fontsize=6, loc="upper right")
    axis.set_yticks(range(len(laws)), laws, fontsize=6)
    axis.invert_yaxis()
    axis.set_xscale("log")
    axis.set_xlim(0.1, 60.0)
    axis.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axis.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
    axis.grid(axis="x", color="#dddddd", linewidth=0.5)
    axis.tick_params(axis="x", labelsize=6)
    axis.set_xlabel("percent of the loss", fontsize=7)


def ends_panel(axis: Axes, rows: Sequence[Row]) -> None:
    """Errors in the order of the groups."""
    rows = [row for group in unique(rows, "group") for row in rows if row["group"] == group]
    for number, row in enumerate(rows):
        colour = OURS if row["inside"] else OUT
        axis.plot([number] * 2, [100.0 * row["low"], 100.0 * row["high"]], color=colour, linewidth=1, alpha=0.6)
        axis.plot(number, 100.0 * row["end_error"], "o", color=colour, markersize=2.5)
    axis.axhline(0.0, color="#222222", linewidth=0.6)
    groups = [row["group"] for row in rows]
    for group in dict.fromkeys(groups):
        at = [number for number, name in enumerate(groups) if name == group]
        axis.axvline(at[0] - 0.5, color="#cccccc", linewidth=0.6)
        axis.text(at[0] - 0.4, 0.98, group, fontsize=6, va="top", transform=axis.get_xaxis_transform(), rotation=90)
    axis.set_xticks([])
    axis.tick_params(axis="y", labelsize=6)
    axis.set_ylabel("percent of the loss", fontsize=7)
    axis.set_xlabel("run", fontsize=7)
