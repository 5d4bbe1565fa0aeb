"""What the set holds, run by run: python analyse.py. Writes results.json, results.md and figure.png."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from cptplan.curves import LossCurve, read_curve_directory
from cptplan.files import read_json, write_json, write_text

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.ticker import StrMethodFormatter

HERE = Path(__file__).resolve().parent
COLUMNS = ("run", "start", "steps", "tokens, million", "mean replay", "passes over the domain")
STYLES = {"stable": "--", "annealed": "-"}


def main(out: Path) -> None:
    """Tables of every run, what seeds and the first replay do, and all curves."""
    labs = {path.name: read_curve_directory(path) for path in sorted((HERE / "curves").iterdir()) if path.is_dir()}
    results = {name: describe(curves, read_json(HERE / "curves" / f"{name}.json")) for name, curves in labs.items()}
    write_json(out / "results.json", {"schema_version": 1, "labs": results})
    write_text(out / "results.md", markdown(results))
    draw(labs, out / "figure.png")


def describe(curves: Mapping[str, LossCurve], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """One lab: its runs, the noise between seeds, and how much of the forgetting the first replay takes away."""
    runs = [run_row(curve, start_of(curve, curves)) for curve in curves.values()]
    return {
        "tokens": sum(run["tokens"] for run in runs),
        "core_seconds": sum(run["train_seconds"] + run["eval_seconds"] for run in provenance["runs"].values()),
        "runs": runs,
        "seed_sd": seed_spread(curves),
        "first_replay": first_replay(curves),
    }


def start_of(curve: LossCurve, curves: Mapping[str, LossCurve]) -> str:
    """Which checkpoint of the base a CPT run starts from; empty for the base."""
    if curve.record.phase == "pretrain":
        return ""
    return "annealed" if curve.record.parent_step == curves["base"].total_steps else "stable"


def run_row(curve: LossCurve, start: str) -> dict[str, Any]:
    """Settings of a run, and its losses before and after."""
    tokens, replay = curve.total_steps * (curve.record.batch_tokens or 0), float(curve.replay_ratios().mean())
    unique = (curve.record.unique_tokens or {}).get("domain", 0)
    return {
        "name": curve.name,
        "phase": curve.record.phase,
        "start": start,
        "steps": curve.total_steps,
        "tokens": tokens,
        "replay": replay,
        "passes": max((1.0 - replay) * tokens / unique, 1.0) if unique and curve.record.phase == "cpt" else None,
        "first": {name: float(values[0]) for name, values in curve.losses.items()},
        "last": {name: curve.final_loss(name) for name in curve.losses},
    }


def twins(curves: Mapping[str, LossCurve]) -> list[list[LossCurve]]:
    """Runs that differ in their seed alone."""
    groups: dict[str, list[LossCurve]] = {}
    for curve in curves.values():
        if curve.record.phase == "cpt":
            key = repr(curve.record.model_copy(update={"seed": None}))
            groups.setdefault(key, []).append(curve)
    return [group for group in groups.values() if len(group) > 1]


def seed_spread(curves: Mapping[str, LossCurve]) -> dict[str, float]:
    """Standard deviation of final losses between seeds, pooled over cells, nats per token, by set."""
    groups, found = twins(curves), {}
    for name in curves["base"].losses if groups else ():
        squares = [float(np.var([c.final_loss(name) for c in group], ddof=1)) * (len(group) - 1) for group in groups]
        found[name] = float(np.sqrt(sum(squares) / sum(len(group) - 1 for group in groups)))
    return found


def first_replay(curves: Mapping[str, LossCurve]) -> list[dict[str, float | str]]:
    """Share of forgetting at 0 % replay that each ratio of the grid takes away, by start and peak rate."""
    grid = [curve for curve in curves.values() if curve.name.startswith("grid-")]
    found: list[dict[str, float | str]] = []
    for without in (curve for curve in grid if not curve.replay_ratios().any()):
        for curve in grid:
            alike = curve.record.lr == without.record.lr and curve.record.parent_step == without.record.parent_step
            if alike and curve is not without:
                found.append(
                    {
                        "start": start_of(curve, curves),
                        "peak_lr": float(curve.lr().max()),
                        "replay": float(curve.replay_ratios()[0]),
                        "without": forgetting(without),
                        "taken_away": 1.0 - forgetting(curve) / forgetting(without),
                    }
                )
    return found


def forgetting(curve: LossCurve) -> float:
    """Final less first general loss, nats per token."""
    return curve.final_loss("general") - float(curve.losses["general"][0])


def markdown(results: Mapping[str, Any]) -> str:
    """The tables."""
    lines = ["# The curve set, run by run", "", "Losses in nats per token, before and after."]
    for name, lab in results.items():
        sets = list(lab["runs"][0]["first"])
        lines += ["", f"## {name}", "", f"{len(lab['runs'])} runs, {lab['tokens'] / 1e6:.1f} million tokens, "
                  f"{lab['core_seconds'] / 3600:.1f} hours of one core."]  # fmt: skip
        if lab["seed_sd"]:
            spread = ", ".join(f"{each} {sd:.4f}" for each, sd in lab["seed_sd"].items())
            lines += [f"Standard deviation of final losses between seeds: {spread}."]
        lines += [
            "",
            "| " + " | ".join((*COLUMNS, *sets)) + " |",
            "| " + " | ".join("---" for _ in (*COLUMNS, *sets)) + " |",
        ]
        for run in lab["runs"]:
            cells = [run["name"], run["start"], f"{run['steps']}", f"{run['tokens'] / 1e6:.2f}", f"{run['replay']:.1%}"]
            cells += [f"{run['passes']:.1f}" if run["passes"] else ""]
            cells += [f"{run['first'][each]:.3f} to {run['last'][each]:.3f}" for each in sets]
            lines.append("| " + " | ".join(cells) + " |")
        if lab["first_replay"]:
            lines += ["", *replay_table(lab["first_replay"])]
    return "\n".join(lines) + "\n"


def replay_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Share of forgetting that each replay ratio takes away."""
    ratios = sorted({row["replay"] for row in rows})
    cells: dict[tuple[str, float, float], dict[float, float]] = {}
    for row in rows:
        cells.setdefault((row["start"], row["peak_lr"], row["without"]), {})[row["replay"]] = row["taken_away"]
    lines = ["Share of the forgetting without replay that replay takes away, grid:", ""]
    lines += ["| start | peak rate | without, nats | " + " | ".join(f"{ratio:.0%}" for ratio in ratios) + " |"]
    lines += ["| " + " | ".join("---" for _ in range(3 + len(ratios))) + " |"]
    for (start, rate, without), shares in sorted(cells.items()):
        said = " | ".join(f"{shares[ratio]:.0%}" for ratio in ratios)
        lines.append(f"| {start} | {rate:g} | {without:+.3f} | {said} |")
    return lines


def draw(labs: Mapping[str, Mapping[str, LossCurve]], path: Path) -> None:
    """Every CPT curve: a row for each lab, a column for each validation set."""
    most = max(len(curves["base"].losses) for curves in labs.values())
    figure, axes = plt.subplots(
        len(labs), most, figsize=(4.0 * most, 3.1 * len(labs)), squeeze=False, layout="constrained"
    )
    colours = mpl.cm.ScalarMappable(PowerNorm(0.4, 0.0, 0.6), "viridis_r")  # half of it below 10 %, where most differ
    for row, (lab, curves) in zip(axes, labs.items(), strict=True):
        for axis, name in zip(row, curves["base"].losses, strict=False):
            draw_set(axis, curves, name, colours)
            axis.set_title(f"{lab}: loss_{name}", fontsize=9)
        for axis in row[len(curves["base"].losses) :]:
            axis.axis("off")
    bar = figure.colorbar(
        colours, ax=axes, shrink=0.6, aspect=30, ticks=(0.0, 0.01, 0.05, 0.1, 0.2, 0.4, 0.6), format="{x:.0%}"
    )
    bar.set_label("mean replay ratio", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_set(axis: Axes, curves: Mapping[str, LossCurve], name: str, colours: mpl.cm.ScalarMappable) -> None:
    """CPT curves of one set; pilots thin, starts by line style."""
    for curve in curves.values():
        if curve.record.phase == "cpt":
            width = 0.5 if curve.name.startswith("pilot") else 0.9
            colour = colours.to_rgba(float(curve.replay_ratios().mean()))
            axis.plot(
                curve.steps + 1, curve.losses[name], STYLES[start_of(curve, curves)], color=colour, linewidth=width
            )
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_xlabel("step of CPT + 1 (dashed: from the stable start)", fontsize=8)
    axis.set_ylabel("nats per token", fontsize=8)
    axis.tick_params(labelsize=7)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE, help="where the results go; default: beside this file")
    parser.add_argument("--fast", action="store_true", help="the same: it takes seconds")
    main(parser.parse_args().out)
