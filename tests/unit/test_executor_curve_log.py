"""The log files of a run."""

from __future__ import annotations

import json

import pytest

from cptplan.curves import read_curve
from cptplan.errors import StorageError
from cptplan.mixture import ConstantMixture
from cptplan.run_spec import ModelSource, RunSpec, Source, ValidationSet
from cptplan.schedule import ConstantSchedule, TableSchedule
from executor.curve_log import CurveLog


def open_log(run_dir, schedule=None, num_bytes=0) -> CurveLog:
    spec = RunSpec(
        name="run",
        phase="cpt",
        model=ModelSource(config={"model_type": "llama"}, tokenizer="tokenizer"),
        sources=(Source(name="code", role="domain", path="code"),),
        validation=tuple(ValidationSet(name=name, path=name, num_tokens=8) for name in ("general", "domain")),
        schedule=schedule or ConstantSchedule(kind="constant", peak_lr=1e-3, total_steps=10),
        mixture=ConstantMixture(replay_ratio=0.0),
        seq_len=8,
        batch_tokens=64,
        parent="base",
        parent_step=5,
    )
    log = CurveLog(run_dir, spec, num_params=100, unique_tokens={"code": 1000}, tokenizer=None)
    log.resume(num_bytes)
    return log


def test_curve_holds_every_evaluation(tmp_path):
    log = open_log(tmp_path)
    log.evaluation(0, {"general": 3.0, "domain": 4.0}, 0.1)
    log.step(step=1, train_loss=4.0)
    log.evaluation(1, {"general": 3.1, "domain": 3.5}, 0.1)
    curve = read_curve(tmp_path, "curve")
    assert curve.steps.tolist() == [0, 1]
    assert {name: losses.tolist() for name, losses in curve.losses.items()} == {
        "general": [3.0, 3.1],
        "domain": [4.0, 3.5],
    }
    assert (curve.record.parent, curve.record.parent_step, curve.record.num_params) == ("base", 5, 100)
    assert log.final_losses == {"general": 3.1, "domain": 3.5}


def test_curve_of_a_table_schedule_stands_by_itself(tmp_path):
    log = open_log(tmp_path, schedule=TableSchedule(kind="table", values=(0.1, 0.2)))
    log.evaluation(2, {"general": 3.0, "domain": 4.0}, 0.1)
    assert read_curve(tmp_path, "curve").lr().tolist() == [0.1, 0.2]


def test_resume_cuts_what_came_after_the_checkpoint(tmp_path):
    log = open_log(tmp_path)
    log.evaluation(0, {"general": 3.0, "domain": 4.0}, 0.1)
    log.step(step=1, train_loss=4.0)
    num_bytes = log.sync()
    log.step(step=2, train_loss=3.9)
    log.evaluation(2, {"general": 9.0, "domain": 9.0}, 0.1)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "train_lo')  # killed while writing
    resumed = open_log(tmp_path, num_bytes=num_bytes)
    assert resumed.final_losses == {"general": 3.0, "domain": 4.0}
    resumed.evaluation(2, {"general": 3.2, "domain": 3.3}, 0.1)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert read_curve(tmp_path, "curve").losses["general"].tolist() == [3.0, 3.2]


def test_resume_refuses_a_log_shorter_than_its_checkpoint(tmp_path):
    with pytest.raises(StorageError, match="must hold at least the 100 bytes its checkpoint knows; got 0"):
        open_log(tmp_path, num_bytes=100)


def test_progress_is_due_every_half_second(tmp_path):
    log = open_log(tmp_path)
    assert log.progress_due()
    log.progress(3, "training", loss=2.5, eta_seconds=7.0)
    assert not log.progress_due()
    written = json.loads((tmp_path / "progress.json").read_text())
    assert (written["done"], written["total"], written["unit"], written["message"]) == (3, 10, "steps", "training")
    assert (written["loss"], written["eta_seconds"]) == (2.5, 7.0)


def test_unwritable_place_is_refused(tmp_path):
    log = open_log(tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(StorageError, match="path must be writable"):
        log.step(step=1)
