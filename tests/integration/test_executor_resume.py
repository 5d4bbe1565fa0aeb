"""A run that is killed, stopped or starved of disk goes on as if it never was."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from pathlib import Path

import executor_runs as runs
import numpy as np
import pytest

MODELS = {"llama": runs.LLAMA, "gpt2": runs.GPT2}  # gpt2 has dropout: its random numbers must come back too


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp("executor")
    runs.write_corpora(path)
    return path


def make_run(root: Path, name: str, model: str = "gpt2", **changes) -> Path:
    source = runs.ModelSource(config=MODELS[model], tokenizer=str(root / "tokenizer"))
    return runs.write_run(root / name, runs.make_spec(root, model=source, **changes))


@pytest.fixture(scope="module")
def straight(root):
    """Directories of runs that nothing disturbed, by model."""
    done = {}
    for model in MODELS:
        done[model] = make_run(root, f"straight-{model}", model)
        assert runs.train(done[model]) == 0
    return done


def assert_same_run(run_dir: Path, other: Path) -> None:
    """Bit for bit: losses, norms, counts, curve and weights."""
    assert runs.metrics(run_dir) == runs.metrics(other)
    for name in ("curve.csv", "curve.json", *(f"export/step-{step}/model.safetensors" for step in (9, 24))):
        assert (run_dir / name).read_bytes() == (other / name).read_bytes(), name
    assert not (run_dir / "checkpoints").exists()


@pytest.mark.parametrize("model", MODELS)
def test_killed_at_random_moments_ends_as_if_it_never_was(root, straight, model):
    run_dir = make_run(root, f"killed-{model}", model)
    rng = np.random.default_rng(5)
    kills = 0
    for _ in range(20):
        process = runs.start(run_dir)
        moment = int(rng.integers(1, 9))  # log lines after the restart, so that every attempt gets somewhere
        path = run_dir / "metrics.jsonl"
        known = path.stat().st_size if path.exists() else 0
        grown = lambda path=path, known=known, moment=moment: (  # noqa: E731
            path.exists() and abs(path.stat().st_size - known) > 180 * moment
        )
        if not runs.wait_until(grown, process):
            break
        process.kill()
        kills += runs.finish(process) == -signal.SIGKILL
    assert runs.train(run_dir) == 0
    assert kills >= 3
    assert_same_run(run_dir, straight[model])


@pytest.mark.parametrize(
    "pattern", ["checkpoints/.step-*.tmp", "checkpoints/.step-*.tmp/__0_0.distcp", "export/.*.tmp"]
)
def test_killed_while_writing_ends_as_if_it_never_was(root, straight, pattern):
    run_dir = make_run(root, f"killed-in-{pattern.count('/')}-{pattern.split('/')[0]}")
    process = runs.start(run_dir)
    assert runs.wait_until(lambda: any(run_dir.glob(pattern)), process)
    process.kill()
    assert runs.finish(process) == -signal.SIGKILL
    assert runs.train(run_dir) == 0
    assert_same_run(run_dir, straight["gpt2"])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 138)])
def test_asked_to_stop_saves_a_checkpoint_and_resumes(root, straight, number, code):
    run_dir = make_run(root, f"stopped-{code}", checkpoint_every=1000)
    stopped = runs.make_spec(root, checkpoint_every=1000).hash
    process = runs.start(run_dir)
    assert runs.wait_until(lambda: (run_dir / "metrics.jsonl").exists(), process)
    assert runs.wait_until(lambda: len(runs.metrics(run_dir)) >= 6, process)
    for _ in range(2):  # torchrun passes on what the terminal has sent to all already
        os.kill(process.pid, number)
    assert runs.finish(process) == code
    (checkpoint,) = (run_dir / "checkpoints").iterdir()
    marker = json.loads((checkpoint / "checkpoint.json").read_text())
    assert 4 <= marker["step"] < 24
    assert stopped != marker["spec_hash"]  # the model differs from make_spec's default
    assert runs.train(run_dir) == 0
    assert "resumed from" in runs.said(run_dir)
    assert_same_run(run_dir, straight["gpt2"])


def stop_early(run_dir: Path) -> list[Path]:
    """Run until two checkpoints are there, and kill."""
    process = runs.start(run_dir)
    whole = lambda: sorted((run_dir / "checkpoints").glob("step-*"))  # noqa: E731
    assert runs.wait_until(lambda: len(whole()) == 2, process)
    process.kill()
    runs.finish(process)
    return whole()


@pytest.mark.parametrize("damage", ["flipped", "cut", "without marker"])
def test_damaged_checkpoint_is_passed_over_for_the_one_before(root, straight, damage):
    run_dir = make_run(root, f"damaged-{damage.replace(' ', '-')}")
    earlier, latest = stop_early(run_dir)
    shard = latest / "__0_0.distcp"
    content = bytearray(shard.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
    elif damage == "cut":
        shard.write_bytes(content[:-100])
    else:
        (latest / "checkpoint.json").unlink()
    assert runs.train(run_dir) == 0
    assert f"damaged checkpoint passed over: {latest}" in runs.said(run_dir)
    assert f"resumed from {earlier}" in runs.said(run_dir)
    assert_same_run(run_dir, straight["gpt2"])


def fill_disk_at_step_8() -> None:
    """Forcing the checkpoint of step 8 to storage finds the disk full."""
    sync = os.fsync

    def full(handle: int) -> None:
        if "step-00000008" in os.readlink(f"/proc/self/fd/{handle}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    os.fsync = full


def test_full_disk_fails_the_run_and_leaves_the_last_checkpoint(root, straight):
    run_dir = make_run(root, "full")
    assert runs.train(run_dir, prepare=fill_disk_at_step_8) == 5
    lines = [line for line in runs.said(run_dir).splitlines() if not line.startswith("step ")]
    assert lines == [
        f"error: disk must have room; got No space left on device writing {run_dir}/checkpoints/.step-00000008.tmp.",
        "hint: free space, then run the same command again",
    ]
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["step-00000004"]
    assert runs.train(run_dir) == 0
    assert_same_run(run_dir, straight["gpt2"])


def test_other_spec_in_the_directory_is_refused(root, straight):
    for name, build in (("result", None), ("checkpoint", stop_early)):
        run_dir = root / f"foreign-{name}"
        if build is None:
            shutil.copytree(straight["gpt2"], run_dir)
        else:
            make_run(root, f"foreign-{name}")
            build(run_dir)
        runs.write_run_spec(run_dir / "spec.json", runs.make_spec(root, seed=1))
        assert runs.train(run_dir) == 2
        assert "error: run directory must belong to one run spec; got" in runs.said(run_dir)
        assert "Traceback" not in runs.said(run_dir)


def test_complete_run_ends_at_once(straight):
    before = {path: path.stat().st_mtime_ns for path in straight["gpt2"].rglob("*")}
    assert runs.train(straight["gpt2"]) == 0
    assert "is complete" in runs.said(straight["gpt2"])
    assert {path: path.stat().st_mtime_ns for path in straight["gpt2"].rglob("*")} == before


def test_shortened_log_is_refused(root):
    run_dir = make_run(root, "shortened")
    stop_early(run_dir)
    (run_dir / "metrics.jsonl").write_text("")
    assert runs.train(run_dir) == 2
    assert "error: metrics.jsonl must hold at least" in runs.said(run_dir)
