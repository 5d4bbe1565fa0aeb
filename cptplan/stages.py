"""The stages of a campaign in pipeline order. Each reads files, does one thing, writes files; none prints.

A finished stage is not repeated: packed corpora, complete runs, a fit of the same curves and a plan of the same fit
and goal are found by what they are made of.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from cptplan import campaign
from cptplan.checks import check_vocabulary
from cptplan.config import Project
from cptplan.curves import PretrainSummary, read_curve, read_curve_directory, write_curve
from cptplan.errors import DataError, RunFailedError
from cptplan.files import read_json, write_json
from cptplan.pilots.design import final_passes, pilot_specs
from cptplan.planning.budget import budget_tokens
from cptplan.run_spec import RunSpec
from cptplan.workspace import Workspace

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
    source = {"name": corpus["name"], "role": role, "kind": kind}
    source |= {"max_bytes": corpus.get("max_bytes"), "provenance": corpus.get("provenance")}
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


def run_jobs(project: Project, jobs: Sequence[campaign.Job], note: Note = quiet) -> list[dict[str, Any]]:
    """Train runs, a few at a time, with progress in optimiser steps over all of them."""

    def report(statuses: Sequence[campaign.RunStatus]) -> None:
        running = [f"{s.name} {s.done}/{s.total}" for s in statuses if s.state == "running"]
        note(sum(s.done for s in statuses), sum(s.total for s in statuses), ", ".join(running))

    return campaign.run_all(jobs, parallel=project.pilot.parallel, threads=project.pilot.threads, report=report)


def pilot_jobs(project: Project, workspace: Workspace, corpora: Mapping[str, Any]) -> list[campaign.Job]:
    """The designed pilots as jobs."""
    passes = final_passes(project, budget_tokens(project), corpora)
    specs = pilot_specs(project, str(workspace.data.resolve()), passes)
    return campaign.jobs_of(specs, workspace.runs, project.pilot.processes)


def run_pilots(
    project: Project, workspace: Workspace, corpora: Mapping[str, Any], note: Note = quiet
) -> list[dict[str, Any]]:
    """Train the designed pilots and gather their curves, with those of pre-training when the project has them.

    Returns:   result.json of every pilot.
    Raises:    DataError if a corpus is too small for the pilots or the budget; ModelError if a start cannot read the
               tokens; RunFailedError if a run fails.
    """
    jobs = pilot_jobs(project, workspace, corpora)
    for job in jobs:
        require_tokens(corpora, tokens_of_run(job.spec), project.budget.max_epochs)
    require_tokens(corpora, tokens_of_budget(project), project.budget.max_epochs)
    check_vocabulary(project, corpora, workspace.data)
    results = run_and_collect(project, workspace, jobs, note)
    if project.model.pretrain_curves is not None:
        for name, curve in read_curve_directory(Path(project.model.pretrain_curves)).items():
            if not (workspace.curves / f"{name}.csv").exists():
                write_curve(workspace.curves, curve)
    return results


def run_and_collect(
    project: Project, workspace: Workspace, jobs: Sequence[campaign.Job], note: Note = quiet
) -> list[dict[str, Any]]:
    """Train runs and put their curves beside the others of the campaign.

    Returns:   result.json of every run.
    """
    results = run_jobs(project, jobs, note)
    collect_curves(workspace.curves, [job.run_dir for job in jobs])
    _tell_pretraining(project, workspace, jobs)
    return results


def _tell_pretraining(project: Project, workspace: Workspace, jobs: Sequence[campaign.Job]) -> None:
    """Write into the curves of pilots without a parent what the project says of their start's pre-training."""
    starts = {start.path: start for start in project.model.starts}
    for spec in (job.spec for job in jobs):
        start = starts.get(spec.model.path or "")
        if start is None or start.parent is not None or start.final_lr is None:
            continue
        curve = read_curve(workspace.curves, spec.name)
        told = PretrainSummary(peak_lr=project.model.pretrain_peak_lr, final_lr=start.final_lr)
        write_curve(workspace.curves, replace(curve, record=curve.record.model_copy(update={"pretrain": told})))


def require_tokens(corpora: Mapping[str, Any], needed: Mapping[str, int], max_epochs: float = 1.0) -> None:
    """Raise DataError if a corpus has fewer tokens than a run needs.

    Args:      corpora: corpora.json. needed: training tokens by source. max_epochs: times that they may be read.
    """
    for source in corpora["sources"]:
        name, there = source["name"], source["train"]["num_tokens"]
        if max_epochs * there < needed[name]:
            often = "once" if max_epochs == 1.0 else f"at most {max_epochs:g} times"
            raise DataError(
                f"corpus must hold the tokens that a run trains on, {often}; got {there:,} tokens, needed "
                f"{needed[name]:,} in {name}.",
                hint="add text, or shorten the runs: pilot.total_steps, budget.tokens",
            )


def tokens_of_run(spec: RunSpec) -> dict[str, int]:
    """Training tokens of a run by source."""
    return _by_source(spec.total_tokens, float(np.mean(spec.replay_ratios())), spec)


def tokens_of_budget(project: Project) -> dict[str, int]:
    """Tokens of every source without which no run of the whole budget exists, whatever its replay ratio."""
    spec = pilot_specs(project, "")[0]
    least, most = (_by_source(budget_tokens(project), replay, spec) for replay in project.pilot.replay_range)
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
        write_curve(curves_dir, replace(read_curve(run_dir, "curve"), name=name))
