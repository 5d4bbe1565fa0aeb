"""From curves to a plan: what is made once is found again, and what is missing is named."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from campaign_files import make_corpora, make_curve, write_pilots
from simple_laws import LAWS, make_project

from cptplan import decide
from cptplan.curves import LossCurve, write_curve
from cptplan.errors import ConfigError, CurveError, PoorFitError
from cptplan.files import read_json, write_json
from cptplan.workspace import Workspace


@pytest.fixture
def project(tmp_path):
    return make_project(tmp_path)


@pytest.fixture
def workspace(tmp_path):
    return Workspace(root=tmp_path / "campaign")


@pytest.fixture
def fits(monkeypatch):
    """Fits that take no time: the names of the sets that were fitted."""
    fitted = []

    def select(_curves, name, side, *, law, seed, where):
        fitted.append((name, side, law, seed))

    def write(directory, curves_hash, _selections, _third):
        write_json(directory / "law.json", {"curves_hash": curves_hash})

    monkeypatch.setattr(decide, "select_law", select)
    monkeypatch.setattr(decide, "write_fit", write)
    return fitted


def test_fit_of_the_same_curves_is_found(tmp_path, fits):
    for name in ("a", "b", "c"):
        write_curve(tmp_path / "curves", make_curve(name))
    first = decide.fit(tmp_path / "curves", tmp_path / "fits")
    assert fits == [("general", "general", "auto", 0), ("domain", "domain", "auto", 0)]
    assert decide.fit(tmp_path / "curves", tmp_path / "fits") == first
    assert len(fits) == 2
    assert read_json(tmp_path / "fits" / "latest.json")["hash"] == first.name


@pytest.mark.parametrize("change", ["curve", "record", "rates", "seed", "names", "law"])
def test_fit_of_other_curves_is_another(tmp_path, fits, change):
    for name in ("a", "b", "c"):
        write_curve(tmp_path / "curves", make_curve(name))
    first = decide.fit(tmp_path / "curves", tmp_path / "fits")
    if change in ("curve", "record"):
        record = {"seed": 4} if change == "record" else {}
        curve = make_curve("a", sets=("general", "domain"), **record)
        losses = {name: loss + (change == "curve") for name, loss in curve.losses.items()}
        write_curve(tmp_path / "curves", LossCurve(name="a", record=curve.record, steps=curve.steps, losses=losses))
    if change == "rates":
        np.save(tmp_path / "curves" / "a.lr.npy", np.full(8, 2e-3))
    names = ["a", "b"] if change == "names" else None
    law = "cpt" if change == "law" else "auto"
    again = decide.fit(tmp_path / "curves", tmp_path / "fits", names, seed=int(change == "seed"), law=law)
    assert again != first
    assert len(fits) == 4


def test_sets_of_pretraining_alone_are_not_fitted_beside_pilots(tmp_path, fits):
    write_curve(tmp_path / "curves", make_curve("base", phase="pretrain", sets=("general", "books")))
    for name in ("a", "b", "c"):
        write_curve(tmp_path / "curves", make_curve(name))
    decide.fit(tmp_path / "curves", tmp_path / "fits")
    assert [name for name, *_ in fits] == ["general", "domain"]
    decide.fit(tmp_path / "curves", tmp_path / "fits", ["base"])
    assert [name for name, *_ in fits[2:]] == ["general", "books"]


@pytest.fixture
def curves_dir(tmp_path):
    write_curve(tmp_path / "curves", make_curve("base", phase="pretrain"))
    for name in ("run-1", "run-2", "run-3", "long-1"):
        write_curve(tmp_path / "curves", make_curve(name))
    return tmp_path / "curves"


@pytest.mark.parametrize(
    ("train", "test", "names"),
    [
        (None, None, None),
        ("run-1,base", None, ["run-1", "base"]),
        (None, "long-*", ["base", "run-1", "run-2", "run-3"]),
        ("run-*", "long-1", ["run-1", "run-2", "run-3"]),
        ("run-[12],base", "run-3,long-?", ["base", "run-1", "run-2"]),
    ],
)
def test_curves_to_fit_are_those_of_train_or_all_that_are_not_tested(curves_dir, train, test, names):
    found = decide.train_names(curves_dir, train, test)
    assert (sorted(found) if test else found) == (sorted(names) if test else names)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ("run-1,run-2", "run-2,long-1", "--train and --test must not share a curve; got run-2 in both"),
        ("*", "run-1", "--train and --test must not share a curve; got run-1 in both"),
        (None, "*", "--test must leave curves to fit to; got all of"),
        ("run-1", "run-4", "run-4"),
        (None, "nothing-*", r"nothing-\*"),
    ],
)
def test_train_and_test_that_cannot_be_are_refused(curves_dir, train, test, message):
    with pytest.raises(CurveError, match=message):
        decide.train_names(curves_dir, train, test)


def test_summary_holds_what_was_written_with_the_scores_of_each_set(tmp_path):
    write_json(tmp_path / "law.json", {"laws": {"general": {"form": "log"}, "domain": {"form": "clock"}}})
    report = {"sets": {"general": [{"form": "log"}], "domain": []}, "out_of_domain": {"books": {"valid": True}}}
    write_json(tmp_path / "report.json", report)
    summary = decide.fit_summary(tmp_path, law="auto", seconds=0.12345678, test={"general": {"mean": {"mape": 0.1}}})
    assert summary == {
        "fit": str(tmp_path),
        "law": "auto",
        "seconds": 0.1235,
        "sets": {
            "general": {"form": "log", "candidates": [{"form": "log"}], "test": {"mean": {"mape": 0.1}}},
            "domain": {"form": "clock", "candidates": []},
        },
        "out_of_domain": {"books": {"valid": True}},
    }


@pytest.mark.parametrize(("discrepancy", "poor"), [(0.09, False), (0.11, True)])
def test_poor_fit_is_refused_unless_allowed(tmp_path, monkeypatch, discrepancy, poor):
    monkeypatch.setattr(decide, "read_fit", lambda _: {"domain": SimpleNamespace(discrepancy=discrepancy)})
    decide.check_fit(tmp_path, allow_poor=True)
    if poor:
        with pytest.raises(PoorFitError, match=r"within 10%; got 11.0% for loss_domain"):
            decide.check_fit(tmp_path, allow_poor=False)
    else:
        decide.check_fit(tmp_path, allow_poor=False)


def test_starts_know_their_losses_from_step_0_of_a_pilot(project, workspace):
    write_pilots(project, workspace)
    ready = decide.forecaster(project, workspace, LAWS, {"general": 0.4, "domain": 0.6})
    assert ready.base == "annealed"
    assert dict(ready.starts["stable"].losses) == {"general": 4.0, "domain": 3.9}
    assert len(ready.starts["stable"].pretrain_lr) == 0
    assert ready.general_tokens == ready.domain_tokens == np.inf


def test_plan_may_use_the_tokens_that_are_there(tmp_path, workspace):
    project = make_project(tmp_path, "data.domains=[{name: domain, path: a, weight: 3}, {name: law, path: b}]")
    write_pilots(project, workspace)
    write_json(workspace.data / "corpora.json", make_corpora(general=500, domain=900, law=200))
    ready = decide.forecaster(project, workspace, LAWS, {"general": 0.4, "domain": 0.6})
    # 800 tokens of both in the proportion 3 : 1 use up law first
    assert (ready.general_tokens, ready.domain_tokens) == (500.0, 800.0)


def test_start_without_a_pilot_is_named(project, workspace):
    write_curve(workspace.curves, make_curve("pilot-01"))  # begins at stable
    with pytest.raises(ConfigError, match="start 'annealed' must have a pilot"):
        decide.forecaster(project, workspace, LAWS, {"general": 1.0})


@pytest.fixture
def planned(project, workspace, monkeypatch, example_plan):
    """A campaign whose planning takes no time: how often it was asked."""
    asked = []

    def plan(*_, **__):
        asked.append(1)
        return example_plan

    monkeypatch.setattr(decide, "make_plan", plan)
    monkeypatch.setattr(decide, "read_fit", lambda _: {})
    monkeypatch.setattr(decide, "forecaster", lambda *_: None)
    workspace.set_latest("fits", "abc")
    return asked


def test_plan_of_the_same_goal_is_found(project, workspace, planned, example_plan):
    weights = {"general": 0.4, "domain": 0.6}
    directory, plan = decide.optimize(project, workspace, weights)
    assert plan == example_plan
    assert workspace.latest("plans") == directory
    assert decide.optimize(project, workspace, weights) == (directory, plan)
    assert len(planned) == 1


@pytest.mark.parametrize(
    "override", ["budget.tokens=9999", "goal.max_general_increase=0.1", "goal.confidence=0.5", "budget.num_devices=2"]
)
def test_plan_of_another_goal_is_another(tmp_path, project, workspace, planned, override):
    weights = {"general": 0.4, "domain": 0.6}
    first, _ = decide.optimize(project, workspace, weights)
    again, _ = decide.optimize(make_project(tmp_path, override), workspace, weights)
    other, _ = decide.optimize(project, workspace, {"general": 0.5, "domain": 0.5})
    assert len({first, again, other}) == 3
    assert workspace.latest("plans") == other
