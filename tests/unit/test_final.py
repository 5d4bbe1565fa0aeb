"""The planned run: its launch files, the rule of thumb beside it, and what must be there for both."""

from __future__ import annotations

import pytest
from campaign_files import make_corpora
from launch_examples import write_shards
from simple_laws import make_project

from cptplan import final
from cptplan.config import Launch
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


def test_launch_section_of_the_project_counts_for_its_target(project, workspace, with_plan):
    ours = Launch(target="slurm", options={"partition": "gpu", "cpus_per_node": 4})
    project = project.model_copy(update={"launch": ours})
    script = (final.write_launch_files(project, workspace, "slurm") / "job.sbatch").read_text()
    assert "#SBATCH --partition=gpu" in script
    script = (final.write_launch_files(project, workspace, "slurm", ["partition=big"]) / "job.sbatch").read_text()
    assert "#SBATCH --partition=big" in script
    final.write_launch_files(project, workspace, "torchrun")  # has no partition, and is not asked for one


def test_flops_of_a_token_are_the_start_s_own(project, workspace, with_plan, tmp_path):
    start = tmp_path / "start"
    shape = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 256, "tie_word_embeddings": True}
    write_json(start / "config.json", shape)
    starts = tuple(one.model_copy(update={"path": str(start)}) for one in project.model.starts)
    project = project.model_copy(update={"model": project.model.model_copy(update={"starts": starts})})
    directory = final.write_launch_files(project, workspace, "torchrun")
    spec = read_run_spec(directory / "run" / "spec.json")
    matrices = 2 * (4 * 64 * 64 + 3 * 64 * 128) + 64 * 256
    attention = 2 * 2 * 2 * spec.seq_len * 64  # layers x (scores, values) x multiply-add x positions x width
    assert spec.accounting.flops_per_token == pytest.approx(3 * (2 * matrices + attention))


def test_options_of_a_target_arrive(project, workspace, with_plan):
    directory = final.write_launch_files(project, workspace, "slurm", ["partition=gpu"])
    assert "\n#SBATCH --partition=gpu\n" in (directory / "job.sbatch").read_text()
    with pytest.raises(ConfigError, match="keys must be known; got partitoin"):
        final.write_launch_files(project, workspace, "slurm", ["partitoin=gpu"])
    with pytest.raises(ConfigError, match="--allow-loss-of must name what slurm loses"):
        final.write_launch_files(project, workspace, "slurm", allow_loss_of=["anchor"])
