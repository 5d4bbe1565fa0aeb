"""The picture of what-if runs: losses on every validation set over the learning rate."""

from __future__ import annotations

import io
from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cptplan.curves import LossCurve
from cptplan.fitting.law_tables import End
from cptplan.fitting.predictions import PredictedRun
from cptplan.report.figures import COLOURS, DPI, SET_COLOURS, SOFT, STYLE
from cptplan.report.findings import format_lr

LINES = (COLOURS["chosen"], COLOURS["rule_of_thumb"], SET_COLOURS["domain"], SET_COLOURS["general"], COLOURS["base"])
Dash = str | tuple[int, tuple[int, ...]]
DASHES: tuple[Dash, ...] = ("-", "--", "-.", ":", (0, (8, 2)))
Style = tuple[str, Dash]


def draw_what_if(
    curves: Mapping[str, LossCurve], found: list[End], title: str, predicted: Mapping[str, PredictedRun] | None = None
) -> bytes:
    """PNG of the runs.

    Args:      curves: simulated runs, by name. found: their ends. title: what the law is. predicted: the same runs with
               intervals, when the law was fitted.
    """
    names = list(next(iter(curves.values())).losses)
    styles = _styles(curves)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 5.2), layout="constrained")
        figure.suptitle(f"{headline(found)}\n{title}", x=0.012, ha="left", fontsize=11)
        grid = figure.add_gridspec(2, len(names), height_ratios=[3, 1])
        for column, name in enumerate(names):
            upper = figure.add_subplot(grid[0, column])
            upper.set_title(f"{name.capitalize()} text", loc="left", fontsize=10)
            lower = figure.add_subplot(grid[1, column], sharex=upper)
            for run, curve in curves.items():
                _draw_run(upper, lower, styles[run], curve, name, None if predicted is None else predicted[run])
            upper.tick_params(labelbottom=False)
            lower.set(xlabel="optimiser step", ylim=(0, None))
            lower.yaxis.set_major_formatter(lambda value, _: format_lr(value) if value else "0")
            if column == 0:
                upper.set_ylabel("validation loss, nats per token")
                lower.set_ylabel("learning rate")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower left", ncols=3, columnspacing=1.6)
        FigureCanvasAgg(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def headline(found: list[End]) -> str:
    """Which run forgets least and which learns most, in a sentence."""
    general = [end for end in found if end.set_name == "general" and end.change is not None]
    others = [end for end in found if end.set_name != "general" and end.change is not None]
    said = []
    for ends, words in ((general, "least general loss"), (others, "most learnt")):
        if ends:
            best = min(ends, key=lambda end: end.end)
            said.append(f"{words}: {best.run} ({best.change:+.3f} nats)")
    if not said:
        best = min(found, key=lambda end: end.end)
        said = [f"lowest loss: {best.run} ({best.end:.3f} nats)"]
    return "; ".join(said).capitalize()


def _styles(curves: Mapping[str, LossCurve]) -> dict[str, Style]:
    """A colour for each replay ratio and a dash for each schedule, so that either can be followed."""
    mixtures = list(dict.fromkeys(str(curve.record.replay_ratio) for curve in curves.values()))
    schedules = list(dict.fromkeys(str(curve.record.lr) for curve in curves.values()))
    return {
        name: (
            LINES[mixtures.index(str(curve.record.replay_ratio)) % len(LINES)],
            DASHES[schedules.index(str(curve.record.lr)) % len(DASHES)],
        )
        for name, curve in curves.items()
    }


def _draw_run(
    upper: Axes, lower: Axes, style: Style, curve: LossCurve, set_name: str, predicted: PredictedRun | None
) -> None:
    colour, dash = style
    if predicted is not None:
        band = predicted.bands[set_name]
        upper.fill_between(predicted.steps, band.low, band.high, color=colour, alpha=0.15, linewidth=0)
    upper.plot(curve.steps, curve.losses[set_name], color=colour, linestyle=dash, label=curve.name)
    lr = curve.lr()
    kept = np.unique(np.linspace(0, len(lr) - 1, min(len(lr), 400)).astype(np.int64))
    lower.plot(kept + 1, lr[kept], color=SOFT, linestyle=dash, linewidth=1.2)
