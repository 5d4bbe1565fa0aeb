"""Several processes do what one does: losses, watchers, resume on other numbers of processes, errors, signals."""

from __future__ import annotations

import distributed_runs as several
import executor_runs as runs
import pytest

from cptplan.schedule import CosineSchedule


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp("distributed")
    runs.write_corpora(path)
    return path


def long_spec(root):
    """50 steps with gradient accumulation: micro batches of 2 sequences out of 8."""
    schedule = CosineSchedule(kind="cosine", peak_lr=1e-2, total_steps=50, warmup_steps=5, min_lr=1e-4)
    return runs.make_spec(root, schedule=schedule, eval_steps=(5, 15, 30), checkpoint_every=20, keep_steps=())


@pytest.fixture(scope="module")
def long_run(root):
    run_dir = runs.write_run(root / "long", long_spec(root))
    assert runs.train(run_dir) == 0
    return run_dir


@pytest.mark.parametrize(("kind", "processes"), [("ddp", 2), ("fsdp2", 2), ("hsdp", 4)])
def test_50_steps_with_accumulation_equal_one_process(root, long_run, kind, processes):
    run_dir = runs.write_run(root / f"long-{kind}", long_spec(root))
    assert several.train_ranks(run_dir, kind, processes) == [0] * processes, runs.said(run_dir)
    assert runs.result(run_dir)["num_processes"] == processes
    several.assert_close(run_dir, long_run)
