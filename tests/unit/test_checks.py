"""Checks before anything is paid for."""

from __future__ import annotations

import pytest
from command_line import write_model, write_project

from cptplan.checks import check_project, check_vocabulary
from cptplan.config import read_project
from cptplan.errors import DataError, ModelError
from cptplan.files import read_json, write_json


@pytest.fixture
def project(tmp_path, monkeypatch):
    write_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    return read_project(tmp_path / "cptplan.yaml")


def read(*overrides):
    from pathlib import Path

    return read_project(Path("cptplan.yaml"), overrides)


def test_whole_project(project):
    rows = dict(check_project(project))
    assert rows["start base"].startswith("llama, ")
    assert rows["start base"].endswith("vocabulary 512")
    assert rows["corpus general"] == "general.jsonl"
    assert rows["pilots"] == "6 x 8 steps, peak_lr 0.0001 to 0.003"
    assert rows["pilot tokens"] == "12,288 (150.0% of the budget's)"
    assert rows["longest final run"] == "32 steps of 256 tokens"


def test_hub_id_is_left_to_the_trainer(project):
    rows = dict(check_project(read("model.starts=[{name: base, path: org/model}]")))
    assert rows["start base"] == "org/model (hub id, not checked)"


def test_tokenizer_elsewhere_will_do(project, tmp_path):
    (tmp_path / "base" / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="must hold a tokenizer"):
        check_project(project)
    check_project(read("data.tokenizer=elsewhere"))


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("base/config.json", ModelError, "got no base/config.json"),
        ("base/model.safetensors", ModelError, r"must hold its weights; got no \*.safetensors in base"),
        ("general.jsonl", DataError, "corpus must exist; got no general.jsonl for general"),
    ],
)
def test_missing_part(project, tmp_path, name, kind, message):
    (tmp_path / name).unlink()
    with pytest.raises(kind, match=message):
        check_project(project)


def test_embedded_corpora_need_no_path(project):
    rows = check_project(read("data.general={name: general, path: 'embedded:general'}"))
    assert ("corpus general", "embedded:general") in rows


def packed(tmp_path, vocab_size, size=None):
    """What packing leaves behind: a tokenizer and its size."""
    write_model(tmp_path / "data" / "tokenizer", vocab_size=vocab_size)
    return {"tokenizer": {"path": "tokenizer", "vocab_size": size or vocab_size}}


def test_vocabulary_of_the_same_tokenizer(project, tmp_path):
    check_vocabulary(project, packed(tmp_path, 512), tmp_path / "data")


def test_padded_embeddings_are_fine(project, tmp_path):
    write_json(tmp_path / "base" / "config.json", {**read_json(tmp_path / "base" / "config.json"), "vocab_size": 640})
    check_vocabulary(project, packed(tmp_path, 512), tmp_path / "data")


def test_more_tokens_than_embeddings(project, tmp_path):
    with pytest.raises(ModelError, match=r"must fit the model's 512 embeddings; got 513 in .*data for base"):
        check_vocabulary(project, packed(tmp_path, 512, size=513), tmp_path / "data")


def test_other_tokenizer_of_a_size_that_fits(project, tmp_path):
    with pytest.raises(ModelError, match=r"tokenizer must be the model's own; got one of another vocabulary"):
        check_vocabulary(project, packed(tmp_path, 300), tmp_path / "data")


def test_start_elsewhere_is_not_checked(project, tmp_path):
    there = read("model.starts=[{name: base, path: org/model}]")
    check_vocabulary(there, packed(tmp_path, 300), tmp_path / "data")
