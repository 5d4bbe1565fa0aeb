"""From curves to a plan: what is made once is found again, and what is missing is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from campaign_files import make_corpora, make_curve, write_pilots
from command_line import model_config
from simple_laws import LAWS, make_project

from cptplan import decide
from cptplan.curves import LossCurve, write_curve
from cptplan.errors import ConfigError, CurveError, PoorFitError
from cptplan.files import read_json, write_json
from cptplan.price.model_shape import read_model_shape
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
    write_pilots(project, workspace)
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
    "override",
    [
        "budget.tokens=9999",
        "budget.max_epochs=2",
        "goal.max_general_increase=0.1",
        "goal.confidence=0.5",
        "goal.risk=cvar:0.9",
        "budget.num_devices=2",
        "search.extrapolate=true",
    ],
)
def test_plan_of_another_goal_is_another(tmp_path, project, workspace, planned, override):
    weights = {"general": 0.4, "domain": 0.6}
    first, _ = decide.optimize(project, workspace, weights)
    again, _ = decide.optimize(make_project(tmp_path, override), workspace, weights)
    other, _ = decide.optimize(project, workspace, {"general": 0.5, "domain": 0.5})
    assert len({first, again, other}) == 3
    assert workspace.latest("plans") == other


def test_plan_of_another_sampler_or_storage_is_another(tmp_path, project, workspace, planned):
    weights = {"general": 0.4, "domain": 0.6}
    names = {
        decide.optimize(project, workspace, weights, **options)[0]
        for options in ({}, {"sampler": "qmc"}, {"trials": 7}, {"storage": str(tmp_path / "other.journal")})
    }
    assert len(names) == 4


def test_curves_from_elsewhere_tell_a_start_by_its_parent(tmp_path, workspace):
    parents = "{name: stable, path: a, parent: base, parent_step: 4}, {name: annealed, path: b, parent: base}"
    project = make_project(tmp_path, f"model.starts=[{parents}]")
    write_curve(workspace.curves, make_curve("base", phase="pretrain"))
    write_curve(workspace.curves, make_curve("theirs-1", parent="base", parent_step=4))
    with pytest.raises(ConfigError, match="start 'annealed' must have a pilot"):
        decide.forecaster(project, workspace, LAWS, {"general": 1.0})
    write_curve(workspace.curves, make_curve("theirs-2", parent="base"))
    ready = decide.forecaster(project, workspace, LAWS, {"general": 1.0})
    assert (len(ready.starts["stable"].pretrain_lr), len(ready.starts["annealed"].pretrain_lr)) == (4, 8)


def test_goal_reaches_the_forecaster(tmp_path, workspace):
    project = make_project(
        tmp_path,
        "goal={max_general_increase: 3%, max_forgetting_ratio: 1.1, max_general_loss: 3.2, confidence: 80%, "
        "risk: 'cvar:0.7'}",
    )
    write_pilots(project, workspace)
    ready = decide.forecaster(project, workspace, LAWS, {"general": 0.4, "domain": 0.6})
    assert (ready.max_general_increase, ready.max_forgetting_ratio, ready.max_general_loss) == (0.03, 1.1, 3.2)
    assert (ready.confidence, ready.cvar) == (0.8, 0.7)


def fitted_on(**changes):
    return {"general": replace(LAWS["general"], support=LAWS["general"].support.model_copy(update=changes))}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_tokens": 512}, r"fit must be of the project's batch, 256 tokens; got 512 in fits/abc"),
        ({"num_params": (9e9, 9e9)}, r"fit must be of the project's model, [\d,]+ parameters; got 9,000,000,000"),
    ],
)
def test_fit_of_another_batch_or_model_is_refused(tmp_path, workspace, changes, message):
    project = make_project(tmp_path, f"model.starts=[{{name: base, path: '{tmp_path / 'base'}'}}]")
    (tmp_path / "base").mkdir()
    write_json(tmp_path / "base" / "config.json", model_config(512))
    with pytest.raises(ConfigError, match=message):
        decide.check_fit_belongs(project, workspace, fitted_on(**changes), Path("fits/abc"))
    size = read_model_shape(tmp_path / "base").non_embedding_params
    write_pilots(project, workspace)
    same = fitted_on(batch_tokens=256, num_params=(size, size))
    decide.check_fit_belongs(project, workspace, same, Path("fits/abc"))


def test_curves_of_another_tokenizer_are_refused(project, workspace):
    write_curve(workspace.curves, make_curve("pilot-01", tokenizer="0123456789ab"))
    write_json(workspace.data / "corpora.json", {"tokenizer": {"hash": "ba9876543210"}})
    with pytest.raises(ConfigError, match="tokenizer, ba9876543210; got 0123456789ab for pilot-01"):
        decide.check_fit_belongs(project, workspace, {}, Path("fits/abc"))
    write_curve(workspace.curves, make_curve("pilot-01", tokenizer="/models/base"))  # an old record: a place, no hash
    decide.check_fit_belongs(project, workspace, {}, Path("fits/abc"))


def test_out_of_domain_sets_of_the_fit_may_have_weights(project):
    sets = ("general", "domain", "math")
    assert decide.goal_weights(project, "general=0.4", sets) == pytest.approx({"general": 0.4, "domain": 0.6})
    found = decide.goal_weights(project, "general=0.3,math=0.2", sets)
    assert found == pytest.approx({"general": 0.3, "math": 0.2, "domain": 0.5})
    with pytest.raises(ConfigError, match="weights must name a validation set; got 'maths'"):
        decide.goal_weights(project, "maths=0.2", sets)
    with pytest.raises(ConfigError, match="weights must name a validation set; got 'math'"):
        decide.goal_weights(project, "math=0.2", ("general", "domain"))
