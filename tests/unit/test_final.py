"""The planned run: its launch files, the rule of thumb beside it, and what must be there for both."""

from __future__ import annotations

import pytest
from campaign_files import make_corpora
from launch_examples import write_shards
from simple_laws import make_project

from cptplan import final
from cptplan.errors import ConfigError, DataError
from cptplan.files import write_json
from cptplan.planning.plan import write_plan
from cptplan.run_spec import read_run_spec
from cptplan.workspace import Workspace


@pytest.fixture
def project(tmp_path):
    return make_project(tmp_path)


@pytest.fixture
def workspace(tmp_path):
    return Workspace(root=tmp_path / "campaign")


@pytest.fixture
def with_plan(workspace, example_plan):
    write_plan(workspace.plans / "abc" / "plan.json", example_plan)
    workspace.set_latest("plans", "abc")
    write_json(workspace.data / "corpora.json", make_corpora(general=10**6, domain=10**6))
    write_shards(workspace.data, "general", "domain")
    return example_plan


def test_launch_files_hold_the_planned_run(project, workspace, with_plan):
    directory = final.write_launch_files(project, workspace, "torchrun")
    assert directory == workspace.launch / "torchrun"
    spec = read_run_spec(directory / "run" / "spec.json")
    assert spec.name == "final"
    assert spec.schedule == with_plan.chosen.schedule
    assert spec.model.path == {"stable": "a", "annealed": "b"}[with_plan.chosen.start]
    job = final.final_job(workspace, "torchrun")
    assert (job.spec, job.command[0]) == (spec, "bash")


def test_rule_of_thumb_is_a_run_beside_the_pilots(project, workspace, with_plan):
    job = final.rule_of_thumb_job(project, workspace, with_plan)
    assert job.run_dir == workspace.runs / "rule-of-thumb"
    assert float(job.spec.replay_ratios().mean()) == pytest.approx(0.3)


def test_corpus_too_small_for_the_final_run(project, workspace, with_plan):
    write_json(workspace.data / "corpora.json", make_corpora(general=10**6, domain=100))
    with pytest.raises(DataError, match=r"got 100 tokens, needed .* in domain"):
        final.write_launch_files(project, workspace, "local")
    with pytest.raises(DataError, match=r"got 100 tokens, needed .* in domain"):
        final.rule_of_thumb_job(project, workspace, with_plan)
    assert not workspace.launch.exists()


def test_unknown_target_is_told_before_anything_else(project, workspace):
    with pytest.raises(ConfigError, match="launch target must be known; got 'slrum'") as caught:
        final.write_launch_files(project, workspace, "slrum")
    assert caught.value.hint == "did you mean 'slurm'?"


def test_plan_of_a_start_that_is_gone(tmp_path, workspace, with_plan):
    project = make_project(tmp_path, "model.starts=[{name: other, path: c}]")
    with pytest.raises(ConfigError, match=r"plan's start must be one of the project's; got '(stable|annealed)'"):
        final.planned_spec(project, workspace, with_plan.chosen, "final")


@pytest.mark.parametrize("target", ["slurm", "axolotl"])
def test_target_that_does_not_train_here_is_not_run(target, project, workspace):
    with pytest.raises(ConfigError, match=f"--run must come with target local, torchrun, accelerate; got {target}"):
        final.run_final(project, workspace, target)


def test_options_of_a_target_arrive(project, workspace, with_plan):
    directory = final.write_launch_files(project, workspace, "slurm", ["partition=gpu"])
    assert "\n#SBATCH --partition=gpu\n" in (directory / "job.sbatch").read_text()
    with pytest.raises(ConfigError, match="keys must be known; got partitoin"):
        final.write_launch_files(project, workspace, "slurm", ["partitoin=gpu"])
    with pytest.raises(ConfigError, match="--allow-loss-of must name what slurm loses"):
        final.write_launch_files(project, workspace, "slurm", allow_loss_of=["anchor"])
