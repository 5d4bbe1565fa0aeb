"""The two figures, from the tables of the parts."""

from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cptplan.simulation.published import find_published

BLUE, ORANGE, GREEN, PURPLE, GREY = "#0a5fa3", "#b8470d", "#00795a", "#6b4aa0", "#77736b"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, GREY, "black")


def draw_curves(tables: dict[str, Any]) -> bytes:
    """Parts a to d: predicted curves, potential, peak rate, replay, turning."""
    figure, axes = plt.subplots(2, 3, figsize=(13, 7.5), layout="constrained")
    _predictions(axes[0][0], tables["fits"])
    _potential(axes[0][1], tables["potential"])
    _rates(axes[0][2], tables["choices"])
    _replay(axes[1][0], tables["choices"]["replay"])
    _turning(axes[1][1], tables["turning"]["curves"])
    _sizes(axes[1][2])
    return _png(figure)


def _predictions(axis: Axes, shown: dict[str, list[list[float]]]) -> None:
    for number, (name, (steps, truth, mean, low, high)) in enumerate(shown.items()):
        run, side = name.split("/")
        axis.fill_between(steps, low, high, color=COLOURS[number], alpha=0.25, linewidth=0)
        axis.plot(steps, mean, color=COLOURS[number], linewidth=1.4, label=f"{side}, {run}")
        axis.plot(steps, truth, ":", color="black", linewidth=1.2)
    axis.set(xlabel="CPT steps", ylabel="loss, nats per token")
    axis.set_title("a  Figure 10's schedules, settled: fit, 90 % band, truth (dotted)", fontsize=9)
    axis.legend(fontsize=7, frameon=False)


def _potential(axis: Axes, tables: dict[str, Any]) -> None:
    shares = np.array([0.0, 0.1, 0.3, 0.5, 0.7, 1.0])
    for colour, steps in zip(COLOURS, tables["without"], strict=False):
        axis.plot(shares[1:], tables["without"][steps]["domain"], "o-", color=colour, label=f"{int(steps):,} steps")
        axis.plot(shares, tables["with"][steps]["domain"], "s--", color=colour, markersize=4)
    axis.set(xlabel="loss potential of the start", ylabel="final domain loss, nats per token")
    axis.set_title("b  Without re-warm-up (full) and re-warmed to 10 % (dashed)", fontsize=9)
    axis.legend(fontsize=8, frameon=False)


def _rates(axis: Axes, table: dict[str, Any]) -> None:
    for colour, (name, rates) in zip(COLOURS, table["rates"].items(), strict=False):
        axis.plot(table["weights"], rates, "o-", color=colour, label=name)
    axis.set(yscale="log", xlabel="weight of general loss, lambda1", ylabel="best peak rate (2e-6 to 2e-4)")
    axis.set_title("c  Best peak rate, cosine of 10,000 steps (figure 8b)", fontsize=9)
    axis.legend(fontsize=8, frameon=False)


def _replay(axis: Axes, table: dict[str, list[float]]) -> None:
    axis.plot([0, 1], [0, 1], color=GREY, linewidth=1, label="replay = lambda1 (from scratch)")
    for colour, steps in zip(COLOURS, (key for key in table if key != "weights"), strict=False):
        axis.plot(table["weights"], table[steps], "o-", markersize=3, color=colour, label=f"{int(steps):,} steps")
    axis.set(xlabel="weight of general loss, lambda1", ylabel="best replay ratio")
    axis.set_title("c  Best replay ratio (figure 8c; eq. 8 swapped)", fontsize=9)
    axis.legend(fontsize=8, frameon=False)


def _turning(axis: Axes, curves: dict[str, Any]) -> None:
    for colour, (steps, (at, change)) in zip(COLOURS, curves.items(), strict=True):
        axis.plot(at[1:], change[1:], color=colour, label=f"{int(steps):,} steps of pre-training")
    axis.axhline(0, color=GREY, linewidth=0.8)
    axis.set(xscale="log", xlabel="CPT steps at a constant 2e-4", ylabel="change of general loss, nats per token")
    axis.set_title("d  Turning of general loss, Knowledge-Pile", fontsize=9)
    axis.legend(fontsize=7, frameon=False)


def _sizes(axis: Axes) -> None:
    areas = np.linspace(0, 8, 200)
    labels = {"knowledge-pile": "106M", "knowledge-pile-594m": "594M", "knowledge-pile-1720m": "1720M"}
    labels["knowledge-pile-sizes"] = "joint fit"
    for colour, (name, label) in zip(COLOURS, labels.items(), strict=False):
        for side in ("general", "domain"):
            p = getattr(find_published(name), side)
            style = "--" if name == "knowledge-pile-sizes" else "-"
            line = p.B * (1 - (1 + p.E * areas) ** -p.beta)
            axis.plot(areas, line, style, color=colour, label=label if side == "general" else None)
            if name == "knowledge-pile-594m" and side == "general":
                low, high = (p.B * (1 - (1 + p.E * areas) ** -beta) for beta in (0.0005, 0.0015))
                axis.fill_between(areas, low, high, color=colour, alpha=0.2, linewidth=0, label="its one digit of beta")
    axis.set(xlabel="forward area of CPT, S1", ylabel="shift, nats per token")
    axis.set_title("g  Shift by model size: general above, domain below", fontsize=9)
    axis.legend(fontsize=7, frameon=False, loc="center right")


def draw_limits(tables: dict[str, Any]) -> bytes:
    """Parts e, f and h: the two readings of eq. 8, weights recovered, and what no run could do."""
    figure, axes = plt.subplots(2, 3, figsize=(13, 7.5), layout="constrained")
    orientation = tables["orientation"]
    for colour, name in ((ORANGE, "printed"), (BLUE, "swapped")):
        axes[0][0].plot(orientation["weights"], orientation[name], "o-", color=colour, label=f"eq. 8 {name}")
    axes[0][0].set(xlabel="weight of general loss, lambda1", ylabel="best replay ratio")
    axes[0][0].set_title("e  As printed, no mixture is ever best", fontsize=9)
    axes[0][0].legend(fontsize=8, frameon=False)
    _weights(axes[0][1], tables["out_of_domain"])
    limits = tables["limits"]
    _tail(axes[0][2], limits["tail"])
    _scaled(axes[1][0], limits)
    _zero(axes[1][1], limits["zero_replay"])
    _ridge(axes[1][2])
    return _png(figure)


def _weights(axis: Axes, recovered: dict[str, Any]) -> None:
    for colour, (name, (printed, found)) in zip((*COLOURS, "#c2185b", "#8d6e00"), recovered.items(), strict=True):
        table = np.array(found)
        axis.plot(*printed, "+", color=colour, markersize=13)
        axis.plot(table[:, 0], table[:, 1], "o", color=colour, markersize=4, label=name)
    axis.set(xlabel="weight of domain loss", ylabel="weight of general loss")
    axis.set_title("f  Printed weights (+) and those back from noisy curves", fontsize=9)
    axis.legend(fontsize=7, frameon=False)


def _tail(axis: Axes, tails: dict[str, list[list[float]]]) -> None:
    for style, (name, table) in zip(("-", "--"), tails.items(), strict=True):
        rows = np.array(table)
        for colour, side, column in ((BLUE, "general", 1), (ORANGE, "domain", 2)):
            axis.plot(rows[:, 0], rows[:, column], style, marker="o", color=colour, label=f"{side}, {name}")
    axis.set(xlabel="steps at rate 0 after the run", ylabel="change of loss, nats per token")
    axis.set_title("h  Steps that train nothing lower the loss", fontsize=9)
    axis.legend(fontsize=8, frameon=False)


def _scaled(axis: Axes, limits: dict[str, Any]) -> None:
    for colour, (side, losses) in zip((BLUE, ORANGE), limits["scaled"].items(), strict=True):
        axis.plot(limits["factors"], losses, "o-", color=colour, label=side)
        floor = getattr(find_published("knowledge-pile"), side).L0
        axis.axhline(floor, color=colour, linestyle=":", label=f"L0 of {side}")
    axis.set(xscale="log", xlabel="all rates of pre-training times", ylabel="final loss, nats per token")
    axis.set_xticks(limits["factors"], [str(factor) for factor in limits["factors"]])
    axis.set_title("h  A higher rate is always better, even below L0", fontsize=9)
    axis.legend(fontsize=8, frameon=False)


def _zero(axis: Axes, table: dict[str, list[float]]) -> None:
    for number, errors in enumerate(table.values()):
        axis.plot(errors, np.full(len(errors), number), "o", color=COLOURS[number])
    axis.axvline(0, color=GREY, linewidth=0.8)
    axis.set_yticks(range(len(table)), [name.replace(", ", "\n") for name in table], fontsize=8)
    axis.set(xlabel="error of general loss at 0 % replay, nats", ylim=(-0.5, len(table) - 0.5))
    axis.set_title("h  0 % replay from pilots with and without it", fontsize=9)


def _ridge(axis: Axes) -> None:
    """B over beta with the shift at S1 = 3 held: the same curve to a hair."""
    p = find_published("knowledge-pile-594m").general
    betas = np.geomspace(0.0005, 0.3, 60)
    areas = np.array([0.5, 3.0, 8.0])
    held = p.B * (1 - (1 + p.E * 3.0) ** -p.beta)
    sizes = held / (1 - (1 + p.E * 3.0) ** -betas)
    for colour, area in zip(COLOURS, areas, strict=False):
        axis.plot(betas, sizes * (1 - (1 + p.E * area) ** -betas), color=colour, label=f"shift at S1 = {area:g}")
    other = axis.twinx()
    other.plot(betas, p.L0 + sizes, "--", color="black")
    other.set(yscale="log", ylabel="L0 + B, 'critical point' (dashed)")
    axis.set(xscale="log", xlabel="beta, with the shift at S1 = 3 held", ylabel="shift, nats per token", ylim=(0, 0.3))
    axis.set_title("h  594M: L0 + B from 3 to 60 for nearly one curve", fontsize=9)
    axis.legend(fontsize=8, frameon=False, loc="upper right")


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    plt.close(figure)
    return buffer.getvalue()
