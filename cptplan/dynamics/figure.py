"""The picture of a run's dynamics: changes of loss over steps, and the best replay ratio over the weight."""

from __future__ import annotations

import io

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from cptplan.dynamics.dynamics import GENERAL, WEIGHTED, Dynamics
from cptplan.report.figures import COLOURS, DPI, SET_COLOURS, SOFT, STYLE

FAR = 1.5  # times the height of the curves: a critical point beyond is named, not drawn


def draw_dynamics(found: Dynamics, title: str) -> bytes:
    """PNG: curves with bands, critical point and turning lengths; beside it the best replay ratio where it is free.

    Args:      title: what the law and the run are.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 4.4), layout="constrained")
        figure.suptitle(title, x=0.012, ha="left", fontsize=11)
        grid = figure.add_gridspec(1, 2 if found.replay else 1, width_ratios=[3, 2] if found.replay else [1])
        _draw_curves(figure.add_subplot(grid[0, 0]), found)
        if found.replay:
            _draw_replay(figure.add_subplot(grid[0, 1]), found)
        FigureCanvasAgg(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def _colour(name: str) -> str:
    return SET_COLOURS.get(name, COLOURS["chosen"] if name == WEIGHTED else COLOURS["pilot"])


def _draw_curves(axes: Axes, found: Dynamics) -> None:
    """Changes of loss with bands, the return of each, and where general loss goes."""
    for name, band in found.changes.items():
        colour, dash = _colour(name), "--" if name == WEIGHTED else "-"
        axes.fill_between(found.steps, band.low, band.high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(found.steps, band.mean, color=colour, linestyle=dash, label=name)
        turning = found.turning[name]
        if turning.state == "returns":
            axes.plot([turning.steps.mean], [0.0], "o", color=colour)
            axes.annotate(
                f"{name} back at step {turning.steps.mean:,.0f}",
                (turning.steps.mean, 0.0),
                textcoords="offset points",
                xytext=(-4, 8),
                ha="right",
                fontsize=8,
                color=colour,
            )
    axes.axhline(0.0, color=SOFT, linewidth=0.8)
    point = found.critical[GENERAL]
    level = point.limit.mean - point.start.mean
    height = max(float(np.abs(band.mean).max()) for band in found.changes.values())
    if abs(level) <= FAR * height:
        axes.axhline(level, color=_colour(GENERAL), linewidth=0.9, linestyle=":")
        place = axes.get_yaxis_transform()
        axes.text(0.99, level, "where general goes for ever", transform=place, fontsize=8, ha="right", va="bottom")
    axes.set(xlabel="optimiser step", ylabel="change of loss since the start, nats per token")
    axes.legend(loc="best")


def _draw_replay(axes: Axes, found: Dynamics) -> None:
    """The best replay ratio for each weight, beside the line where it equals the weight (from scratch)."""
    weights = [choice.general_weight for choice in found.replay]
    ratios = [choice.replay_ratio for choice in found.replay]
    low, high = [ratio.low for ratio in ratios], [ratio.high for ratio in ratios]
    axes.fill_between(weights, low, high, color=COLOURS["chosen"], alpha=0.15, linewidth=0)
    axes.plot(weights, [ratio.mean for ratio in ratios], color=COLOURS["chosen"], label="best replay ratio")
    axes.plot([0, 1], [0, 1], color=SOFT, linestyle=":", linewidth=1.0, label="from scratch: the weight itself")
    axes.set(xlabel="weight of general loss", ylabel="replay ratio", xlim=(0, 1), ylim=(0, 1))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(loc="upper left", fontsize=8)
