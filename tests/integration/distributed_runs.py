"""Runs of several processes on one machine: DDP, FSDP2 and HSDP over gloo, forked at once or started by torchrun."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import executor_runs as runs
import numpy as np
import torch
from safetensors.torch import load_file

from cptplan.curves import read_curve
from cptplan.launch.fsdp import fsdp_environment, fsdp_settings

SHARDED_ENTRY = Path(__file__).with_name("sharded_entry.py")
LAUNCH_SECONDS = 180
FSDP2 = fsdp_environment(fsdp_settings("LlamaDecoderLayer"))  # what our own launch files set
KINDS: Mapping[str, Mapping[str, str]] = {
    "ddp": {},
    "fsdp2": FSDP2,
    "hsdp": {
        **FSDP2,
        "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
        "PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2",
        "PARALLELISM_CONFIG_DP_SHARD_SIZE": "2",
    },
}


def join_processes(environment: Mapping[str, str], prepare: Callable[[], None] | None) -> None:
    """Make this process one of several, as a launcher does."""
    os.environ.update(environment)
    if "ACCELERATE_USE_FSDP" in environment:
        from sharded_entry import shard_on_cpu

        shard_on_cpu()
    if prepare is not None:
        prepare()


def start_ranks(
    run_dir: Path, kind: str, processes: int, prepare: Callable[[], None] | None = None
) -> list[ForkServerProcess]:
    """The processes of a run, forked from one that has imported torch: seconds less than torchrun.

    Args:      kind: of KINDS.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        **KINDS[kind],
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
    }
    own = [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    return [runs.start(run_dir, partial(join_processes, environment, prepare)) for environment in own]


def finish_ranks(ranks: Sequence[ForkServerProcess], timeout: float = LAUNCH_SECONDS) -> list[int]:
    """Exit codes, negative signal numbers of those killed. As torchrun does, one that fails takes the others along."""
    limit = time.monotonic() + timeout
    while any(rank.is_alive() for rank in ranks) and not any(rank.exitcode for rank in ranks):
        if time.monotonic() > limit:
            for rank in ranks:
                rank.kill()
            raise AssertionError("the processes do not end")
        time.sleep(0.05)
    for rank in ranks:
        if rank.is_alive():
            rank.terminate()
    return [runs.finish(rank, timeout) for rank in ranks]


def train_ranks(run_dir: Path, kind: str, processes: int = 2, prepare: Callable[[], None] | None = None) -> list[int]:
    return finish_ranks(start_ranks(run_dir, kind, processes, prepare))


def start_torchrun(run_dir: Path, kind: str = "ddp", processes: int = 2) -> subprocess.Popen[str]:
    """The same as a user starts it."""
    entry = [str(SHARDED_ENTRY)] if "ACCELERATE_USE_FSDP" in KINDS[kind] else ["-m", "executor.train"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *entry]
    return subprocess.Popen(
        [*command, "--run-dir", str(run_dir)],
        env={**os.environ, **KINDS[kind], "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish_torchrun(launcher: subprocess.Popen[str]) -> tuple[int, str]:
    """The launcher's exit code and all that was said."""
    with launcher:
        try:
            said, _ = launcher.communicate(timeout=LAUNCH_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(launcher.pid, signal.SIGKILL)  # the launcher's own end would leave its workers behind
            raise
    return launcher.returncode, said


def worker(launcher: subprocess.Popen[str], rank: int) -> int:
    """Process id of one of torchrun's workers."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    of_rank = [int(pid) for pid in children if f"\0RANK={rank}\0" in Path(f"/proc/{pid}/environ").read_text()]
    return of_rank[0]


def weights(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "export" / f"step-{step}" / "model.safetensors")


def assert_close(run_dir: Path, other: Path, *, losses: float = 1e-5, of_weights: float = 1e-4) -> None:
    """Two runs that differ in rounding only: sums of another order round differently in fp32, and AdamW carries it on.

    Args:      losses: nats. of_weights: AdamW moves a weight by up to lr whatever its gradient's size, so rounding
               shows most in the weights.
    """
    np.testing.assert_allclose(runs.train_losses(run_dir), runs.train_losses(other), atol=losses, rtol=0)
    curve, its_curve = (read_curve(directory, "curve") for directory in (run_dir, other))
    assert curve.steps.tolist() == its_curve.steps.tolist()
    for name in its_curve.losses:
        np.testing.assert_allclose(curve.losses[name], its_curve.losses[name], atol=losses, rtol=0)
    step = runs.result(other)["steps"]
    mine, its = weights(run_dir, step), weights(other, step)
    assert mine.keys() == its.keys()
    for name in mine:
        torch.testing.assert_close(mine[name], its[name], atol=of_weights, rtol=0)
