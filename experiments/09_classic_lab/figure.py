"""The gain/forgetting plane, and the best weighted loss of every method by weight."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from points import Point, best_by_method

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, PercentFormatter

LABELS = {
    "pure": "pure CPT",
    "replay5": "replay 5 %",
    "replay30": "replay 30 %",
    "ramp": "replay 50 to 10 %",
    "lora": "LoRA",
    "soup-pure": "soup of base and pure CPT",
    "soup-replay30": "soup of base and replay 30 %",
    "ewc": "EWC",
    "l2": "L2 anchor",
    "freeze": "embedding frozen",
}
COLOURS = ("#222222", "#66ccee", "#4477aa", "#223377", "#ee6677", "#999999", "#88bb99", "#ccbb44", "#aa3377", "#228833")
MARKERS = ("o", "s", "s", "D", "^", ".", ".", "v", "P", "X")
STYLES = {label: (colour, marker) for label, colour, marker in zip(LABELS, COLOURS, MARKERS, strict=True)}


def group(point: Point) -> str:
    """Which style a point has: LoRA of every rank shares one."""
    return "lora" if point.method.startswith("lora") else point.method


def draw(points: Sequence[Point], weights: Sequence[float], path: Path) -> None:
    """Two panels."""
    figure, (plane, choice) = plt.subplots(1, 2, figsize=(11.0, 5.0), width_ratios=(1.5, 1.0))
    _draw_plane(plane, points)
    _draw_choice(choice, points, weights)
    figure.tight_layout()
    figure.savefig(path, dpi=160)
    plt.close(figure)


def _draw_plane(axis: plt.Axes, points: Sequence[Point]) -> None:
    for kind, label in LABELS.items():
        mine = [p for p in points if group(p) == kind]
        colour, marker = STYLES[kind]
        if mine:
            x, y = [p.forgetting_ratio for p in mine], [p.gain for p in mine]
            axis.plot(x, y, marker, color=colour, label=label, markersize=6, alpha=0.85, markeredgewidth=0)
    front = sorted((p for p in points if p.on_front), key=lambda p: p.rise)
    x, y = [p.forgetting_ratio for p in front], [p.gain for p in front]
    axis.step(x, y, where="post", color="#bb5522", linewidth=1.0, zorder=0, label="Pareto front")
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_xlabel("forgetting_ratio (general perplexity over that of the base), log scale")
    axis.set_ylabel("gain: fall of loss_domain, nats per token")
    drop = axis.secondary_yaxis(
        "right", functions=(lambda g: 1 - np.exp(-g), lambda d: -np.log(np.maximum(1 - d, 1e-9)))
    )
    drop.yaxis.set_major_formatter(PercentFormatter(1.0))
    drop.set_yticks([0.3, 0.6, 0.8, 0.9, 0.93, 0.95])
    drop.set_ylabel("drop of code perplexity")
    axis.legend(fontsize=7, loc="lower right")
    axis.grid(alpha=0.25)


def _draw_choice(axis: plt.Axes, points: Sequence[Point], weights: Sequence[float]) -> None:
    grid = np.linspace(min(weights), max(weights), 25)
    best = [{k: p for p in reversed(best_by_method(points, w).values()) for k in [group(p)]} for w in grid]
    least = [min(p.change(w) for p in at.values()) for w, at in zip(grid, best, strict=True)]
    for kind, label in LABELS.items():
        if kind in best[0]:
            behind = [at[kind].change(w) - low for at, low, w in zip(best, least, grid, strict=True)]
            axis.plot(grid, behind, color=STYLES[kind][0], label=label, linewidth=1.4)
    axis.set_xlabel("weight of general")
    axis.set_ylabel("nats behind the best of all, weighted loss")
    axis.set_ylim(bottom=-0.005)
    axis.grid(alpha=0.25)
