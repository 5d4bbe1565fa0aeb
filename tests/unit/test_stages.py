"""Corpora and runs: what each stage asks of its input, and what a process that fails says."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from campaign_files import make_corpora, make_curve
from simple_laws import make_project

from cptplan import stages
from cptplan.curves import read_curve_directory, write_curve
from cptplan.errors import DataError, RunFailedError
from cptplan.files import read_json, write_json
from cptplan.pilots.design import pilot_specs
from cptplan.workspace import Workspace


@pytest.fixture
def project(tmp_path):
    return make_project(tmp_path)


@pytest.fixture
def workspace(tmp_path):
    return Workspace(root=tmp_path / "campaign")


def test_tokens_of_a_run_by_source(tmp_path):
    project = make_project(
        tmp_path, "data.domains=[{name: code, path: a, weight: 3}, {name: law, path: b}]", "pilot.total_steps=10"
    )
    first, second = pilot_specs(project, "data")[:2]
    assert stages.tokens_of_run(first) == {"general": 0, "code": 1920, "law": 640}
    needed = stages.tokens_of_run(second)
    assert needed == pytest.approx({"general": 768, "code": 1344, "law": 448}, abs=1)  # whole tokens


def test_tokens_of_a_budget_are_what_every_replay_ratio_needs(tmp_path):
    project = make_project(tmp_path, "pilot.replay_range=[0.25, 0.75]")
    assert stages.tokens_of_budget(project) == {"general": 2048, "domain": 2048}
    project = make_project(tmp_path)
    assert stages.tokens_of_budget(project)["general"] == 0


@pytest.mark.parametrize(("there", "enough"), [(1000, True), (999, False)])
def test_corpus_must_hold_what_is_read(there, enough):
    corpora, needed = make_corpora(general=there, domain=5), {"general": 1000, "domain": 0}
    if enough:
        stages.require_tokens(corpora, needed)
        return
    with pytest.raises(DataError, match="got 999 tokens, needed 1,000 in general") as caught:
        stages.require_tokens(corpora, needed)
    assert "budget.tokens" in caught.value.hint


def test_corpora_must_be_packed(workspace):
    with pytest.raises(DataError, match=r"corpora must be packed; got no .*corpora\.json"):
        stages.read_corpora(workspace)


@pytest.mark.parametrize(
    ("code", "kind", "message", "hint"),
    [
        (
            "import sys; print('note\\nerror: a must b; got c in d.\\nhint: e'); sys.exit(2)",
            DataError,
            "a must b;",
            "e",
        ),
        (
            "import sys; print('error: disk must have room; got x.'); sys.exit(5)",
            RunFailedError,
            "disk must",
            "log.txt",
        ),
        ("raise ValueError('odd')", RunFailedError, "ValueError: odd", "log.txt"),
        ("import sys; sys.exit(3)", RunFailedError, "nothing", "log.txt"),
    ],
)
def test_process_that_fails_is_told_in_its_own_words(tmp_path, code, kind, message, hint):
    with pytest.raises(kind) as caught:
        stages._run_process([sys.executable, "-c", code], tmp_path, stages.quiet)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_progress_of_a_process_is_passed_on(tmp_path):
    code = (
        "import json, sys, time\n"
        "json.dump({'done': 4, 'total': 9, 'message': 'm'}, open(sys.argv[1] + '/progress.json', 'w'))\ntime.sleep(0.6)"
    )
    seen = []
    stages._run_process([sys.executable, "-c", code, str(tmp_path)], tmp_path, lambda *told: seen.append(told))
    assert (4, 9, "m") in seen


def test_corpus_spec_says_what_the_project_says(tmp_path, workspace, monkeypatch):
    general = "data.general={name: general, path: 'embedded:general', max_bytes: 7, provenance: proxy}"
    project = make_project(tmp_path, general)
    write_json(workspace.data / "corpora.json", make_corpora())
    monkeypatch.setattr(stages, "_run_process", lambda *_: None)
    stages.pack_data(project, workspace)
    spec = read_json(workspace.data / "spec.json")
    assert spec["tokenizer"] == {"path": "a"}
    assert spec["sources"] == [
        {"name": "general", "role": "general", "kind": "embedded:general", "max_bytes": 7, "provenance": "proxy"},
        {"name": "domain", "role": "domain", "kind": "files", "path": "domain.jsonl", "text_column": "text"},
    ]


@pytest.mark.parametrize(
    ("override", "tokenizer"),
    [("data.tokenizer=there", {"path": "there"}), ("data.train_tokenizer=999", {"train": {"vocab_size": 999}})],
)
def test_tokenizer_of_the_corpora(tmp_path, workspace, monkeypatch, override, tokenizer):
    write_json(workspace.data / "corpora.json", make_corpora())
    monkeypatch.setattr(stages, "_run_process", lambda *_: None)
    stages.pack_data(make_project(tmp_path, override), workspace)
    assert read_json(workspace.data / "spec.json")["tokenizer"] == tokenizer


def test_pilots_bring_their_curves_and_those_of_pretraining(tmp_path, workspace, monkeypatch):
    write_curve(tmp_path / "before", make_curve("base", phase="pretrain"))
    project = make_project(tmp_path, f"model.pretrain_curves={tmp_path / 'before'}")
    corpora = {**make_corpora(general=10**6, domain=10**6), "tokenizer": {"path": "t", "vocab_size": 9}}

    def train(jobs, **_):
        for job in jobs:
            write_json(job.run_dir / "spec.json", job.spec.to_json())
            write_curve(job.run_dir, make_curve("curve"))
        return [{"name": job.spec.name} for job in jobs]

    monkeypatch.setattr(stages.campaign, "run_all", train)
    results = stages.run_pilots(project, workspace, corpora)
    names = [f"pilot-0{number}" for number in range(1, 7)]
    assert [result["name"] for result in results] == names
    assert sorted(read_curve_directory(workspace.curves)) == ["base", *names]


def test_progress_counts_steps_over_all_runs(project, monkeypatch):
    told = []

    def train(_jobs, *, parallel, threads, report):
        assert (parallel, threads) == (2, 1)
        one = SimpleNamespace(name="a", done=3, total=8, state="running")
        two = SimpleNamespace(name="b", done=8, total=8, state="complete")
        report([one, two])
        return []

    monkeypatch.setattr(stages.campaign, "run_all", train)
    stages.run_jobs(project, [], lambda *note: told.append(note))
    assert told == [(11, 16, "a 3/8")]
