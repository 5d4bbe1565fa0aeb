"""Several processes do what one does: losses, watchers, resume on other numbers of processes, errors, signals."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import distributed_runs as several
import executor_runs as runs
import pytest
import torch

from cptplan.errors import DataError
from cptplan.run_options import Anchor, Lora, Monitor, Reweight, Rule, Spikes
from cptplan.run_spec import ModelSource, Source, ValidationSet
from cptplan.schedule import CosineSchedule

DOMAINS = ("code", "law", "maths")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Corpora, and a run whose exports serve as base (step 9) and as reference (step 24)."""
    path = tmp_path_factory.mktemp("distributed")
    runs.write_corpora(path)
    for rule, name in enumerate(DOMAINS, start=5):
        runs.write_shard(path / name, "train", runs.toy_tokens(3000, rule=rule, seed=rule))
    assert runs.train(runs.write_run(path / "base", runs.make_spec(path))) == 0
    return path


def long_spec(root):
    """50 steps with gradient accumulation: micro batches of 2 sequences out of 8."""
    schedule = CosineSchedule(kind="cosine", peak_lr=1e-2, total_steps=50, warmup_steps=5, min_lr=1e-4)
    return runs.make_spec(root, schedule=schedule, eval_steps=(5, 15, 30), checkpoint_every=20, keep_steps=())


def spec_with(root, features):
    """From weights on disk, as a launched run has them: under FSDP2 only the first process reads them."""
    short = CosineSchedule(kind="cosine", peak_lr=1e-2, total_steps=14, warmup_steps=2, min_lr=1e-4)
    shared = {"schedule": short, "eval_steps": (3, 8), "keep_steps": ()}
    skip = Spikes(policy="skip", z=0.2, window=8, most=1000)  # z so small that some steps are left out
    lower = Rule(when="forgetting_ratio", threshold=0.0, action="lower_lr", times=2)
    changes = {
        "held": {
            "schedule": CosineSchedule(kind="cosine", peak_lr=1e-2, total_steps=20, warmup_steps=4, min_lr=1e-4),
            "batch_tokens": 12 * runs.SEQ_LEN,
            "isolate_documents": True,
            "freeze": ("model.layers.0.mlp.*",),
            "anchor": Anchor(kind="ewc", strength=1.0, fisher_sequences=4),
            "spikes": skip,
            "monitor": Monitor(rules=(lower,)),
        },
        "adapted": {
            "lora": Lora(rank=4, alpha=8.0),
            "activation_checkpointing": True,
            "spikes": Spikes(policy="rollback", z=0.2, window=8, most=1000),
            "monitor": Monitor(rules=(Rule(when="forgetting_ratio", threshold=0.0, action="raise_replay"),)),
        },
        "reweighed": {
            "sources": (
                Source(name="general", role="general", path=str(root / "general")),
                *(Source(name=name, role="domain", path=str(root / name)) for name in DOMAINS),
            ),
            "reweight": Reweight(reference=str(root / "base/export/step-24")),
            "isolate_documents": True,
            "monitor": Monitor(rules=(Rule(when="forgetting_ratio", threshold=0.0, action="ewc", amount=0.5),)),
        },
    }[features]
    return runs.make_spec(root, model=ModelSource(path=str(root / "base/export/step-9")), **{**shared, **changes})


@pytest.fixture(scope="module")
def alone(root):
    """A run in one process by its name, trained when first asked for."""
    found = {}

    def train(name, spec):
        if name not in found:
            found[name] = runs.write_run(root / f"{name}-alone", spec)
            assert runs.train(found[name]) == 0, runs.said(found[name])
        return found[name]

    return train


@pytest.fixture(scope="module")
def ddp(root):
    """The long run in two processes that nothing disturbs."""
    run_dir = runs.write_run(root / "long-ddp", long_spec(root))
    assert several.train_ranks(run_dir, "ddp") == [0, 0], runs.said(run_dir)
    return run_dir


def test_50_steps_with_accumulation_equal_one_process_under_ddp(root, alone, ddp):
    assert runs.result(ddp)["num_processes"] == 2
    several.assert_close(ddp, alone("long", long_spec(root)))


@pytest.mark.parametrize(
    ("kind", "processes", "placements"),
    [("fsdp2", 2, "(Shard(dim=0),)"), ("hsdp", 4, "(Replicate(), Shard(dim=0))")],
)
def test_50_steps_with_accumulation_equal_one_process_when_sharded(root, alone, kind, processes, placements):
    run_dir = runs.write_run(root / f"long-{kind}", long_spec(root))
    noted = root / f"placements-{kind}"
    assert several.train_ranks(run_dir, kind, processes, partial(note_placements, noted)) == [0] * processes
    assert noted.read_text() == placements
    assert runs.result(run_dir)["num_processes"] == processes
    several.assert_close(run_dir, alone("long", long_spec(root)))


def note_placements(path: Path) -> None:
    """Write down how the first parameter is spread over the processes: the shim must not have made plain DDP of it."""
    from executor import loop

    open_parts = loop.open_parts

    def opened(*arguments, **settings):
        parts = open_parts(*arguments, **settings)
        if os.environ["RANK"] == "0":
            path.write_text(str(parts.parameters[0].placements))
        return parts

    loop.open_parts = opened


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
@pytest.mark.parametrize("features", ["adapted", "reweighed"])  # held: below, killed and resumed besides
def test_what_watches_and_holds_a_run_equals_one_process(root, alone, features, kind):
    run_dir = runs.write_run(root / f"{features}-{kind}", spec_with(root, features))
    assert several.train_ranks(run_dir, kind) == [0, 0], runs.said(run_dir)
    other = alone(features, spec_with(root, features))
    several.assert_close(run_dir, other)
    assert decisions(run_dir) == decisions(other)
    assert {"adapted": "rollback", "reweighed": "ewc"}[features] in [event for _, event, _ in decisions(run_dir)]


def decisions(run_dir):
    """What the watchers did, and when."""
    lines = runs.metrics(run_dir)
    return [
        (line["step"], line.get("event"), line.get("lr")) for line in lines if "event" in line or "left_out" in line
    ]


def test_bf16_under_fsdp2_stays_near_one_process(root, alone):
    spec = runs.make_spec(root, precision="bf16", keep_steps=())
    run_dir = runs.write_run(root / "bf16-fsdp2", spec)
    assert several.train_ranks(run_dir, "fsdp2") == [0, 0], runs.said(run_dir)
    # bf16 keeps 8 bits, and FSDP2 casts more of the model to it than autocast: measured 0.003 nats apart (DDP 0.0015)
    several.assert_close(run_dir, alone("bf16", spec), losses=0.02, of_weights=0.1)
    assert {tensor.dtype for tensor in several.weights(run_dir, 24).values()} == {torch.float32}


CHAINS = {
    "ddp": (("ddp", 2), ("ddp", 3), ("ddp", 1)),
    "fsdp2": (("fsdp2", 2), ("fsdp2", 3), ("ddp", 1)),
    "mixed": (("ddp", 1), ("fsdp2", 2), ("ddp", 3)),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_killed_and_resumed_with_other_numbers_of_processes(root, alone, chain):
    """12 sequences a step; killed after steps 6 and 14, each time two steps after a checkpoint."""
    spec = spec_with(root, "held")
    run_dir = runs.write_run(root / f"elastic-{chain}", spec)
    seconds = []
    for (kind, processes), step in zip(CHAINS[chain], (6, 14, None), strict=True):
        prepare = partial(kill_at, step) if step is not None else None
        codes = several.train_ranks(run_dir, kind, processes, prepare)
        assert codes == [0 if step is None else -signal.SIGKILL] * processes, runs.said(run_dir)
        if step is not None:
            marker = json.loads((run_dir / f"checkpoints/step-{step - 2:08d}/checkpoint.json").read_text())
            seconds.append((processes, marker["wall_seconds"], marker["device_seconds"]))
    several.assert_close(run_dir, alone("elastic", spec))
    assert decisions(run_dir) == decisions(alone("elastic", spec))
    assert {"lower_lr", "skip"} <= {event for _, event, _ in decisions(run_dir)}
    straight = runs.metrics(alone("elastic", spec))
    assert [line.get("tokens_by_source") for line in runs.metrics(run_dir)] == [
        line.get("tokens_by_source") for line in straight
    ]
    (first, wall_1, used_1), (second, wall_2, used_2) = seconds
    assert used_1 == pytest.approx(first * wall_1)
    assert used_2 - used_1 == pytest.approx(second * (wall_2 - wall_1))
    found, last = runs.result(run_dir), CHAINS[chain][-1][1]
    # gpu_hours is rounded to a millionth of an hour, wall_seconds to a thousandth
    assert found["gpu_hours"] * 3600 == pytest.approx(used_2 + last * (found["wall_seconds"] - wall_2), abs=0.01)


def kill_at(step: int) -> None:
    """End as by kill -9 before a step is done."""
    from executor import loop

    train_step = loop.Trainer.step

    def killed(self, requests):
        if self.position.step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return train_step(self, requests)

    loop.Trainer.step = killed


def full_disk() -> None:
    """No room when the first checkpoint is to be written."""
    from executor import checkpoint

    checkpoint.shutil = SimpleNamespace(
        disk_usage=lambda path: SimpleNamespace(free=10), rmtree=shutil.rmtree, __name__="shutil"
    )


def full_log() -> None:
    """The first process cannot log its fifth step."""
    from executor import curve_log

    step = curve_log.CurveLog.step

    def logged(self, **values):
        if values["step"] == 5:
            raise OSError(errno.ENOSPC, "No space left on device", str(self._path))
        step(self, **values)

    curve_log.CurveLog.step = logged


def second_fails() -> None:
    """The second process alone finds something wrong."""
    from executor import parts

    if os.environ["RANK"] == "1":
        parts.load_model = fails


def fails(*_):
    raise DataError("data must be there; got none in the second process.", hint="bring it there")


def spec_that_fails(root, kind):
    """Changes of the spec, what is to be patched, how to start, exit code and words."""
    large = ValidationSet(name="large", path=str(root / "large"), num_tokens=32)
    torn = (Source(name="general", role="general", path=str(root / "torn")), *runs.make_spec(root).sources[1:])
    return {
        "batch does not divide": ({"batch_tokens": 9 * 16}, None, 2, "batch_tokens must be a multiple of seq_len x"),
        "vocabulary": ({"validation": (large,)}, None, 2, "vocabulary must fit the model's 64 embeddings; got 65"),
        "torn shard": ({"sources": torn}, None, 2, "token file must have the SHA-256 abc of its index"),
        "tracker": ({"report_to": ("tensorbord",)}, None, 2, "report_to must name trackers; got tensorbord"),
        "freeze": ({"freeze": ("layers.*",)}, None, 2, "freeze must match the name of a parameter; got 'layers.*'"),
        "foreign checkpoint": ({}, None, 2, "must belong to"),
        "disk full": ({}, full_disk, 5, "disk must have"),
        "log full": ({}, full_log, 5, "disk must have"),
        "second process": ({}, second_fails, 2, "data must be there; got none in the second process"),
        "sizes of hsdp": (
            {},
            None,
            2,
            "dp_replicate_size x dp_shard_size must be the number of processes; got 2 x 2",
        ),
    }[kind]


FAILURES = (
    "batch does not divide",
    "vocabulary",
    "torn shard",
    "tracker",
    "freeze",
    "foreign checkpoint",
    "disk full",
    "log full",
    "second process",
    "sizes of hsdp",
)


@pytest.fixture(scope="module")
def failing(root):
    """Runs that go wrong, all at a time because they mostly wait: directory, exit codes to come, what is expected."""
    runs.write_shard(root / "large", "validation", runs.toy_tokens(100, rule=1, seed=1), vocab_size=65)
    runs.write_shard(root / "torn", "train", runs.toy_tokens(1000, rule=1, seed=1))
    index = root / "torn" / "train.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "sha256": "abc"}))
    started, watching = {}, ThreadPoolExecutor(len(FAILURES))
    for kind in FAILURES:
        changes, prepare, code, words = spec_that_fails(root, kind)
        run_dir = runs.write_run(root / f"fails-{kind.replace(' ', '-')}", runs.make_spec(root, **changes))
        if kind == "foreign checkpoint":
            marker = run_dir / "checkpoints/step-00000004/checkpoint.json"
            marker.parent.mkdir(parents=True)
            marker.write_text(json.dumps({"spec_hash": "another", "files": {}}))
        ranks = several.start_ranks(run_dir, "hsdp" if kind == "sizes of hsdp" else "ddp", 2, prepare)
        started[kind] = (run_dir, watching.submit(several.finish_ranks, ranks), code, words)
    with watching:
        return started


@pytest.mark.parametrize("kind", FAILURES)
def test_failure_ends_all_processes_with_one_line(failing, kind):
    run_dir, ended, code, words = failing[kind]
    codes = ended.result()
    assert all(codes), codes
    assert code in codes
    lines = runs.said(run_dir).splitlines()
    assert [line for line in lines if line.startswith("error: ")] == [line for line in lines if words in line]
    assert len([line for line in lines if words in line]) == 1, lines
    assert not any("Traceback" in line for line in lines), lines
    assert not (run_dir / "result.json").exists()


def test_torchrun_ends_with_the_one_line_of_the_first_process(root, failing):
    """What the processes say when a user starts them; the launcher itself adds a traceback of its own."""
    spec = runs.make_spec(root, **spec_that_fails(root, "torn shard")[0])
    code, said = several.finish_torchrun(several.start_torchrun(runs.write_run(root / "fails-torchrun", spec)))
    assert code != 0
    lines = said.splitlines()
    assert len([line for line in lines if line.startswith("error: token file must have the SHA-256")]) == 1
    assert not any("executor" in line for line in lines if line.strip().startswith("File ")), said


def test_signals_to_one_process_save_all_and_the_run_goes_on(root, ddp):
    """SIGUSR1 under torchrun, then SIGTERM, then to the end: bit for bit the run that nothing disturbed."""
    run_dir = runs.write_run(root / "stopped", long_spec(root))
    launcher = several.start_torchrun(run_dir)
    log = run_dir / "metrics.jsonl"
    limit = time.monotonic() + several.LAUNCH_SECONDS
    while not (log.exists() and '"step": 3,' in log.read_text()):
        assert launcher.poll() is None
        assert time.monotonic() < limit
        time.sleep(0.005)
    os.kill(several.worker(launcher, rank=1), signal.SIGUSR1)
    code, said = several.finish_torchrun(launcher)
    assert code != 0
    assert "error:" not in said
    stopped_at = checkpoints_of(run_dir)[-1]
    progress = json.loads((run_dir / "progress.json").read_text())
    assert (progress["message"], progress["done"]) == ("stopped", stopped_at)
    assert several.train_ranks(run_dir, "ddp", 2, partial(signal_at, stopped_at + 2)) == [128 + signal.SIGTERM] * 2
    assert checkpoints_of(run_dir)[-1] == stopped_at + 3  # the step in which the signal came is finished
    assert several.train_ranks(run_dir, "ddp") == [0, 0]
    assert runs.metrics(run_dir) == runs.metrics(ddp)
    assert (run_dir / "curve.csv").read_bytes() == (ddp / "curve.csv").read_bytes()


def checkpoints_of(run_dir):
    return sorted(int(path.name.removeprefix("step-")) for path in (run_dir / "checkpoints").glob("step-*"))


def signal_at(step: int) -> None:
    """SIGTERM to the first process as it begins a step."""
    from executor import loop

    train_step = loop.Trainer.step

    def stopped(self, requests):
        if self.position.step == step and os.environ["RANK"] == "0":
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(self, requests)

    loop.Trainer.step = stopped
