"""Answer the question from the kept curves: python analyse.py. Writes results.json, results.md and figure.png."""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from outcomes import (
    BEST_PILOT,
    CURVE_SET,
    GRIDS,
    HALVED,
    HALVING,
    HERE,
    PLAN,
    PLAN_ON_GRID,
    RANDOM,
    RULE,
    TPE,
    WEIGHTS,
    Outcome,
    Problem,
    forecasters,
    noise_of,
    problem_of,
    read_evidence,
)

from cptplan.files import write_bytes, write_json, write_text

TARGET_REGRET, TARGET_COMPUTE = 0.005, 0.1
SEEDS, FAST_SEEDS = 100, 2
PLANS = (PLAN, PLAN_ON_GRID)
NONE_SPENT = 0.012  # of the grid: where the figure puts what spends nothing


def main(curves_dir: Path, own_dir: Path, out: Path, *, fast: bool) -> None:
    """Every weight and length, from the curves that are there."""
    evidence = read_evidence(curves_dir, own_dir)
    ready = forecasters(evidence, curves_dir)
    seeds = FAST_SEEDS if fast else SEEDS
    found = [problem_of(evidence, weight, ready[weight], steps, seeds) for steps in GRIDS for weight in WEIGHTS]
    problems = [problem for problem in found if problem is not None]
    noise = {weight: noise_of(evidence, ready[weight]) for weight in WEIGHTS}
    verdicts = [verdict(problem, evidence.pilot_steps) for problem in problems]
    promises = [row for problem in problems for row in problem.promises]
    results = {
        "schema_version": 1,
        "seeds": seeds,
        "pilot_steps": evidence.pilot_steps,
        "cells": {str(steps): _num_cells(problems, steps) for steps in GRIDS},
        "noise": {f"{w:g}": {"sd_nats": s if np.isfinite(s) else None, "freedom": n} for w, (s, n) in noise.items()},
        "verdicts": verdicts,
        "mean_regret_share": mean_shares(problems),
        "outcomes": [
            {"weight": problem.weight, "steps": problem.table.total_steps, **_row(outcome)}
            for problem in problems
            for outcome in problem.outcomes
        ],
        "promises": promises,
        "honesty": honesty(promises),
    }
    write_json(out / "results.json", results)
    write_text(out / "results.md", markdown(results, problems))
    draw(out / "figure.png", problems, evidence.pilot_steps, {weight: sd for weight, (sd, _) in noise.items()})


def _num_cells(problems: Sequence[Problem], steps: int) -> int:
    return next((len(p.table.cells) for p in problems if p.table.total_steps == steps), 0)


def _row(outcome: Outcome) -> dict[str, Any]:
    return {key: value for key, value in asdict(outcome).items() if key != "chances"}


def verdict(problem: Problem, pilot_steps: int) -> dict[str, Any]:
    """Whether the target is met: by the trained plan, or while it is not trained by its choice among the cells."""
    plan = problem.outcome(*PLANS)
    if plan is None:
        raise RuntimeError("the plan on the grid is always there")
    rivals = [outcome for outcome in problem.outcomes if outcome.contender not in PLANS]
    same = [outcome for outcome in rivals if outcome.spent_steps <= pilot_steps]
    lucky = {o.contender: sum(chance for regret, chance in o.chances if regret < plan.regret) for o in same}
    share = plan.regret / problem.best_loss
    compute = pilot_steps / problem.table.cost
    enough = [steps for steps, regret in problem.ladders[RANDOM] if regret <= plan.regret]
    return {
        "weight": problem.weight,
        "steps": problem.table.total_steps,
        "judged": plan.contender,
        "regret_nats": plan.regret,
        "regret_share": share,
        "compute_share": compute,
        "best_cell": problem.table.cells[int(np.argmin(problem.table.final()))].name,
        "regret_met": share <= TARGET_REGRET,
        "compute_met": compute <= TARGET_COMPUTE,
        "behind": [o.contender for o in same if o.regret < plan.regret],
        "level": [o.contender for o in same if o.regret == plan.regret],
        "draws_that_beat_it": {name: chance for name, chance in lucky.items() if chance > 0.0},
        "random_runs_to_match": round(enough[0] / problem.table.total_steps) if enough else None,
    }


def mean_shares(problems: Sequence[Problem]) -> dict[str, float]:
    """Mean over all weights and lengths of the regret as a share of the loss, of contenders that have them all."""
    found: dict[str, list[float]] = {}
    for problem in problems:
        for outcome in problem.outcomes:
            found.setdefault(outcome.contender, []).append(outcome.regret / problem.best_loss)
    return {name: float(np.mean(shares)) for name, shares in found.items() if len(shares) == len(problems)}


def honesty(promises: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Coverage and mean error by kind of run: what was chosen for its prediction, and all cells."""
    kinds = {"all cells": ("cell", PLAN_ON_GRID), PLAN_ON_GRID: (PLAN_ON_GRID,), PLAN: (PLAN,)}
    found = []
    for label, members in kinds.items():
        rows = [row for row in promises if row["kind"] in members]
        if rows:
            errors = [row["measured"] - row["predicted"] for row in rows]
            found.append(
                {
                    "runs": label,
                    "promises": len(rows),
                    "inside": sum(row["inside"] for row in rows),
                    "worse_than_high": sum(row["measured"] > row["high"] for row in rows),
                    "mean_error": float(np.mean(errors)),
                    "rms_error": float(np.sqrt(np.mean(np.square(errors)))),
                }
            )
    return found


def markdown(results: dict[str, Any], problems: Sequence[Problem]) -> str:
    """The tables."""
    cells = ", ".join(
        f"{results['cells'][str(steps)]} of {cells} of {steps} steps" for steps, (_, cells) in GRIDS.items()
    )
    share = results["pilot_steps"] / sum(steps * cells for steps, (_, cells) in GRIDS.items())
    lines = [
        f"Cells there: {cells}. The pilots took {results['pilot_steps']:,} steps, {share:.1%} of both grids; the same "
        "pilots serve every column. Weights are those of general loss.",
        "",
        "## Regret, % of the weighted loss of the best cell",
        "",
        "Below 0: better than every cell. Contenders that draw: mean over draws, 5 % and 95 % in brackets. "
        "(cell): the nearest cell of the grid stands for a run that was not trained.",
        "",
        *regret_lines(problems),
        "",
        f"## Target: at most {TARGET_REGRET:.1%} with at most {TARGET_COMPUTE:.0%} of the grid, ahead of each rival",
        "",
        *verdict_lines(results["verdicts"]),
        "",
        "## Promised and measured: weighted change of loss, nats",
        "",
        *promise_lines(results["promises"]),
        "",
        "| runs | promises | inside 90 % | worse than the interval | mean error | rms error |",
        "|" + " --- |" * 6,
        *(
            f"| {r['runs']} | {r['promises']} | {r['inside']} | {r['worse_than_high']} | {r['mean_error']:+.4f} | "
            f"{r['rms_error']:.4f} |"
            for r in results["honesty"]
        ),
        "",
        "Error: measured less predicted; above 0 the run ended worse than was said.",
        "",
        "## Noise between seeds: standard deviation of one run's objective, nats",
        "",
        *(
            f"- general {weight}: {sd['sd_nats']:.4f} ({sd['freedom']} degrees of freedom)"
            for weight, sd in results["noise"].items()
            if sd["sd_nats"] is not None
        ),
    ]
    return "\n".join(lines).rstrip() + "\n"


def regret_lines(problems: Sequence[Problem]) -> list[str]:
    """One row for each contender, one column for each weight and length."""
    names = dict.fromkeys(outcome.contender for problem in problems for outcome in problem.outcomes)
    means = mean_shares(problems)
    heads = [f"{problem.weight:g}, {problem.table.total_steps}" for problem in problems]
    lines = ["| contender | steps spent | " + " | ".join([*heads, "mean"]) + " |", "|" + " --- |" * (3 + len(heads))]
    for name in sorted(names, key=lambda name: name != PLAN):
        outcomes = [problem.outcome(name) for problem in problems]
        spent = dict.fromkeys(f"{outcome.spent_steps:,}" for outcome in outcomes if outcome is not None)
        cells = [_regret(o, p.best_loss) for o, p in zip(outcomes, problems, strict=True)]
        mean = f"{100 * means[name]:.2f}" if name in means else "-"
        lines.append(f"| {name} | {' or '.join(spent)} | " + " | ".join([*cells, mean]) + " |")
    return lines


def _regret(outcome: Outcome | None, best_loss: float) -> str:
    if outcome is None:
        return "-"
    text = f"{100 * outcome.regret / best_loss:.2f}"
    if outcome.chances:
        return f"{text} [{100 * outcome.low / best_loss:.2f}, {100 * outcome.high / best_loss:.2f}]"
    return f"{text} (cell)" if outcome.basis.startswith("cell") else text


def verdict_lines(verdicts: Sequence[dict[str, Any]]) -> list[str]:
    """One row for each weight and length."""
    heads = ("general, steps", "judged", "regret, nats", "%", "compute", "regret met", "compute met", "ahead of each")
    lines = ["| " + " | ".join((*heads, "random runs to match")) + " |", "|" + " --- |" * (len(heads) + 1)]
    for v in verdicts:
        rivals = [f"behind {name}" for name in v["behind"]] + [f"level with {name}" for name in v["level"]]
        met = ["yes" if v[f"{what}_met"] else "NO" for what in ("regret", "compute")]
        met.append("NO: " + ", ".join(rivals) if rivals else "yes")
        lines.append(
            f"| {v['weight']:g}, {v['steps']} | {v['judged']} | {v['regret_nats']:+.4f} | {v['regret_share']:+.2%} | "
            f"{v['compute_share']:.1%} | {' | '.join(met)} | {v['random_runs_to_match'] or 'more than the grid'} |"
        )
    return lines


def promise_lines(promises: Sequence[dict[str, Any]]) -> list[str]:
    """The plans' own promises; those of all cells are counted below."""
    lines = ["| general, steps | of | run | predicted | 90 % interval | measured | inside |", "|" + " --- |" * 7]
    lines += [
        f"| {r['weight']:g}, {r['steps']} | {r['kind']} | {r['run']} | {r['predicted']:.3f} | {r['low']:.3f} to "
        f"{r['high']:.3f} | {r['measured']:.3f} | {'yes' if r['inside'] else 'NO'} |"
        for r in promises
        if r["kind"] in PLANS
    ]
    return lines


LOOKS = {
    RANDOM: {"color": "#777777"},
    TPE: {"color": "#ee7733"},
    f"{HALVING} of {HALVED[0]}": {"color": "#009988"},
    f"{HALVING} of {HALVED[1]}": {"color": "#009988", "linestyle": "--"},
}
MARKS = {
    PLAN: {"color": "#cc3311", "marker": "*", "markersize": 13},
    PLAN_ON_GRID: {"color": "#cc3311", "marker": "*", "markersize": 11, "markerfacecolor": "white"},
    BEST_PILOT: {"color": "#0077bb", "marker": "D", "markersize": 5},
    RULE: {"color": "#222222", "marker": "s", "markersize": 5},
    "re-warm, weak shift": {"color": "#222222", "marker": "^", "markersize": 5},
    "re-warm, strong shift": {"color": "#222222", "marker": "v", "markersize": 5},
    f"{RANDOM}, short runs": {"color": "#777777", "marker": "o", "markersize": 4},
    f"{TPE}, short runs": {"color": "#ee7733", "marker": "o", "markersize": 4},
}


def draw(path: Path, problems: Sequence[Problem], pilot_steps: int, noise: dict[float, float]) -> None:
    """Regret against compute, one panel for each weight and length."""
    lengths = sorted({problem.table.total_steps for problem in problems}, reverse=True)
    size = (12.5, 1.4 + 2.6 * len(lengths))
    figure, axes = plt.subplots(len(lengths), len(WEIGHTS), figsize=size, sharex=True, sharey=True, squeeze=False)
    by_key = {(problem.table.total_steps, problem.weight): problem for problem in problems}
    for row, steps in zip(axes, lengths, strict=True):
        for axis, weight in zip(row, WEIGHTS, strict=True):
            axis.set_title(f"{steps} steps, general {weight:g}", fontsize=9)
            if (steps, weight) in by_key:
                _panel(axis, by_key[steps, weight], noise[weight])
    entries = {}
    for axis in axes.flat:
        lines, labels = axis.get_legend_handles_labels()
        entries |= dict(zip(labels, lines, strict=True))
    figure.legend(entries.values(), entries.keys(), loc="lower center", ncols=5, fontsize=8, frameon=False)
    figure.supxlabel("steps spent before the final run, share of the grid's", fontsize=9, y=0.76 / size[1])
    figure.supylabel("regret, % of the weighted loss of the best cell", fontsize=9)
    figure.tight_layout(rect=(0.01, 0.8 / size[1], 1, 1))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    plt.close(figure)
    write_bytes(path, buffer.getvalue())


def _panel(axis: Axes, problem: Problem, noise: float) -> None:
    scale, cost = 100.0 / problem.best_loss, problem.table.cost
    if np.isfinite(noise):
        axis.axhspan(-noise * scale, noise * scale, color="#dddddd", linewidth=0, label="1 sd between seeds")
    axis.axhline(100 * TARGET_REGRET, color="#bb5566", linewidth=0.8, linestyle=":", label="target")
    for name, look in LOOKS.items():
        spent, regret = np.array(problem.ladders[name]).T
        axis.plot(spent / cost, regret * scale, linewidth=1.2, label=name, **look)
    for name, look in MARKS.items():
        outcome = problem.outcome(name)
        if outcome is not None:
            place = outcome.spent_steps / cost or NONE_SPENT
            axis.plot([place], [outcome.regret * scale], linestyle="none", label=name, zorder=5, **look)
    axis.set_xscale("log")
    axis.set_yscale("symlog", linthresh=1.0)
    ticks = (NONE_SPENT, 0.03, 0.1, 0.3, 1.0)
    axis.set_xticks(ticks, ["none", "3 %", "10 %", "30 %", "all"], fontsize=7)
    axis.set_yticks((-1, -0.5, 0, 0.5, 1, 3, 10), ("-1", "-0.5", "0", "0.5", "1", "3", "10"), fontsize=7)
    axis.minorticks_off()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--curves", type=Path, default=CURVE_SET / "curves" / "prose_code", help="the curve set")
    parser.add_argument("--own", type=Path, default=HERE, help="where train.py kept curves/, plans/ and runs.json")
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--fast", action="store_true", help=f"{FAST_SEEDS} seeds in place of {SEEDS}")
    given = parser.parse_args()
    main(given.curves, given.own, given.out, fast=given.fast)
