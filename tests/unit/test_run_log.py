"""Logs are read as they were written, whole or cut off, and from whatever directory is given."""

from __future__ import annotations

import numpy as np
import pytest
from logged_runs import STEPS, healthy, series, write_log

from cptplan.advice.run_log import read_logs, read_run_log
from cptplan.curves import write_curve
from cptplan.errors import ConfigError, CurveError


def test_run_directory_is_read_back(tmp_path):
    log = healthy(events=((7, "spike", "words"),))
    found = read_run_log(write_log(tmp_path / "one", log, broken_end=True))
    assert (found.name, found.phase, found.total_steps) == ("one", "cpt", STEPS)
    np.testing.assert_array_equal(found.train_loss.values, log.train_loss.values)
    np.testing.assert_array_equal(found.losses["domain"].values, log.losses["domain"].values)
    np.testing.assert_allclose(found.lr, log.lr)
    assert found.tokens_by_source == log.tokens_by_source
    assert found.unique_tokens == log.unique_tokens
    assert found.events == log.events
    assert found.domains == ("domain",)


def test_what_is_not_finite_is_nan(tmp_path):
    log = healthy()
    values = log.train_loss.values.copy()
    values[3] = np.nan
    log = healthy(train_loss=series(log.train_loss.steps, values))
    found = read_run_log(write_log(tmp_path / "one", log))
    assert np.flatnonzero(np.isnan(found.train_loss.values)).tolist() == [3]


def test_directories_of_runs_and_of_curves(tmp_path):
    for name in ("b", "a"):
        write_log(tmp_path / "runs" / name, healthy())
    logs = read_logs([tmp_path / "runs"])
    assert [log.name for log in logs] == ["a", "b"]
    assert [log.name for log in read_logs([tmp_path / "runs" / "a"])] == ["a"]
    write_curve(tmp_path / "curves", logs[0].curve)
    (curve,) = read_logs([tmp_path / "curves"])
    assert (curve.name, len(curve.train_loss)) == ("curve", 0)
    np.testing.assert_array_equal(curve.losses["general"].values, logs[0].losses["general"].values)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="--runs must be a run directory"):
        read_logs([tmp_path])
    directory = write_log(tmp_path / "one", healthy())
    text = (directory / "metrics.jsonl").read_text()
    (directory / "metrics.jsonl").write_text("broken\n" + text)
    with pytest.raises(CurveError, match=r"got 'broken' in .*metrics.jsonl:1"):
        read_run_log(directory)
