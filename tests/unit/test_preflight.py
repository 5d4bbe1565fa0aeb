"""The checklist on projects with one thing wrong at a time."""

from __future__ import annotations

import json

import numpy as np
import pytest
from command_line import write_project
from packed_shards import some_documents, write_shard

from cptplan.advice import preflight as module
from cptplan.advice.preflight import preflight
from cptplan.config import read_project
from cptplan.files import write_json
from cptplan.workspace import Workspace

VOCAB = 500


def pack(root, *, held=None, train=None, domain_bytes=None):
    """Packed corpora of the small project: 600 validation tokens a side, more than the budget needs to train on."""
    data = root / "data"
    sides = {}
    for seed, name in enumerate(("general", "domain")):
        held_out = (held or {}).get(name, some_documents(6, 100, vocab_size=VOCAB, seed=10 + seed))
        texts = (train or {}).get(name, some_documents(120, 100, vocab_size=VOCAB, seed=20 + seed))
        write_shard(data / name, "validation", held_out, vocab_size=VOCAB)
        write_shard(data / name, "train", texts, vocab_size=VOCAB, num_bytes=domain_bytes if name == "domain" else None)
        sides[name] = sum(len(text) + 1 for text in texts)
    sources = [{"name": name, "train": {"num_tokens": tokens}} for name, tokens in sides.items()]
    record = {"schema_version": 1, "tokenizer": {"path": "tokenizer", "vocab_size": VOCAB}, "sources": sources}
    write_json(data / "corpora.json", record)


@pytest.fixture
def place(tmp_path, monkeypatch):
    write_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def checks(place, *overrides):
    found = preflight(read_project(place / "cptplan.yaml", overrides), Workspace(root=place / "campaign"), 5.0)
    return {check.name: check for check in found}


def test_a_sound_project_has_nothing_to_mend(place):
    pack(place / "campaign")
    found = checks(place)
    assert {check.status for check in found.values()} == {"ok"}
    assert not [check for check in found.values() if check.blocks]
    names = " ".join(found)
    for word in ("project", "tokens of general", "not trained on", "fertility", "vocabulary", "disk", "memory"):
        assert word in names


def test_without_packed_corpora_the_rest_is_looked_at(place):
    found = checks(place)
    assert found["packed corpora"].status == "skipped"
    assert "cptplan data pack" in found["packed corpora"].next_step
    assert found["disk"].status == found["memory"].status == "ok"


def test_planted_contamination_is_found(place):
    held = {"domain": some_documents(6, 100, vocab_size=VOCAB, seed=11)}
    train = {"domain": [*some_documents(120, 100, vocab_size=VOCAB, seed=21), held["domain"][2]]}
    pack(place / "campaign", held=held, train=train)
    check = checks(place)["validation of domain not trained on"]
    assert (check.status, check.blocks) == ("fail", False)
    assert "2 of 12 stretches and 1 of 6 documents stand in training text" in check.value
    assert checks(place)["validation of general not trained on"].status == "ok"


def test_validation_in_the_training_text_of_another_source_is_found(place):
    held = {"domain": some_documents(6, 100, vocab_size=VOCAB, seed=11)}
    train = {"general": [*some_documents(120, 100, vocab_size=VOCAB, seed=20), held["domain"][2]]}
    pack(place / "campaign", held=held, train=train)
    assert checks(place)["validation of domain not trained on"].status == "fail"


def test_text_shared_by_domain_and_general_is_found(place):
    domain = some_documents(120, 100, vocab_size=VOCAB, seed=21)
    pack(
        place / "campaign",
        train={"domain": domain, "general": domain[:60] + some_documents(60, 100, vocab_size=VOCAB, seed=20)},
    )
    check = checks(place)["domain apart from general"]
    assert check.status == "warn"
    assert "50.0% of domain text" in check.value


def test_too_few_tokens_make_a_run_impossible(place):
    pack(place / "campaign", train={"domain": some_documents(10, 100, vocab_size=VOCAB, seed=21)})
    check = checks(place)["tokens of domain"]
    # 8,192 tokens of which at least 40 % are domain's: 3,277 of 1,010
    assert (check.status, check.blocks) == ("fail", True)
    assert "1,010 there, 3,277 needed by the budget" in check.value
    assert "budget.max_epochs=4" in check.next_step
    allowed = checks(place, "budget.max_epochs=8")["tokens of domain"]
    assert (allowed.status, allowed.blocks) == ("ok", False)
    pack(place / "campaign", train={"domain": some_documents(5, 100, vocab_size=VOCAB, seed=21)})
    assert checks(place, "budget.max_epochs=8")["tokens of domain"].status == "warn"


def test_too_few_validation_tokens_make_a_run_impossible(place):
    pack(place / "campaign", held={"general": some_documents(2, 100, vocab_size=VOCAB, seed=10)})
    check = checks(place)["validation tokens of general"]
    assert (check.status, check.blocks, check.value, check.threshold[:3]) == ("fail", True, "202", "512")


def test_tokenizer_that_shreds_the_domain(place):
    pack(place / "campaign", domain_bytes=12_000)
    check = checks(place)["fertility on domain"]
    assert check.status == "warn"
    assert "4.04 times general text's" in check.value


def test_vocabulary_that_general_text_does_not_have(place):
    own = [np.where(text < 50, 400 + text, text) for text in some_documents(120, 100, vocab_size=300, seed=21)]
    pack(place / "campaign", train={"domain": own, "general": some_documents(120, 100, vocab_size=300, seed=20)})
    check = checks(place)["vocabulary of domain"]
    assert check.status == "warn"
    assert float(check.value.partition("%")[0]) == pytest.approx(49 / 299 * 100, abs=1.5)


def test_unknown_tokens_are_counted(place):
    pack(place / "campaign")
    (place / "campaign" / "data" / "tokenizer").mkdir()
    tokenizer = {"model": {"unk_token": "<unk>", "vocab": {"<unk>": 7}}}
    (place / "campaign" / "data" / "tokenizer" / "tokenizer.json").write_text(json.dumps(tokenizer))
    # check_vocabulary compares with the model's own: leave that one without
    (place / "base" / "tokenizer.json").rename(place / "base" / "vocab.json")
    check = checks(place)["unknown tokens of domain"]
    assert check.status == "warn"
    assert float(check.value.removesuffix("%")) == pytest.approx(100 / 499, abs=0.1)


def test_tokenizer_of_another_model_makes_a_run_impossible(place):
    pack(place / "campaign")
    (place / "campaign" / "data" / "tokenizer").mkdir()
    (place / "campaign" / "data" / "tokenizer" / "tokenizer.json").write_text('{"model": {"vocab": {"other": 0}}}')
    check = checks(place)["packed corpora"]
    assert (check.status, check.blocks) == ("fail", True)
    assert "tokenizer must be the model's own" in check.value


def test_missing_side_and_missing_model(place):
    pack(place / "campaign")
    (place / "campaign" / "data" / "domain" / "validation.json").unlink()
    (place / "base" / "model.safetensors").unlink()
    found = checks(place)
    assert found["packed corpora"].value == "missing: domain/validation"
    assert found["packed corpora"].blocks
    assert "model directory must hold its weights" in found["project"].value
    assert found["project"].blocks


@pytest.mark.parametrize(("free", "status"), [(10.0, "ok"), (1.5, "warn"), (0.5, "fail")])
def test_disk(place, monkeypatch, free, status):
    monkeypatch.setattr(module, "shutil", _Disk(1))
    needed = float(checks(place)["disk"].value.split(", ")[1].split()[0]) * 1e3 * 1e3
    monkeypatch.setattr(module, "shutil", _Disk(free * needed))
    check = checks(place)["disk"]
    assert (check.status, check.blocks) == (status, status == "fail")


class _Disk:
    """shutil with so many bytes free."""

    def __init__(self, free):
        self.free = free

    def disk_usage(self, path):
        return self


def test_memory(place, monkeypatch):
    assert checks(place)["memory"].status == "ok"
    monkeypatch.setattr(module, "USABLE_SHARE", 1e-9)
    monkeypatch.setattr(module, "smallest_num_devices", lambda *given, **options: 64)
    check = checks(place)["memory"]
    assert (check.status, check.blocks) == ("fail", True)
    assert "budget.num_devices=64" in check.next_step


def test_model_of_the_hub_is_not_looked_into(place):
    found = checks(place, "model.starts=[{name: base, path: org/base}]")
    assert found["disk"].status == found["memory"].status == "skipped"
