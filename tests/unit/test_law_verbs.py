"""The verbs laws, predict, simulate and curves import: what they write, say and refuse."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from known_fits import exact_fits

from cptplan import api
from cptplan.curves import CurveRecord, read_curve_directory, write_curve
from cptplan.mixture import ConstantMixture
from cptplan.run_spec import ModelSource, RunSpec, Source, ValidationSet, write_run_spec
from cptplan.schedule import ConstantSchedule, WsdSchedule
from cptplan.simulation.simulation import simulate_curves

COSINE = '{"kind": "cosine", "peak_lr": 1e-4, "total_steps": 500}'
BASE = CurveRecord(phase="pretrain", lr=WsdSchedule(kind="wsd", peak_lr=2e-4, total_steps=1000, decay_steps=200))
RATE = ConstantSchedule(kind="constant", peak_lr=1e-4, total_steps=300)


@pytest.fixture
def campaign(tmp_path, monkeypatch):
    """A campaign in the working directory: a pre-training run, two CPT runs, and a fit that is exact."""
    cpt = CurveRecord(phase="cpt", lr=RATE, replay_ratio=ConstantMixture(replay_ratio=0.1), parent="base")
    for curve in simulate_curves(exact_fits(), {"base": BASE, "one": cpt, "two": cpt}).values():
        write_curve(tmp_path / "campaign" / "curves", curve)
    fit = tmp_path / "campaign" / "fits" / "abc"
    fit.mkdir(parents=True)
    (fit / "law.json").write_text("{}")
    (fit.parent / "latest.json").write_text('{"schema_version": 1, "hash": "abc"}')
    monkeypatch.setattr(api, "read_fit", lambda _: exact_fits())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_simulate_alone_writes_curves_a_figure_and_a_table(cptplan, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = cptplan("simulate")
    assert (said.code, said.out) == (0, "")
    assert "cosine-2e-4-replay-30 │ 3.2332 (+0.045) │ 2.6006 (-0.483)" in said.err
    assert said.err.splitlines()[-1] == "next: cptplan fit simulated"
    curves = read_curve_directory(tmp_path / "simulated")
    assert len(curves) == 4
    assert (tmp_path / "simulated" / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert cptplan("simulate").code == 0  # the same runs may be simulated again


def test_simulate_json_has_the_ends_of_what_was_asked(cptplan, tmp_path):
    said = cptplan(
        "simulate", "--law", "pile-of-law", "--lr", COSINE, "--replay", 0.1, "--replay", 0.5, "--start", 1,
        "--noise", 0.004, "--autocorrelation", 0.5, "--seed", 3, "--out", tmp_path / "out", "--json",
    )  # fmt: skip
    found = json.loads(said.out)
    assert list(found["runs"]) == ["cosine-1e-4-replay-10", "cosine-1e-4-replay-50"]
    curves = read_curve_directory(tmp_path / "out")
    for name, sets in found["runs"].items():
        for set_name, end in sets.items():
            assert end["end"] == curves[name].final_loss(set_name)
            assert end["change"] == pytest.approx(end["end"] - end["start"])
    again = cptplan(
        "simulate", "--law", "pile-of-law", "--lr", COSINE, "--replay", 0.1, "--start", 1, "--noise", 0.004,
        "--seed", 3, "--out", tmp_path / "again", "--json",
    )  # fmt: skip
    assert json.loads(again.out)["runs"]["cosine-1e-4-replay-10"] == found["runs"]["cosine-1e-4-replay-10"]


def test_small_replay_form_is_chosen_by_name(cptplan, tmp_path):
    ends = {}
    for form in ("exponential", "logarithmic"):
        out = tmp_path / form
        said = cptplan("simulate", "--lr", COSINE, "--replay", 0.02, "--replay-form", form, "--out", out, "--json")
        ends[form] = json.loads(said.out)["runs"]["cosine-1e-4-replay-2"]["general"]["change"]
    assert ends["logarithmic"] < 0.7 * ends["exponential"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--law", "knowlege-pile"), "law must be a published set; got 'knowlege-pile'"),
        (("--lr", "{"), "--lr must be JSON; got .* in '{'"),
        (("--lr", '{"kind": "cosine", "peak_lr": 1e-4}'), "total_steps must be given; it is missing in --lr"),
        (("--replay", "some"), "--replay must be JSON; got .* in 'some'"),
        (("--replay", "1.2"), r"replay_ratio must be in \[0, 1\]; got 1.2 in --replay"),
        (("--start", "2"), r"--start must be a loss potential in \[0, 1\]; got 2"),
        (("--replay-form", "linear"), "--replay-form must be exponential or logarithmic; got 'linear'"),
        (("--num-params", "5"), "num_params must be left out for knowledge-pile; got 5"),
        (("--law", "knowledge-pile-sizes"), "num_params must be given for knowledge-pile-sizes; got none"),
        (("--law", "knowledge-pile-replay-33", "--replay", "0.1"), "replay_ratio must be 0.33, .*; got 0.1"),
    ],
)
def test_simulate_refuses(cptplan, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    said = cptplan("simulate", *arguments)
    lines = said.err.splitlines()
    assert (said.code, said.out) == (2, "")
    assert lines[-1].startswith("hint: ")
    assert re.search(f"^error: {says}", lines[-2]), lines


def test_simulate_does_not_mix_its_curves_with_others(cptplan, campaign):
    cptplan.assert_refused(
        "simulate", "--out", "campaign/curves", says="must hold no other curves; got one in campaign/curves"
    )
    assert len(read_curve_directory(campaign / "campaign" / "curves")) == 3


def test_predict_writes_bands_of_the_campaigns_runs(cptplan, campaign):
    said = cptplan("predict", "--curves", "campaign/curves", "--out", "bands", "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert found["fit"] == "campaign/fits/abc"
    assert list(found["runs"]) == ["one", "two"]
    end = found["runs"]["one"]["sets"]["general"]
    assert (end["step"], end["inside"]) == (300, True)
    assert end["high"] - end["low"] == pytest.approx(0.12)
    table = np.genfromtxt(campaign / "bands" / "one.csv", delimiter=",", names=True)
    assert table["step"][-1] == 300
    assert table["loss_general"][-1] == end["predicted"]
    assert np.all(table["low_domain"] < table["high_domain"])
    assert found["runs"]["one"]["file"] == "bands/one.csv"


def test_predict_takes_names(cptplan, campaign):
    said = cptplan("predict", "--curves", "campaign/curves", "tw*", "base", "--level", 0.5, "--json")
    assert list(json.loads(said.out)["runs"]) == ["base", "two"]
    assert "50% interval" in said.err


def test_predict_a_run_spec_that_continues_a_run_of_the_campaign(cptplan, campaign):
    spec = RunSpec(
        name="plan",
        phase="cpt",
        model=ModelSource(path="model"),
        sources=(Source(name="general", role="general", path="g"), Source(name="domain", role="domain", path="d")),
        validation=(ValidationSet(name="general", path="g", num_tokens=10),),
        schedule=RATE.model_copy(update={"peak_lr": 1e-3}),
        mixture=ConstantMixture(replay_ratio=0.1),
        seq_len=8,
        batch_tokens=16,
        parent="base",
    )
    write_run_spec(campaign / "spec.json", spec)
    said = cptplan("predict", "--run-spec", "spec.json", "--json")
    run = json.loads(said.out)["runs"]["plan"]
    assert run["sets"]["domain"]["measured"] is None
    assert run["notes"][0].startswith("peak rate 0.001 is outside the tried")
    assert "note: plan: peak rate 0.001 is outside" in said.err
    write_run_spec(campaign / "spec.json", spec.model_copy(update={"parent": None}))
    cptplan.assert_refused("predict", "--run-spec", "spec.json", says="pre-training must be known .* got none for plan")


def test_predict_refuses(cptplan, campaign):
    cptplan.assert_refused("predict", says="runs must be given; got neither")
    cptplan.assert_refused(
        "predict", "--run-spec", "x.json", "one", says="names must come with --curves alone; got one"
    )
    cptplan.assert_refused("predict", "--curves", "campaign/curves", "three", says="must be .* got 'three'")


def test_predict_without_a_fit_says_what_to_run(cptplan, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = cptplan.assert_refused("predict", "--curves", "x", says="fit must be there; got none in campaign/fits")
    assert said.err.endswith("hint: run cptplan fit first\n")


def test_laws_are_listed_with_their_needs(cptplan):
    said = cptplan("laws", "--json")
    found = json.loads(said.out)
    names = {law["name"] for law in found["laws"]}
    assert {"cpt", "annealing", "multi_power", "power"} <= names
    for law in found["laws"]:
        assert law["needs"]
        assert law["choose_when"]
        assert f"{law['name']}: {law['title']}" in said.err
    assert {published["name"] for published in found["published"]} >= {"knowledge-pile", "pile-of-law"}


def test_import_makes_a_curve(cptplan, tmp_path):
    log = tmp_path / "log.csv"
    log.write_text("updates,val_web,val_law\n0,4.3,4.6\n100,4.25,3.9\n200,4.2,3.8\n")
    arguments = (
        "curves", "import", log, "--name", "mine", "--set", "phase=cpt", "--set", "replay_ratio=0.3",
        "--step-column", "updates", "--loss", "general=val_web", "--loss", "domain=val_law",
        "--lr", '{"kind": "constant", "peak_lr": 1e-4, "total_steps": 200}', "-o", tmp_path / "curves",
    )  # fmt: skip
    said = cptplan(*arguments, "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert found["final_loss"] == {"general": 4.2, "domain": 3.8}
    assert found["warnings"][0]["code"] == "lr_unchecked"
    assert "note: " in said.err
    curve = read_curve_directory(tmp_path / "curves")["mine"]
    assert curve.replay_ratios()[0] == 0.3
    cptplan.assert_refused(*arguments, says="curve must be new; got one in .*mine.csv")
    assert cptplan(*arguments, "--force").code == 0
