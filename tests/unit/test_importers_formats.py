"""Reading other tools' files: what is found in them, and what a broken one is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.util.tensor_util import make_tensor_proto

from cptplan.errors import ConfigError, CptplanError, CurveError
from cptplan.importers.plain_csv import read_csv
from cptplan.importers.tensorboard import read_tensorboard
from cptplan.importers.trainer_state import read_trainer_state
from cptplan.importers.training_log import TrainingLog, loss_metrics, make_log, make_series, pick, rate_metric
from cptplan.importers.wandb_csv import looks_like_wandb, read_wandb

FILES = Path(__file__).parent / "importer_files"


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def points(log: TrainingLog, name: str) -> list[tuple[int, float]]:
    series = log.metrics[name]
    return list(zip(series.steps.tolist(), series.values.tolist(), strict=True))


# Series ------------------------------------------------------------------------------------------------------------


def test_restart_keeps_the_later_attempt() -> None:
    # the first attempt went on to step 30; the second began again at 15 and logged at other steps
    series, warnings = make_series("x", [(0, 5.0), (10, 4.0), (20, 3.0), (30, 2.9), (15, 3.5), (25, 3.1)], "log")
    assert series.steps.tolist() == [0, 10, 15, 25]
    assert series.values.tolist() == [5.0, 4.0, 3.5, 3.1]
    assert [warning.code for warning in warnings] == ["restart"]
    assert "x goes back in steps, as after a restart: 2 earlier values from step 20 on were dropped" in (
        warnings[0].message
    )


def test_step_that_is_written_twice_alike_is_no_restart() -> None:
    series, warnings = make_series("x", [(0, 5.0), (10, 4.0), (10, 4.0), (20, 3.0)], "log")
    assert (series.steps.tolist(), warnings) == ([0, 10, 20], ())


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ([(30, 1.0), (20, 2.0), (10, 3.0)], "steps of x must rise; got them in no order in log."),
        ([(0.5, 1.0)], "whole number of finished optimiser steps; got 0.5 for x in log."),
        ([(-1, 1.0)], "got -1 for x in log."),
        ([(float("nan"), 1.0)], "got nan for x in log."),
        ([(1e300, 1.0)], "got 1e+300 for x in log."),
    ],
)
def test_steps_that_are_none(written: list[tuple[float, float]], words: str) -> None:
    with pytest.raises(CurveError) as caught:
        make_series("x", written, "log")
    assert words in str(caught.value)


# Which metric is which ---------------------------------------------------------------------------------------------


def log_of(*names: str) -> TrainingLog:
    return make_log("log", {name: [(0, 3.0), (1, 2.0)] for name in names})


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["eval_general_loss", "eval_law_loss", "loss"], {"general": "eval_general_loss", "law": "eval_law_loss"}),
        (["eval/general_loss", "eval/loss"], {"general": "eval/general_loss"}),
        (["val/law/loss"], {"law": "val/law/loss"}),
        (["validation_my_set_loss"], {"my_set": "validation_my_set_loss"}),
        (["loss_general", "train_loss"], {"general": "loss_general"}),
    ],
)  # fmt: skip
def test_loss_of_a_set_is_known_by_its_name(names: list[str], expected: dict[str, str]) -> None:
    assert loss_metrics(log_of(*names), {}) == expected


def test_loss_that_is_named_is_taken_alone() -> None:
    assert loss_metrics(log_of("eval_a_loss", "x"), {"general": "x"}) == {"general": "x"}


@pytest.mark.parametrize(
    ("names", "columns", "words"),
    [
        (["eval_loss", "loss"], {}, "which set it is of; got eval_loss in log. hint: give --loss general=eval_loss"),
        (["eval_a_loss", "val/a_loss"], {}, "a set must have one loss column; got eval_a_loss and val/a_loss in log."),
        (["val/loss"], {}, "got val/loss in log."),
        (["train/loss", "lr"], {}, "got train/loss, lr in log. hint: give --loss general=<column>"),
        (["eval_loss"], {"general": "eval_los"}, "got 'eval_los' for log. hint: did you mean 'eval_loss'?"),
        (["a", "b"], {"general": "zzz"}, "got 'zzz' for log. hint: there: a, b"),
    ],
)  # fmt: skip
def test_loss_that_cannot_be_told(names: list[str], columns: dict[str, str], words: str) -> None:
    with pytest.raises(CurveError) as caught:
        loss_metrics(log_of(*names), columns)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "name", ["lr", "LR", "learning_rate", "learning-rate", "train/learning_rate", "optim/lr", "lr-AdamW"]
)
def test_rate_is_known_by_its_name(name: str) -> None:
    assert rate_metric(log_of("eval_a_loss", name, "color", "lr_scale_loss"), None) is not None


def test_rate_that_is_not_there_or_not_alone() -> None:
    assert rate_metric(log_of("loss"), None) is None
    with pytest.raises(CurveError, match="one column must hold the learning rate; got lr, train/lr in log"):
        rate_metric(log_of("lr", "train/lr"), None)
    assert rate_metric(log_of("lr", "train/lr"), "train/lr") is not None
    with pytest.raises(CurveError, match="--lr-column must name a column or tag of the log; got 'rate' for log"):
        rate_metric(log_of("lr"), "rate")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_value_that_is_not_finite_is_named(value: float) -> None:
    with pytest.raises(CurveError, match=f"x must be finite; got {value:g} at step 7 in log"):
        pick(make_log("log", {"x": [(0, 1.0), (7, value)]}), "x", "--loss")


# CSV ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "step,loss_a,lr\n0,3.0,\n10,2.5,1e-4\n",
        "\ufeffGlobal_Step;loss_a;lr;note\n0;3.0;;begin\n10;2.5;1e-4;\n",  # a spreadsheet's semicolons, another word
        "loss_a\tlr\titeration\n3.0\t\t0\n2.5\t0.0001\t10\n\n",
        '"step","loss_a","lr"\r\n"0","3.0",""\r\n"10","2.5","1e-4"\r\n',
        "step,loss_a,lr\n0,3.0,\n10,,1e-4\n10,2.5,\n",  # training and evaluation log a row each
    ],
)
def test_forms_of_csv(tmp_path: Path, text: str) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(text.encode())
    log = read_csv([path])
    assert points(log, "loss_a") == [(0, 3.0), (10, 2.5)]
    assert points(log, "lr") == [(10, 1e-4)]
    assert log.warnings == ()


def test_columns_of_one_run_may_be_in_several_files(tmp_path: Path) -> None:
    first = write(tmp_path / "a.csv", "step,loss_a\n0,3.0\n")
    second = write(tmp_path / "b.csv", "iter,lr\n1,1e-4\n")
    assert list(read_csv([first, second]).metrics) == ["loss_a", "lr"]
    with pytest.raises(CurveError, match="a column must be in one file; got 'loss_a' again in"):
        read_csv([first, write(tmp_path / "c.csv", "step,loss_a\n0,3.0\n")])


def test_named_step_column(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "step,updates,loss_a\n0,0,3.0\n64,1,2.0\n")
    assert points(read_csv([path], "updates"), "loss_a") == [(0, 3.0), (1, 2.0)]


@pytest.mark.parametrize(
    ("text", "step_column", "words"),
    [
        ("epoch,loss_a\n0,3\n", None, "log must have a column that counts optimiser steps; got epoch, loss_a in"),
        ("step,loss_a\n0,3\n", "stp", "--step-column must name a column; got 'stp' for"),
        ("step,loss_a\n", None, "log must have a header and at least one row; got none in"),
        ("", None, "log must have a header and at least one row; got none in"),
        ("step,loss_a,loss_a\n0,3,3\n", None, "columns must have different names; got 'loss_a' twice in"),
        ("step,loss_a\n0,3\n1\n", None, "row must have 2 cells; got 1 in"),
    ],
)
def test_broken_csv(tmp_path: Path, text: str, step_column: str | None, words: str) -> None:
    with pytest.raises(CurveError) as caught:
        read_csv([write(tmp_path / "a.csv", text)], step_column)
    assert words in str(caught.value)
    assert str(tmp_path / "a.csv") in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("0,3\n10,oops\n", "loss_a must hold numbers; got 'oops' at step '10' in {csv}:3."),
        ("0,3\nx,2\n", "loss_a must hold numbers; got '2' at step 'x' in {csv}:3."),
        ("0,3\n,2\n", "loss_a must hold numbers; got a value but no step in {csv}:3."),
    ],
)
def test_broken_cell_is_named_when_its_column_is_needed(tmp_path: Path, rows: str, words: str) -> None:
    path = write(tmp_path / "a.csv", "step,loss_a\n" + rows)
    log = read_csv([path])
    with pytest.raises(CurveError) as caught:
        pick(log, "loss_a", "--loss")
    assert words.format(csv=path) in str(caught.value)


def test_csv_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CurveError, match="log must be a CSV file; got"):
        read_csv([path])


# W&B ---------------------------------------------------------------------------------------------------------------

CHART = (
    '"Step","run-a - eval/general_loss","run-a - eval/general_loss__MIN","run-a - eval/general_loss__MAX",'
    '"b - c - eval/general_loss","b - c - eval/general_loss__MIN","b - c - eval/general_loss__MAX"\n'
    '"0","3.0","3.0","3.0","3.2","3.2","3.2"\n'
    '"10","2.5","2.5","2.5","",,""\n'
    '"20","","","","2.6","2.6","2.6"\n'
)


def test_chart_of_several_runs(tmp_path: Path) -> None:
    path = write(tmp_path / "chart.csv", CHART)
    assert points(read_wandb([path], run="run-a"), "eval/general_loss") == [(0, 3.0), (10, 2.5)]
    log = read_wandb([path], run="b - c")
    assert points(log, "eval/general_loss") == [(0, 3.2), (20, 2.6)]
    assert list(log.metrics) == ["eval/general_loss"]  # not __MIN and __MAX
    assert [warning.code for warning in log.warnings] == ["wandb_step"]
    assert f"Step in {path} counts calls of wandb.log" in log.warnings[0].message


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (None, "one run must be chosen; got run-a, b - c in"),
        ("run-b", "--run must be a run of the export; got 'run-b' for"),
    ],
)
def test_run_that_cannot_be_told(tmp_path: Path, run: str | None, words: str) -> None:
    with pytest.raises(CurveError) as caught:
        read_wandb([write(tmp_path / "chart.csv", CHART)], run=run)
    assert words in str(caught.value)
    assert caught.value.hint


def test_charts_of_loss_and_rate_make_one_log(tmp_path: Path) -> None:
    loss = write(tmp_path / "a.csv", '"train/global_step","r - eval/domain_loss"\n"0","3.0"\n"5","2.9"\n')
    rate = write(tmp_path / "b.csv", '"train/global_step","r - train/learning_rate"\n"5","1e-4"\n')
    log = read_wandb([loss, rate])
    assert list(log.metrics) == ["eval/domain_loss", "train/learning_rate"]
    assert log.warnings == ()  # steps are the trainer's own
    with pytest.raises(CurveError, match="a metric must be in one file; got 'eval/domain_loss' again in"):
        read_wandb([loss, loss])


def test_history_of_a_run_prefers_the_trainers_step(tmp_path: Path) -> None:
    header = "_step,_runtime,train/global_step,eval/general_loss,eval/samples_per_second"
    path = write(tmp_path / "history.csv", header + "\n0,1.5,0,3.0,9\n1,2.5,,,\n2,3.5,10,2.5,9\n")
    log = read_wandb([path])
    assert points(log, "eval/general_loss") == [(0, 3.0), (10, 2.5)]
    assert log.by_trainer
    assert log.warnings == ()


def test_means_over_stretches_are_named(tmp_path: Path) -> None:
    text = '"global_step","r - eval/a_loss","r - eval/a_loss__MIN","r - eval/a_loss__MAX"\n0,3.0,2.9,3.1\n'
    (warning,) = read_wandb([write(tmp_path / "a.csv", text)]).warnings
    assert warning.code == "wandb_mean"
    assert "eval/a_loss in" in warning.message


@pytest.mark.parametrize(
    ("header", "expected"),
    [(["Step", "a - loss"], True), (["_step", "loss"], True), (["step", "loss_a"], False), (["a - b", "loss"], False)],
)
def test_header_of_wandb_is_known(header: list[str], expected: bool) -> None:
    assert looks_like_wandb(header) == expected


# Trainer -----------------------------------------------------------------------------------------------------------


def test_state_that_a_trainer_wrote() -> None:
    log = read_trainer_state(FILES / "trainer_state_cosine.json")
    assert log.total_steps == 60
    assert log.by_trainer
    assert points(log, "eval_general_loss")[0] == (0, 4.162769794464111)
    assert log.metrics["eval_domain_loss"].steps.tolist() == [0, 10, 20, 30, 40, 50, 60]
    assert points(log, "learning_rate")[0] == (5, 3e-3 * (4 / 7))  # step 5 ran at time 4 of a warm-up of 7
    assert log.warnings == ()


@pytest.mark.parametrize(
    ("state", "kind", "words"),
    [
        ({"max_steps": 5}, CurveError, "trainer state must hold a log_history; got none in"),
        ([], CurveError, "trainer state must hold a log_history; got none in"),
        ({"log_history": [1]}, CurveError, "trainer state must hold a log_history; got none in"),
        ({"log_history": []}, CurveError, "log_history must hold at least one row of numbers; got none in"),
        ({"log_history": [{"step": 1, "note": "x"}]}, CurveError, "at least one row of numbers; got none in"),
        ("{", ConfigError, "file must be JSON"),
    ],
)
def test_broken_trainer_state(tmp_path: Path, state: Any, kind: type[CptplanError], words: str) -> None:
    path = write(tmp_path / "trainer_state.json", state if isinstance(state, str) else json.dumps(state))
    with pytest.raises(kind) as caught:
        read_trainer_state(path)
    assert words in str(caught.value)


# TensorBoard -------------------------------------------------------------------------------------------------------


def write_events(directory: Path, tags: dict[str, list[tuple[int, float]]], *, as_tensors: bool = False) -> None:
    writer = EventFileWriter(str(directory))
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="scalars"))
    for tag, values in tags.items():
        for step, value in values:
            entry = Summary.Value(tag=tag, simple_value=value)
            if as_tensors:
                tensor = make_tensor_proto(np.float32(value))
                entry = Summary.Value(tag=tag, tensor=tensor, metadata=metadata)
            writer.add_event(Event(step=step, wall_time=float(step), summary=Summary(value=[entry])))
    writer.close()


@pytest.mark.parametrize("as_tensors", [False, True])
def test_event_file(tmp_path: Path, as_tensors: bool) -> None:
    many = [(step, 4.0 - step / 2**14) for step in range(12_000)]  # more than TensorBoard's own sample of 10,000
    write_events(tmp_path, {"eval/general_loss": many, "train/learning_rate": [(1, 2.0**-12)]}, as_tensors=as_tensors)
    log = read_tensorboard(tmp_path)
    assert points(log, "eval/general_loss") == many
    assert points(read_tensorboard(next(tmp_path.iterdir())), "train/learning_rate") == [(1, 2.0**-12)]


def test_event_files_of_a_run_that_was_resumed(tmp_path: Path) -> None:
    write_events(tmp_path, {"eval/a_loss": [(0, 4.0), (10, 3.0), (20, 2.0)]})
    first = next(tmp_path.iterdir())
    first.rename(tmp_path / "events.out.tfevents.1000000000.host.1.0")
    write_events(tmp_path, {"eval/a_loss": [(15, 2.5), (25, 1.5)]})
    log = read_tensorboard(tmp_path)
    assert points(log, "eval/a_loss") == [(0, 4.0), (10, 3.0), (15, 2.5), (25, 1.5)]
    assert [warning.code for warning in log.warnings] == ["restart"]


def test_directory_above_the_event_files(tmp_path: Path) -> None:
    write_events(tmp_path / "run-1", {"a": [(0, 1.0)]})
    with pytest.raises(CurveError, match="directory must hold the event files of one run; got none in") as caught:
        read_tensorboard(tmp_path)
    assert str(tmp_path / "run-1") in str(caught.value)


def test_event_files_without_scalars(tmp_path: Path) -> None:
    write(tmp_path / "events.out.tfevents.1.host", "")
    with pytest.raises(CurveError, match="event files must hold scalars; got none in"):
        read_tensorboard(tmp_path)


def test_tensorboard_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorboard.backend.event_processing.event_accumulator", None)
    with pytest.raises(CurveError, match=r"tensorboard must be installed.*hint: pip install 'cptplan\[track\]'"):
        read_tensorboard(tmp_path)
