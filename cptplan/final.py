"""The planned run: its spec, the files that launch it, and running it here beside the rule of thumb."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cptplan import campaign
from cptplan.config import Launch, Project
from cptplan.errors import ConfigError
from cptplan.launch import check_target, parse_options, write_launch
from cptplan.pilots.design import run_spec
from cptplan.planning.plan import Plan, PlannedRun, read_plan
from cptplan.price.flops import training_flops
from cptplan.price.hardware import Hardware, find_hardware
from cptplan.price.model_shape import read_model_shape
from cptplan.run_options import Accounting
from cptplan.run_spec import RunSpec, read_run_spec
from cptplan.stages import Note, quiet, read_corpora, require_tokens, run_jobs, tokens_of_run
from cptplan.workspace import Workspace

RUNS_HERE = ("local", "torchrun", "accelerate")
"""Targets whose launch script trains on this machine and leaves a result."""
DEVICES_PER_NODE = 8  # assumed: the common server


def planned_spec(project: Project, workspace: Workspace, run: PlannedRun, name: str) -> RunSpec:
    """The run spec of a planned run."""
    start = next((s for s in project.model.starts if s.name == run.start), None)
    if start is None:
        raise ConfigError(f"plan's start must be one of the project's; got {run.start!r}.", hint="run cptplan optimize")
    spec = run_spec(
        project,
        os.fspath(workspace.data.resolve()),
        name=name,
        start=start,
        schedule=run.schedule,
        replay_ratio=run.replay_ratio,
    )
    return spec.model_copy(update={"mixture": run.mixture})


def write_launch_files(
    project: Project,
    workspace: Workspace,
    target: str,
    options: Sequence[str] = (),
    allow_loss_of: Sequence[str] = (),
) -> Path:
    """Write the launch files of the newest plan's run for a target.

    Args:      options: key=value pairs of the target, over the project's. allow_loss_of: what a recipe for another
               trainer may drop, besides what the project allows.
    Returns:   launch/<target>/, which holds launch.sh, manifest.json and run/spec.json.
    Raises:    ConfigError for an unknown target, what it cannot express, or without a plan; DataError if a corpus is
               missing or too small for the run.
    """
    check_target(target)
    ours = project.launch if project.launch.target == target else Launch()
    chosen = parse_options(target, [*(f"{key}={value}" for key, value in ours.options.items()), *options])
    plan = read_plan(workspace.latest("plans") / "plan.json")
    local = target == "local"
    here = project.budget.hardware if campaign.has_accelerator() else "cpu"
    hardware = find_hardware(here if local else project.budget.hardware)
    spec = planned_spec(project, workspace, plan.chosen, "final")
    spec = spec.model_copy(update={"accounting": _accounting(hardware, spec)})
    require_tokens(read_corpora(workspace), tokens_of_run(spec), project.budget.max_epochs)
    devices = project.pilot.processes if local else project.budget.num_devices
    write_launch(
        target,
        spec,
        workspace.launch,
        hardware=hardware,
        num_processes=devices,
        num_nodes=1 if local else max(-(-devices // DEVICES_PER_NODE), 1),
        options=chosen,
        allow_loss_of=(*ours.allow_loss_of, *allow_loss_of),
    )
    return workspace.launch / target


def _accounting(hardware: Hardware, spec: RunSpec) -> Accounting | None:
    """What the run's log needs for its MFU and its price; None for a CPU, whose peak is a guess.

    FLOPs of a token count attention without its causal half, as the published MFU figures do, where the start is a
    directory with its shape; else the trainer takes 6 N.
    """
    if hardware.kind == "cpu":
        return None
    price, directory = hardware.usd_per_hour, Path(spec.model.path or "")
    per_token = None
    if (directory / "config.json").is_file():
        per_token = training_flops(read_model_shape(directory), 1.0, spec.seq_len, causal=False)
    return Accounting(
        peak_flops=hardware.peak_flops.value,
        flops_per_token=per_token,
        usd_per_device_hour=None if price is None else price.value,
    )


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
    require_tokens(read_corpora(workspace), tokens_of_run(spec), project.budget.max_epochs)
    return campaign.jobs_of([spec], workspace.runs, project.pilot.processes)[0]


def run_final(project: Project, workspace: Workspace, target: str, note: Note = quiet) -> dict[str, Any]:
    """Run the launch script here and wait for its result.

    Raises:    ConfigError for a target that trains elsewhere, or by another trainer; RunFailedError if the run fails.
    """
    if target not in RUNS_HERE:
        raise ConfigError(
            f"--run must come with target {', '.join(RUNS_HERE)}; got {target}.",
            hint=f"bash {workspace.launch / target / 'launch.sh'}",
        )
    (result,) = run_jobs(project, [final_job(workspace, target)], note)
    return result
