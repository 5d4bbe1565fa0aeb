"""What recipes give other trainers to read: the run's very sequences, in their order."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from executor_runs import make_spec, write_corpora, write_shard
from launch_examples import write_model, write_stand_ins

from cptplan.launch import write_launch
from cptplan.price.hardware import find_hardware
from cptplan.run_spec import ModelSource, Source
from executor.data import TrainingData, ValidationData, open_validation

datasets = pytest.importorskip("datasets")
RAMP = {"kind": "ramp", "start_ratio": 0.9, "end_ratio": 0.1, "end_step": 24}


@pytest.fixture
def project(tmp_path, monkeypatch):
    directory = tmp_path / "my project"
    directory.mkdir()
    monkeypatch.chdir(directory)
    write_corpora(directory)
    write_model(directory, pad_token="<pad>")
    return directory


def prepare(target, project, tmp_path, **changes):
    """Run a recipe up to its trainer, which is a stand-in."""
    spec = make_spec(project.relative_to(project), model=ModelSource(path="model"), **changes)
    launch = write_launch(target, spec, project / "launch", hardware=find_hardware("h100-sxm"))
    trainer = write_stand_ins(tmp_path / "bin", ["trainer"]) / "trainer"
    root = os.path.dirname(os.path.dirname(sys.modules["executor"].__file__))
    environment = {**os.environ, "PYTHON": str(trainer), "CPTPLAN_PYTHON": sys.executable, "PYTHONPATH": root}
    subprocess.run(["bash", launch.script], cwd="/", check=True, env=environment, timeout=120)
    return launch, spec


@pytest.mark.parametrize(("target", "columns"), [
    ("llama-factory", {"input_ids", "attention_mask"}), ("axolotl", {"input_ids", "attention_mask", "labels"}),
])  # fmt: skip
def test_sequences_are_the_runs_own_in_order(target, columns, project, tmp_path):
    from cptplan.mixture import RampMixture

    launch, spec = prepare(target, project, tmp_path, mixture=RampMixture(**RAMP))
    written = datasets.load_from_disk(str(launch.directory / "data"))
    assert set(written["train"].column_names) == columns
    total = spec.total_steps * spec.sequences_per_step
    data = TrainingData(spec)
    np.testing.assert_array_equal(np.array(written["train"]["input_ids"]), data.read(0, total))
    assert np.array(written["train"]["attention_mask"]).all()
    if "labels" in columns:
        assert written["train"]["labels"][7] == written["train"]["input_ids"][7]
    held_out: ValidationData = open_validation(spec.validation[1], spec.seq_len)
    np.testing.assert_array_equal(
        np.array(written["validation_domain"]["input_ids"]), held_out.read(np.arange(held_out.num_windows))
    )
    assert sorted(path.name for path in launch.directory.iterdir() if "sequences" in path.name) == ["sequences.py"]


def test_megatron_files_are_written_for_every_shard(project, tmp_path):
    for name in ("general", "domain"):
        for split in ("train", "validation"):
            write_shard(project / name, split, np.append(np.arange(500) % 60 + 1, 0))  # one document, with its end
    launch, _ = prepare("nemo-automodel", project, tmp_path, sources=(
        Source(name="general", role="general", path="general"), Source(name="my domain", role="domain", path="domain"),
    ))  # fmt: skip
    names = {"train-0-general", "train-1-my_domain", "validation-0-general", "validation-1-domain"}
    found = {path.name for path in (launch.directory / "data").iterdir()}
    assert found == {f"{name}.{end}" for name in names for end in ("bin", "idx")}
    assert (launch.directory / "data" / "train-1-my_domain.bin").read_bytes() == (
        project / "domain" / "train.bin"
    ).read_bytes()
