"""cptplan watch as it is typed: what it says where, its exit codes, its page."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from watch_examples import make_campaign, write_run

from cptplan.verbs import watch as watch_verb
from cptplan.watch.report import draw_watch, headline, render_watch


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    return make_campaign(tmp_path_factory.getbasetemp() / "watched")


def test_once_says_all_and_writes_a_page(cptplan, campaign, tmp_path):
    directory = write_run(tmp_path / "final", campaign.planned_record(), share=0.5)
    said = cptplan("watch", directory, "--once", *campaign.arguments, "--json")
    assert said.code == 0
    result = json.loads(said.out)
    assert result["alarms"] == []
    assert set(result["sets"]) == {"general", "domain"}
    assert result["test"]["evidence"] < result["test"]["threshold"] == 20.0
    page = (campaign.root / "watch" / "final" / "index.html").read_text()
    assert "So far the run keeps to its plan." in page
    assert 'http-equiv="refresh"' not in page
    assert "inside its band" in said.err
    assert "loss_domain: o measured" in said.err
    assert "next: cptplan watch" in said.err


def test_lines_fit_80_columns(cptplan, campaign, tmp_path, monkeypatch):
    directory = write_run(tmp_path / "final", campaign.planned_record(), share=0.5)
    monkeypatch.setenv("COLUMNS", "80")
    said = cptplan("watch", directory, "--once", *campaign.arguments)
    drawn = [line for line in said.err.splitlines() if "│" in line or " |" in line]
    assert len(drawn) > 20
    assert max(len(line) for line in drawn) <= 80
    assert not re.search(r"^ +│", said.err, re.MULTILINE), "a cell was folded"


def test_alarm_is_on_stderr_and_in_json_and_no_error(cptplan, campaign, tmp_path):
    told = campaign.planned_record()
    twice = told.model_copy(update={"lr": told.lr.model_copy(update={"peak_lr": 2 * told.lr.peak_lr})})
    directory = write_run(tmp_path / "final", told, twice, share=0.6)
    said = cptplan("watch", directory, "--once", *campaign.arguments, "--json")
    assert said.code == 0
    assert "ALARM at step 1: the learning rate is 2 times the planned one" in said.err
    assert [alarm["kind"] for alarm in json.loads(said.out)["alarms"]] == ["lr"]


def test_failed_run_ends_with_5(cptplan, campaign, tmp_path):
    bump = {"domain": np.linspace(-4, 4, 24).clip(0)}
    directory = write_run(tmp_path / "final", campaign.planned_record(), share=0.8, bump=bump)
    said = cptplan("watch", directory, *campaign.arguments, "--json")
    assert said.code == 5
    assert json.loads(said.out)["failed"] is True
    assert re.search(r"^error: run must stay near its plan; got loss_domain is .* diverged", said.err, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["gone", "--once"], "RUN must be a run directory or a curve; got 'gone'"),
        (["{run}", "--once", "--plan", "nowhere"], "file must exist; got no nowhere/plan.json"),
    ],
)
def test_bad_input_is_one_line(cptplan, campaign, tmp_path, arguments, says):
    directory = write_run(tmp_path / "final", campaign.planned_record(), share=0.5)
    given = [word.format(run=directory) for word in arguments]
    cptplan.assert_refused("watch", *given, *campaign.arguments, says=says)


def test_watching_goes_on_until_the_result(cptplan, campaign, tmp_path, monkeypatch):
    """Nothing evaluated, then a third, then a torn line, then whole: the verb waits, speaks again, and ends."""
    directory, told = tmp_path / "final", campaign.planned_record()
    directory.mkdir()
    (directory / "spec.json").write_text('{"name": "final"}')

    def tear():
        with (directory / "metrics.jsonl").open("a") as file:
            file.write('{"step": 700, "tra')

    training = [lambda: write_run(directory, told, share=0.3), tear, lambda: write_run(directory, told)]
    slept = []

    def sleep(seconds):
        slept.append(seconds)
        training.pop(0)()

    monkeypatch.setattr(watch_verb, "time", SimpleNamespace(sleep=sleep))
    said = cptplan("watch", directory, "--interval", "7", *campaign.arguments, "--json")
    assert said.code == 0, said.err
    assert slept == [7.0] * 3
    assert "waiting: run must have been evaluated" in said.err
    assert json.loads(said.out)["state"] == "complete"
    # the torn line is nothing new, so it is not told
    assert re.findall(r"final: step ([\d,]+) of 2,000", said.err) == ["591", "2,000"]
    assert "next: cptplan select" in said.err


def test_a_curve_that_stays_broken_ends_the_wait(cptplan, campaign, tmp_path, monkeypatch):
    directory = write_run(tmp_path / "final", campaign.planned_record(), share=0.3)
    (directory / "curve.json").write_text("{")
    slept = []
    monkeypatch.setattr(watch_verb, "time", SimpleNamespace(sleep=slept.append))
    said = cptplan("watch", directory, *campaign.arguments)
    assert said.code == 2
    assert slept == [30.0] * (watch_verb.PATIENCE - 1)
    assert "error: file must be JSON" in said.err


def test_page_escapes_names_and_refreshes_while_it_runs(campaign, tmp_path):
    directory = write_run(tmp_path / "final", campaign.planned_record(), share=0.5)
    (directory / "spec.json").write_text(json.dumps({"name": "<script>alert(1)</script>"}))
    found = campaign.look(directory)
    page = render_watch(found, 30.0)
    assert "<script>" not in page
    assert '<meta http-equiv="refresh" content="30">' in page
    assert len(re.findall(r'src="data:image/png', page)) == 1
    assert draw_watch(found).startswith(b"\x89PNG")


def test_headline_says_the_worst_first(campaign, tmp_path):
    told = campaign.planned_record()
    half = told.model_copy(update={"replay_ratio": told.replay_ratio.model_copy(update={"replay_ratio": 0.05})})
    runs = {
        "ok": write_run(tmp_path / "ok", told),
        "off": write_run(tmp_path / "off", told, half, share=0.5),
        "gone": write_run(tmp_path / "gone", told, share=0.8, bump={"domain": np.linspace(-4, 4, 24).clip(0)}),
    }
    said = {name: headline(campaign.look(directory)) for name, directory in runs.items()}
    assert said["ok"] == "The run ended inside the band of its plan."
    assert said["off"].startswith("Not as planned: the replay ratio is 5.0% in place of")
    assert said["gone"].startswith("The run has failed: loss_domain is")
