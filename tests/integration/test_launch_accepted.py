"""The real thing takes the files: each tool's own loader, in an environment of its own, named by a variable.

python -m venv sky && sky/bin/pip install skypilot
CPTPLAN_SKY_PYTHON=sky/bin/python python -m pytest tests/integration/test_launch_accepted.py

variable                          packages                                          seen with
CPTPLAN_SKY_PYTHON                skypilot                                          0.14.1
CPTPLAN_KUBERNETES_PYTHON         kubernetes-validate kubeflow-trainer-api pyyaml   1.37.0, 2.3.0
CPTPLAN_LLAMA_FACTORY_PYTHON      llamafactory                                      0.9.5
CPTPLAN_AXOLOTL_PYTHON            axolotl                                           0.19.0
CPTPLAN_AUTOMODEL_PYTHON          nemo-automodel torchao torchdata                  0.7.0
CPTPLAN_TORCHTITAN_PYTHON         torchtitan torch>=2.15                            0.3.0
"""

from __future__ import annotations

import json
import os
import subprocess

import numpy as np
import pytest
from launch_examples import make_mixed_spec, write, write_model, write_shards

from cptplan.launch.recipe import decay_of, rates_at_step_start

pytestmark = pytest.mark.slow
HOSTILE = 'it\'s a "hostile" $(touch OWNED); name'
LIMIT_SECONDS = 300  # their imports take a minute on a busy machine

SKY = """
import sky
task = sky.Task.from_yaml(sys.argv[1])
resources = next(iter(task.resources))
say(task.name, task.num_nodes, resources.use_spot, resources.accelerators, task.file_mounts,
    sorted(task.storage_mounts))
"""
KUBERNETES = """
import kubernetes_validate, yaml
from kubeflow_trainer_api import models
given = yaml.safe_load(open(sys.argv[1]))
def lost(mine, theirs, place=""):
    if isinstance(mine, dict):
        absent = [f"{place}/{key}" for key in mine if key not in theirs]
        return absent + [x for key in mine if key in theirs for x in lost(mine[key], theirs[key], f"{place}/{key}")]
    if isinstance(mine, list):
        return [x for n, (a, b) in enumerate(zip(mine, theirs, strict=True)) for x in lost(a, b, f"{place}/{n}")]
    return [] if mine == theirs else [place]
read = models.JobsetV1alpha2JobSet.from_dict(given).to_dict()
job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"},
       "spec": given["spec"]["replicatedJobs"][0]["template"]["spec"]}
kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)
say(lost(given, read))
"""
LLAMA_FACTORY = """
import yaml
from llamafactory.hparams import get_train_args
_, data, training, finetuning, _ = get_train_args(yaml.safe_load(open(sys.argv[1])))
say(data.tokenized_path, training.max_steps, training.lr_scheduler_type.value, training.lr_scheduler_kwargs,
    training.warmup_steps, finetuning.disable_shuffling, training.per_device_train_batch_size)
"""
AXOLOTL = """
import yaml
from axolotl.utils.schemas.config import AxolotlInputConfig
given = yaml.safe_load(open(sys.argv[1]))
read = AxolotlInputConfig(**given).model_dump(exclude_none=True)
say(sorted(set(given) - set(AxolotlInputConfig.model_fields)), read["lr_scheduler"], read["lr_scheduler_kwargs"],
    read["curriculum_sampling"], read["datasets"][0]["path"], read["sequence_len"])
"""
AUTOMODEL = """
import torch
from nemo_automodel.cli.utils import load_yaml, resolve_recipe_name
from nemo_automodel.components.config.loader import load_yaml_config
from nemo_automodel.recipes._typed_config import RecipeConfig
config = RecipeConfig(load_yaml_config(sys.argv[1]))
optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=config.optimizer.kwargs["lr"])
class Steps:
    epoch_len, max_steps, num_epochs = None, config.step_scheduler.max_steps, 1
(scheduler,), rates = config.lr_scheduler.build(optimizer, Steps()), []
for _ in range(Steps.max_steps):
    rates.append(optimizer.param_groups[0]["lr"])
    optimizer.step()
    scheduler.step(1)
dataset = config.dataloader.dataset_config
say(resolve_recipe_name(load_yaml(sys.argv[1])["recipe"]), list(dataset.paths), dataset.seq_length,
    dataset.num_train_samples, sorted(config.validation_dataloaders), rates)
"""
TORCHTITAN = """
import pathlib, torch
sys.path.insert(0, str(pathlib.Path(sys.argv[1]).parent))
from torchtitan.config import ConfigManager
config = ConfigManager().parse_args(["--module", "planned_run", "--config", "planned_run"])
rates, lr = [], json.load(open(sys.argv[1]))["optimizer"]["lr"]
optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))], lr=lr)
scheduler = config.lr_scheduler.build(optimizers=[optimizer], training_steps=config.training.steps)
for _ in range(config.training.steps):
    rates.append(optimizer.param_groups[0]["lr"])
    optimizer.step()
    scheduler.step()
say(config.training.global_batch_size, config.training.seq_len, config.checkpoint.initial_load_in_hf, rates)
"""


def ask(variable, script, path, project):
    """What a tool says of a file, in its own environment; the test is skipped where there is none."""
    python = os.environ.get(variable)
    if not python:
        pytest.skip(f"{variable} is not set")
    say = "import json, sys\ndef say(*values):\n    print('\\nSAID ' + json.dumps(values, default=str))\n"
    done = subprocess.run([python, "-c", say + script, path], cwd=project, capture_output=True, text=True, check=False,
                          env={**os.environ, "HOME": str(project)}, timeout=LIMIT_SECONDS)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert not (project / "OWNED").exists()
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("SAID "))[5:])


@pytest.fixture
def project(tmp_path):
    write_shards(tmp_path / "tokens", "general", "code", "law")
    write_model(tmp_path, pad_token="<pad>")
    return tmp_path


@pytest.fixture
def hostile(tmp_path):
    project = tmp_path / HOSTILE
    write_shards(project / "tokens", "general", "code", "law")
    write_model(project)
    return project


def test_skypilot_loads_the_task(hostile):
    launch = write("skypilot", hostile, make_mixed_spec(), num_processes=8)
    name, nodes, spot, accelerators, mounts, storage = ask(
        "CPTPLAN_SKY_PYTHON", SKY, launch.directory / "task.yaml", hostile
    )
    assert (name, nodes, spot, accelerators) == ("final-1", 1, True, {"H100": 8})
    assert mounts[str(hostile / "model")] == str(hostile / "model")
    assert storage == ["/cptplan-runs"]


def test_kubernetes_knows_every_field(hostile):
    option = ["queue=q", "namespace=n", "sub_path=a b"]
    launch = write("kubernetes", hostile, make_mixed_spec(), num_processes=16, num_nodes=2, option=option)
    assert ask("CPTPLAN_KUBERNETES_PYTHON", KUBERNETES, launch.directory / "jobset.yaml", hostile) == [[]]


def test_llama_factory_parses_the_recipe(project):
    launch = write("llama-factory", project, make_mixed_spec(precision="fp32"), num_processes=4)
    kwargs = {"num_stable_steps": 61, "num_decay_steps": 30, "decay_type": "linear", "min_lr_ratio": 0.0}
    found = ask("CPTPLAN_LLAMA_FACTORY_PYTHON", LLAMA_FACTORY, launch.directory / "llama_factory.yaml", project)
    assert found == ["launch/llama-factory/data", 100, "warmup_stable_decay", kwargs, 8, True, 2]


def test_axolotl_knows_every_key(project):
    launch = write("axolotl", project, make_mixed_spec(precision="fp32"), num_processes=4)
    kwargs = {"num_stable_steps": 61, "num_decay_steps": 30, "decay_type": "linear", "min_lr_ratio": 0.0}
    found = ask("CPTPLAN_AXOLOTL_PYTHON", AXOLOTL, launch.directory / "axolotl.yaml", project)
    assert found == [[], "warmup_stable_decay", kwargs, True, "launch/axolotl/data", 33]


def test_automodel_parses_the_recipe_and_runs_at_its_rates(project):
    spec = make_mixed_spec()
    launch = write("nemo-automodel", project, spec, num_processes=4)
    recipe, paths, seq_len, samples, validation, rates = ask(
        "CPTPLAN_AUTOMODEL_PYTHON", AUTOMODEL, launch.directory / "automodel.yaml", project
    )
    assert recipe.endswith("TrainFinetuneRecipeForNextTokenPrediction")
    here = "launch/nemo-automodel/data"
    assert paths == [0.4, f"{here}/train-0-general", 0.45, f"{here}/train-1-code", 0.15, f"{here}/train-2-law"]
    assert (seq_len, samples, validation) == (32, 1600, ["code", "general"])
    stated = rates_at_step_start(spec, decay_of(spec, "nemo-automodel"), 0.0)
    np.testing.assert_allclose(rates, stated, rtol=1e-9, atol=1e-18)  # rounding of another order of operations


def test_torchtitan_takes_the_configuration_and_runs_at_the_plans_rates(project):
    spec = make_mixed_spec()
    launch = write("torchtitan", project, spec, num_processes=4)
    batch, seq_len, from_hf, rates = ask(
        "CPTPLAN_TORCHTITAN_PYTHON", TORCHTITAN, launch.directory / "settings.json", project
    )
    assert (batch, seq_len, from_hf) == (16, 32, True)
    np.testing.assert_allclose(rates, spec.lr(), rtol=1e-9, atol=1e-18)
