"""Facts of a situation: told first, then measured, then guessed, and never made up."""

from __future__ import annotations

from dataclasses import replace

import pytest
from command_line import write_project
from logged_runs import healthy, series
from packed_shards import some_documents, write_shard

from cptplan.advice.situation import BYTES_PER_TOKEN, Told, find_situation
from cptplan.config import read_project
from cptplan.errors import ConfigError
from cptplan.workspace import Workspace


@pytest.fixture
def place(tmp_path, monkeypatch):
    write_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_options_alone():
    found = find_situation(
        Told(
            use="style",
            corpus_tokens=2e9,
            domain_perplexity=20.0,
            general_perplexity=8.0,
            model="8B",
            gpu="h100-sxm",
            num_devices=1,
            budget_tokens=5e9,
        )
    )
    assert (found.use, found.corpus_tokens.value, found.budget_tokens.value) == ("style", 2e9, 5e9)
    assert found.gap.value == pytest.approx(1.4406, abs=1e-4)  # ln 20 / ln 8
    assert found.num_params == pytest.approx(8e9, rel=0.01)
    # 8B in float32 with AdamW is 128 GB: one device holds adapters, not that
    assert (found.full_fits, found.lora_fits) == (False, True)
    assert found.shift == "strong"


def test_nothing_is_known_without_anything():
    found = find_situation(Told())
    assert (found.corpus_tokens, found.gap, found.budget_tokens, found.num_params, found.full_fits) == (None,) * 5


@pytest.mark.parametrize("given", [{"domain_perplexity": 5.0}, {"domain_perplexity": 1.0, "general_perplexity": 3.0}])
def test_perplexities_must_both_be_sensible(given):
    with pytest.raises(ConfigError, match="perplexities must both be given and above 1"):
        find_situation(Told(**given))


def test_project_without_packed_corpora(place):
    project, workspace = read_project(place / "cptplan.yaml"), Workspace(root=place / "campaign")
    found = find_situation(Told(), project, workspace)
    size = (place / "domain.jsonl").stat().st_size
    assert found.corpus_tokens.value == pytest.approx(size / BYTES_PER_TOKEN)
    assert found.corpus_tokens.basis == "rule of thumb"
    assert found.budget_tokens.value == 8192
    assert (found.full_fits, found.pretrain_peak_lr, found.gap) == (True, 3e-3, None)


def test_packed_corpora_are_measured(place):
    project, workspace = read_project(place / "cptplan.yaml"), Workspace(root=place / "campaign")
    write_shard(workspace.data / "domain", "train", some_documents(3, 9))
    found = find_situation(Told(), project, workspace)
    assert (found.corpus_tokens.value, found.corpus_tokens.basis) == (30.0, "measured")


def test_gap_is_measured_at_step_0_in_bits_per_byte_where_bytes_are_known(place):
    workspace = Workspace(root=place / "campaign")
    log = healthy()
    first = {"general": 3.0, "domain": 4.0}
    log = replace(log, losses={name: series([0, 10], [value, value]) for name, value in first.items()})
    found = find_situation(Told(), None, workspace, [log])
    assert found.gap.value == pytest.approx(4.0 / 3.0)
    assert "loss per token" in found.gap.source
    write_shard(workspace.data / "general", "validation", some_documents(1, 9), num_bytes=20)
    write_shard(workspace.data / "domain", "validation", some_documents(1, 9), num_bytes=40)
    found = find_situation(Told(), None, workspace, [log])
    # half a token a byte against a quarter
    assert found.gap.value == pytest.approx(4.0 / 3.0 / 2.0)
    assert "bits per byte" in found.gap.source
    late = replace(log, losses={name: series([10], [value]) for name, value in first.items()})
    assert find_situation(Told(), None, workspace, [replace(log, phase="pretrain"), late]).gap is None
