"""Which tokens a run reads, and in which order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from cptplan.errors import DataError
from cptplan.mixture import ConstantMixture
from cptplan.run_spec import ModelSource, RunSpec, Source, ValidationSet
from cptplan.schedule import ConstantSchedule
from executor import data


@dataclass(frozen=True)
class MemoryIndex:
    vocab_size: int = 50_000


@dataclass(frozen=True)
class MemoryShard:
    tokens: np.ndarray
    index: MemoryIndex = MemoryIndex()


@pytest.fixture
def shards(monkeypatch):
    """Shards by path; the tokens of each are numbered, so that a token says where it comes from."""
    sizes = {"general": 1000, "code": 700, "law": 500, "tiny": 8}
    opened = {
        (name, split): MemoryShard(np.arange(size, dtype=np.uint16) + 10_000 * number)
        for number, (name, size) in enumerate(sizes.items())
        for split in ("train", "validation")
    }
    monkeypatch.setattr(data, "open_shard", lambda directory, split: opened[(Path(directory).name, split)])
    return opened


def make_spec(**changes) -> RunSpec:
    values = {
        "name": "run",
        "phase": "cpt",
        "model": ModelSource(config={"model_type": "llama"}),
        "sources": (
            Source(name="code", role="domain", path="code"),
            Source(name="general", role="general", path="general"),
            Source(name="law", role="domain", path="law", weight=0.5),
        ),
        "validation": (ValidationSet(name="general", path="general", num_tokens=300),),
        "schedule": ConstantSchedule(kind="constant", peak_lr=1e-3, total_steps=40),
        "mixture": ConstantMixture(replay_ratio=0.25),
        "seq_len": 8,
        "batch_tokens": 64,
    }
    return RunSpec(**{**values, **changes})


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 255, 256, 257, 1000, 4097])
def test_permute_any_size_is_a_bijection(size):
    keys = np.full(size, 12345, dtype=np.uint64)
    places = data.permute(np.arange(size), size, keys)
    assert sorted(places) == list(range(size))


def test_permute_known_key_keeps_its_order_in_all_versions():
    # measured once, 2026-11: a change here would change the data of every run ever resumed or repeated
    places = data.permute(np.arange(10), 10, np.full(10, 7, dtype=np.uint64))
    assert places.tolist() == [0, 2, 9, 8, 1, 4, 3, 5, 7, 6]


def test_permute_looks_random():
    # mean |displacement| of a random permutation is size / 3; its standard deviation here is about 0.3 %
    size = 10_000
    places = data.permute(np.arange(size), size, np.full(size, 99, dtype=np.uint64))
    assert np.abs(places - np.arange(size)).mean() == pytest.approx(size / 3, rel=0.02)
    assert abs(np.corrcoef(places[:-1], places[1:])[0, 1]) < 0.05


def test_read_each_window_once_per_epoch_in_a_new_order(shards):
    training = data.TrainingData(make_spec())
    source = training.sources[1]
    assert source.name == "code"
    first = source.read(np.arange(source.num_windows), 8)[:, 0]
    second = source.read(np.arange(source.num_windows) + source.num_windows, 8)[:, 0]
    expected = 10_000 + 8 * np.arange(source.num_windows)
    assert sorted(first) == sorted(second) == expected.tolist()
    assert (first != second).any()


def test_read_windows_overlap_by_the_token_to_predict(shards):
    rows = data.TrainingData(make_spec()).read(0, 16)
    assert rows.shape == (16, 9)
    assert (np.diff(rows, axis=1) == 1).all()
    assert (rows[:, 0] % 10_000 % 8 == 0).all()


def test_read_other_seed_gives_another_order(shards):
    one, two = (data.TrainingData(make_spec(seed=seed)).read(0, 32) for seed in (0, 1))
    assert (one != two).any()


def test_read_domain_order_does_not_depend_on_replay(shards):
    alone = make_spec(
        sources=(Source(name="code", role="domain", path="code"),), mixture=ConstantMixture(replay_ratio=0.0)
    )
    mixed = data.TrainingData(make_spec()).read(0, 40)
    domain = mixed[mixed[:, 0] // 10_000 == 1]
    assert (data.TrainingData(alone).read(0, len(domain)) == domain).all()


def test_tokens_by_source_counts_tokens_of_finished_steps(shards):
    training = data.TrainingData(make_spec())
    assert training.tokens_by_source(0) == {"general": 0, "code": 0, "law": 0}
    # 10 steps of 64 tokens: a quarter general, the rest 2 : 1 by weight, within one sequence
    assert training.tokens_by_source(10) == {"general": 160, "code": 320, "law": 160}


def test_training_data_general_only(shards):
    spec = make_spec(
        phase="pretrain",
        sources=(Source(name="general", role="general", path="general"),),
        mixture=ConstantMixture(replay_ratio=1.0),
    )
    training = data.TrainingData(spec)
    assert training.tokens_by_source(40) == {"general": spec.total_tokens}
    assert (training.read(0, 100) < 10_000).all()


def test_source_of_max_tokens_repeats_windows_from_all_over_the_shard(shards):
    source = Source(name="code", role="domain", path="code", max_tokens=81)
    cut = data.TrainingData(make_spec(sources=(source,), mixture=ConstantMixture(replay_ratio=0.0))).sources[1]
    assert (cut.num_windows, cut.num_there, cut.num_tokens) == (10, 87, 81)
    epochs = cut.read(np.arange(20), 8)[:, 0] - 10_000
    places = [8 * (number * 87 // 10) for number in range(10)]
    assert sorted(epochs[:10]) == sorted(epochs[10:]) == places


def test_source_of_more_max_tokens_than_there_are_is_the_whole(shards):
    source = Source(name="code", role="domain", path="code", max_tokens=10**6)
    whole = data.TrainingData(make_spec(sources=(source,), mixture=ConstantMixture(replay_ratio=0.0))).sources[1]
    assert (whole.num_tokens, whole.num_windows, whole.num_there) == (700, 87, 87)


def test_training_data_too_small_says_tokens_there_and_needed(shards):
    spec = make_spec(
        sources=(Source(name="tiny", role="domain", path="tiny"),), mixture=ConstantMixture(replay_ratio=0.0)
    )
    with pytest.raises(DataError, match=r"source 'tiny' must hold at least one window of 9 tokens; got 8 in tiny"):
        data.TrainingData(spec)


@pytest.mark.parametrize(("asked", "found"), [(300, 37), (296, 37), (8, 1), (10_000, 124)])
def test_open_validation_takes_windows_evenly_over_the_shard(shards, asked, found):
    validation = data.open_validation(ValidationSet(name="v", path="general", num_tokens=asked), 8)
    assert (validation.num_windows, validation.num_tokens) == (found, found * 8)
    rows = validation.read(np.arange(found))
    starts = [8 * (number * 124 // found) for number in range(found)]
    assert rows.tolist() == [list(range(start, start + 9)) for start in starts]
    assert len(set(starts)) == found
    assert starts[-1] >= 8 * 124 * (1 - 1 / found) - 8  # to the end of the shard, a window's share before it


def test_open_validation_without_one_window_is_refused(shards):
    with pytest.raises(DataError, match="validation set 'v' must hold at least one window of 9 tokens; got 6"):
        data.open_validation(ValidationSet(name="v", path="general", num_tokens=5), 8)
