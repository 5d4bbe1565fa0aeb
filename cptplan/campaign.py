"""Run many training runs as separate processes, a few at a time; safe to stop and to start again.

The planner writes runs/<name>/spec.json and starts the executor; a run with result.json is never run again, an
incomplete one resumes. A run whose planner was killed goes on, and holds its directory's lock: starting it again waits
for it instead of repeating it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cptplan.errors import ConfigError, RunFailedError, StorageError
from cptplan.files import read_json
from cptplan.run_spec import RunSpec, read_run_spec, write_run_spec

POLL_SECONDS = 0.25
STOPPED = "stopped"  # what a run says in progress.json that a signal has asked to end
STOP_SECONDS = 20.0  # assumed: what a run may take to write its checkpoint after Ctrl-C


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStatus:
    """How far one run is."""

    name: str
    done: int
    total: int
    state: str
    """waiting, running or complete."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One run to bring to completion, and the command that does it."""

    spec: RunSpec
    run_dir: Path
    command: tuple[str, ...]


Report = Callable[[Sequence[RunStatus]], None]


def is_complete(run_dir: Path, spec: RunSpec) -> bool:
    """Whether the directory holds the finished result of this very spec.

    Raises:    StorageError if it belongs to another spec.
    """
    spec_path = run_dir / "spec.json"
    if spec_path.exists() and read_run_spec(spec_path).hash != spec.hash:
        raise StorageError(
            f"run directory must belong to one spec; got another one in {spec_path}.",
            hint="choose another --out, or remove the directory if the old run is not wanted",
        )
    return (run_dir / "result.json").exists()


def executor_command(run_dir: Path, processes: int) -> tuple[str, ...]:
    """The command that trains one run on this machine: torchrun, one process for each device."""
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}")
    return (*launcher, "-m", "executor.train", "--run-dir", str(run_dir.resolve()))


def jobs_of(specs: Sequence[RunSpec], runs_dir: Path, processes: int = 1) -> list[Job]:
    """One job for each spec, in its own directory of runs_dir."""
    return [
        Job(spec=spec, run_dir=runs_dir / spec.name, command=executor_command(runs_dir / spec.name, processes))
        for spec in specs
    ]


def has_accelerator() -> bool:
    """Whether this machine has a GPU that torch could use, told without importing torch."""
    return any(shutil.which(tool) for tool in ("nvidia-smi", "rocm-smi"))


def run_all(
    jobs: Sequence[Job], *, parallel: int = 1, threads: int | None = None, report: Report = lambda _: None
) -> list[dict[str, Any]]:
    """Train every job that is not complete yet, in order, `parallel` at a time.

    Args:      threads: CPU threads of each process; an equal share of the cores when None. report: told the state of
               all runs a few times a second.
    Returns:   result.json of every run, in the order of jobs.
    Raises:    RunFailedError naming the run, its exit code and its last words; the other runs are stopped and resume
               next time. KeyboardInterrupt is passed on after the runs have written their checkpoints.
    """
    waiting = [job for job in jobs if not is_complete(job.run_dir, job.spec)]
    live: dict[str, _Live] = {}
    # the share of a full house even when few runs are left: sums over threads depend on how many there are
    share = max((os.cpu_count() or 1) // parallel, 1)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads or share)}
    if not has_accelerator():
        environment.setdefault("ACCELERATE_USE_CPU", "true")  # else several processes would each train alone
    try:
        while waiting or live:
            while waiting and len(live) < parallel:
                job = waiting.pop(0)
                live[job.spec.name] = _start(job, environment)
            time.sleep(POLL_SECONDS)
            for name in [name for name, started in live.items() if started.process.poll() is not None]:
                ended = live.pop(name)
                if _was_preempted(ended):
                    live[name] = _start(ended.job, environment)
                else:
                    _check_ended(ended)
            report([_status(job, job.spec.name in live) for job in jobs])
    finally:
        _stop([started.process for started in live.values()])
    return [read_json(job.run_dir / "result.json") for job in jobs]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Live:
    """A run that was started, and where its log and its steps were then."""

    job: Job
    process: subprocess.Popen[bytes]
    log_bytes: int
    done: int


def _start(job: Job, environment: dict[str, str]) -> _Live:
    if not (job.run_dir / "spec.json").exists():
        write_run_spec(job.run_dir / "spec.json", job.spec)
    with (job.run_dir / "log.txt").open("ab") as log:
        log_bytes = log.tell()
        process = subprocess.Popen(
            job.command,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches the planner alone, which stops the runs in order
        )
        return _Live(job=job, process=process, log_bytes=log_bytes, done=_progress(job.run_dir)[0])


def _was_preempted(ended: _Live) -> bool:
    """Whether a run was asked by a signal to save and end, and has got on since it was started: it may go on.

    Told by what it left, because torchrun does not pass on the exit code of its processes.
    """
    done, message = _progress(ended.job.run_dir)
    # fewer steps than at the start are those after a checkpoint that the kill of an earlier start has cost
    return ended.process.returncode != 0 and message == STOPPED and done != ended.done


def _check_ended(ended: _Live) -> None:
    """Raise RunFailedError in the run's own words unless it ended with a result."""
    run_dir, returncode = ended.job.run_dir, ended.process.returncode
    if returncode == 0 and (run_dir / "result.json").exists():
        return
    text = (run_dir / "log.txt").read_bytes()[ended.log_bytes :].decode(errors="replace")
    raise RunFailedError(
        f"run {run_dir.name} must end with a result; got exit code {returncode}: {last_words(text)}.",
        hint=f"see {run_dir / 'log.txt'}; the same command resumes it",
    )


def last_words(log: str) -> str:
    """Why a run ended, from its log: what it says itself, else the signal or the exception, else the last line."""
    for pattern in (r"^error: (.*)", r"traceback : (Signal .*)", r"^(?:\[rank\d+\]: )?([\w.]*(?:Error|Exception): .+)"):
        found = re.findall(pattern, log, flags=re.MULTILINE)
        if found:
            return str(found[-1]).strip().removesuffix(".")
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return lines[-1] if lines else "nothing said"


def _status(job: Job, running: bool) -> RunStatus:
    spec, run_dir, total = job.spec, job.run_dir, job.spec.total_steps
    if (run_dir / "result.json").exists():
        return RunStatus(name=spec.name, done=total, total=total, state="complete")
    done, _ = _progress(run_dir)
    return RunStatus(name=spec.name, done=done, total=total, state="running" if running else "waiting")


def _progress(run_dir: Path) -> tuple[int, str]:
    """Steps done and what the run is doing, as it last said."""
    with contextlib.suppress(OSError, ValueError, KeyError):  # not there yet, or being replaced
        said = json.loads((run_dir / "progress.json").read_text(encoding="utf-8"))
        return int(said["done"]), str(said["message"])
    return 0, ""


def _stop(live: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask the runs to checkpoint and end; those that do not are killed, and lose nothing but time."""
    for process in live:
        process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    for process in live:
        try:
            process.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def status_of_directory(runs_dir: Path) -> list[RunStatus]:
    """How far the runs of a directory are; one counts as running when its progress is fresh.

    Raises:    ConfigError if there is none.
    """
    specs = sorted(runs_dir.glob("*/spec.json"))
    if not specs:
        raise ConfigError(f"runs must be there; got none in {runs_dir}.", hint="cptplan pilot starts them")
    return [
        _status(Job(spec=read_run_spec(path), run_dir=path.parent, command=()), is_fresh(path.parent / "progress.json"))
        for path in specs
    ]


def is_fresh(path: Path, seconds: float = 30.0) -> bool:
    """Whether a progress file was written lately."""
    return path.exists() and time.time() - path.stat().st_mtime < seconds
