"""figure.png: where measured values fell in the predicted distribution, coverage, and what the flags are worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from summaries import LEVELS

if TYPE_CHECKING:
    from analyse import Verdict

COLOURS = {"curve set": "#4477aa", "earlier": "#228833", "virtual": "#888888"}
FLAGGED = "#cc3311"


def draw(verdicts: Sequence[Verdict], summary: Mapping[str, list[dict[str, Any]]], path: Path) -> None:
    """Histograms of ends above those of points, one column for each origin; coverage and flags at the right."""
    origins = list(dict.fromkeys(v.origin for v in verdicts))
    figure, axes = plt.subplots(2, len(origins) + 1, figsize=(3.1 * (len(origins) + 1), 5.6), squeeze=False)
    for column, origin in enumerate(origins):
        own = [v for v in verdicts if v.origin == origin]
        ends = np.bincount([v.end_tenth for v in own], minlength=10) / len(own)
        points = np.mean([v.point_tenths for v in own], axis=0)
        for axis, shares, what in ((axes[0, column], ends, "ends"), (axes[1, column], points, "points")):
            histogram(axis, shares, COLOURS[origin])
            axis.set_title(f"{origin}: {what}, {len(own)} runs x sets", fontsize=8)
    coverage(axes[0, -1], verdicts, origins)
    flags(axes[1, -1], [v for v in verdicts if v.origin != "virtual"])
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def histogram(axis: Axes, shares: np.ndarray, colour: str) -> None:
    """Ten bins; honest intervals fill each with a tenth."""
    axis.bar(np.arange(10) + 0.5, 100.0 * shares, width=0.9, color=colour, alpha=0.8)
    axis.axhline(10.0, color="#222222", linewidth=0.8, linestyle="--")
    axis.set_xticks([0, 5, 10], ["0", "0.5", "1"])
    axis.tick_params(labelsize=6)
    axis.set_xlabel("predicted distribution at the measured value", fontsize=7)
    axis.set_ylabel("percent", fontsize=7)


def coverage(axis: Axes, verdicts: Sequence[Verdict], origins: Sequence[str]) -> None:
    """Share of ends inside over the nominal level: thick the origin, thin its campaigns."""
    axis.plot([45, 100], [45, 100], color="#222222", linewidth=0.8, linestyle="--")
    levels = 100.0 * np.array(LEVELS)
    for origin in origins:
        own = [v for v in verdicts if v.origin == origin]
        for campaign in {v.campaign for v in own} if origin != "virtual" else ():
            inside = np.mean([v.end_inside for v in own if v.campaign == campaign], axis=0)
            axis.plot(levels, 100.0 * inside, color=COLOURS[origin], linewidth=0.6, alpha=0.5)
        inside = np.mean([v.end_inside for v in own], axis=0)
        axis.plot(levels, 100.0 * inside, "o-", color=COLOURS[origin], linewidth=1.8, markersize=3, label=origin)
    axis.set_title("ends inside; thin: single campaigns", fontsize=8)
    axis.set_xlabel("nominal, percent", fontsize=7)
    axis.set_ylabel("percent inside", fontsize=7)
    axis.tick_params(labelsize=6)
    axis.legend(fontsize=6, loc="lower right")


def flags(axis: Axes, verdicts: Sequence[Verdict]) -> None:
    """Error over half width of real runs, flagged or not."""
    for flagged, colour, label in ((False, COLOURS["curve set"], "no flag"), (True, FLAGGED, "flagged")):
        own = [v for v in verdicts if bool(v.flags) == flagged]
        half = [100.0 * v.half_width for v in own]
        # 0.01 %: so that an exact one can be drawn on a log scale
        errors = [max(100.0 * abs(v.end_error), 0.01) for v in own]
        axis.loglog(half, errors, "o", color=colour, markersize=2.5, alpha=0.7, label=f"{label} ({len(own)})")
    ends = np.array([0.3, 30.0])
    axis.loglog(ends, ends, color="#222222", linewidth=0.8, linestyle="--")
    for which in (axis.xaxis, axis.yaxis):
        which.set_major_formatter(mpl.ticker.FormatStrFormatter("%g"))
        which.set_minor_formatter(mpl.ticker.NullFormatter())
    axis.set_title("real runs: above the line is outside", fontsize=8)
    axis.set_xlabel("half the 90 % interval, percent of the loss", fontsize=7)
    axis.set_ylabel("error, percent of the loss", fontsize=7)
    axis.tick_params(labelsize=6)
    axis.legend(fontsize=6)
