"""A run beside the plan of a campaign whose law is known: ends, alarms, options, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from watch_examples import STABLE, make_campaign, write_run

from cptplan.config import read_project
from cptplan.curves import read_curve, write_curve
from cptplan.errors import ConfigError, CurveError
from cptplan.watch.model import Points
from cptplan.watch.watch import MOST_POINTS, open_watcher, thinned
from cptplan.workspace import Workspace


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    return make_campaign(tmp_path_factory.getbasetemp() / "watched")


def kinds(found):
    return [alarm.kind for alarm in found.alarms]


def test_a_run_as_planned(campaign, tmp_path):
    told = campaign.planned_record()
    half = campaign.look(write_run(tmp_path / "half", told, share=0.5))
    whole = campaign.look(write_run(tmp_path / "whole", told))
    assert (half.state, half.alarms, half.failed, half.notes) == ("running", (), False, ())
    for name, view in half.views.items():
        end = whole.views[name].now_end
        assert view.now_end.low <= end.mean <= view.now_end.high
        width = view.planned_end.high - view.planned_end.low
        assert 0 < view.now_end.high - view.now_end.low < width
        assert end.low == end.high == whole.views[name].measured.loss[-1]
    assert whole.options == ()
    assert whole.state == "complete"


def test_options_are_priced_by_law_and_hardware(campaign, tmp_path):
    found = campaign.look(write_run(tmp_path / "run", campaign.planned_record(), share=0.5))
    options = {option.name: option for option in found.options}
    assert set(options) == {"go on", "anneal now", "replay + 10%", "rate x 0.5", "stop"}
    assert options["go on"].losses == {name: view.now_end for name, view in found.views.items()}
    assert options["go on"].objective == found.now_objective
    assert options["stop"].tokens_left == 0
    assert options["stop"].usd_left == 0.0
    assert 0 < options["anneal now"].usd_left < options["go on"].usd_left
    assert options["anneal now"].tokens_saved > 0
    assert options["replay + 10%"].losses["general"].mean < options["go on"].losses["general"].mean
    assert options["replay + 10%"].losses["domain"].mean > options["go on"].losses["domain"].mean
    assert options["stop"].losses["domain"].mean > options["anneal now"].losses["domain"].mean


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"parent_step": STABLE}, "stable"),
        ({"lr": 2.0}, "learning rate is about 2 times"),
    ],
    ids=["start", "rate"],
)
def test_what_the_log_hides_the_losses_tell(campaign, tmp_path, change, cause):
    told = campaign.planned_record()
    if "lr" in change:
        rates = told.lr.model_copy(update={"peak_lr": told.lr.peak_lr * change["lr"]})
        real = told.model_copy(update={"lr": rates})
    else:
        real = told.model_copy(update=change)
    directory = write_run(tmp_path / "run", told, real, share=0.7)
    (directory / "metrics.jsonl").write_text("")
    found = campaign.look(directory)
    alarm = next(alarm for alarm in found.alarms if alarm.kind == "losses")
    assert cause in alarm.causes[0][0]
    assert alarm.causes[0][1] > 0.5
    # and the end that is expected is that of the run that is really going on
    whole = campaign.look(write_run(tmp_path / "whole", told, real))
    for name, view in found.views.items():
        assert view.now_end.low <= whole.views[name].now_end.mean <= view.now_end.high, name


def test_what_the_log_tells_needs_no_test(campaign, tmp_path):
    told = campaign.planned_record()
    half = told.replay_ratio.model_copy(update={"replay_ratio": told.replay_ratio.replay_ratio / 2})
    found = campaign.look(write_run(tmp_path / "run", told, told.model_copy(update={"replay_ratio": half}), share=0.1))
    assert kinds(found) == ["replay"]
    assert not found.failed


def test_only_step_0(campaign, tmp_path):
    found = campaign.look(write_run(tmp_path / "run", campaign.planned_record(), share=0.0))
    assert (found.done, found.alarms) == (0, ())
    assert {option.name for option in found.options} == {"go on", "replay + 10%", "rate x 0.5"}
    json.dumps(found.to_json(), allow_nan=False)


def test_a_run_that_diverges_has_failed(campaign, tmp_path):
    steps = len(campaign.read(write_run(tmp_path / "whole", campaign.planned_record())).curve.steps)
    bump = {name: np.linspace(-4, 4, steps).clip(0) for name in ("general", "domain")}
    found = campaign.look(write_run(tmp_path / "run", campaign.planned_record(), bump=bump, share=0.8))
    assert found.failed
    assert found.state == "failed"
    assert kinds(found)[0] == "diverged"
    assert "losses" in kinds(found)


def test_divergence_is_seen_before_the_law_speaks(campaign, tmp_path):
    total = len(campaign.planned_record().lr.lr())
    bump = {"domain": np.array([0.0, *np.full(23, 5.0)])}
    assert campaign.look(write_run(tmp_path / "run", campaign.planned_record(), share=20 / total, bump=bump)).failed


def test_a_last_loss_that_is_not_finite_has_failed(campaign, tmp_path):
    directory = write_run(tmp_path / "run", campaign.planned_record(), share=0.5)
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1001, "train_loss": null}\n')
    found = campaign.look(directory)
    assert found.failed
    assert kinds(found)[:2] == ["diverged", "not_finite"]


def test_the_rule_of_thumb_is_held_against_itself(campaign, tmp_path):
    rule = campaign.watcher().plan.rule_of_thumb
    told = campaign.planned_record(lr=rule.schedule, replay_ratio=rule.mixture)
    found = campaign.look(write_run(tmp_path / "run", told, share=0.5))
    assert "rule of thumb" in found.notes[0]
    assert kinds(found) == []


def test_curve_from_elsewhere_without_its_pretraining(campaign, tmp_path):
    directory = write_run(tmp_path / "run", campaign.planned_record(), share=0.5)
    curve = read_curve(directory, "curve")
    bare = curve.record.model_copy(update={"parent": None, "parent_step": None, "batch_tokens": None})
    write_curve(tmp_path / "mine", replace(curve, name="mine", record=bare))
    found = campaign.look(tmp_path / "mine")
    assert any("taken as that of the planned start" in note for note in found.notes)
    assert kinds(found) == []


def test_one_set_is_enough(campaign, tmp_path):
    directory = write_run(tmp_path / "run", campaign.planned_record(), share=0.5)
    curve = read_curve(directory, "curve")
    write_curve(directory, replace(curve, losses={"domain": curve.losses["domain"]}))
    found = campaign.look(directory)
    assert any("does not measure loss_general" in note for note in found.notes)
    assert set(found.views) == {"general", "domain"}


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"batch_tokens": 1000}, ConfigError, "batch_tokens must be"),
        ({"phase": "pretrain", "parent": None, "parent_step": None}, CurveError, "phase must be cpt"),
    ],
)
def test_a_run_of_another_kind_is_refused(campaign, tmp_path, changes, error, words):
    directory = write_run(tmp_path / "run", campaign.planned_record(), share=0.5)
    curve = read_curve(directory, "curve")
    write_curve(directory, replace(curve, record=curve.record.model_copy(update=changes)))
    with pytest.raises(error, match=words):
        campaign.look(directory)


def test_a_run_of_another_model_is_refused(campaign, tmp_path):
    watcher = campaign.watcher()
    sized = {
        name: replace(
            model,
            law=replace(model.law, support=model.law.support.model_copy(update={"num_params": (5e7, 5e7)})),
        )
        for name, model in watcher.models.items()
    }
    run = campaign.read(write_run(tmp_path / "run", campaign.planned_record(), share=0.5))
    with pytest.raises(ConfigError, match="num_params must be that of the plan's fit, 50,000,000; got 100,000,000"):
        replace(watcher, models=sized).look(run)


def test_a_run_without_the_plans_sets_is_refused(campaign, tmp_path):
    directory = write_run(tmp_path / "run", campaign.planned_record(), share=0.5)
    curve = read_curve(directory, "curve")
    write_curve(directory, replace(curve, losses={"law": curve.losses["domain"]}))
    with pytest.raises(CurveError, match="run must measure a set of the plan, general, domain; got law"):
        campaign.look(directory)


def test_a_plan_of_an_older_fit_uses_that_fit_and_says_so(campaign, tmp_path):
    workspace = Workspace(root=campaign.root)
    project, plan_dir = read_project(campaign.config), workspace.latest("plans")
    workspace.set_latest("fits", "newer")
    try:
        found = open_watcher(project, workspace, plan_dir / "plan.json")
    finally:
        workspace.set_latest("fits", found.plan.fit)
    assert "is not the newest" in found.notes[0]
    assert set(found.models) == {"general", "domain"}


def test_a_plan_without_its_fit_is_refused(campaign, tmp_path):
    plan = json.loads((Workspace(root=campaign.root).latest("plans") / "plan.json").read_text())
    (tmp_path / "plan.json").write_text(json.dumps({**plan, "fit": "gone"}))
    with pytest.raises(ConfigError, match=r"plan must have its fit beside it; got no .*gone"):
        open_watcher(read_project(campaign.config), Workspace(root=campaign.root), tmp_path)


def test_many_points_are_thinned_to_what_the_model_bears():
    steps = np.arange(5000)
    found = thinned(Points(steps=steps, loss=np.ones(5000)))
    assert len(found.steps) <= MOST_POINTS
    assert (found.steps[0], found.steps[-1]) == (0, 4999)
