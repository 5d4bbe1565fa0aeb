"""cptplan dynamics on a published law, on a campaign and on a fit directory; what it writes and refuses."""

from __future__ import annotations

import json

import pytest


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_published_law(cptplan, place):
    said = cptplan("dynamics", "--law", "knowledge-pile", "--horizon-tokens", "2B", "--json")
    assert said.code == 0
    value = json.loads(said.out)
    assert value["critical"]["general"]["asymptote"]["mean"] == pytest.approx(3.423)
    assert value["turning"]["general"] == {
        "state": "never",
        "steps": {"mean": None, "low": None, "high": None},
        "within_horizon": 0.0,
    }
    assert value["horizon_steps"] == round(2e9 / 4_194_304)
    assert [effect["start"] for effect in value["starts"]] == ["0.1", "0.5", "1"]
    assert (place / "dynamics" / "dynamics.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((place / "dynamics" / "dynamics.json").read_text()) == value
    assert "post-critical" in said.err
    assert said.err.splitlines()[-1] == "next: cptplan laws"


def test_options_change_the_run(cptplan, place):
    plain, heavy, short = (
        json.loads(cptplan("dynamics", "--law", "knowledge-pile", "--horizon-tokens", "2B", "--json", *more).out)
        for more in ([], ["--weights", "general=0.9"], ["--peak-lr", "2e-5", "--replay", "0.3", "--start", "1"])
    )
    assert heavy["changes"]["general"] == plain["changes"]["general"]
    assert heavy["changes"]["weighted"]["mean"][-1] > plain["changes"]["weighted"]["mean"][-1]
    assert short["changes"]["general"]["mean"][-1] < plain["changes"]["general"]["mean"][-1]
    assert [effect["start"] for effect in short["starts"]] == ["0", "0.1", "0.5"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--law", "knowledge-pil"], "law must be a published set; got 'knowledge-pil'"),
        (["--law", "knowledge-pile", "--replay", "1.5"], r"--replay must be in \[0, 1\]; got 1.5"),
        (["--law", "knowledge-pile", "--decay-share", "-1"], r"--decay-share must be in \[0, 1\]; got -1"),
        (["--law", "knowledge-pile", "--peak-lr", "0"], "--peak-lr must be greater than 0; got 0"),
        (["--law", "knowledge-pile", "--horizon-tokens", "long"], "--horizon-tokens must be a number of tokens"),
        (["--law", "knowledge-pile", "--start", "1.5"], r"--start must be a loss potential in \[0, 1\]"),
        (["--law", "knowledge-pile-replay-33", "--replay", "0.5"], "replay_ratio must be 0.33"),
        (["--law", "knowledge-pile", "--weights", "generl=1"], "weights must name a validation set"),
        ([], "project file must be readable"),
    ],
)
def test_bad_input(cptplan, place, arguments, says):
    cptplan.assert_refused("dynamics", *arguments, says=says)
