"""Runs as they lie on disk while something writes them: torn lines, missing files, how they are found and end."""

from __future__ import annotations

import json
import os
import time

import numpy as np
import pytest
from watch_examples import STEPS, record, write_progress, write_run

from cptplan.errors import ConfigError, CurveError
from cptplan.watch.run import find_run, read_watched


@pytest.fixture
def half(tmp_path):
    return write_run(tmp_path / "runs" / "final", record(), share=0.5)


def read(path):
    return read_watched(find_run(str(path), path.parent))


def test_run_directory_is_read_as_far_as_it_is(half):
    found = read(half)
    assert (found.done, found.state, found.notes) == (991, "running", ())
    assert found.lr_steps[-1] == 991
    assert found.general_share == pytest.approx(0.2, abs=1e-6)
    assert found.curve.steps[-1] <= STEPS // 2


@pytest.mark.parametrize(
    ("text", "title"),
    [("runs/final", "final"), ("final", "final"), ("runs/final/curve.csv", "curve"), ("mine", "mine")],
)
def test_names_that_mean_a_run(half, tmp_path, monkeypatch, text, title):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "curves").mkdir()
    for suffix in ("csv", "json"):
        (tmp_path / "curves" / f"mine.{suffix}").write_bytes((half / f"curve.{suffix}").read_bytes())
    found = find_run(text, tmp_path)
    assert found.title == title
    assert (found.directory / f"{found.name}.csv").exists()


def test_launch_target_means_its_run(tmp_path):
    write_run(tmp_path / "launch" / "local" / "run", record(), share=0.5)
    assert find_run("local", tmp_path).directory == tmp_path / "launch" / "local" / "run"


def test_title_is_the_name_in_the_spec(half):
    (half / "spec.json").write_text('{"name": "big-run"}')
    assert find_run(str(half), half).title == "big-run"


def test_a_run_that_is_not_there_is_refused_with_the_nearest(half, tmp_path):
    (half / "spec.json").write_text("{}")
    with pytest.raises(CurveError, match="RUN must be a run directory or a curve; got 'finale'") as refused:
        find_run("finale", tmp_path)
    assert refused.value.hint == "did you mean 'final'?"


def test_a_directory_of_several_curves_must_be_narrowed(half, tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_bytes((half / "curve.csv").read_bytes())
        (tmp_path / f"{name}.json").write_bytes((half / "curve.json").read_bytes())
    with pytest.raises(CurveError, match="RUN must name one curve; got 2"):
        find_run(str(tmp_path), tmp_path)


@pytest.mark.parametrize("cut", [1, 3, 12])
def test_last_row_without_an_end_is_left_out(half, cut):
    whole = read(half)
    raw = (half / "curve.csv").read_bytes()
    (half / "curve.csv").write_bytes(raw[:-cut])
    found = read(half)
    assert found.curve.steps.tolist() == whole.curve.steps.tolist()[:-1]
    assert "left out" in found.notes[0]


def test_a_table_that_ends_in_its_first_row_is_waited_for(half):
    raw = (half / "curve.csv").read_bytes()
    (half / "curve.csv").write_bytes(raw[: raw.index(b"\n") + 5])
    with pytest.raises(CurveError, match="curve must have a whole row; got none yet"):
        read(half)


def test_an_error_in_a_torn_curve_names_the_users_file(half):
    raw = (half / "curve.csv").read_text()
    (half / "curve.csv").write_text(raw.replace("\n0,", "\nzero,", 1) + "999,3")
    with pytest.raises(CurveError, match=f"got 'zero' in {half}"):
        read(half)


def test_torn_log_line_is_left_out_and_a_broken_one_refused(half):
    path = half / "metrics.jsonl"
    lines = path.read_text()
    path.write_text(lines + '{"step": 1001, "tra')
    assert read(half).done == 991
    path.write_text(lines.replace("\n", "\n{broken\n", 1))
    with pytest.raises(CurveError, match=r"line must be a JSON object with a step; got '\{broken' in .*:2"):
        read(half)


def test_a_broken_record_is_refused(half):
    (half / "curve.json").write_text('{"phase": "cpt", "lr')
    with pytest.raises(ConfigError, match="file must be JSON"):
        read(half)


def test_nothing_evaluated_yet(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "spec.json").write_text('{"name": "new"}')
    with pytest.raises(CurveError, match="run must have been evaluated"):
        read(tmp_path / "run")


@pytest.mark.parametrize(
    ("log", "age", "state"),
    [
        (None, 0.0, "running"),
        (None, 90.0, "silent"),
        ("step 3\nerror: train_loss must be finite; got nan\nhint: lower peak_lr\n", 90.0, "failed"),
        ("error: an older start\nloading\nstep 900 of 2000\n" + "step\n" * 9000, 90.0, "silent"),
    ],
)
def test_state_of_a_run_without_a_result(half, log, age, state):
    write_progress(half, 1000, STEPS, age=age)
    if log is not None:
        (half / "log.txt").write_text(log)
    found = read(half)
    assert found.state == state
    assert (found.failure is not None) == (state == "failed")
    if found.failure:
        assert found.failure == "train_loss must be finite; got nan"


def test_a_run_that_went_on_after_an_error_has_not_failed(half):
    (half / "log.txt").write_text("error: the device was lost\n")
    long_ago = time.time() - 500
    os.utime(half / "log.txt", (long_ago, long_ago))
    write_progress(half, 1000, STEPS, age=90.0)
    assert read(half).state == "silent"


def test_result_makes_it_complete(tmp_path):
    assert read(write_run(tmp_path / "run", record())).state == "complete"


def test_curve_from_elsewhere_is_complete_with_its_last_step(half, tmp_path):
    for suffix in ("csv", "json"):
        (tmp_path / f"mine.{suffix}").write_bytes((half / f"curve.{suffix}").read_bytes())
    found = read(tmp_path / "mine")
    assert (found.state, found.general_share, len(found.lr)) == ("running", None, 0)
    (tmp_path / "mine.csv").write_text((tmp_path / "mine.csv").read_text() + f"{STEPS},3.0,2.5\n")
    assert read(tmp_path / "mine").state == "complete"


def test_loss_that_is_not_finite_and_events_are_found(half):
    more = [{"step": 995, "lr": 1e-4, "train_loss": None}, {"step": 995, "event": "skip", "text": "not applied"}]
    with (half / "metrics.jsonl").open("a") as file:
        file.write("".join(json.dumps(line) + "\n" for line in more))
    found = read(half)
    assert found.not_finite_step == 995
    assert found.events == ((995, "skip", "not applied"),)


def test_general_share_counts_sources_of_that_role(half):
    sources = [{"name": "web", "role": "general"}, {"name": "code", "role": "domain"}]
    (half / "spec.json").write_text(json.dumps({"name": "x", "sources": sources}))
    line = {"step": 999, "lr": 1e-4, "train_loss": 3.0, "tokens_by_source": {"web": 30, "code": 10}}
    with (half / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    assert read(half).general_share == 0.75
    assert np.isfinite(read(half).lr).all()
