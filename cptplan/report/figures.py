"""Figures over steps as PNG, one function each, and the look that all figures share."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from cptplan.report.data import ReportData, SetCurve
from cptplan.report.findings import (
    ROLES,
    FigureText,
    final_losses,
    format_lr,
    longest_pilot,
    quantity_label,
)

FloatArray = NDArray[np.float64]

DPI = 200  # twice the usual 100, so that the pictures stay sharp on dense screens
PAPER, INK, SOFT, RULE = "#fcfbf8", "#1d1c1a", "#5d5a54", "#dedad1"
# Colours that stay apart for the common kinds of colour blindness; a marker and a dash repeat each of them.
COLOURS = {"chosen": "#0a5fa3", "rule_of_thumb": "#b8470d", "pilot": "#77736b", "base": INK}
SET_COLOURS = {"general": "#6b4aa0", "domain": "#00795a"}
MARKERS = {"chosen": "o", "rule_of_thumb": "s", "pilot": "^", "base": "D"}
DASHES = {"chosen": "-", "rule_of_thumb": "--", "pilot": "-", "base": "-"}
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Liberation Sans", "Arial", "Helvetica", "DejaVu Sans"],
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": "#8a867e",
    "axes.facecolor": PAPER,
    "axes.labelcolor": SOFT,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "ytick.major.size": 0,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "figure.facecolor": PAPER,
    "legend.frameon": False,
    "lines.linewidth": 1.7,
}


def draw_curves(data: ReportData, text: FigureText) -> Figure:
    """Measured over predicted losses of the chosen run and the rule of thumb, with the error magnified below."""
    runs = data.runs_of("chosen", "rule_of_thumb")
    names = [name for name in data.set_names() if any(run.curve(name) for run in runs)]
    compared = any(curve.measured_steps and curve.predicted_steps for run in runs for curve in run.curves)
    figure = new_figure(text, height=5.4 if compared else 4.0)
    grid = figure.add_gridspec(2 if compared else 1, len(names), height_ratios=[3, 1.25] if compared else [1])
    for column, name in enumerate(names):
        upper = figure.add_subplot(grid[0, column])
        lower = figure.add_subplot(grid[1, column], sharex=upper) if compared else None
        upper.set_title(f"{name.capitalize()} text", loc="left", fontsize=10)
        for run in reversed(runs):
            curve = run.curve(name)
            if curve is None:
                continue
            _draw_curve(upper, curve, COLOURS[run.role], MARKERS[run.role], DASHES[run.role], run.label)
            if lower is not None:
                _draw_curve(lower, _residual(curve), COLOURS[run.role], MARKERS[run.role], DASHES[run.role])
        if (longest := longest_pilot(data)) is not None:
            upper.axvline(longest, color=SOFT, linewidth=1, linestyle=":")
        if column == 0:
            upper.set_ylabel("validation loss, nats per token")
            if lower is not None:
                lower.set_ylabel("measured −\npredicted, nats")
        (lower or upper).set_xlabel("optimiser step")
        if lower is not None:
            upper.tick_params(labelbottom=False)
    legend_below(figure)
    return figure


def draw_parity(data: ReportData, text: FigureText) -> Figure:
    """Final losses, predicted against measured, one panel for each validation set."""
    runs = {run.name: run for run in data.runs}
    rows = final_losses(data)
    quantities = list(dict.fromkeys(row.quantity for row in rows))
    figure = new_figure(text, height=4.4)
    for column, quantity in enumerate(quantities):
        axes = figure.add_subplot(1, len(quantities), column + 1)
        axes.set_title(quantity_label(quantity), loc="left", fontsize=10)
        shown = [row for row in rows if row.quantity == quantity]
        for role in ("pilot", "base", "rule_of_thumb", "chosen"):
            points = [row for row in shown if runs[row.run].role == role]
            if not points:
                continue
            predicted = np.array([row.predicted for row in points])
            axes.errorbar(
                predicted,
                [row.measured or 0.0 for row in points],
                xerr=np.abs([[row.low for row in points], [row.high for row in points]] - predicted),
                fmt=MARKERS[role],
                color=COLOURS[role],
                markerfacecolor=COLOURS[role] if role == "chosen" else PAPER,
                markersize=7 if role in ("chosen", "rule_of_thumb") else 5,
                label=ROLES[role] + (" (fitted)" if role == "pilot" else ""),
            )
        low, high = axes.get_xlim()
        axes.plot([low, high], [low, high], color=SOFT, linewidth=1, linestyle=":", zorder=1)
        axes.set(xlim=(low, high), xlabel="predicted, nats per token")
        if column == 0:
            axes.set_ylabel("measured, nats per token")
    legend_below(figure)
    return figure


def draw_schedules(data: ReportData, text: FigureText) -> Figure:
    """Learning rate of every run."""
    figure = new_figure(text, height=3.4)
    axes = figure.add_subplot()
    labelled = set()
    for run in reversed(data.runs_of("chosen", "rule_of_thumb", "pilot")):
        label = None if run.role in labelled else ("pilots" if run.role == "pilot" else run.label)
        labelled.add(run.role)
        width = 0.9 if run.role == "pilot" else 2.0
        axes.plot(
            run.lr_steps, run.lr, color=COLOURS[run.role], linestyle=DASHES[run.role], linewidth=width, label=label
        )
    axes.set(xlabel="optimiser step", ylabel="learning rate", ylim=(0, None), xlim=(0, None))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: format_lr(value) if value else "0"))
    legend_below(figure)
    return figure


def draw_pilots(data: ReportData, text: FigureText) -> Figure:
    """Change of loss of each pilot since its start, with the fitted law: small multiples on one scale."""
    runs = [run for run in data.runs_of("pilot") if run.curves]
    columns = min(4, len(runs))
    rows = -(-len(runs) // columns)
    figure = new_figure(text, height=0.9 + 1.75 * rows)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for panel, run in zip(panels.flat, runs, strict=False):
        panel.set_title(f"peak {format_lr(run.peak_lr)}, {run.replay_ratio} replay", loc="left", fontsize=9)
        panel.axhline(0.0, color=SOFT, linewidth=1, linestyle=":")
        for index, name in enumerate(data.set_names()):
            curve = run.curve(name)
            if curve is not None:
                style = ("o", "-") if index == 0 else ("s", "--")
                _draw_curve(panel, _change(curve), SET_COLOURS.get(name, SOFT), *style, name, size=2.6)
    for panel in list(panels.flat)[len(runs) :]:
        panel.set_visible(False)
    for column in range(columns):
        lowest = panels[(len(runs) - 1 - column) // columns, column]
        lowest.tick_params(labelbottom=True)
        lowest.set_xlabel("optimiser step")
    figure.supylabel("change of loss, nats", fontsize=9.5, color=SOFT)
    legend_below(figure)
    return figure


def new_figure(text: FigureText, *, height: float) -> Figure:
    """An empty figure under the title of its text; height in inches."""
    figure = Figure(figsize=(9.0, height), layout="constrained")
    long = len(text.title) > 100
    title = textwrap.fill(text.title, len(text.title) // 2 + 8) if long else text.title
    figure.suptitle(title, x=0.012, ha="left", fontsize=11.5, fontweight="bold")
    return figure


def legend_below(figure: Figure) -> None:
    """One legend below all panels, each label once, the chosen plan first."""
    found: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    first = (ROLES["chosen"], ROLES["rule_of_thumb"])
    order = sorted(found, key=lambda label: next((i for i, name in enumerate(first) if label.startswith(name)), 2))
    if order:
        handles = [found[label] for label in order]
        width = sum(len(label) + 7 for label in order)
        columns = len(order) if width <= 125 else 3  # measured: about 125 characters fit a line
        figure.legend(handles, order, loc="outside lower left", ncols=columns, columnspacing=1.6)


def _draw_curve(
    axes: Axes, curve: SetCurve, colour: str, marker: str, dash: str, label: str | None = None, size: float = 3.6
) -> None:
    """Predicted line and band under measured marks."""
    axes.fill_between(
        curve.predicted_steps, curve.predicted_low, curve.predicted_high, color=colour, alpha=0.17, linewidth=0
    )
    predicted, measured = (None, None) if label is None else (f"{label}, predicted", f"{label}, measured")
    axes.plot(curve.predicted_steps, curve.predicted_mean, color=colour, linestyle=dash, label=predicted)
    if curve.measured_steps:
        face = colour if marker == "o" else PAPER
        axes.plot(
            curve.measured_steps,
            curve.measured_losses,
            marker,
            color=colour,
            markersize=size,
            markerfacecolor=face,
            markeredgewidth=1.0,
            label=measured,
        )


def _shifted(curve: SetCurve, at_measured: FloatArray, at_predicted: FloatArray) -> SetCurve:
    """The curve less a number for each of its points."""
    columns = (curve.predicted_mean, curve.predicted_low, curve.predicted_high)
    mean, low, high = (np.array(column) - at_predicted for column in columns)
    return SetCurve.of(
        curve.set_name,
        measured=(curve.measured_steps, np.array(curve.measured_losses) - at_measured),
        predicted=(curve.predicted_steps, mean, low, high),
        level=curve.level,
    )


def _residual(curve: SetCurve) -> SetCurve:
    """Measured less predicted; nothing where the run is not predicted."""
    if not curve.predicted_steps:
        return SetCurve(set_name=curve.set_name)
    steps = np.array(curve.measured_steps)
    outside = (steps < curve.predicted_steps[0]) | (steps > curve.predicted_steps[-1])
    mean = np.where(outside, np.nan, curve.predicted_at(steps)[0])
    return _shifted(curve, mean, np.array(curve.predicted_mean))


def _change(curve: SetCurve) -> SetCurve:
    """Change since the first measured loss, or the first predicted one when none is measured."""
    start = (*curve.measured_losses[:1], *curve.predicted_mean[:1])[0]
    return _shifted(curve, np.array(start), np.array(start))
