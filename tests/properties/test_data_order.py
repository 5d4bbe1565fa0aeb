"""The data order is a pure function of (seed, global sample index), whatever else changes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cptplan.mixture import ConstantMixture, RampMixture
from cptplan.run_spec import ModelSource, RunSpec, Source, ValidationSet
from cptplan.schedule import ConstantSchedule
from executor import data

SEQ_LEN = 4


@dataclass(frozen=True)
class MemoryIndex:
    vocab_size: int = 50_000


@dataclass(frozen=True)
class MemoryShard:
    tokens: np.ndarray
    index: MemoryIndex = MemoryIndex()


OPENED = {"general": MemoryShard(np.arange(403)), "domain": MemoryShard(np.arange(331) + 10_000)}


def open_training(*, mixture, sequences: int, steps: int = 12, seed: int = 0) -> data.TrainingData:
    spec = RunSpec(
        name="run",
        phase="cpt",
        model=ModelSource(config={"model_type": "llama"}),
        sources=(
            Source(name="general", role="general", path="general"),
            Source(name="domain", role="domain", path="domain"),
        ),
        validation=(ValidationSet(name="general", path="general", num_tokens=SEQ_LEN),),
        schedule=ConstantSchedule(kind="constant", peak_lr=1e-3, total_steps=steps),
        mixture=mixture,
        seq_len=SEQ_LEN,
        batch_tokens=sequences * SEQ_LEN,
        seed=seed,
    )
    with mock.patch.object(data, "open_shard", lambda directory, split: OPENED[Path(directory).name]):
        return data.TrainingData(spec)


@given(size=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_permute_is_a_bijection(size, key):
    places = data.permute(np.arange(size), size, np.full(size, key, dtype=np.uint64))
    assert np.array_equal(np.sort(places), np.arange(size))


@given(size=st.integers(2**33, 2**60), key=st.integers(0, 2**64 - 1), index=st.integers(0, 2**33 - 1))
def test_permute_of_a_huge_set_stays_inside_and_does_not_collide(size, key, index):
    places = data.permute(np.array([index, index + 1]), size, np.full(2, key, dtype=np.uint64))
    assert places[0] != places[1]
    assert 0 <= places.min() <= places.max() < size


@given(ratio=st.integers(0, 1000).map(lambda n: n / 1000), sequences=st.integers(1, 40))
def test_replay_ratio_is_exact_in_tokens_at_every_prefix(ratio, sequences):
    training = open_training(mixture=ConstantMixture(replay_ratio=ratio), sequences=sequences)
    rows = training.read(0, 12 * sequences)
    general = np.cumsum(rows[:, 0] < 10_000)
    exact = ratio * np.arange(1, len(rows) + 1)
    # counts are whole sequences, so the nearest whole number is exact; 1e-6 is for the running sum in binary
    assert np.abs(general - exact).max() <= 0.5 + 1e-6
    for step in range(13):
        assert training.tokens_by_source(step)["general"] == SEQ_LEN * int((rows[: step * sequences, 0] < 10_000).sum())


@given(start=st.integers(0, 10).map(lambda n: n / 10), end=st.integers(0, 10).map(lambda n: n / 10))
def test_replay_ratio_follows_a_curriculum_at_every_prefix(start, end):
    mixture = RampMixture(kind="ramp", start_ratio=start, end_ratio=end, end_step=10)
    rows = open_training(mixture=mixture, sequences=8).read(0, 96)
    general = np.cumsum(rows[:, 0] < 10_000)
    exact = np.cumsum(np.repeat(mixture.replay_ratios(12), 8))
    assert np.abs(general - exact).max() <= 0.5 + 1e-6


@given(
    processes=st.sampled_from([1, 2, 3, 4, 6]),
    micro=st.sampled_from([1, 2, 4]),
    step=st.integers(0, 11),
    seed=st.integers(0, 2**32),
)
def test_order_does_not_depend_on_processes_micro_batches_or_where_reading_starts(processes, micro, step, seed):
    mixture = ConstantMixture(replay_ratio=0.3)
    straight = open_training(mixture=mixture, sequences=24, seed=seed).read(0, 12 * 24)
    resumed = open_training(mixture=mixture, sequences=24, seed=seed)
    share = 24 // processes
    parts = [
        resumed.read(step * 24 + rank * share + first, min(micro, share - first))
        for rank in range(processes)
        for first in range(0, share, micro)
    ]
    assert np.array_equal(np.concatenate(parts), straight[step * 24 : (step + 1) * 24])


@pytest.mark.parametrize("epochs", [1, 3])
def test_every_window_is_read_equally_often_in_whole_epochs(epochs):
    training = open_training(mixture=ConstantMixture(replay_ratio=1.0), sequences=100, steps=epochs)
    starts, counts = np.unique(training.read(0, 100 * epochs)[:, 0], return_counts=True)
    assert len(starts) == 100
    assert (counts == epochs).all()
