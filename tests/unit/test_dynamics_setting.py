"""Which run a campaign's dynamics are about: the plan's with what is asked for changed, else the pilots' middle."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from simple_laws import make_forecaster, make_project

from cptplan.dynamics import setting as dynamics_setting
from cptplan.dynamics.setting import Asked, campaign_question
from cptplan.errors import ConfigError
from cptplan.planning.knobs import Knobs
from cptplan.workspace import Workspace

PLANNED = Knobs(peak_lr=5e-4, replay_ratio=0.2, total_steps=40, decay_share=0.5, start="annealed", end_replay=0.1)


@pytest.fixture
def campaign(tmp_path, monkeypatch):
    """A project whose fit knows replay from 5 to 40 %, and whose forecaster is known by hand."""
    law = SimpleNamespace(support=SimpleNamespace(replay_ratio=(0.05, 0.4)))
    monkeypatch.setattr(dynamics_setting, "read_fit", lambda directory: {"general": law, "domain": law})
    monkeypatch.setattr(
        dynamics_setting, "forecaster", lambda project, workspace, laws, weights: make_forecaster(weights=weights)
    )
    workspace = Workspace(root=tmp_path / "campaign")
    workspace.set_latest("fits", "abc")
    return make_project(tmp_path), workspace


@pytest.fixture
def planned(campaign, monkeypatch):
    project, workspace = campaign
    workspace.set_latest("plans", "def")
    plan = SimpleNamespace(chosen=SimpleNamespace(knobs=lambda: PLANNED))
    monkeypatch.setattr(dynamics_setting, "read_plan", lambda path: plan)
    return project, workspace


def test_without_a_plan_the_middle_of_the_pilots(campaign):
    project, workspace = campaign
    asked = campaign_question(project, workspace, None, Asked())
    history = asked.setting.history(asked.setting.start, asked.setting.replay_ratio)
    assert history.lr.max() == pytest.approx(np.sqrt(1e-4 * 3e-3))
    assert asked.horizon_steps == 3 * project.pilot.total_steps
    assert asked.tokens == asked.horizon_steps * project.pilot.batch_tokens
    assert asked.setting.replay_range == (0.05, 0.4)
    assert (asked.setting.start, asked.setting.others) == ("annealed", ("stable",))
    assert asked.directory == workspace.root


def test_the_plan_is_what_is_asked_about(planned):
    asked = campaign_question(*planned, "general=0.7", Asked())
    assert asked.setting.weights == {"general": 0.7, "domain": pytest.approx(0.3)}
    assert asked.directory.name == "def"
    history = asked.setting.history("annealed", 0.2)
    assert (len(history.lr), history.lr.max()) == (40, 5e-4)
    assert (history.replay_ratio[0], history.replay_ratio[-1]) == (0.2, pytest.approx(0.1))  # its curriculum
    np.testing.assert_array_equal(asked.setting.history("stable", 0.3).replay_ratio, 0.3)


def test_what_is_asked_for_changes_the_plan(planned):
    project, _ = planned
    asked = campaign_question(
        *planned,
        None,
        Asked(
            peak_lr=1e-3,
            replay_ratio=0.1,
            decay_share=0.0,
            start="stable",
            horizon_tokens=80.0 * project.pilot.batch_tokens,
        ),
    )
    history = asked.setting.history("stable", 0.1)
    assert len(history.lr) == asked.horizon_steps == 80
    assert history.lr[-1] == history.lr.max() == 1e-3
    np.testing.assert_array_equal(history.replay_ratio, 0.1)
    assert asked.setting.others == ("annealed",)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (Asked(start="stabel"), "start must be one of the project's; got 'stabel'"),
        (Asked(replay_ratio=2.0), r"--replay must be in \[0, 1\]; got 2"),
        (Asked(peak_lr=-1.0), "--peak-lr must be greater than 0; got -1"),
    ],
)
def test_what_cannot_be_is_refused(planned, asked, says):
    with pytest.raises(ConfigError, match=says):
        campaign_question(*planned, None, asked)


def test_without_a_fit(tmp_path):
    with pytest.raises(ConfigError, match="fit must be there"):
        campaign_question(make_project(tmp_path), Workspace(root=tmp_path / "none"), None, Asked())
