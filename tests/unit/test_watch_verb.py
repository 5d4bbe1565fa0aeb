"""cptplan watch as it is typed: what it says where, its exit codes, its page."""

from __future__ import annotations

import json
import re
import threading
import time

import numpy as np
import pytest
from watch_examples import make_campaign, write_run

from cptplan.watch_report import draw_watch, headline, render_watch


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    return make_campaign(tmp_path_factory.mktemp("watched"))


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


def test_watching_goes_on_until_the_result(cptplan, campaign, tmp_path):
    """Nothing evaluated, then half, then torn, then whole: the verb waits, speaks again, and ends."""
    directory = tmp_path / "final"
    directory.mkdir()
    (directory / "spec.json").write_text('{"name": "final"}')
    told = campaign.planned_record()

    def train():
        time.sleep(0.5)
        write_run(directory, told, share=0.3)
        time.sleep(1.0)
        with (directory / "metrics.jsonl").open("a") as file:
            file.write('{"step": 700, "tra')
        time.sleep(0.5)
        write_run(directory, told)

    trainer = threading.Thread(target=train)
    trainer.start()
    said = cptplan("watch", directory, "--interval", "0.1", *campaign.arguments, "--json")
    trainer.join()
    assert said.code == 0, said.err
    assert "waiting: run must have been evaluated" in said.err
    assert json.loads(said.out)["state"] == "complete"
    assert re.findall(r"final: step ([\d,]+) of 2,000", said.err)[-1] == "2,000"
    assert "next: cptplan select" in said.err


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
