"""figure.png: when alarms come, and what the intervals of the end hold and are wide."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from cases import HEALTHY
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

mpl.use("Agg")
import matplotlib.pyplot as plt

from cptplan.watch.alarm import FALSE_ALARMS

SOURCES = ("curve set", "kept", "virtual")
COLOURS = {"curve set": "#aa3377", "kept": "#ccbb44", "virtual": "#4477aa"}
KINDS = {"": "own plan", "start": "other start", "lr": "rate x 2 or x 0.5", "replay": "other replay"}
KIND_COLOURS = {"": "#222222", "start": "#228833", "lr": "#ee6677", "replay": "#66ccee"}
LEVEL = 0.9


def draw(rows: Sequence[dict[str, Any]], ends: Sequence[dict[str, Any]], path: Path) -> None:
    """Alarms over the share of the run, one panel for each source; below coverage and width of the end."""
    figure, axes = plt.subplots(2, 3, figsize=(9.6, 5.6))
    for axis, source in zip(axes[0], SOURCES, strict=True):
        _draw_alarms(axis, source, [row for row in rows if row["source"] == source])
    axes[0][0].set_ylabel("share of runs with an alarm", fontsize=8)
    lines = [Line2D([], [], color=KIND_COLOURS[kind], label=label) for kind, label in KINDS.items()]
    figure.legend(handles=lines, fontsize=8, loc="upper center", ncols=len(lines), frameon=False)
    inside = [row for row in ends if row["place"] in ("inside", "all")]
    _draw_ends(axes[1][0], inside, "covered", "ends inside the 90 % interval")
    axes[1][0].axhline(LEVEL, color="#888888", linewidth=0.8, linestyle=":")
    axes[1][0].set_ylim(0.0, 1.03)
    lines = [Line2D([], [], color=COLOURS[source], marker="o", ms=3, label=source) for source in SOURCES]
    axes[1][0].legend(handles=lines, fontsize=7, frameon=False, loc="lower right")
    _draw_ends(axes[1][1], inside, "to_before", "width of it, over that before the run")
    axes[1][1].set_ylim(0.0)
    _draw_ends(axes[1][2], inside, "rms_error", "rms relative error of its mean")
    axes[1][2].set_ylim(0.0)
    for axis in axes.flat:
        axis.tick_params(labelsize=7)
        axis.set_xlim(-0.03, 1.03)
        axis.set_xlabel("share of the run that is done", fontsize=8)
    figure.tight_layout(rect=(0.0, 0.0, 1.0, 0.96))
    figure.savefig(path, dpi=160, metadata={"Software": None})
    plt.close(figure)


def _draw_alarms(axis: Axes, source: str, rows: Sequence[dict[str, Any]]) -> None:
    for kind in KINDS:
        some = [row for row in rows if row["kind"] == kind]
        after = sorted(row["alarm_step"] / row["steps"] for row in some if row["alarm_step"] is not None)
        if some:
            heights = np.arange(len(after) + 1) / len(some)
            axis.step([0.0, *after, 1.0], [*heights, heights[-1]], where="post", color=KIND_COLOURS[kind])
    axis.axhline(FALSE_ALARMS, color="#888888", linewidth=0.8, linestyle=":")
    axis.set_ylim(0.0, 1.03)
    count = sum(row["fault"] == HEALTHY for row in rows)
    axis.set_title(f"{source}: {count} runs, {len(rows) - count} wrong plans", fontsize=8)


def _draw_ends(axis: Axes, rows: Sequence[dict[str, Any]], key: str, title: str) -> None:
    for number, source in enumerate(SOURCES):
        mine = [row for row in rows if row["source"] == source]
        shares = np.array([row["share"] for row in mine]) + 0.01 * (number - 1)
        if key == "covered":
            middle, low, high = (np.array([row[key][part] for row in mine]) for part in ("share", "low", "high"))
            axis.errorbar(shares, middle, [middle - low, high - middle], fmt="o-", ms=3, lw=1, color=COLOURS[source])
        else:
            axis.plot(shares, [row[key] for row in mine], "o-", ms=3, lw=1, color=COLOURS[source])
    axis.set_title(title, fontsize=8)
