"""Figures over plans rather than steps as PNG: response surface, Pareto front, shares of compute."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from cptplan.report.data import ReportData, RunView
from cptplan.report.figures import COLOURS, INK, PAPER, SET_COLOURS, legend_below, new_figure
from cptplan.report.findings import ROLES, FigureText, format_lr
from cptplan.report.plan_data import ParetoPoint

COSTS = LinearSegmentedColormap.from_list("costs", [INK, "#c9c2b3"])  # dearest first
HEAT = LinearSegmentedColormap.from_list("heat", ["#0b4a63", "#5f97a3", "#f4efe2"])


def draw_surface(data: ReportData, text: FigureText) -> Figure:
    """Predicted objective over peak learning rate and replay ratio."""
    surface = data.surface
    figure = new_figure(text, height=4.6)
    axes = figure.add_subplot()
    if surface is None:
        return figure
    values = np.ma.masked_invalid(np.array(surface.objective, dtype=np.float64).T)
    above = values - values.min()
    mesh = axes.pcolormesh(
        surface.peak_lrs,
        surface.replay_ratios,
        above,
        cmap=HEAT,
        norm=PowerNorm(0.5, vmin=0),
        shading="nearest",
        rasterized=True,
    )
    levels = [step for step in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0) if step < 0.9 * float(above.max())]
    if levels:
        lines = axes.contour(
            surface.peak_lrs, surface.replay_ratios, above, levels=levels[-5:], colors=INK, linewidths=0.7
        )
        for label in axes.clabel(lines, fmt=lambda level: f"+{level:g}", fontsize=8):
            label.set_path_effects([withStroke(linewidth=2.5, foreground="white", alpha=0.75)])
    mark: dict[str, Any] = {"color": "white", "edgecolors": "#111111", "zorder": 3, "clip_on": False}
    if surface.pilots:
        pilots = surface.pilots
        axes.scatter(
            [p.peak_lr for p in pilots], [p.replay_ratio for p in pilots], marker="^", s=28, label="pilots", **mark
        )
    for point, marker, size in ((surface.rule_of_thumb, "s", 55), (surface.chosen, "*", 210)):
        if point is not None:
            axes.scatter([point.peak_lr], [point.replay_ratio], marker=marker, s=size, label=point.label, **mark)
    if surface.supported is not None:
        left, right, below, top = surface.supported
        corners = [left, right, right, left, left], [below, below, top, top, below]
        axes.plot(*corners, color="#111111", linewidth=1.2, linestyle="--", label="what the pilots span")
    axes.grid(visible=False)
    axes.set(xscale="log", xlabel="peak learning rate (log scale)", ylabel="replay ratio")
    _lr_ticks(axes)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    legend_below(figure)
    figure.colorbar(mesh, ax=axes, label="objective above the best, nats", pad=0.02)
    return figure


def draw_pareto(data: ReportData, text: FigureText) -> Figure:
    """Predicted general against domain loss of the plans on the front, and of the two plans of the report."""
    figure = new_figure(text, height=4.4)
    axes = figure.add_subplot()
    if data.pareto is None:
        return figure
    for number, line in enumerate(reversed(data.pareto.lines)):
        points = sorted(line.points, key=lambda point: point.general)
        if number == 0:
            _crosses(axes, points, color="#d5d0c5", marker="", linewidth=0.8)
        axes.plot(
            [p.general for p in points],
            [p.domain for p in points],
            color=COSTS(number / max(len(data.pareto.lines) - 1, 1)),
            marker="o",
            markersize=4,
            markerfacecolor=PAPER,
            linewidth=1.2,
            label=line.label,
        )
    for point, role, marker in (
        (data.pareto.rule_of_thumb, "rule_of_thumb", "s"),
        (data.pareto.chosen, "chosen", "*"),
    ):
        if point is None:
            continue
        size = 14 if role == "chosen" else 8
        label = f"{ROLES[role]}, predicted"
        face = COLOURS[role] if role == "chosen" else PAPER
        _crosses(axes, [point], color=COLOURS[role], marker=marker, markersize=size, markerfacecolor=face, label=label)
        general, domain = (_measured(data, role, quantity) for quantity in ("loss_general", "loss_domain"))
        if general is not None and domain is not None:
            label = f"{ROLES[role]}, measured"
            axes.plot([general], [domain], "D", color=COLOURS[role], markersize=5.5, label=label)
    axes.set(xlabel="general loss, nats per token", ylabel="domain loss, nats per token")
    legend_below(figure)
    return figure


def draw_compute(data: ReportData, text: FigureText) -> Figure:
    """Share of all floating-point operations by stage."""
    figure = new_figure(text, height=1.7)
    axes = figure.add_subplot()
    total = sum(share.flops for share in data.compute)
    colours = [INK, SET_COLOURS["domain"], COLOURS["chosen"], COLOURS["rule_of_thumb"], COLOURS["pilot"]]
    start = 0.0
    for index, share in enumerate(data.compute):
        width = share.flops / total
        label = f"{share.stage}, {width:.0%}"
        axes.barh(
            0, width, left=start, color=colours[index % len(colours)], edgecolor=PAPER, linewidth=1.5, label=label
        )
        start += width
    axes.set(yticks=[], xlim=(0, 1))
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.tick_params(pad=1)
    legend_below(figure)
    return figure


def _crosses(axes: Axes, points: list[ParetoPoint], *, color: str, marker: str, **style: Any) -> None:
    general, domain = np.array([p.general for p in points]), np.array([p.domain for p in points])
    axes.errorbar(
        general,
        domain,
        xerr=[general - [p.general_low for p in points], [p.general_high for p in points] - general],
        yerr=[domain - [p.domain_low for p in points], [p.domain_high for p in points] - domain],
        color=color,
        marker=marker,
        linestyle="",
        **style,
    )


def _measured(data: ReportData, role: str, quantity: str) -> float | None:
    runs: dict[str, RunView] = {run.name: run for run in data.runs}
    rows = (row for row in data.outcomes if runs[row.run].role == role and row.quantity == quantity)
    return next((row.measured for row in rows), None)


def _lr_ticks(axes: Axes) -> None:
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_lr(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
