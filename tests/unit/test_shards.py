"""Shards are read as packing wrote them, and refused when they are not whole."""

from __future__ import annotations

import json

import numpy as np
import pytest
from packed_shards import some_documents, write_shard

from cptplan.advice.shards import read_shard, sample_tokens
from cptplan.errors import DataError


def test_shard_is_read_back(tmp_path):
    texts = some_documents(3, 5)
    write_shard(tmp_path / "law", "train", texts, num_bytes=60)
    shard = read_shard(tmp_path / "law", "train")
    assert (shard.source, shard.split, shard.num_tokens, shard.num_documents) == ("law", "train", 18, 3)
    assert shard.tokens_per_byte == pytest.approx(0.3)
    np.testing.assert_array_equal(shard.tokens[:5], texts[0])


def test_what_packing_writes_is_what_the_planner_reads(tmp_path):
    from executor.corpus.pack import open_shard

    write_shard(tmp_path / "law", "train", some_documents(3, 5))
    path = tmp_path / "law" / "train.json"
    full = {**json.loads(path.read_text()), "tokenizer_hash": "a", "corpus_hash": "b", "sha256": "c"}
    path.write_text(json.dumps(full))
    theirs, ours = open_shard(tmp_path / "law", "train"), read_shard(tmp_path / "law", "train")
    np.testing.assert_array_equal(theirs.tokens, ours.tokens)
    for name in ("num_tokens", "num_documents", "num_bytes", "eos_token_id", "vocab_size"):
        assert getattr(theirs.index, name) == getattr(ours, name)


def test_broken_shards_are_refused(tmp_path):
    write_shard(tmp_path / "law", "train", some_documents(3, 5))
    with pytest.raises(DataError, match="shard must have its index"):
        read_shard(tmp_path / "law", "validation")
    (tmp_path / "law" / "train.bin").write_bytes(b"\0" * 10)
    with pytest.raises(DataError, match="token file must hold 18 tokens of uint16"):
        read_shard(tmp_path / "law", "train")
    (tmp_path / "law" / "train.json").write_text("{}")
    with pytest.raises(DataError, match="shard must have its index; got 'num_tokens'"):
        read_shard(tmp_path / "law", "train")


def test_sample_is_spread_over_the_shard(tmp_path):
    write_shard(tmp_path / "a", "train", [np.full(99, number) for number in range(1, 101)])
    shard = read_shard(tmp_path / "a", "train")
    assert len(sample_tokens(shard, 10**6)) == shard.num_tokens
    sample = sample_tokens(shard, 1600)
    assert len(sample) == 1600
    assert sample.max() >= 99
    assert len(set(sample.tolist())) > 15
