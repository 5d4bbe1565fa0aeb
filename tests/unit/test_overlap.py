"""Text of one shard in another: planted copies are found, and nothing else is."""

from __future__ import annotations

import numpy as np
import pytest
from packed_shards import EOS, some_documents, write_shard

from cptplan.advice import overlap
from cptplan.advice.overlap import documents, find_overlap
from cptplan.advice.shards import read_shard


def shard(directory, name, split, texts, **options):
    write_shard(directory / name, split, texts, **options)
    return read_shard(directory / name, split)


def test_different_text_shares_nothing(tmp_path):
    held = shard(tmp_path, "a", "validation", some_documents(40, 300, seed=1))
    train = shard(tmp_path, "a", "train", some_documents(400, 300, seed=2))
    found = find_overlap(held, [train])
    assert (found.windows, found.documents, found.found_windows, found.found_documents) == (240, 40, 0, 0)
    assert (found.share, found.scanned) == (0.0, 1.0)


@pytest.mark.parametrize("chunk", [1 << 21, 700])
def test_planted_documents_are_found(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(overlap, "CHUNK", chunk)
    held = some_documents(40, 300, seed=1)
    train = some_documents(100, 300, seed=2)
    train[50:50] = held[7:11]
    found = find_overlap(shard(tmp_path, "a", "validation", held), [shard(tmp_path, "a", "train", train)])
    assert found.found_windows == 4 * 6
    assert found.share == pytest.approx(0.1)
    if chunk > 10_000:
        assert found.found_documents == 4  # one that lies across two chunks is seen by its windows


def test_passage_inside_another_text_is_found_wherever_it_begins(tmp_path):
    held = some_documents(10, 400, seed=1)
    for begin in (0, 13, 49, 201):
        train = some_documents(20, 400, seed=2)
        train[3][100:199] = held[5][begin : begin + 99]  # 2 x 50 - 1 tokens hold a whole stretch
        found = find_overlap(
            shard(tmp_path, f"a{begin}", "validation", held), [shard(tmp_path, f"a{begin}", "train", train)]
        )
        assert found.found_windows == 1


def test_short_copy_is_no_overlap(tmp_path):
    held, train = some_documents(10, 400, seed=1), some_documents(20, 400, seed=2)
    train[3][100:149] = held[5][0:49]
    found = find_overlap(shard(tmp_path, "a", "validation", held), [shard(tmp_path, "a", "train", train)])
    assert found.share == 0.0


def test_short_documents_are_compared_whole(tmp_path):
    held = some_documents(10, 12, seed=1)
    train = [*some_documents(30, 12, seed=2), held[3], held[4][:11], np.append(held[5], 1)]
    found = find_overlap(shard(tmp_path, "a", "validation", held), [shard(tmp_path, "a", "train", train)])
    assert (found.windows, found.found_documents, found.share) == (0, 1, 0.1)


def test_all_sources_are_searched(tmp_path):
    held = some_documents(10, 100, seed=1)
    sides = [
        shard(tmp_path, name, "train", [*some_documents(10, 100, seed=seed), held[seed]])
        for name, seed in (("b", 2), ("c", 3))
    ]
    assert find_overlap(shard(tmp_path, "a", "validation", held), sides).found_documents == 2


def test_time_is_bounded_and_what_was_read_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(overlap, "CHUNK", 1000)
    held = shard(tmp_path, "a", "validation", some_documents(10, 100, seed=1))
    train = shard(tmp_path, "a", "train", some_documents(1000, 100, seed=2))
    found = find_overlap(held, [train], seconds=0.0)
    assert 0.0 < found.scanned < 0.02  # one chunk is always read


@pytest.mark.parametrize(
    ("tokens", "starts", "lengths"),
    [([1, 2, 0, 3, 0], [0, 3], [2, 1]), ([0, 0, 5, 0], [2], [1]), ([1, 2], [], []), ([], [], [])],
)
def test_whole_documents(tokens, starts, lengths):
    found = documents(np.array(tokens, dtype=np.uint16), EOS)
    assert [part.tolist() for part in found] == [starts, lengths]


def test_hashes_agree_exactly_when_runs_do():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 3, 2000).astype(np.uint16)  # three ids: many runs are equal
    sums, back = overlap._sums(tokens)
    starts = np.arange(1990)
    found = overlap._hashes(sums, back, starts, 8)
    runs = [tuple(tokens[start : start + 8]) for start in starts]
    assert len(set(found.tolist())) == len(set(runs))
    assert {(run, int(value)) for run, value in zip(runs, found, strict=True)} == set(
        dict(zip(runs, map(int, found), strict=True)).items()
    )
