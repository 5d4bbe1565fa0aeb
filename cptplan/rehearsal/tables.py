"""What a rehearsal found: rows for the terminal, CSV, JSON, and the figure of the regrets."""

from __future__ import annotations

import csv
import io
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cptplan.planning.planner import SUPPORTED_LENGTH
from cptplan.planning.recipes import COMMON
from cptplan.rehearsal.rehearse import OURS, Rehearsal, Setting
from cptplan.rehearsal.rivals import HALVING, RANDOM, TPE
from cptplan.report.figures import COLOURS, DPI, SET_COLOURS, SOFT, STYLE

Row = tuple[str, ...]

COLUMNS = ("regret, nats", "median", "90th percentile", "worst", "no worse than ours", "keeps the limits")
LINES: dict[str, tuple[str, Any]] = {
    OURS: (COLOURS["chosen"], "-"),
    COMMON.name: (COLOURS["rule_of_thumb"], "--"),
    RANDOM: (SOFT, ":"),
    TPE: (SET_COLOURS["general"], "-."),
    HALVING: (SET_COLOURS["domain"], (0, (6, 2))),
}
CSV_COLUMNS = (
    "campaign",
    "contender",
    "regret",
    "objective",
    "keeps_limits",
    "peak_lr",
    "replay_ratio",
    "decay_share",
    "start",
    "total_steps",
)


def columns(setting: Setting) -> Row:
    """Of the table; limits only where the goal has some."""
    return COLUMNS if _limited(setting) else COLUMNS[:-1]


def rows(setting: Setting, found: Rehearsal) -> list[Row]:
    """One row for each contender, ours first."""
    table = summary(found)
    cells: list[Row] = [
        (
            name,
            f"{one['median']:.4f}",
            f"{one['p90']:.4f}",
            f"{one['worst']:.4f}",
            f"{one['no_worse']:.0%}" if name != OURS else "-",
            f"{one['keeps_limits']:.0%}",
        )
        for name, one in table.items()
    ]
    return cells if _limited(setting) else [row[:-1] for row in cells]


def summary(found: Rehearsal) -> dict[str, dict[str, float]]:
    """Regret of each contender over the campaigns."""
    ours = found.regrets(OURS)
    return {
        name: {
            "median": float(np.median(regrets)),
            "p90": float(np.quantile(regrets, 0.9)),
            "worst": float(regrets.max()),
            "mean": float(regrets.mean()),
            "no_worse": float(np.mean(regrets <= ours)),
            "keeps_limits": float(np.mean([one.keeps(name) for one in found.campaigns])),
        }
        for name in found.contenders
        for regrets in [found.regrets(name)]
    }


def lines(setting: Setting, found: Rehearsal) -> list[str]:
    """What the table means, in sentences."""
    count, table, level = len(found.campaigns), summary(found), 0.9
    held = ", ".join(f"{name} {round(found.coverage(name) * count)}" for name in found.campaigns[0].inside)
    best = found.best
    longer = best.total_steps / setting.project.pilot.total_steps
    extrapolated = (
        [f"A run {longer:.0f} times as long as the pilots is planned by cptplan optimize --extrapolate alone."]
        if longer > SUPPORTED_LENGTH
        else []
    )
    return [
        f"With pilots of {pilot_share(setting, found):.1%} of the final run's tokens the plan loses "
        f"{table[OURS]['median']:.4f} nats against the best run there is (median; {table[OURS]['p90']:.4f} or more in "
        f"a tenth of the campaigns); the {COMMON.name} loses {table[COMMON.name]['median']:.4f}.",
        f"{level:.0%} intervals of the plan that held, of {count}: {held}.",
        f"The best run in truth: peak rate {best.peak_lr * setting.lr_unit:.3g}, {best.replay_ratio:.0%} replay, decay "
        f"over the last {best.decay_share:.0%}, from {best.start}, {best.total_steps:,} steps: weighted loss "
        f"{found.optimum[0]:+.3f} nats.",
        *extrapolated,
    ]


def pilot_share(setting: Setting, found: Rehearsal) -> float:
    """Training tokens of the pilots over those of the longest final run."""
    final = found.campaigns[0].space.total_steps[1] * setting.project.pilot.batch_tokens
    return float(np.mean([one.pilot_tokens for one in found.campaigns])) / final


def csv_text(setting: Setting, found: Rehearsal) -> str:
    """A row for each contender of each campaign, rates in the project's unit."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for name in found.contenders:
        for one, regret in zip(found.campaigns, found.regrets(name), strict=True):
            knobs = one.plans[name]
            chosen = (f"{knobs.peak_lr * setting.lr_unit:.6g}", f"{knobs.replay_ratio:.4f}", f"{knobs.decay_share:.4f}")
            result = (one.number, name, f"{regret:.6f}", f"{one.objectives[name]:.6f}", int(one.keeps(name)))
            writer.writerow((*result, *chosen, knobs.start, knobs.total_steps))
    return buffer.getvalue()


def to_json(setting: Setting, found: Rehearsal, seed: int) -> dict[str, Any]:
    """rehearsal.json."""
    pilot = setting.project.pilot
    return {
        "schema_version": 1,
        "truth": setting.title,
        "project": setting.project.name,
        "campaigns": len(found.campaigns),
        "seed": seed,
        "weights": dict(setting.weights),
        "noise_nats": setting.noise_nats,
        "pilots": {
            "designed": pilot.num_runs,
            "advised": setting.num_next,
            "total_steps": pilot.total_steps,
            "share": pilot_share(setting, found),
        },
        "final_steps": found.campaigns[0].space.total_steps[1],
        "optimum": found.optimum[0],
        "regret": summary(found),
        "coverage": {name: found.coverage(name) for name in found.campaigns[0].inside},
        "notes": list(setting.notes),
    }


def draw_regrets(setting: Setting, found: Rehearsal) -> bytes:
    """PNG: in which share of the campaigns the regret of each contender is at most so much."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.6), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for name in found.contenders:
            regrets = np.sort(found.regrets(name))
            colour, dash = LINES[name]
            shares = np.arange(1, len(regrets) + 1) / len(regrets)
            width = 2.4 if name == OURS else 1.6
            axes.step(
                np.concatenate([[regrets[0]], regrets]),
                np.concatenate([[0.0], shares]),
                where="post",
                color=colour,
                linestyle=dash,
                linewidth=width,
                label=f"{name}, median {np.median(regrets):.3f}",
            )
        axes.set(xlabel="regret against the best run, nats of the weighted loss", ylim=(0.0, 1.03))
        axes.set_xlim(left=min(0.0, *(float(found.regrets(name).min()) for name in found.contenders)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.set_ylabel("campaigns with at most this regret")
        figure.legend(loc="outside lower left", ncols=3, columnspacing=1.6)
        figure.suptitle(
            f"{len(found.campaigns)} virtual campaigns, pilots of {pilot_share(setting, found):.0%} of the final run\n"
            f"{setting.title}",
            x=0.012,
            ha="left",
            fontsize=11,
        )
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def _limited(setting: Setting) -> bool:
    goal = setting.project.goal
    return any(
        limit is not None for limit in (goal.max_general_increase, goal.max_forgetting_ratio, goal.max_general_loss)
    )
