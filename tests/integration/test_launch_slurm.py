"""The Slurm files on a real Slurm of one node: accepted, run, preempted, put back into the queue, completed."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np
import pytest
import slurm_cluster
from executor_runs import make_spec, result, train_losses, write_corpora

from cptplan.launch import parse_options, write_launch
from cptplan.price.hardware import find_hardware
from cptplan.schedule import CosineSchedule

pytestmark = pytest.mark.skipif(bool(slurm_cluster.missing()), reason=f"no {', '.join(slurm_cluster.missing())}")
LIMIT_SECONDS = 120


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    with slurm_cluster.cluster(tmp_path_factory.mktemp("slurm")) as environment:
        yield {**os.environ, **environment, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def project(tmp_path, monkeypatch):
    directory = tmp_path / "it's a $(project)"
    directory.mkdir()
    monkeypatch.chdir(directory)
    write_corpora(directory)
    return directory


def launch_files(project, **changes):
    spec = make_spec(project.relative_to(project), **changes)
    return write_launch("slurm", spec, project / "launch", hardware=find_hardware("cpu"), num_processes=2,
                        python=sys.executable, options=parse_options("slurm", ["time_limit=00:10:00"]))  # fmt: skip


def run(slurm, *command, check=True):
    done = subprocess.run(command, env=slurm, capture_output=True, text=True, check=False, timeout=LIMIT_SECONDS)
    assert done.returncode == 0 or not check, done.stdout + done.stderr
    return done.stdout + done.stderr


def submit(slurm, launch):
    return run(slurm, "bash", launch.script).split()[-1]


def state(slurm, job):
    said = run(slurm, "scontrol", "show", "job", job)
    return dict(word.partition("=")[::2] for word in said.split())


def wait_for(condition, what, slurm=None, job=None, log=None):
    limit = time.monotonic() + LIMIT_SECONDS
    while not condition():
        if time.monotonic() > limit:
            said = log.read_text() if log is not None and log.exists() else "no log"
            raise AssertionError(f"waited in vain for {what}: {state(slurm, job) if job else ''} {said}")
        time.sleep(0.1)


def lines(launch):
    path = launch.run_dir / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_job_is_accepted(slurm, project):
    assert "to start at" in run(slurm, "bash", launch_files(project).script, "--test-only")


@pytest.mark.parametrize("signal", ["USR1", pytest.param("TERM", marks=pytest.mark.slow)])
def test_preempted_job_goes_back_into_the_queue_and_completes(slurm, project, signal):
    schedule = CosineSchedule(kind="cosine", peak_lr=1e-2, total_steps=200, warmup_steps=4, min_lr=1e-4)
    launch = launch_files(project, schedule=schedule, checkpoint_every=100_000, eval_steps=(0, 200), keep_steps=())
    job = submit(slurm, launch)
    log = launch.directory / f"run-{job}.log"
    wait_for(lambda: lines(launch) > 20, "steps", slurm, job, log)
    run(slurm, "scancel", f"--signal={signal}", job)
    wait_for(lambda: state(slurm, job)["JobState"] == "PENDING", "the queue", slurm, job, log)
    assert not (launch.run_dir / "result.json").exists()
    saved = sorted((launch.run_dir / "checkpoints").glob("step-*"))
    assert saved, "no checkpoint was saved"
    assert "stopped with a checkpoint; back into the queue" in log.read_text()
    # Slurm itself waits two minutes with a second start; within a second of the first end it would be refused
    time.sleep(3)
    run(slurm, "scontrol", "update", f"JobId={job}", "StartTime=now")
    wait_for((launch.run_dir / "result.json").exists, "the end", slurm, job, log)
    wait_for(lambda: state(slurm, job)["JobState"] == "COMPLETED", "the job's end", slurm, job, log)
    assert state(slurm, job)["Restarts"] == "1"
    assert f"/{saved[-1].name}\n" in log.read_text().split("resumed from")[1]
    assert result(launch.run_dir)["num_processes"] == 2
    assert len(train_losses(launch.run_dir)) == 200
    assert np.isfinite(train_losses(launch.run_dir)).all()


@pytest.mark.slow
def test_cancelled_job_stays_away(slurm, project):
    schedule = CosineSchedule(kind="cosine", peak_lr=1e-2, total_steps=5000, warmup_steps=4, min_lr=1e-4)
    launch = launch_files(project, schedule=schedule, checkpoint_every=100_000, eval_steps=(0,), keep_steps=())
    job = submit(slurm, launch)
    wait_for(lambda: lines(launch) > 5, "steps", slurm, job, launch.directory / f"run-{job}.log")
    run(slurm, "scancel", job)
    wait_for(lambda: state(slurm, job)["JobState"] == "CANCELLED", "the cancellation", slurm, job)
    time.sleep(1)  # for a wrong requeue to show
    assert state(slurm, job)["JobState"] == "CANCELLED"


@pytest.mark.slow
def test_job_that_fails_is_not_started_again(slurm, project):
    launch = launch_files(project)
    (project / "domain" / "train.bin").unlink()
    job = submit(slurm, launch)
    wait_for(lambda: state(slurm, job)["JobState"] == "FAILED", "the failure", slurm, job)
    assert "error: " in (launch.directory / f"run-{job}.log").read_text()
    assert state(slurm, job)["Restarts"] == "0"
