"""Several processes do what one does: losses, watchers, resume on other numbers of processes, errors, signals."""

from __future__ import annotations

import distributed_runs as several
import executor_runs as runs
import pytest

from cptplan.run_options import Anchor, Lora, Monitor, Reweight, Rule, Spikes
from cptplan.run_spec import ModelSource, Source
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
    skip = Spikes(policy="skip", z=0.5, window=8, most=1000)  # z so small that some steps are left out
    lower = Rule(when="forgetting_ratio", threshold=0.0, action="lower_lr", times=2)
    changes = {
        "held": {
            "isolate_documents": True,
            "freeze": ("model.layers.0.mlp.*",),
            "anchor": Anchor(kind="ewc", strength=1.0, fisher_sequences=4),
            "spikes": skip,
            "monitor": Monitor(rules=(lower,)),
        },
        "adapted": {
            "lora": Lora(rank=4, alpha=8.0),
            "activation_checkpointing": True,
            "spikes": Spikes(policy="rollback", z=0.5, window=8, most=1000),
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
    return runs.make_spec(root, model=ModelSource(path=str(root / "base/export/step-9")), **changes)


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


@pytest.mark.parametrize(("kind", "processes"), [("ddp", 2), ("fsdp2", 2), ("hsdp", 4)])
def test_50_steps_with_accumulation_equal_one_process(root, alone, kind, processes):
    run_dir = runs.write_run(root / f"long-{kind}", long_spec(root))
    assert several.train_ranks(run_dir, kind, processes) == [0] * processes, runs.said(run_dir)
    assert runs.result(run_dir)["num_processes"] == processes
    several.assert_close(run_dir, alone("long", long_spec(root)))


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
@pytest.mark.parametrize("features", ["held", "adapted", "reweighed"])
def test_what_watches_and_holds_a_run_equals_one_process(root, alone, features, kind):
    run_dir = runs.write_run(root / f"{features}-{kind}", spec_with(root, features))
    assert several.train_ranks(run_dir, kind) == [0, 0], runs.said(run_dir)
    other = alone(features, spec_with(root, features))
    several.assert_close(run_dir, other)
    assert decisions(run_dir) == decisions(other)


def decisions(run_dir):
    """What the watchers did, and when."""
    lines = runs.metrics(run_dir)
    return [
        (line["step"], line.get("event"), line.get("lr")) for line in lines if "event" in line or "left_out" in line
    ]
