"""The generated scripts, really started: on this machine, and as a Slurm job with stand-ins for Slurm's commands."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np
import pytest
from executor_runs import make_spec, result, train_losses, write_corpora

from cptplan.launch import write_launch
from cptplan.price.hardware import find_hardware

LIMIT_SECONDS = 120  # a start takes seconds of imports, several at once on two cores
STAND_INS = {
    # runs a copy of the job from another place, as Slurm does
    "sbatch": """job="$PWD/job.sbatch"; cp "$job" "$SPOOL/job"; export SLURM_SUBMIT_DIR="$PWD" SLURM_JOB_ID=4242
export SLURM_JOB_NODELIST=localhost SLURM_CPUS_PER_TASK=1 SLURM_PROCID=0; cd /; exec bash "$SPOOL/job\"""",
    # two nodes of one process, here: the rank is known in each task and not before; one that fails ends the other
    "srun": """shift; pids=(); for rank in 0 1; do SLURM_PROCID=$rank SLURM_LOCALID=0 "$@" & pids+=($!); done
for pid in "${pids[@]}"; do wait -n || { code=$?; kill "${pids[@]}" || true; exit "$code"; }; done""",
    "scontrol": '[[ "$1" == show ]] && printf "%s\\n" 127.0.0.1 127.0.0.2',
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Corpora in a directory with a blank in its name; the spec names them by relative paths."""
    directory = tmp_path / "my project"
    directory.mkdir()
    monkeypatch.chdir(directory)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write_corpora(directory)
    return directory


def relative_spec(project, **changes):
    return make_spec(project.relative_to(project), **changes)


def run_script(launch, cwd, **environment):
    done = subprocess.run(
        ["bash", launch.script],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_local_run_ends_the_same_alone_moved_and_stopped(project, tmp_path):
    spec = relative_spec(project, checkpoint_every=2)
    cpu = find_hardware("cpu")
    alone = write_launch("local", spec, project / "launch", hardware=cpu, python=sys.executable)
    pair = write_launch("local", spec, project / "two", hardware=cpu, num_processes=2, python=sys.executable)
    moved = project.rename(tmp_path / "moved")
    alone, pair = (launch.directory.relative_to(project) for launch in (alone, pair))

    subprocess.run(["bash", moved / alone / "launch.sh"], cwd="/", check=True, timeout=LIMIT_SECONDS)
    assert result(moved / alone / "run")["spec_hash"] == spec.hash
    again = subprocess.run(["bash", moved / alone / "launch.sh"], cwd="/", capture_output=True, text=True, check=True)
    assert "is complete" in again.stderr

    process = subprocess.Popen(["bash", moved / pair / "launch.sh"])
    deadline = time.monotonic() + LIMIT_SECONDS
    while not list((moved / pair / "run").glob("checkpoints/step-*")):
        assert process.poll() is None, "the run ended before it could be stopped"
        assert time.monotonic() < deadline, "no checkpoint"
        time.sleep(0.01)
    process.terminate()  # reaches the trainers through bash and torchrun
    assert process.wait(LIMIT_SECONDS) != 0
    assert not (moved / pair / "run" / "result.json").exists()
    subprocess.run(["bash", moved / pair / "launch.sh"], cwd="/", check=True, timeout=LIMIT_SECONDS)
    # 1e-5: two processes add the gradients of a batch in another order
    np.testing.assert_allclose(train_losses(moved / pair / "run"), train_losses(moved / alone / "run"), rtol=1e-5)


def test_accelerate_command_joins_its_processes(project):
    launch = write_launch(
        "accelerate",
        relative_spec(project),
        project / "launch",
        hardware=find_hardware("h100-sxm"),
        num_processes=2,
        strategy="ddp",
        python=sys.executable,
    )
    run_script(launch, "/", ACCELERATE_USE_CPU="true")  # the one thing that is not as on accelerators
    assert result(launch.run_dir)["num_processes"] == 2


def test_slurm_job_joins_its_nodes(project, tmp_path):
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, body in STAND_INS.items():
        (commands / name).write_text(f"#!/usr/bin/env bash\nset -eu\n{body}\n")
        (commands / name).chmod(0o755)
    launch = write_launch(
        "slurm",
        relative_spec(project),
        project / "launch",
        hardware=find_hardware("cpu"),
        num_processes=2,
        num_nodes=2,
        python=sys.executable,
    )
    run_script(launch, "/", PATH=f"{commands}:{os.environ['PATH']}", SPOOL=str(tmp_path))
    assert result(launch.run_dir)["num_processes"] == 2


def test_slurm_job_submitted_from_elsewhere_says_so(project, tmp_path):
    launch = write_launch("slurm", relative_spec(project), project / "launch", hardware=find_hardware("cpu"))
    done = subprocess.run(
        ["bash", launch.directory / "job.sbatch"],
        env={**os.environ, "SLURM_SUBMIT_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "must be submitted from its own directory" in done.stderr
