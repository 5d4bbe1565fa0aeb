"""Plan with eight pilots and train what was chosen: python train.py LAB DIR; the same command goes on.

LAB is the prose_code campaign that ../04_curve_set/train.py left; it is only read. DIR becomes a copy of it with the
base model and the pilots alone: `cptplan fit`, then `cptplan optimize` and `cptplan launch` for every weight and
budget, then the training of the runs that were chosen, of the rule of thumb and of the best pilot's settings at full
length; equal runs are trained once. Kept beside this file: curves/, plans/ and runs.json (what was run for what).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cptplan import campaign, decide, final, stages
from cptplan.config import Project, read_project
from cptplan.console import Screen
from cptplan.curves import LossCurve, read_curve_directory
from cptplan.files import read_json, write_bytes, write_json
from cptplan.pilots.design import design_pilots, run_schedule, run_spec
from cptplan.planning.plan import read_plan
from cptplan.run_spec import RunSpec, default_eval_steps, read_run_spec
from cptplan.workspace import Workspace

HERE = Path(__file__).resolve().parent
WEIGHTS = (0.2, 0.4, 0.6, 0.8)
BUDGETS = (640, 320)
GROUPS = ("plan", "rule-of-thumb", "best-pilot")
COMMAND = Path(sys.executable).with_name("cptplan")


def copy_campaign(lab: Path, directory: Path) -> None:
    """What a team has after its pilots: corpora, base model, curves of base and pilots. Nothing of the grid."""
    if (directory / "cptplan.yaml").exists():
        return
    for name in ("data", "runs/base/export"):
        shutil.copytree(lab / name, directory / name, dirs_exist_ok=True)
    curves = directory / "curves"
    curves.mkdir(parents=True, exist_ok=True)
    for path in (*(lab / "curves").glob("base.*"), *(lab / "curves").glob("pilot-*")):
        shutil.copy(path, curves / path.name)
    for name in ("campaign.json", "cptplan.yaml"):  # the last one marks the copy as whole
        shutil.copy(lab / name, directory / name)


def cptplan(*arguments: str) -> None:
    """Run the command line; its words go where ours go."""
    subprocess.run([COMMAND, *arguments, "-o", "."], check=True, stdout=sys.stderr)


def named(project: Project, spec: RunSpec, group: str) -> RunSpec:
    """The spec under a name that says its settings and is the same for equal runs; evaluated where the grid is."""
    total, start = spec.schedule.total_steps, next(s.name for s in project.model.starts if s.path == spec.model.path)
    bare = spec.model_copy(update={"name": group, "eval_steps": default_eval_steps(total)})
    ratio = float(bare.replay_ratios()[0])
    name = f"{group}-{total}-lr{spec.schedule.peak_lr:g}-r{ratio:g}-{start}-{bare.hash[:4]}"
    return bare.model_copy(update={"name": name})


def plan_runs(project: Project, workspace: Workspace, weight: float, steps: int) -> dict[str, RunSpec]:
    """Plan for one weight and budget through the command line; the chosen run and the rule of thumb."""
    cptplan("optimize", "--weights", f"general={weight:g}", "--set", budget_of(project, steps))
    cptplan("launch", "--target", "local", "--set", budget_of(project, steps))
    written = workspace.latest("plans") / "plan.json"
    write_bytes(HERE / plan_name(weight, steps), written.read_bytes())
    rule = final.planned_spec(project, workspace, read_plan(written).rule_of_thumb, "rule-of-thumb")
    chosen = read_run_spec(workspace.launch / "local" / "run" / "spec.json")
    return {"plan": named(project, chosen, "plan"), "rule-of-thumb": named(project, rule, "rule-of-thumb")}


def budget_of(project: Project, steps: int) -> str:
    """The budget as the command line takes it."""
    return f"budget.tokens={steps * project.pilot.batch_tokens}"


def plan_name(weight: float, steps: int) -> str:
    """Where a plan is kept, beside this file."""
    return f"plans/general-{weight:g}-steps-{steps}.json"


def best_pilot(project: Project, workspace: Workspace, weight: float, steps: int) -> RunSpec:
    """The settings of the pilot with the best end under a weight, at another length: planning without a law."""
    curves = read_curve_directory(workspace.curves)
    weights = decide.goal_weights(project, f"general={weight:g}")
    cells = {f"pilot-{number:02d}": cell for number, cell in enumerate(design_pilots(project), start=1)}
    cell = cells[min(cells, key=lambda name: _ending(curves[name], weights))]
    schedule = run_schedule(
        peak_lr=cell.peak_lr,
        total_steps=steps,
        warmup_steps=project.pilot.warmup_steps,
        decay_share=cell.decay_share,
    )
    spec = run_spec(
        project,
        str(workspace.data.resolve()),
        name="best-pilot",
        start=cell.start,
        schedule=schedule,
        replay_ratio=cell.replay_ratio,
    )
    return named(project, spec, "best-pilot")


def _ending(curve: LossCurve, weights: Mapping[str, float]) -> float:
    """Weighted final loss, nats per token."""
    return sum(weight * curve.final_loss(name) for name, weight in weights.items())


def gather(wanted: list[dict[str, Any]], runs: Path, revision: str) -> None:
    """Keep the curves of finished runs beside this file, and what was run for what."""
    done = {row["run"]: runs / row["run"] for row in wanted if (runs / row["run"] / "result.json").exists()}
    (HERE / "curves").mkdir(exist_ok=True)
    stages.collect_curves(HERE / "curves", list(done.values()))
    results = [read_json(path / "result.json") for path in done.values()]
    versions = results[0]["versions"] if results else {}
    write_json(HERE / "runs.json", {"schema_version": 1, "code": revision, "versions": versions, "runs": wanted})


def main(lab: Path, directory: Path, weights: list[float], budgets: list[int], groups: list[str]) -> None:
    """Bring every plan and every run to completion."""
    revision = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False
    ).stdout.strip()
    copy_campaign(lab, directory)
    os.chdir(directory)  # the project's paths are relative to it
    project, workspace, screen = read_project(Path("cptplan.yaml")), Workspace(root=Path(".")), Screen()
    cptplan("fit")
    specs: dict[str, RunSpec] = {}
    wanted: list[dict[str, Any]] = []
    for steps in budgets:
        for weight in weights:
            found = plan_runs(project, workspace, weight, steps)
            found["best-pilot"] = best_pilot(project, workspace, weight, steps)
            for group, spec in found.items():
                specs[spec.name] = spec
                wanted.append({"group": group, "weight": weight, "steps": steps, "run": spec.name})
    order = {group: number for number, group in enumerate(GROUPS)}
    rows = sorted((row for row in wanted if row["group"] in groups), key=lambda row: order[row["group"]])
    names = list(dict.fromkeys(row["run"] for row in rows))
    runs = Path("finals")
    try:
        with screen.stage(f"{len(names)} runs") as note:
            stages.run_jobs(project, campaign.jobs_of([specs[name] for name in names], runs), note)
    finally:
        gather(wanted, runs, revision or "unknown")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("lab", type=Path)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--weights", type=float, nargs="+", default=list(WEIGHTS))
    parser.add_argument("--budgets", type=int, nargs="+", default=list(BUDGETS), help="optimiser steps")
    parser.add_argument("--groups", nargs="+", default=list(GROUPS), choices=GROUPS)
    given = parser.parse_args()
    main(given.lab.resolve(), given.directory.resolve(), given.weights, given.budgets, given.groups)
