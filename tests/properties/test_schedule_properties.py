"""What holds for every schedule."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from contract_strategies import peak_schedules, schedules
from hypothesis import given

from cptplan.schedule import read_schedule


@given(schedules)
def test_one_finite_rate_for_each_step(values: dict[str, Any]) -> None:
    schedule = read_schedule(values, "x")
    lr = schedule.lr()
    assert lr.shape == (schedule.total_steps,)
    assert lr.dtype == np.float64
    assert np.all(np.isfinite(lr))
    assert np.all(lr >= 0)


@given(peak_schedules())
def test_rates_rise_to_the_peak_in_the_warmup_and_never_after(values: dict[str, Any]) -> None:
    lr, warmup, peak = read_schedule(values, "x").lr(), values["warmup_steps"], values["peak_lr"]
    assert np.all(np.diff(lr[:warmup]) >= 0)
    assert np.all(np.diff(lr[max(warmup - 1, 0) :]) <= peak * 1e-15)  # a rounding of the cosine near its top
    assert np.all(lr <= peak)
    if warmup:
        assert lr[warmup - 1] == peak


@given(peak_schedules())
def test_rates_stay_above_the_floor_after_the_warmup(values: dict[str, Any]) -> None:
    lr = read_schedule(values, "x").lr()[values["warmup_steps"] :]
    assert np.all(lr >= values.get("min_lr", 0.0) * (1 - 1e-15))  # a rounding


@given(schedules)
def test_reading_what_was_written_is_the_identity(values: dict[str, Any]) -> None:
    schedule = read_schedule(values, "x")
    again = read_schedule(json.loads(json.dumps(schedule.to_json())), "x")
    assert again == schedule
    np.testing.assert_array_equal(again.lr(), schedule.lr())


@given(schedules, schedules)
def test_segments_follow_one_another(first: dict[str, Any], second: dict[str, Any]) -> None:
    both = read_schedule({"kind": "segments", "segments": [first, second]}, "x").lr()
    parts = [read_schedule(values, "x").lr() for values in (first, second)]
    np.testing.assert_array_equal(both, np.concatenate(parts))
