"""Answer the question: python analyse.py. Reads campaigns.json (simulate.py) and subsets.json (subsets.py).

Writes results.json, results.md and figure.png.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: one thread

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from simulate import FEWER, NEXT, NUMBERS, SHARES, Budget
from subsets import CURVES, LEFT_OUT, SETS, WEIGHTS, subset_row, subsets, without_pilots

from cptplan.curves import read_curve_directory
from cptplan.files import read_json, write_bytes, write_json, write_text
from cptplan.planning.recipes import COMMON
from cptplan.rehearsal.rehearse import OURS
from cptplan.rehearsal.rivals import HALVING, RANDOM, TPE

HERE = Path(__file__).resolve().parent
CONTENDERS = (OURS, RANDOM, TPE, HALVING, COMMON.name)
COLOURS = dict(zip(CONTENDERS, ("#4477aa", "#ccbb44", "#228833", "#aa3377", "#777777"), strict=True))
RESAMPLES = 4000
TENTH = Budget(designed=8, share=0.1)
TWELVE = Budget(designed=12, share=0.1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Tables and figure from what is kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--fast", action="store_true", help="Fits to two subsets, made now, instead of all.")
    options = parser.parse_args(arguments)
    real = read_json(HERE / "subsets.json")
    if options.fast:
        curves = read_curve_directory(CURVES)
        real = {**without_pilots(curves), "subsets": [subset_row(curves, left) for left in subsets(curves)[:2]]}
    kept = read_json(HERE / "campaigns.json")
    results = {"schema_version": 1, "fit": kept["method"], "virtual": virtual(kept), "real": real}
    write_json(options.out / "results.json", results)
    write_text(options.out / "results.md", markdown(results))
    write_bytes(options.out / "figure.png", draw(results))


def virtual(kept: Mapping[str, Any]) -> dict[str, Any]:
    """Regret at every budget, of the seeds that have all of the budgets that are compared."""
    table = regrets(kept)
    by_budget = tuple(dict.fromkeys((*SHARES, *NUMBERS)))
    advice = (FEWER, TWELVE, NEXT)
    found: dict[str, Any] = {}
    seeds = common(table, by_budget)
    if seeds:
        found["budgets"] = {budget.name: budget_row(kept, table, budget, seeds) for budget in by_budget}
        others = (budget for budget in by_budget if budget != TENTH)
        found["against_tenth"] = {budget.name: paired(table, budget, TENTH, seeds) for budget in others}
    seeds = common(table, advice)
    if seeds:
        found["advice"] = {budget.name: budget_row(kept, table, budget, seeds) for budget in advice}
        found["advice_against"] = {
            f"{one.name} against {other.name}": paired(table, one, other, seeds)
            for one, other in ((TWELVE, FEWER), (NEXT, FEWER), (NEXT, TWELVE))
        }
    return found


def regrets(kept: Mapping[str, Any]) -> dict[str, dict[int, dict[str, float]]]:
    """Regret by budget, seed and contender: against the best run that is known of the seed's truth, nats."""
    best = {int(seed): found["objective"] for seed, found in kept["best"].items()}
    for row in kept["rows"]:
        tried = [value for name, value in row["objectives"].items() if name != COMMON.name]
        best[row["seed"]] = min(best[row["seed"]], *tried)
    table: dict[str, dict[int, dict[str, float]]] = {}
    for row in kept["rows"]:
        found = {name: value - best[row["seed"]] for name, value in row["objectives"].items()}
        table.setdefault(row["budget"], {})[row["seed"]] = found
    return table


def common(table: Mapping[str, Mapping[int, Any]], budgets: Sequence[Budget]) -> list[int]:
    """Seeds that were rehearsed at all of some budgets."""
    return sorted(set.intersection(*(set(table.get(budget.name, {})) for budget in budgets)))


def budget_row(
    kept: Mapping[str, Any], table: Mapping[str, Mapping[int, Any]], budget: Budget, seeds: Sequence[int]
) -> dict[str, Any]:
    """Regret of all contenders at one budget, and whether the interval of ours held."""
    rows = [row for row in kept["rows"] if row["budget"] == budget.name and row["seed"] in set(seeds)]
    ours = np.array([table[budget.name][seed][OURS] for seed in seeds])
    loss = np.array([kept["best"][str(seed)]["loss"] for seed in seeds])
    return {
        "share": budget.share,
        "designed": budget.designed,
        "advised": budget.advised,
        "campaigns": len(seeds),
        "regret": {name: spread(np.array([table[budget.name][seed][name] for seed in seeds])) for name in CONTENDERS},
        "share_of_loss": round(float(np.mean(ours / loss)), 6),
        "coverage": round(float(np.mean([row["inside"] for row in rows])), 4),
        "half_width": round(float(np.median([row["half_width"] for row in rows])), 5),
        "bias": round(float(np.mean([row["predicted"] - row["objectives"][OURS] for row in rows])), 5),
    }


def paired(
    table: Mapping[str, Mapping[int, Any]], one: Budget, other: Budget, seeds: Sequence[int]
) -> dict[str, float]:
    """Regret at one budget less that at another, seed by seed, and how often it is smaller."""
    change = np.array([table[one.name][seed][OURS] - table[other.name][seed][OURS] for seed in seeds])
    return {**spread(change), "better": round(float(np.mean(change < 0)), 4)}


def spread(values: np.ndarray) -> dict[str, float]:
    """Mean with its 90 % bootstrap interval over campaigns, median and 90th percentile."""
    means = np.random.default_rng(0).choice(values, (RESAMPLES, len(values))).mean(axis=1)
    low, high = np.percentile(means, [5, 95])
    found = {
        "mean": values.mean(),
        "low": low,
        "high": high,
        "median": np.median(values),
        "p90": np.percentile(values, 90),
    }
    return {name: round(float(value), 5) for name, value in found.items()}


def markdown(results: Mapping[str, Any]) -> str:
    """The tables."""
    found, lines = results["virtual"], ["# Virtual campaigns", ""]
    lines += ["Regret in nats of the weighted loss: mean (90 % interval of the mean), median, 90th percentile."]
    lines += [f"Method of the fit: {results['fit']}.", ""]
    if "budgets" in found:
        rows = list(found["budgets"].values())
        lines += budget_table([row for row in rows if row["designed"] == TENTH.designed])
        lines += ["", "## Number of pilots at a tenth of the final run", ""]
        lines += budget_table(sorted((r for r in rows if r["share"] == TENTH.share), key=lambda r: r["designed"]))
        lines += ["", f"Change of regret against 8 pilots of {TENTH.share:.0%}, on the same campaigns:", ""]
        lines += change_table(found["against_tenth"])
    if "advice" in found:
        lines += ["", "## Advised against designed pilots, all of one length", ""]
        lines += [*budget_table(list(found["advice"].values())), "", *change_table(found["advice_against"])]
    lines += ["", *real_tables(results["real"])]
    return "\n".join(lines) + "\n"


def budget_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for each budget."""
    head = ["pilots", "share", "final / pilot", "n", "cptplan", "median", "p90", "of the loss", "interval held"]
    head += CONTENDERS[1:]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in rows:
        ours = row["regret"][OURS]
        number = f"{row['designed']}" + (f" + {row['advised']} advised" if row["advised"] else "")
        longer = (row["designed"] + row["advised"]) / row["share"]
        cells = [
            number,
            f"{row['share']:.1%}",
            f"{longer:.0f}",
            str(row["campaigns"]),
            f"{ours['mean']:.4f} ({ours['low']:.4f} to {ours['high']:.4f})",
            f"{ours['median']:.4f}",
            f"{ours['p90']:.4f}",
            f"{row['share_of_loss']:.2%}",
            f"{row['coverage']:.0%}",
            *(f"{row['regret'][name]['mean']:.4f}" for name in CONTENDERS[1:]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def change_table(changes: Mapping[str, Mapping[str, float]]) -> list[str]:
    """One line for each comparison."""
    lines = ["| designed+advised@share | change of regret | median | smaller in |", "|" + " --- |" * 4]
    lines += [
        f"| {name} | {c['mean']:+.4f} ({c['low']:+.4f} to {c['high']:+.4f}) | {c['median']:+.4f} | {c['better']:.0%} |"
        for name, c in changes.items()
    ]
    return lines


def real_tables(real: Mapping[str, Any]) -> list[str]:
    """Subsets of the real pilots, by how many were left out."""
    weights = [f"{weight:g}" for weight in WEIGHTS]
    head = ["choice", "fits", *(f"general = {w}" for w in weights), "rms error general", "domain"]
    lines = [f"# Real runs: regret on {real['cells']} cells of the grid, nats, mean (worst)", ""]
    lines += ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for number in LEFT_OUT:
        rows = [row for row in real["subsets"] if len(row["left_out"]) == number]
        if rows:
            table = {w: [row["regret"][w] for row in rows] for w in weights}
            errors = [f"{np.mean([row['rms_error'][name] for row in rows]):.2%}" for name in SETS]
            cells = [f"{np.mean(table[w]):.4f} ({max(table[w]):.4f})" for w in weights]
            lines.append(f"| {8 - number} of 8 pilots | {len(rows)} | " + " | ".join([*cells, *errors]) + " |")
    for title, key in (("cell nearest to the rule of thumb", "rule_of_thumb"), ("random cell", "random")):
        lines.append(f"| {title} | 0 | " + " | ".join(f"{real[key][w]:.4f}" for w in weights) + " | | |")
    lines += [
        "",
        "Without one pilot:",
        "",
        "| without | " + " | ".join(head[2:]) + " |",
        "|" + " --- |" * (len(head) - 1),
    ]
    for row in (row for row in real["subsets"] if len(row["left_out"]) == 1):
        cells = [f"{row['regret'][w]:.4f}" for w in weights] + [f"{row['rms_error'][name]:.2%}" for name in SETS]
        lines.append(f"| {row['left_out'][0]} | " + " | ".join(cells) + " |")
    return lines


def draw(results: Mapping[str, Any]) -> bytes:
    """Regret against share, against number and advice, and of real subsets."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(11.5, 3.6))
    found = results["virtual"]
    if "budgets" in found:
        draw_shares(left, found["budgets"])
        draw_numbers(middle, found)
    draw_real(right, results["real"])
    for axis in (left, middle, right):
        axis.tick_params(labelsize=7)
        axis.xaxis.label.set_size(8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    plt.close(figure)
    return buffer.getvalue()


def draw_shares(axis: Axes, rows: Mapping[str, Any]) -> None:
    """Mean regret of all contenders by share of compute."""
    share = [100 * budget.share for budget in SHARES]
    for name in CONTENDERS:
        found = [rows[budget.name]["regret"][name] for budget in SHARES]
        thick = 2.0 if name == OURS else 1.0
        mean = [one["mean"] for one in found]
        axis.plot(share, mean, "o-", color=COLOURS[name], markersize=4, linewidth=thick, label=name)
        if name == OURS:
            bounds = [one["low"] for one in found], [one["high"] for one in found]
            axis.fill_between(share, *bounds, color=COLOURS[name], alpha=0.25, linewidth=0)
    axis.set(xscale="log", yscale="log", xlabel="tokens of 8 pilots, % of the final run", xlim=(1.7, 48))
    axis.legend(loc="lower left", fontsize=7, frameon=False)
    axis.set_xticks(share, [f"{one:g}" for one in share])
    axis.minorticks_off()
    axis.yaxis.set_major_formatter("{x:g}")  # plain digits, which need no fonts for mathematics
    axis.set_ylabel("mean regret, nats", fontsize=8)
    axis.set_title("Virtual campaigns: share of compute", fontsize=8)


def draw_numbers(axis: Axes, found: Mapping[str, Any]) -> None:
    """Mean regret by number of pilots at equal tokens, and with advised ones."""
    rows = [(str(budget.designed), found["budgets"][budget.name]) for budget in NUMBERS]
    advised = " (8 short: 6.7 %)" if "advice" in found else ""
    if advised:
        rows += [("8 short", found["advice"][FEWER.name]), ("8 + 4\nadvised", found["advice"][NEXT.name])]
    for number, (_, row) in enumerate(rows):
        one = row["regret"][OURS]
        colour = "#ee6677" if number >= len(NUMBERS) else COLOURS[OURS]
        axis.plot([number, number], [one["low"], one["high"]], color=colour, linewidth=1.5)
        axis.plot(number, one["mean"], "o", color=colour, markersize=5)
    axis.set_xticks(range(len(rows)), [label for label, _ in rows])
    axis.set(xlabel="pilots, together a tenth of the final run" + advised, ylim=(0, None))
    axis.set_title("Virtual campaigns: number of pilots", fontsize=8)
    axis.set_ylabel("mean regret, nats", fontsize=8)


def draw_real(axis: Axes, real: Mapping[str, Any]) -> None:
    """Regret of every subset of the real pilots, mean over the weights, and its mean by number left out."""
    rng = np.random.default_rng(0)
    for number in LEFT_OUT:
        values = [np.mean(list(r["regret"].values())) for r in real["subsets"] if len(r["left_out"]) == number]
        at = number + 0.12 * rng.uniform(-1.0, 1.0, len(values)) * (len(values) > 1)
        axis.plot(at, values, ".", color=COLOURS[OURS], alpha=0.6, markersize=6)
        if values:
            axis.plot([number - 0.2, number + 0.2], [np.mean(values)] * 2, color="#222222", linewidth=1.5)
    for key, label in (("rule_of_thumb", COMMON.name), ("random", "random cell")):
        level = np.mean([real[key][f"{weight:g}"] for weight in WEIGHTS])
        axis.axhline(level, color=COLOURS[COMMON.name], linestyle=":", linewidth=1)
        axis.annotate(label, (LEFT_OUT[-1] + 0.45, level), ha="right", va="bottom", fontsize=7)
    axis.set_xticks(LEFT_OUT, [f"{8 - number} of 8" for number in LEFT_OUT])
    axis.set(xlabel="real pilots that the fit saw", xlim=(-0.5, LEFT_OUT[-1] + 0.5), ylim=(0, None))
    axis.set_title(f"Real runs: regret on {real['cells']} cells, mean over weights", fontsize=8)


if __name__ == "__main__":
    main()
