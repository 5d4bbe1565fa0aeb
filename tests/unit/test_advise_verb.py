"""cptplan advise with nothing, with options, on a project, on runs; and its exit codes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from command_line import write_project
from logged_runs import general_loss, healthy, with_losses, write_log
from test_preflight import VOCAB, pack, some_documents


@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_without_a_project(cptplan, empty):
    said = cptplan("advise", "--use", "facts-that-change", "--json")
    assert said.code == 0
    value = json.loads(said.out)
    assert (value["advice"]["method"], value["preflight"], value["diagnosis"]) == ("rag", [], [])
    assert "advice: retrieval (RAG)" in said.err
    assert said.err.splitlines()[-1] == "next: cptplan init"


def test_options_alone(cptplan, empty):
    arguments = ["--model", "8B", "--corpus-tokens", "2B", "--domain-perplexity", "20", "--general-perplexity", "8"]
    said = cptplan("advise", *arguments)
    assert (said.code, said.out) == (0, "")
    assert "advice: continual pre-training" in said.err
    assert "rule of thumb" in said.err
    assert "arXiv:2405.09673" in said.err


def test_runs_are_diagnosed(cptplan, empty):
    sick = with_losses(healthy(), general=lambda s: general_loss(s) + 0.5 * (1 - np.exp(-s / 100)))
    write_log(empty / "runs" / "sick", sick)
    said = cptplan("advise", "--runs", "runs", "--json")
    (found,) = json.loads(said.out)["diagnosis"]
    assert (found["mode"], found["run"], found["effect"]) == ("forgetting", "sick", None)
    write_log(empty / "others" / "sound", healthy())
    said = cptplan("advise", "--runs", "others")
    assert said.code == 0
    assert "nothing is wrong with the 1 runs" in said.err


def test_project_that_cannot_run_ends_with_2(cptplan, empty):
    write_project(empty)
    pack(empty / "campaign")
    said = cptplan("advise", "--json")
    assert said.code == 0
    assert {check["status"] for check in json.loads(said.out)["preflight"]} == {"ok"}
    pack(empty / "campaign", train={"domain": some_documents(5, 100, vocab_size=VOCAB, seed=21)})
    said = cptplan("advise", "--json")
    assert said.code == 2
    assert "error: checklist must hold nothing that makes a run impossible; got tokens of domain." in said.err
    assert json.loads(said.out)["advice"]["method"] == "rag"  # the whole answer is there all the same


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--use", "stile"], "--use must be one of .*; got 'stile'"),
        (["--corpus-tokens", "many"], "--corpus-tokens must be a number of tokens; got 'many'"),
        (["--domain-perplexity", "5"], "perplexities must both be given"),
        (["--runs", "nowhere"], "--runs must be a run directory"),
        (["--set", "a.b=1"], "--set must have a project"),
        (["-c", "nowhere.yaml"], "project file must be readable"),
        (["--model", "8B", "--gpu", "h1000"], "hardware must be known"),
    ],
)
def test_bad_input(cptplan, empty, arguments, says):
    cptplan.assert_refused("advise", *arguments, says=says)
