"""From kept curves to what every contender loses: the grid as a table, the law's choices, trained plans.

Works on what is there: cells that are not trained yet are left out, and so are plans.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from contenders import Cell, FloatArray, Table, halving_choice, nearest_cell, random_choice, tpe_choice

from cptplan import decide
from cptplan.config import Project, read_project
from cptplan.curves import LossCurve, curve_names, read_curve, read_curve_directory
from cptplan.files import read_json
from cptplan.fitting.store import read_fit
from cptplan.planning.forecast import Forecaster, Interval
from cptplan.planning.knobs import Knobs
from cptplan.planning.plan import Plan, read_plan
from cptplan.planning.recipes import COMMON, RECIPES
from cptplan.workspace import Workspace

HERE = Path(__file__).resolve().parent
CURVE_SET = HERE.parent / "04_curve_set"
WEIGHTS = (0.2, 0.4, 0.6, 0.8)
GRIDS = {640: ("grid", 30), 320: ("half", 15)}
"""Group of ../04_curve_set/cells.py and number of its cells, by length of the runs."""
GRID_DECAY = 0.3  # of the steps, in every cell
TPE_TRIALS = 12
HALVED = (9, 27)  # runs of the first rung
PLAN, PLAN_ON_GRID, BEST_PILOT, RULE = "plan", "plan, on the grid", "best pilot, run long", "rule of thumb"
RANDOM, TPE, HALVING = "random search", "TPE", "successive halving"


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a contender loses against the best cell of the grid, under one weight at one length."""

    contender: str
    basis: str
    """trained: the run itself; cell: the grid's nearest; lookup: cells of the grid."""
    spent_steps: float
    """Before the final run; for searches of whole runs, all of it."""
    regret: float
    """Mean over draws, nats of the objective; below 0 where it beats the whole grid."""
    low: float
    """5 % of the draws lose less."""
    high: float
    """5 % of the draws lose more."""
    chances: tuple[tuple[float, float], ...] = ()
    """Regret and probability of every choice, for contenders that draw."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One weight and length: the grid, the contenders' outcomes and what the law had said."""

    weight: float
    table: Table
    best_loss: float
    """Weighted loss of the best cell, nats per token: what regrets are shares of."""
    outcomes: tuple[Outcome, ...]
    promises: tuple[dict[str, Any], ...]
    """Predicted objective with its interval, and the measured one, of cells and plans."""
    ladders: Mapping[str, tuple[tuple[float, float], ...]]
    """Steps spent and mean regret of the searches, by contender."""

    def outcome(self, *contenders: str) -> Outcome | None:
        """That of the first of these contenders that has one."""
        found = {outcome.contender: outcome for outcome in self.outcomes}
        return next((found[name] for name in contenders if name in found), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """All that was read."""

    project: Project
    pilots: Mapping[str, LossCurve]
    cells: Mapping[str, LossCurve]
    own: Mapping[str, LossCurve]
    runs: Sequence[Mapping[str, Any]]
    plans: Mapping[tuple[float, int], Plan]
    pilot_steps: int


def read_evidence(curves_dir: Path, own_dir: Path) -> Evidence:
    """The curves that are there: pilots, cells, and what train.py kept."""
    there = curve_names(curves_dir)
    groups = ("grid", "half", "seeds")
    pilots = read_curve_directory(curves_dir, [name for name in there if name.startswith("pilot-")])
    cells = {name: read_curve(curves_dir, name) for name in there if name.split("-")[0] in groups}
    runs = read_json(own_dir / "runs.json")["runs"] if (own_dir / "runs.json").exists() else []
    trained = {row["run"] for row in runs if (own_dir / "curves" / f"{row['run']}.csv").exists()}
    paths = {(w, s): own_dir / "plans" / f"general-{w:g}-steps-{s}.json" for w in WEIGHTS for s in GRIDS}
    return Evidence(
        project=read_project(CURVE_SET / "prose_code.yaml"),
        pilots=pilots,
        cells=cells,
        own={name: read_curve(own_dir / "curves", name) for name in sorted(trained)},
        runs=[row for row in runs if row["run"] in trained],
        plans={key: read_plan(path) for key, path in paths.items() if path.exists()},
        pilot_steps=sum(curve.total_steps for curve in pilots.values() if curve.record.phase == "cpt"),
    )


def forecasters(evidence: Evidence, curves_dir: Path) -> dict[float, Forecaster]:
    """The law of the pilots alone, under every weight."""
    with tempfile.TemporaryDirectory() as scratch:
        workspace = Workspace(root=Path(scratch))
        workspace.curves.mkdir()
        for path in (path for name in evidence.pilots for path in curves_dir.glob(f"{name}.*")):
            shutil.copy(path, workspace.curves / path.name)
        laws = read_fit(decide.fit(workspace.curves, workspace.fits))
        project = evidence.project
        return {
            weight: decide.forecaster(project, workspace, laws, decide.goal_weights(project, f"general={weight:g}"))
            for weight in WEIGHTS
        }


def objective(curve: LossCurve, ready: Forecaster) -> FloatArray:
    """Weighted change of loss against the base model, nats per token, shape (points,)."""
    base = ready.starts[ready.base].losses
    return np.asarray(sum(weight * (curve.losses[name] - base[name]) for name, weight in ready.weights.items()))


def table_of(evidence: Evidence, ready: Forecaster, total_steps: int) -> Table:
    """The grid of a length under a weight."""
    starts = {start.parent_step: start.name for start in evidence.project.model.starts}
    group = GRIDS[total_steps][0]
    return Table(
        total_steps=total_steps,
        cells=tuple(
            Cell(
                name=name,
                peak_lr=curve.record.lr.peak_lr,
                replay_ratio=float(curve.replay_ratios()[0]),
                start=starts[curve.record.parent_step],
                steps=curve.steps.astype(np.float64),
                objective=objective(curve, ready),
            )
            for name, curve in evidence.cells.items()
            if name.split("-")[0] == group
        ),
    )


def knobs_of(cell: Cell, total_steps: int, warmup_steps: int) -> Knobs:
    """A cell as the planner sees it."""
    return Knobs(
        peak_lr=cell.peak_lr,
        replay_ratio=cell.replay_ratio,
        total_steps=total_steps,
        decay_share=GRID_DECAY,
        start=cell.start,
        warmup_steps=warmup_steps,
    )


def problem_of(evidence: Evidence, weight: float, ready: Forecaster, total_steps: int, seeds: int) -> Problem | None:
    """All outcomes of one weight and length; None while no cell is trained."""
    table = table_of(evidence, ready, total_steps)
    if not table.cells:
        return None
    final = table.final()
    best = float(final.min())
    base = ready.starts[ready.base].losses
    outlooks = [ready.outlook(knobs_of(c, total_steps, ready.warmup_steps)).objective for c in table.cells]
    picked = int(np.argmin([outlook.mean for outlook in outlooks]))
    searched, ladders = searches(evidence, table, seeds)
    outcomes = [
        fixed(PLAN_ON_GRID, "lookup", evidence.pilot_steps, final[picked] - best),
        *trained_or_near(evidence, table, ready, weight),
        *searched,
    ]
    promises = [
        promise(PLAN_ON_GRID if n == picked else "cell", weight, total_steps, table.cells[n].name, outlook, final[n])
        for n, outlook in enumerate(outlooks)
    ]
    plan = evidence.plans.get((weight, total_steps))
    run = run_of(evidence, "plan", weight, total_steps)
    if plan is not None and run is not None:
        said = Interval(**plan.chosen.objective.to_json())
        promises.append(promise(PLAN, weight, total_steps, run.name, said, float(objective(run, ready)[-1])))
    return Problem(
        weight=weight,
        table=table,
        best_loss=best + sum(share * base[name] for name, share in ready.weights.items()),
        outcomes=tuple(outcomes),
        promises=tuple(promises),
        ladders=ladders,
    )


def run_of(evidence: Evidence, group: str, weight: float, total_steps: int) -> LossCurve | None:
    """The run that train.py made for this; None when it has not."""
    keys = (group, weight, total_steps)
    found = [row["run"] for row in evidence.runs if (row["group"], row["weight"], row["steps"]) == keys]
    return evidence.own[found[0]] if found else None


def fixed(contender: str, basis: str, spent_steps: float, regret: float) -> Outcome:
    """A contender that has no luck in it."""
    value = float(regret)
    return Outcome(contender=contender, basis=basis, spent_steps=spent_steps, regret=value, low=value, high=value)


def drawn(contender: str, spent_steps: float, final: FloatArray, chance: FloatArray) -> Outcome:
    """A contender whose choice depends on what it drew."""
    regrets = final - final.min()
    order = np.argsort(regrets)
    below = np.cumsum(chance[order])
    low, high = (float(regrets[order][min(np.searchsorted(below, q), len(order) - 1)]) for q in (0.05, 0.95))
    return Outcome(
        contender=contender,
        basis="lookup",
        spent_steps=spent_steps,
        regret=float(chance @ regrets),
        low=low,
        high=high,
        chances=tuple((float(regrets[n]), float(chance[n])) for n in order if chance[n] > 0.0),
    )


def trained_or_near(evidence: Evidence, table: Table, ready: Forecaster, weight: float) -> list[Outcome]:
    """The contenders of one run each: the plan and the best pilot where trained, rules of thumb also by a near cell."""
    final, found = table.final(), []
    for group, contender, spent in (
        ("plan", PLAN, evidence.pilot_steps),
        ("best-pilot", BEST_PILOT, evidence.pilot_steps),
        ("rule-of-thumb", RULE, 0),
    ):
        run = run_of(evidence, group, weight, table.total_steps)
        if run is not None:
            found.append(fixed(contender, "trained", spent, objective(run, ready)[-1] - final.min()))
    peak = evidence.project.model.pretrain_peak_lr
    for recipe in RECIPES:
        if recipe is COMMON and any(outcome.contender == RULE for outcome in found):
            continue
        number = nearest_cell(table, recipe, peak, ready.base)
        found.append(fixed(recipe.name, f"cell {table.cells[number].name}", 0, final[number] - final.min()))
    return found


def searches(
    evidence: Evidence, table: Table, seeds: int
) -> tuple[list[Outcome], dict[str, tuple[tuple[float, float], ...]]]:
    """Random search, TPE and successive halving with the pilots' steps, and their mean regret with other steps.

    The first two also with the steps of the final run, which they need not train any more.
    """
    spend, steps, final = evidence.pilot_steps, table.total_steps, table.final()
    regrets, runs, size = final - final.min(), max(spend // table.total_steps, 1), len(final)
    num_pilots = sum(curve.record.phase == "cpt" for curve in evidence.pilots.values())
    short = table.at(spend / num_pilots)
    by_tpe = tpe_choice(table, final, max(TPE_TRIALS, runs + 1), seeds)
    found = [
        drawn(RANDOM, spend, final, random_choice(final, runs)),
        drawn(f"{RANDOM}, one run more", spend + steps, final, random_choice(final, runs + 1)),
        drawn(TPE, spend, final, by_tpe[min(runs, len(by_tpe)) - 1]),
        drawn(f"{TPE}, one run more", spend + steps, final, by_tpe[min(runs + 1, len(by_tpe)) - 1]),
        drawn(f"{RANDOM}, short runs", spend, final, random_choice(short, num_pilots)),
        drawn(f"{TPE}, short runs", spend, final, tpe_choice(table, short, num_pilots, seeds)[-1]),
    ]
    ladders = {
        RANDOM: tuple((n * steps, float(random_choice(final, n) @ regrets)) for n in range(1, size + 1)),
        TPE: tuple((n * steps, float(chance @ regrets)) for n, chance in enumerate(by_tpe, start=1)),
    }
    for first in HALVED:
        name = f"{HALVING} of {first}"
        found.append(drawn(name, spend, final, halving_choice(table, first, spend, 10 * seeds)))
        ladders[name] = tuple(
            (spent, float(halving_choice(table, first, spent, 2 * seeds) @ regrets))
            for spent in (spend * 2.0**power for power in (-1, 0, 1))
        )
    return found, ladders


def promise(kind: str, weight: float, total_steps: int, run: str, outlook: Interval, measured: float) -> dict[str, Any]:
    """What the law had said of a run, and what it did."""
    return {
        "kind": kind,
        "weight": weight,
        "steps": total_steps,
        "run": run,
        "predicted": outlook.mean,
        "low": outlook.low,
        "high": outlook.high,
        "measured": float(measured),
        "inside": bool(outlook.low <= measured <= outlook.high),
    }


def noise_of(evidence: Evidence, ready: Forecaster) -> tuple[float, int]:
    """Standard deviation of the objective between seeds, pooled over settings, and its degrees of freedom."""
    same: dict[str, list[float]] = {}
    for name, curve in evidence.cells.items():
        group, *setting = name.split("-seed")[0].split("-")
        if group in ("seeds", "grid"):
            same.setdefault("-".join(setting), []).append(float(objective(curve, ready)[-1]))
    repeated = [values for values in same.values() if len(values) > 1]
    freedom = sum(len(values) - 1 for values in repeated)
    squares = sum(float(np.var(values)) * len(values) for values in repeated)
    return (float(np.sqrt(squares / freedom)) if freedom else float("nan")), freedom
