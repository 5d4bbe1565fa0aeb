"""The stages of a campaign in pipeline order. Each reads files, does one thing, writes files; none prints.

A finished stage is not repeated: packed corpora, complete runs, a fit of the same curves and a plan of the same fit
and goal are found by what they are made of.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cptplan import campaign
from cptplan.checks import check_vocabulary
from cptplan.config import Project, Start, parse_weights
from cptplan.curves import LossCurve, read_curve_directory, write_curve
from cptplan.design import pilot_specs, run_spec
from cptplan.errors import ConfigError, CurveError, DataError, PoorFitError, RunFailedError
from cptplan.files import hash_file, hash_json, read_json, write_bytes, write_json
from cptplan.fit.fitted import FittedLaw
from cptplan.fit.select import select_law
from cptplan.fit.store import read_fit, write_fit
from cptplan.forecast import Forecaster, StartState
from cptplan.hardware import find_hardware
from cptplan.launch import check_target, write_launch
from cptplan.laws.history import history_of
from cptplan.plan import Plan, PlannedRun, make_plan, read_plan, write_plan
from cptplan.run_spec import RunSpec, read_run_spec
from cptplan.workspace import Workspace

DEVICES_PER_NODE = 8  # assumed: the common server
POOR_FIT = 0.1  # assumed: a law that misses unseen pilots by a tenth cannot rank plans

Note = Callable[[int, int, str], None]
"""Told how far a stage is: done, total, message."""


def quiet(done: int, total: int, message: str) -> None:
    """A note that nobody reads."""


def pack_data(project: Project, workspace: Workspace, note: Note = quiet) -> dict[str, Any]:
    """Read, split, tokenize and pack the corpora.

    Returns:   corpora.json: tokens, documents and hashes of every source.
    Raises:    DataError in the packer's words; RunFailedError if it ended otherwise.
    """
    corpora = [("general", project.data.general), *(("domain", domain) for domain in project.data.domains)]
    spec = {
        "schema_version": 1,
        "out": str(workspace.data.resolve()),
        "seed": project.data.seed,
        "tokenizer": _tokenizer(project),
        "validation_share": project.data.validation_share,
        "sources": [_corpus_source(role, corpus.to_json()) for role, corpus in corpora],
    }
    spec_path = workspace.data / "spec.json"
    write_json(spec_path, spec)
    command = [sys.executable, "-m", "executor.corpus", "--spec", str(spec_path)]
    _run_process(command, workspace.data, note)
    return read_corpora(workspace)


def read_corpora(workspace: Workspace) -> dict[str, Any]:
    """corpora.json of a campaign.

    Raises:    DataError if nothing is packed yet.
    """
    path = workspace.data / "corpora.json"
    if not path.exists():
        raise DataError(f"corpora must be packed; got no {path}.", hint="run cptplan data pack")
    found: dict[str, Any] = read_json(path)
    return found


def _tokenizer(project: Project) -> dict[str, Any]:
    if project.data.train_tokenizer is not None:
        return {"train": {"vocab_size": project.data.train_tokenizer}}
    return {"path": project.data.tokenizer or project.model.starts[0].path}


def _corpus_source(role: str, corpus: Mapping[str, Any]) -> dict[str, Any]:
    kind = str(corpus["path"]) if str(corpus["path"]).startswith("embedded:") else "files"
    source = {"name": corpus["name"], "role": role, "kind": kind, "max_bytes": corpus.get("max_bytes")}
    if kind == "files":
        # as the project has it, so that a project that was moved with its corpora keeps what it packed
        source |= {"path": corpus["path"], "text_column": corpus["text_column"]}
    return {key: value for key, value in source.items() if value is not None}


def _run_process(command: Sequence[str], directory: Path, note: Note) -> None:
    """Run one process that writes progress.json and log.txt in a directory, and pass its progress on."""
    with (directory / "log.txt").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            while process.poll() is None:
                time.sleep(campaign.POLL_SECONDS)
                _pass_on(directory / "progress.json", note)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    if process.returncode == 0:
        return
    lines = (directory / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    said = {key: line.removeprefix(f"{key}: ") for key in ("error", "hint") for line in lines if line.startswith(key)}
    kind = DataError if process.returncode == DataError.exit_code else RunFailedError
    message = said.get("error", lines[-1] if lines else "nothing")
    raise kind(message, hint=said.get("hint", f"see {directory / 'log.txt'}"))


def _pass_on(path: Path, note: Note) -> None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        note(int(record["done"]), int(record["total"]), str(record["message"]))
    except (OSError, ValueError, KeyError):
        pass  # not there yet, or being replaced


def run_jobs(
    project: Project, jobs: Sequence[campaign.Job], note: Note = quiet, threads: int | None = None
) -> list[dict[str, Any]]:
    """Train runs, a few at a time, with progress in optimiser steps over all of them.

    Args:      threads: CPU threads of each process, instead of the pilots'.
    """

    def report(statuses: Sequence[campaign.RunStatus]) -> None:
        running = [f"{s.name} {s.done}/{s.total}" for s in statuses if s.state == "running"]
        note(sum(s.done for s in statuses), sum(s.total for s in statuses), ", ".join(running))

    threads = threads or project.pilot.threads
    return campaign.run_all(jobs, parallel=project.pilot.parallel, threads=threads, report=report)


def pilot_jobs(project: Project, workspace: Workspace) -> list[campaign.Job]:
    """The designed pilots as jobs."""
    specs = pilot_specs(project, str(workspace.data.resolve()))
    return campaign.jobs_of(specs, workspace.runs, project.pilot.processes)


def run_pilots(
    project: Project, workspace: Workspace, corpora: Mapping[str, Any], note: Note = quiet
) -> list[dict[str, Any]]:
    """Train the designed pilots and gather their curves, with those of pre-training when the project has them.

    Returns:   result.json of every pilot.
    Raises:    DataError if a corpus is too small for the pilots or the budget; ModelError if a start cannot read the
               tokens; RunFailedError if a run fails.
    """
    jobs = pilot_jobs(project, workspace)
    for job in jobs:
        require_tokens(corpora, tokens_of_run(job.spec))
    require_tokens(corpora, tokens_of_budget(project))
    check_vocabulary(project, corpora, workspace.data)
    results = run_jobs(project, jobs, note)
    collect_curves(workspace.curves, [job.run_dir for job in jobs])
    if project.model.pretrain_curves is not None:
        for name, curve in read_curve_directory(Path(project.model.pretrain_curves)).items():
            if not (workspace.curves / f"{name}.csv").exists():
                write_curve(workspace.curves, curve)
    return results


def require_tokens(corpora: Mapping[str, Any], needed: Mapping[str, int]) -> None:
    """Raise DataError if a corpus has fewer tokens than one pass needs.

    Args:      corpora: corpora.json. needed: training tokens by source.
    """
    for source in corpora["sources"]:
        name, there = source["name"], source["train"]["num_tokens"]
        if there < needed[name]:
            raise DataError(
                f"corpus must hold the tokens that a run trains on, once; got {there:,} tokens, needed "
                f"{needed[name]:,} in {name}.",
                hint="add text, or shorten the runs: pilot.total_steps, budget.tokens",
            )


def tokens_of_run(spec: RunSpec) -> dict[str, int]:
    """Training tokens of a run by source."""
    return _by_source(spec.total_tokens, float(np.mean(spec.replay_ratios())), spec)


def tokens_of_budget(project: Project) -> dict[str, int]:
    """Tokens of every source without which no run of the whole budget exists, whatever its replay ratio."""
    spec = pilot_specs(project, "")[0]
    least, most = (_by_source(project.budget.tokens, replay, spec) for replay in project.pilot.replay_range)
    return {name: min(least[name], most[name]) for name in least}


def _by_source(tokens: int, replay_ratio: float, spec: RunSpec) -> dict[str, int]:
    weights = sum(source.weight for source in spec.sources if source.role == "domain")
    shares = {
        source.name: replay_ratio if source.role == "general" else (1.0 - replay_ratio) * source.weight / weights
        for source in spec.sources
    }
    return {name: int(tokens * share) for name, share in shares.items()}


def collect_curves(curves_dir: Path, run_dirs: Sequence[Path]) -> None:
    """Copy the curves of finished runs into a curve directory, under the runs' names."""
    for run_dir in run_dirs:
        name = read_json(run_dir / "spec.json")["name"]
        for suffix in ("csv", "json"):
            write_bytes(curves_dir / f"{name}.{suffix}", (run_dir / f"curve.{suffix}").read_bytes())


def fit(
    curves_dir: Path, fits_dir: Path, names: Sequence[str] | None = None, note: Note = quiet, seed: int = 0
) -> Path:
    """Fit the law of every validation set to the curves of a directory.

    Args:      names: curves to fit to, with their parents; all when None.
    Returns:   the directory of the fit, named by the hash of the curves.
    Raises:    CurveError if the curves break the contract or are too few.
    """
    curves = read_curve_directory(curves_dir, names)
    pilots = [curve for curve in curves.values() if curve.record.phase == "cpt"]
    check_same_batch(pilots, curves_dir)
    sets = list(dict.fromkeys(name for curve in pilots for name in curve.losses))
    digests = {
        f"{name}.{suffix}": hash_file(curves_dir / f"{name}.{suffix}") for name in curves for suffix in ("csv", "json")
    }
    curves_hash = hash_json({"curves": digests, "seed": seed})
    directory = fits_dir / curves_hash
    if not (directory / "law.json").exists():
        directory.mkdir(parents=True, exist_ok=True)  # a place that cannot be written is found before the work
        selections = {}
        for number, name in enumerate(sets):
            note(number, len(sets), f"loss_{name}")
            selections[name] = select_law(curves, name, "general" if name == "general" else "domain", seed=seed)
        write_fit(directory, curves_hash, selections)
        note(len(sets), len(sets), "")
    write_json(fits_dir / "latest.json", {"schema_version": 1, "hash": curves_hash})
    return directory


def check_same_batch(curves: Sequence[LossCurve], where: Path) -> None:
    """Raise CurveError unless all curves have one batch size: the laws count time in steps of one batch."""
    sizes = {curve.record.batch_tokens for curve in curves if curve.record.batch_tokens is not None}
    if len(sizes) > 1:
        raise CurveError(
            f"curves must have one batch_tokens; got {sorted(sizes)} in {where}.",
            hint="fit the batch sizes apart, with --train",
        )


def forecaster(
    project: Project, workspace: Workspace, laws: Mapping[str, FittedLaw], weights: Mapping[str, float]
) -> Forecaster:
    """The fitted laws with the project's starts and goal; changes are measured against the last start, the base."""
    curves = read_curve_directory(workspace.curves)
    specs = pilot_specs(project, str(workspace.data.resolve()))
    starts = {start.name: _start_state(start, specs, curves, laws) for start in project.model.starts}
    return Forecaster(
        laws=laws,
        starts=starts,
        base=project.model.starts[-1].name,
        weights=dict(weights),
        warmup_steps=project.pilot.warmup_steps,
        max_general_increase=project.goal.max_general_increase,
        confidence=project.goal.confidence,
        batch_tokens=project.pilot.batch_tokens,
        **_tokens_there(project, workspace),
    )


def _tokens_there(project: Project, workspace: Workspace) -> dict[str, float]:
    """Training tokens that a plan may use; no limit when the corpora are not packed here."""
    marker = workspace.data / "corpora.json"
    if not marker.exists():
        return {}
    there = {source["name"]: source["train"]["num_tokens"] for source in read_json(marker)["sources"]}
    whole = sum(domain.weight for domain in project.data.domains)
    domains = [there[d.name] * whole / d.weight for d in project.data.domains if d.weight > 0]
    return {"general_tokens": float(there[project.data.general.name]), "domain_tokens": float(min(domains))}


def _start_state(
    start: Start, specs: Sequence[RunSpec], curves: Mapping[str, LossCurve], laws: Mapping[str, FittedLaw]
) -> StartState:
    """Losses of a checkpoint before CPT, from step 0 of a pilot that began there."""
    for curve in (curves[spec.name] for spec in specs if spec.model.path == start.path and spec.name in curves):
        if curve.steps[0] == 0 and all(name in curve.losses for name in laws):
            losses = {name: float(curve.losses[name][0]) for name in laws}
            return StartState(name=start.name, pretrain_lr=history_of(curve, curves).pretrain_lr, losses=losses)
    raise ConfigError(
        f"start {start.name!r} must have a pilot that began there and was evaluated at step 0; got none.",
        hint="run cptplan pilot",
    )


def optimize(
    project: Project, workspace: Workspace, weights: Mapping[str, float], fit_dir: Path | None = None, trials: int = 120
) -> tuple[Path, Plan]:
    """Search for the best run under the project's budget.

    Returns:   the directory of the plan (plan.json, study.journal) and the plan.
    Raises:    ConfigError without a fit; InfeasiblePlanError if nothing keeps the constraints.
    """
    fit_dir = fit_dir or workspace.latest("fits")
    goal = {
        "fit": fit_dir.name,
        "weights": dict(weights),
        "goal": project.goal.model_copy(update={"weights": {}}).to_json(),
        "budget": project.budget.to_json(),
        "trials": trials,
    }
    name = hash_json(goal)
    directory = workspace.plans / name
    if not (directory / "plan.json").exists():
        ready = forecaster(project, workspace, read_fit(fit_dir), weights)
        plan = make_plan(project, ready, fit_dir.name, directory / "study.journal", trials=trials, seed=project.seed)
        write_plan(directory / "plan.json", plan)
    workspace.set_latest("plans", name)
    return directory, read_plan(directory / "plan.json")


def planned_spec(project: Project, workspace: Workspace, run: PlannedRun, name: str) -> RunSpec:
    """The run spec of a planned run."""
    start = next((s for s in project.model.starts if s.name == run.start), None)
    if start is None:
        raise ConfigError(f"plan's start must be one of the project's; got {run.start!r}.", hint="run cptplan optimize")
    return run_spec(
        project,
        os.fspath(workspace.data.resolve()),
        name=name,
        start=start,
        schedule=run.schedule,
        replay_ratio=run.replay_ratio,
    )


def goal_weights(project: Project, text: str | None) -> dict[str, float]:
    """Normalised weights: of --weights when given, else of the project."""
    domains = [domain.name for domain in project.data.domains]
    given = text if text is not None else ",".join(f"{name}={weight}" for name, weight in project.goal.weights.items())
    return parse_weights(given, domains)


def fit_summary(fit_dir: Path) -> dict[str, Any]:
    """law.json and report.json of a fit."""
    return {"fit": fit_dir.name, "law": read_json(fit_dir / "law.json"), "report": read_json(fit_dir / "report.json")}


def check_fit(fit_dir: Path, *, allow_poor: bool) -> None:
    """Raise PoorFitError if a law misses unseen pilots by more than it may, unless that is allowed."""
    for name, law in read_fit(fit_dir).items():
        if law.discrepancy > POOR_FIT and not allow_poor:
            raise PoorFitError(
                f"a law must predict unseen pilots within {POOR_FIT:.0%}; got {law.discrepancy:.1%} for loss_{name} "
                f"in {fit_dir}.",
                hint="look at the pilots' curves, run more pilots, or give --allow-poor-fit",
            )


def write_launch_files(project: Project, workspace: Workspace, target: str) -> Path:
    """Write the launch files of the newest plan's run for a target.

    Returns:   launch/<target>/, which holds launch.sh and run/spec.json.
    Raises:    ConfigError for an unknown target or without a plan; DataError if a corpus is too small for the run.
    """
    check_target(target)
    plan = read_plan(workspace.latest("plans") / "plan.json")
    spec = planned_spec(project, workspace, plan.chosen, "final")
    require_tokens(read_corpora(workspace), tokens_of_run(spec))
    local = target == "local"
    name = (
        ("cpu" if shutil.which("nvidia-smi") is None else project.budget.hardware) if local else project.budget.hardware
    )
    devices = project.pilot.processes if local else project.budget.num_devices
    write_launch(
        target,
        spec,
        workspace.launch,
        hardware=find_hardware(name),
        num_processes=devices,
        num_nodes=1 if local else max(-(-devices // DEVICES_PER_NODE), 1),
    )
    return workspace.launch / target


def final_job(workspace: Workspace, target: str = "local") -> campaign.Job:
    """The launched run as a job: its command is the launch script itself."""
    directory = workspace.launch / target
    spec = read_run_spec(directory / "run" / "spec.json")
    return campaign.Job(
        spec=spec, run_dir=directory / "run", command=("bash", str((directory / "launch.sh").resolve()))
    )


def rule_of_thumb_job(project: Project, workspace: Workspace, plan: Plan) -> campaign.Job:
    """The run that most people would start today, to compare with."""
    spec = planned_spec(project, workspace, plan.rule_of_thumb, "rule-of-thumb")
    require_tokens(read_corpora(workspace), tokens_of_run(spec))
    return campaign.jobs_of([spec], workspace.runs, project.pilot.processes)[0]


def run_final(project: Project, workspace: Workspace, target: str, note: Note = quiet) -> dict[str, Any]:
    """Run the launch script here and wait for its result."""
    (result,) = run_jobs(project, [final_job(workspace, target)], note)
    return result
