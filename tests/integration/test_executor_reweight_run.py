"""Domain weights learnt by real runs: what can be learnt gains weight, noise and what is known already do not."""

import json
import signal

import numpy as np
import pytest
from executor_runs import (
    SEQ_LEN,
    VOCAB,
    finish,
    make_spec,
    metrics,
    result,
    start,
    train,
    wait_until,
    write_run,
    write_shard,
    write_tokenizer,
)

from cptplan.mixture import ConstantMixture
from cptplan.run_spec import ModelSource, Source, read_run_spec
from cptplan.schedule import CosineSchedule
from executor.reweight import Runner, learn

SIGNALS = (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM)
SPAN = 21
STEPS = 40
DOMAINS = ("noise", "known", "learnable")


def stream(first: int, *, noise: float, seed: int, num_tokens: int = 6000) -> np.ndarray:
    """Tokens first .. first + SPAN - 1, each the image of the one before it but for a share of noise."""
    rng = np.random.default_rng(seed)
    is_noise, fresh = rng.random(num_tokens) < noise, rng.integers(0, SPAN, num_tokens)
    tokens = np.zeros(num_tokens, dtype=np.int64)
    for place in range(1, num_tokens):
        tokens[place] = fresh[place] if is_noise[place] else (5 * tokens[place - 1] + 1) % SPAN
    return tokens + first


class ForkRunner(Runner):
    """Trains in processes that have imported torch already."""

    def __init__(self):
        self.trained = []

    def train(self, run_dir):
        self.trained.append(run_dir.name)
        return train(run_dir)


def sources(root, names):
    domains = tuple(Source(name=name, role="domain", path=str(root / name)) for name in names)
    return (Source(name="general", role="general", path=str(root / "general")), *domains)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three domains, and a base that knows two of them: of the noise there is no more to know than its tokens."""
    root = tmp_path_factory.mktemp("reweight")
    streams = (("general", 0, 0.1), ("known", 0, 0.1), ("noise", SPAN, 1.0), ("learnable", 2 * SPAN, 0.1))
    for name, first, noise in streams:
        write_shard(root / name, "train", stream(first, noise=noise, seed=1))
        write_shard(root / name, "validation", stream(first, noise=noise, seed=2, num_tokens=1000))
    write_tokenizer(root / "tokenizer", VOCAB)
    spec = reweight_spec(root, sources=sources(root, ("noise", "known")), model=make_spec(root).model)
    assert train(write_run(root / "base", spec)) == 0
    return root


def reweight_spec(root, **changes):
    values = {
        "model": ModelSource(path=str(root / f"base/export/step-{STEPS}")),
        "sources": sources(root, DOMAINS),
        "validation": make_spec(root).validation[:1],
        "schedule": CosineSchedule(kind="cosine", peak_lr=1e-2, total_steps=STEPS, warmup_steps=4, min_lr=1e-3),
        "mixture": ConstantMixture(replay_ratio=0.25),
        "batch_tokens": 16 * SEQ_LEN,
        "micro_batch_tokens": None,
        "eval_steps": (),
        "checkpoint_every": 8,
        "keep_steps": (),
    }
    return make_spec(root, **{**values, **changes})


@pytest.fixture(scope="module")
def learnt(root, tmp_path_factory):
    """The directory after reference and proxy."""
    directory, runner = tmp_path_factory.mktemp("learnt"), ForkRunner()
    assert learn(reweight_spec(root), directory, runner) == 0
    assert runner.trained == ["reference", "proxy"]
    return directory


def test_learn_raises_the_weight_of_what_can_be_learnt(learnt):
    weights = json.loads((learnt / "weights.json").read_text())["weights"]
    assert set(weights) == set(DOMAINS)
    assert sum(weights.values()) == pytest.approx(1, abs=1e-12)  # a thousand roundings
    assert weights["learnable"] > 1 / 3
    assert weights["learnable"] > max(weights["noise"], weights["known"])


def test_learn_records_the_mean_of_the_logged_weights(learnt):
    found = json.loads((learnt / "weights.json").read_text())
    logged = [line["domain_weights"] for line in metrics(learnt / "proxy") if "domain_weights" in line]
    assert len(logged) == found["steps"] == STEPS
    assert logged[-1] == found["last"]
    for name in DOMAINS:
        assert found["weights"][name] == pytest.approx(np.mean([line[name] for line in logged]), rel=1e-12)


def test_proxy_killed_and_resumed_learns_the_same(learnt, tmp_path):
    proxy = write_run(tmp_path / "proxy", read_run_spec(learnt / "proxy/spec.json"))
    process = start(proxy)
    assert wait_until(lambda: (proxy / "metrics.jsonl").exists() and len(metrics_so_far(proxy)) > 20, process)
    process.kill()
    assert finish(process) == -signal.SIGKILL
    assert train(proxy) == 0
    assert metrics(proxy) == metrics(learnt / "proxy")
    assert result(proxy)["domain_weights"] == result(learnt / "proxy")["domain_weights"]


def metrics_so_far(run_dir):
    return (run_dir / "metrics.jsonl").read_text().splitlines()


def test_learnt_spec_trains_at_once(learnt):
    assert train(learnt) == 0
    tokens = result(learnt)["tokens_by_source"]
    assert tokens["general"] == STEPS * 4 * SEQ_LEN  # replay keeps its quarter of 16 sequences
    assert tokens["learnable"] > 0.9 * (STEPS * 12 * SEQ_LEN)


def test_runner_starts_the_trainer(learnt):
    before = [signal.getsignal(number) for number in SIGNALS]
    try:
        assert Runner(1).train(learnt / "proxy") == 0  # complete: it ends at once
        assert Runner(1).train(learnt / "nowhere") == 2
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)
