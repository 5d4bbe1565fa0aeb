"""The directory of a campaign: who it belongs to, and its newest fit and plan."""

from __future__ import annotations

import pytest
from command_line import PROJECT

from cptplan.config import read_project
from cptplan.errors import ConfigError, StorageError
from cptplan.files import read_json, write_json
from cptplan.workspace import Workspace


@pytest.fixture
def project_of(tmp_path):
    (tmp_path / "cptplan.yaml").write_text(PROJECT)
    return lambda *overrides: read_project(tmp_path / "cptplan.yaml", overrides)


@pytest.fixture
def workspace(tmp_path):
    return Workspace(root=tmp_path / "campaign")


def test_claim_is_taken_once_and_found_again(workspace, project_of):
    workspace.check(project_of())
    assert not workspace.root.exists()
    workspace.claim(project_of())
    path = workspace.root / "campaign.json"
    before = path.stat().st_mtime_ns
    workspace.claim(project_of())
    workspace.check(project_of())
    assert path.stat().st_mtime_ns == before
    assert read_json(path)["model"]["pretrain_peak_lr"] == 3e-3


@pytest.mark.parametrize(
    "override",
    [
        "budget.tokens=99999",
        "goal.weights={general: 1}",
        "goal.max_general_increase=0.1",
        "name=other",
        "pilot.num_runs=9",
        "pilot.parallel=5",
        "pilot.processes=2",
        "pilot.threads=2",
    ],
)
def test_what_may_change_in_a_campaign(workspace, project_of, override):
    workspace.claim(project_of())
    before = (workspace.root / "campaign.json").read_bytes()
    workspace.claim(project_of(override))
    assert (workspace.root / "campaign.json").read_bytes() == before


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("model.pretrain_peak_lr=1e-3", "model"),
        ("data.seq_len=32", "data"),
        ("pilot.total_steps=9", "pilot"),
        ("pilot.batch_tokens=512", "pilot"),
        ("pilot.replay_range=[0, 0.5]", "pilot"),
        ("seed=1", "seed"),
    ],
)
def test_second_campaign_is_refused(workspace, project_of, override, part):
    workspace.claim(project_of())
    before = (workspace.root / "campaign.json").read_bytes()
    for method in (workspace.claim, workspace.check):
        with pytest.raises(StorageError) as caught:
            method(project_of(override))
        assert caught.value.message.startswith(f"directory must hold one campaign; got another {part} in ")
    assert (workspace.root / "campaign.json").read_bytes() == before


@pytest.mark.parametrize("content", [[], {}, {"hash": 3}])
def test_claim_that_says_nothing_is_refused(workspace, project_of, content):
    write_json(workspace.root / "campaign.json", content)
    with pytest.raises(StorageError, match="must hold one campaign; got another model and data and pilot and seed"):
        workspace.claim(project_of())


@pytest.mark.parametrize(("kind", "what", "verb"), [("fits", "fit", "fit"), ("plans", "plan", "optimize")])
def test_latest(workspace, kind, what, verb):
    with pytest.raises(ConfigError) as caught:
        workspace.latest(kind)
    assert caught.value.message == f"{what} must be there; got none in {workspace.root / kind}."
    assert caught.value.hint == f"run cptplan {verb} first"
    for name in ("abc", "def"):
        workspace.set_latest(kind, name)
        assert workspace.latest(kind) == workspace.root / kind / name


@pytest.mark.parametrize("content", [[], {}, {"hash": 3}, {"hash": None}])
def test_latest_that_names_nothing(workspace, content):
    write_json(workspace.root / "plans" / "latest.json", content)
    with pytest.raises(ConfigError, match=r"plan must be named by its hash; got .* in .*latest.json"):
        workspace.latest("plans")
