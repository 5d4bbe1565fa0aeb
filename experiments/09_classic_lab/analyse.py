"""Answer from the kept measurements: python analyse.py. Writes results.json, results.md and figure.png."""

from __future__ import annotations

import argparse
import itertools
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from figure import draw
from numpy.typing import NDArray
from points import GOAL, Point, best_by_method, dominance, points_of, seed_noise, soup_name
from runs import SEQ_LEN, VALIDATION_TOKENS
from scipy import stats

from cptplan.curves import read_curve_directory
from cptplan.files import read_json, write_json, write_text

HERE = Path(__file__).resolve().parent
SETS = ("general", "domain")
WEIGHTS = (0.2, 0.4, 0.6, 0.8)  # of general; the rest is the domain's
TARGET_DROP = 0.3
BLOCK = 10  # windows drawn together: about one document of the domain (2500 tokens)
CONFIDENCE = 0.9


def compare(
    points: list[Point], windows: dict[str, NDArray[np.float64]], noise: dict[str, float], draws: int
) -> list[dict[str, Any]]:
    """Best of every method that trains, against the best of all, at the weight of the goal.

    behind is the difference of the weighted losses; by_seed what a difference of two runs must exceed to be told from
    chance (one-sided, 95 %); low and high its interval over other validation text (blocks of windows, paired).
    """
    rng = np.random.default_rng(0)
    chosen = [p for p in best_by_method(points, GOAL).values() if f"{p.name}/general" in windows]
    weights = {"general": GOAL, "domain": 1.0 - GOAL}
    limit = float(stats.t.ppf(0.95, noise["degrees_of_freedom"])) * math.sqrt(2) * noise["change"]
    rows = []
    for point in chosen:
        sampled = np.zeros(draws)
        for name, weight in weights.items():
            difference = windows[f"{point.name}/{name}"] - windows[f"{chosen[0].name}/{name}"]
            blocks = np.array([part.mean() for part in np.array_split(difference, len(difference) // BLOCK)])
            sampled += weight * blocks[rng.integers(len(blocks), size=(draws, len(blocks)))].mean(axis=1)
        low, high = np.quantile(sampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        behind = point.change(GOAL) - chosen[0].change(GOAL)
        rows.append({"name": point.name, "behind": behind, "low": float(low), "high": float(high), "by_seed": limit})
    return rows


def agreement(measured: dict[str, Any], windows: dict[str, NDArray[np.float64]]) -> dict[str, Any]:
    """Largest differences between what the executor says of a model and what measure.py finds, nats per token.

    A run evaluates VALIDATION_TOKENS of a set, in windows that lie evenly over all of them.
    """
    evaluated, runs = np.arange(VALIDATION_TOKENS // SEQ_LEN), []
    for run, name in itertools.product(measured["runs"], SETS):
        losses = windows[f"{run['name']}/{name}"]
        runs.append(abs(run["losses"][name] - float(losses[evaluated * len(losses) // len(evaluated)].mean())))
    soups = [
        abs(row["losses"][name] - float(windows[f"{soup_name(soup['run'], row['coefficient'])}/{name}"].mean()))
        for soup in measured["soups"]
        for row in soup["table"]
        if row["coefficient"] == soup["chosen"]
        for name in SETS
    ]
    return {"runs": max(runs), "soups": max(soups), "compared": len(runs) + len(soups)}


def steps_to_target(curves: Path) -> dict[str, int]:
    """First evaluated step at which the domain's perplexity has fallen by the target, of every run."""
    found = {}
    for name, curve in read_curve_directory(curves).items():
        loss = curve.losses["domain"]
        reached = np.flatnonzero(1.0 - np.exp(loss - loss[0]) > TARGET_DROP)
        if curve.record.phase == "cpt" and len(reached):
            found[name] = int(curve.steps[reached[0]])
    return found


def markdown(points: list[Point], results: dict[str, Any]) -> str:
    """The tables."""
    rows = sorted(points, key=lambda p: p.change(GOAL))
    lines = [
        f"Weighted change: {GOAL:g} x rise of the general loss - {1 - GOAL:g} x fall of the domain loss, nats per "
        "token, on all validation windows. Front: no other point of seed 0 gains more and forgets less.",
        "",
        "| method | setting | code perplexity | forgetting_ratio | weighted change | trained | s/step | front |",
        "|" + " --- |" * 8,
    ]
    base = results["base_perplexity"]["domain"]
    for p in rows:
        trained = f"{p.num_trained:,}" if p.num_trained is not None else ""
        seconds = f"{p.step_seconds:.3f}" if p.step_seconds is not None else ""
        front = "yes" if p.on_front else ""
        setting = p.setting + (f", seed {p.seed}" if p.seed else "")
        lines.append(
            f"| {p.method} | {setting} | {base * (1 - p.domain_drop):.1f} (-{p.domain_drop:.1%}) | "
            f"{p.forgetting_ratio:.3f} | {p.change(GOAL):+.3f} | {trained} | {seconds} | {front} |"
        )
    noise = results["seed_noise"]
    lines += [
        "",
        f"Between seeds (pooled, {noise['degrees_of_freedom']} degrees of freedom): {noise['rise']:.4f} nats on "
        f"general, {noise['gain']:.4f} on domain, {noise['change']:.4f} on the weighted change.",
        "",
        "| best of each method | behind the first | 90 % interval over text | told from chance if above |",
        "|" + " --- |" * 4,
    ]
    lines += [
        f"| {r['name']} | {r['behind']:.3f} | {r['low']:.3f} to {r['high']:.3f} | {r['by_seed']:.3f} |"
        for r in results["comparison"]
    ]
    lines += ["", "| weight of general | " + " | ".join(f"{w:g}" for w in WEIGHTS) + " |", "|" + " --- |" * 5]
    for method in results["best_change"]:
        cells = (f"{value:+.3f}" for value in results["best_change"][method].values())
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| method | its points | of them dominated by replay | replay points it dominates |",
        "|" + " --- |" * 4,
    ]
    lines += [
        f"| {r['method']} | {r['points']} | {r['dominated_by_replay']} | {r['dominating_replay']} of "
        f"{r['replay_points']} |"
        for r in results["dominance"]
    ]
    agreed = results["agreement"]
    lines += [
        "",
        f"Executor against measure.py, largest of {agreed['compared']} differences: {agreed['runs']:.1e} nats "
        f"(runs: bf16 against fp32, on the windows of the run), {agreed['soups']:.1e} (soups: both fp32, all windows).",
    ]
    return "\n".join(lines) + "\n"


def main(out: Path, draws: int) -> None:
    """Every table and the figure."""
    measured = read_json(HERE / "measured.json")
    with np.load(HERE / "windows.npz") as kept:
        windows = {name: kept[name].astype(np.float64) for name in kept.files}
    points = points_of(measured, windows)
    noise = seed_noise(points)
    methods = best_by_method(points, GOAL)
    results = {
        "schema_version": 1,
        "base_perplexity": {name: float(np.exp(windows[f"base/{name}"].mean())) for name in ("general", "domain")},
        "points": [
            {
                **asdict(p),
                "forgetting_ratio": p.forgetting_ratio,
                "domain_drop": p.domain_drop,
                "change": p.change(GOAL),
            }
            for p in points
        ],
        "seed_noise": noise,
        "comparison": compare(points, windows, noise, draws),
        "best_change": {m: {f"{w:g}": best_by_method(points, w)[m].change(w) for w in WEIGHTS} for m in methods},
        "dominance": dominance(points),
        "agreement": agreement(measured, windows),
        "steps_to_target": steps_to_target(HERE / "curves"),
    }
    write_json(out / "results.json", results)
    write_text(out / "results.md", markdown(points, results))
    draw(points, WEIGHTS, out / "figure.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="where the results go; default: beside this file")
    parser.add_argument("--fast", action="store_true", help="fewer draws; needs --out")
    options = parser.parse_args()
    if options.fast and options.out is None:
        parser.error("--fast needs --out: it does not replace the kept results")
    main(options.out or HERE, 200 if options.fast else 4000)
