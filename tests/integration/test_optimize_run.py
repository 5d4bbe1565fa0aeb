"""cptplan fit and optimize on a curve directory that no run of ours left: a virtual campaign written as files."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import optuna
import pytest

from cptplan.config import project_text
from cptplan.curves import write_curve
from cptplan.files import write_json
from cptplan.planning.plan import read_plan
from cptplan.planning.study import open_storage
from cptplan.simulation import virtual_lab
from cptplan.simulation.published import find_published


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    """A project file and the curves of its pilots, under names of their own, with a fit."""
    from cptplan import decide

    root = tmp_path_factory.mktemp("elsewhere")
    lab = replace(virtual_lab.draw_lab(3), law="knowledge-pile", num_params=None, final_steps=2000, num_pilots=6)
    curves = virtual_lab.run_lab(lab).seen
    project = virtual_lab._project(lab, find_published(lab.law), curves["base"].record)
    (root / "cptplan.yaml").write_text(project_text(project))
    for name, curve in curves.items():
        renamed = name.replace("pilot", "theirs")
        write_curve(root / "campaign" / "curves", replace(curve, name=renamed))
    decide.fit(root / "campaign" / "curves", root / "campaign" / "fits")
    return root


def run(cptplan, monkeypatch, campaign, *arguments):
    monkeypatch.chdir(campaign)
    return cptplan("optimize", *arguments)


def test_plan_with_its_reasons_front_and_study(cptplan, monkeypatch, campaign):
    said = run(cptplan, monkeypatch, campaign, "--weights", "general=0.4", "--pareto", "--json", "--trials", "10")
    assert said.code == 0, said.err
    plan = json.loads(said.out)
    assert plan["schema_version"] == 2
    for words in ("What limits it", "What each knob costs", "Instead (objective", "the best next pilot", "front: "):
        assert words in said.err
    (directory,) = {path.parent for path in campaign.glob("campaign/plans/*/pareto.csv")}
    assert read_plan(directory / "plan.json").to_json() == plan
    assert (directory / "pareto.png").stat().st_size > 10_000
    assert len(list(csv.DictReader((directory / "pareto.csv").read_text().splitlines()))) > 8
    storage = open_storage(str(directory / "study.journal"))
    study = optuna.load_study(study_name=f"plan-{directory.name}", storage=storage)
    assert study.best_value == pytest.approx(plan["chosen"]["objective"]["mean"], abs=1e-3)  # rounded afterwards


def test_limit_storage_sampler_and_risk(cptplan, monkeypatch, campaign):
    said = run(
        cptplan, monkeypatch, campaign,
        *("--max-general-increase", "4%", "--confidence", "90%", "--risk", "cvar:0.8", "--sampler", "qmc"),
        *("--storage", "sqlite:///plans.db", "--trials", "8", "--json"),
    )  # fmt: skip
    assert said.code == 0, said.err
    plan = json.loads(said.out)
    assert plan["chance"] >= 0.9
    assert plan["risk"] == "cvar:0.8"
    (name,) = [one.study_name for one in optuna.get_all_study_summaries(open_storage("sqlite:///plans.db"))]
    assert name.startswith("plan-")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("--max-general-increase", "0%", "--set", "goal.confidence=0.999"), 3, "must keep max_general_increase"),
        (("--weights", "genral=1"), 2, "weights must name a validation set; got 'genral'"),
        (("--max-general-increase", "x%"), 2, "max_general_increase must be a number; got 'x%'"),
        (("--risk", "cvar"), 2, "goal.risk must be mean or cvar"),
        (("--set", "budget.usd=5"), 2, "must"),  # the base model is not on this machine
        (("--storage", "nosuch://x"), 2, "storage must be"),
    ],
)
def test_what_cannot_be_planned(cptplan, monkeypatch, campaign, arguments, code, says):
    monkeypatch.chdir(campaign)
    cptplan.assert_refused("optimize", "--trials", "3", *arguments, says=says, code=code)


def test_smallest_change_of_the_hint_is_feasible(cptplan, monkeypatch, campaign):
    refused = run(
        cptplan, monkeypatch, campaign, "--max-general-increase", "0%", "--confidence", "0.99", "--trials", "3"
    )
    assert refused.code == 3
    needed = refused.err.split("goal.max_general_increase=")[1].split()[0]
    said = run(
        cptplan, monkeypatch, campaign, "--max-general-increase", needed, "--confidence", "0.99", "--trials", "3"
    )
    assert said.code == 0, said.err


def test_plan_of_an_older_version_is_refused_in_one_line(cptplan, monkeypatch, campaign):
    assert run(cptplan, monkeypatch, campaign, "--trials", "3").code == 0
    latest = json.loads((campaign / "campaign" / "plans" / "latest.json").read_text())["hash"]
    path = campaign / "campaign" / "plans" / latest / "plan.json"
    write_json(path, {**json.loads(path.read_text()), "schema_version": 1})
    cptplan.assert_refused("cost", says=r"schema_version must be 2; got 1 in .*plan\.json")
