"""Killed at any moment, again and again, a run ends as if it never was. 100 kills: pytest -m slow -k kills."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import executor_runs as runs
import numpy as np
import pytest

from cptplan.run_options import Anchor, Monitor, Rule, Spikes
from cptplan.run_spec import RunSpec


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp("kills")
    runs.write_corpora(path)
    runs.poison_step(busy_spec(path), 16)
    return path


def busy_spec(root: Path) -> RunSpec:
    """A checkpoint every second step, exports, dropout, and all that remembers: spikes, rules, a pull to the start."""
    return runs.make_spec(
        root,
        model=runs.ModelSource(config=runs.GPT2, tokenizer=str(root / "tokenizer")),
        checkpoint_every=2,
        keep_steps=(5, 9, 15, 21),
        eval_steps=(2, 6, 12, 18),
        anchor=Anchor(kind="ewc", strength=1.0, fisher_sequences=4),
        spikes=Spikes(policy="rollback", window=8),
        monitor=Monitor(
            rules=(Rule(when="forgetting_ratio", threshold=0.0, patience=2, action="lower_lr", amount=0.9, times=2),)
        ),
    )


@pytest.mark.parametrize("kills", [25, pytest.param(100, marks=pytest.mark.slow)])
def test_kills_at_random_moments_change_nothing(root, kills):
    longest = 0.0
    for name in ("warm-up", "straight"):  # the first one waits for torch to be imported
        straight = runs.write_run(root / f"{name}-{kills}", busy_spec(root))
        begun = time.monotonic()
        assert runs.train(straight) == 0
        longest = time.monotonic() - begun
    assert any(line.get("event") == "rollback" for line in runs.metrics(straight))
    rng, killed, torn, number = np.random.default_rng(kills), 0, 0, 0
    while killed < kills:
        run_dir = runs.write_run(root / f"killed-{kills}-{number}", busy_spec(root))
        while not (run_dir / "result.json").exists():
            process = runs.start(run_dir)
            if killed == kills:
                assert runs.finish(process) == 0
                break
            process.join(rng.uniform(0.0, 0.7 * longest))
            process.kill()
            if runs.finish(process) == -signal.SIGKILL:
                killed += 1
                torn += any(run_dir.glob("checkpoints/.step-*.tmp"))
        assert_same_run(run_dir, straight)
        number += 1
    print(f"{killed} kills in {number} runs, {torn} of them while a checkpoint was written")


def assert_same_run(run_dir: Path, other: Path) -> None:
    """Bit for bit: losses, norms, counts, events, curve and weights."""
    assert runs.metrics(run_dir) == runs.metrics(other)
    exports = [f"export/step-{step}/model.safetensors" for step in (5, 9, 15, 21, 24)]
    for name in ("curve.csv", "curve.json", *exports):
        assert (run_dir / name).read_bytes() == (other / name).read_bytes(), name
    assert not (run_dir / "checkpoints").exists()
