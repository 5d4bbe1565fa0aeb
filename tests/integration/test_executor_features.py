"""What a run can be asked for beyond its mixture: domains, isolation, frozen parts, cost and trackers, disk space."""

from __future__ import annotations

import json
import math
import shutil
from collections import namedtuple
from pathlib import Path

import executor_runs as runs
import numpy as np
import pytest
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from cptplan.curves import read_curve
from cptplan.run_options import Accounting
from executor.data import TrainingData


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp("features")
    runs.write_corpora(path)
    for rule, name in ((7, "law"), (9, "medicine")):
        runs.write_shard(path / name, "train", runs.toy_tokens(4000, rule=rule, seed=rule))
        runs.write_shard(path / name, "validation", runs.toy_tokens(600, rule=rule, seed=rule + 10))
    return path


def evaluations(run_dir: Path) -> list[dict]:
    return [line for line in runs.metrics(run_dir) if "loss_general" in line]


def test_several_domains_have_their_shares_and_validation_sets(root):
    weights = {"domain": 2.0, "law": 1.0, "medicine": 1.0}
    spec = runs.make_spec(
        root,
        sources=(
            runs.Source(name="general", role="general", path=str(root / "general")),
            *(runs.Source(name=n, role="domain", path=str(root / n), weight=w) for n, w in weights.items()),
        ),
        validation=tuple(
            runs.ValidationSet(name=name, path=str(root / name), num_tokens=20 * runs.SEQ_LEN)
            for name in ("general", *weights)
        ),
        mixture=runs.ConstantMixture(replay_ratio=0.2),
    )
    run_dir = runs.write_run(root / "domains", spec)
    assert runs.train(run_dir) == 0
    assert set(read_curve(run_dir, "curve").losses) == {"general", *weights}
    tokens = runs.result(run_dir)["tokens_by_source"]
    shares = {name: count / spec.total_tokens for name, count in tokens.items()}
    # within two sequences of 192, see mixture.source_of_sequences
    assert shares == pytest.approx({"general": 0.2, "domain": 0.4, "law": 0.2, "medicine": 0.2}, abs=2 / 192)


@pytest.mark.parametrize("isolate", [False, True])
def test_isolated_documents_are_cut_and_their_first_tokens_not_predicted(root, isolate):
    """The first step's loss, computed document by document with transformers alone."""
    spec = runs.make_spec(root, isolate_documents=isolate, keep_steps=())
    run_dir = runs.write_run(root / f"isolated-{isolate}", spec)
    assert runs.train(run_dir) == 0
    import torch

    torch.manual_seed(spec.seed)
    config = dict(runs.LLAMA)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config.pop("model_type"), **config))
    losses = []
    for row in TrainingData(spec).read(0, 8):
        ends = [at + 1 for at in np.flatnonzero(row[:-1] == 0)] if isolate else []
        pieces = [piece for piece in np.split(row, ends) if len(piece) > 1]
        for piece in pieces:
            ids = torch.from_numpy(piece)[None]
            found = model(input_ids=ids, labels=ids).loss
            losses += [found.item()] * (len(piece) - 1)
    assert sum(len(np.flatnonzero(row[:-1] == 0)) for row in TrainingData(spec).read(0, 8)) > 0
    assert runs.train_losses(run_dir)[0] == pytest.approx(np.mean(losses), abs=1e-5)


def test_frozen_parts_stay_as_they_were(root):
    spec = runs.make_spec(root, freeze=("model.embed_tokens.*", "model.layers.0.*"), keep_steps=(9,))
    run_dir = runs.write_run(root / "frozen", spec)
    assert runs.train(run_dir) == 0
    early, late = (load_file(run_dir / f"export/step-{step}/model.safetensors") for step in (9, 24))
    same = {name for name in early if early[name].equal(late[name])}
    assert same == {name for name in early if name.startswith(("model.embed_tokens.", "model.layers.0."))}


def test_readings_are_those_of_the_losses(root):
    run_dir = runs.write_run(root / "readings", runs.make_spec(root, keep_steps=()))
    assert runs.train(run_dir) == 0
    first, *_, last = evaluations(run_dir)
    assert (first["forgetting_ratio"], first["perplexity"]["general"]) == (1.0, math.exp(first["loss_general"]))
    assert last["forgetting_ratio"] == pytest.approx(last["perplexity"]["general"] / first["perplexity"]["general"])
    tokenizer = AutoTokenizer.from_pretrained(str(root / "tokenizer"))
    windows = runs.validation_windows(root, "domain")[:, 1:].tolist()
    num_bytes = sum(len(tokenizer.decode(window).encode()) for window in windows)
    bits = last["loss_domain"] * 33 * 16 / math.log(2) / num_bytes
    assert last["bits_per_byte"]["domain"] == pytest.approx(bits, rel=1e-12)


def test_every_line_says_speed_memory_and_cost_so_far(root):
    spec = runs.make_spec(
        root, keep_steps=(), accounting=Accounting(peak_flops=1e9, usd_per_device_hour=3.6, flops_per_token=1e5)
    )
    run_dir = runs.write_run(root / "accounting", spec)
    assert runs.train(run_dir) == 0
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "train_loss" in line]
    for line in steps:
        assert line["mfu"] == pytest.approx(line["tokens_per_second"] * 1e5 / 1e9, abs=1e-4)  # as rounded
        assert line["price_usd"] == pytest.approx(3.6 * line["gpu_hours"], abs=1e-4)
        assert 0.05 < line["memory_gb"] < 5
        assert 0 < line["data_seconds"] < spec.batch_tokens / line["tokens_per_second"]
    hours = [line["gpu_hours"] for line in steps]
    assert hours == sorted(hours)
    result = runs.result(run_dir)
    assert result["gpu_hours"] == pytest.approx(result["wall_seconds"] / 3600, rel=0.05)  # one device; the end is later
    assert result["gpu_hours"] >= hours[-1]


def test_tensorboard_shows_what_metrics_say(root):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_dir = runs.write_run(root / "tracked", runs.make_spec(root, report_to=("tensorboard",), keep_steps=()))
    assert runs.train(run_dir) == 0
    (directory,) = {path.parent for path in (run_dir / "trackers" / "run").glob("events*")}
    shown = EventAccumulator(str(directory)).Reload()
    losses = [event.value for event in shown.Scalars("train_loss")]
    assert losses == pytest.approx(runs.train_losses(run_dir), rel=1e-6)
    assert [event.step for event in shown.Scalars("loss/domain")] == [0, 3, 10, 17, 24]
    assert "tokens_by_source/general" in shown.Tags()["scalars"]


def test_keep_checkpoints_keeps_as_many(root):
    run_dir = runs.write_run(root / "kept", runs.make_spec(root, keep_checkpoints=4, checkpoint_every=2))
    process = runs.start(run_dir)
    assert runs.wait_until(lambda: (run_dir / "checkpoints" / "step-00000016").exists(), process)
    process.kill()
    runs.finish(process)
    names = sorted(path.name for path in (run_dir / "checkpoints").glob("step-*"))
    assert len(names) in (4, 5)  # the oldest goes after the newest is there


def shrink_disk() -> None:
    """From the second checkpoint on, the disk has 1 kB."""
    from executor import checkpoint

    usage = namedtuple("usage", "total used free")
    real, calls = shutil.disk_usage, []

    def disk_usage(path):
        calls.append(path)
        return real(path) if len(calls) < 2 else usage(10**12, 10**12 - 1000, 1000)

    checkpoint.shutil.disk_usage = disk_usage


def test_disk_too_small_for_a_checkpoint_says_so_before_it_writes(root):
    run_dir = runs.write_run(root / "small-disk", runs.make_spec(root))
    assert runs.train(run_dir, shrink_disk) == 5
    assert "disk must have" in runs.said(run_dir)
    assert "GB free for a checkpoint; got 1e-06 GB" in runs.said(run_dir)
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["step-00000004"]
    straight = runs.write_run(root / "enough-disk", runs.make_spec(root))
    assert runs.train(run_dir) == runs.train(straight) == 0
    assert runs.metrics(run_dir) == runs.metrics(straight)
