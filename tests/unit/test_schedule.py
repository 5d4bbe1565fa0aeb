"""Schedules: every kind by numbers that can be worked out by hand, its edges, its errors, and its file form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cptplan.contract import Contract
from cptplan.errors import ConfigError, ScheduleError
from cptplan.schedule import EXPONENTIAL_FLOOR, Schedule, TableSchedule, decay, load_tables, read_schedule

CLOSE = {"rtol": 1e-14, "atol": 1e-16}  # a few roundings of float64

ONE_OF_EACH: list[dict[str, Any]] = [
    {"kind": "constant", "peak_lr": 3e-4, "total_steps": 7, "warmup_steps": 2},
    {"kind": "linear", "peak_lr": 3e-4, "total_steps": 7, "warmup_steps": 2, "min_lr": 1e-5},
    {"kind": "cosine", "peak_lr": 3e-4, "total_steps": 7, "init_lr": 1e-6, "warmup_steps": 2},
    {"kind": "wsd", "peak_lr": 3e-4, "total_steps": 9, "decay_steps": 3, "decay_shape": "sqrt"},
    {"kind": "infinite", "peak_lr": 3e-4, "const_lr": 1e-4, "cooldown_steps": 3, "decay_steps": 2, "total_steps": 9},
    {"kind": "two_stage", "peak_lr": 3e-4, "min_lr": 3e-5, "switch_step": 4, "total_steps": 9},
    {"kind": "inverse_sqrt", "peak_lr": 3e-4, "warmup_steps": 3, "total_steps": 9},
    {"kind": "piecewise", "points": [[0, 0.0], [2, 3e-4], [9, 1e-5]], "total_steps": 9},
    {"kind": "table", "values": [1e-4, 2e-4, 0.0]},
    {
        "kind": "segments",
        "segments": [
            {"kind": "constant", "peak_lr": 1e-3, "total_steps": 2},
            {"kind": "segments", "segments": [{"kind": "table", "values": [5e-4]}]},
        ],
    },
]


def read(**values: Any) -> Any:
    return read_schedule(values, "run.json")


def rates(**values: Any) -> list[float]:
    return read(**values).lr()


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # step i runs at the value at time i + 1: no step at 0, the step that ends the warm-up at the peak
        ({"kind": "constant", "peak_lr": 4.0, "total_steps": 3}, [4, 4, 4]),
        ({"kind": "constant", "peak_lr": 4.0, "total_steps": 6, "warmup_steps": 4}, [1, 2, 3, 4, 4, 4]),
        ({"kind": "constant", "peak_lr": 5.0, "init_lr": 1.0, "total_steps": 5, "warmup_steps": 4}, [2, 3, 4, 5, 5]),
        ({"kind": "constant", "peak_lr": 4.0, "total_steps": 4, "warmup_steps": 4}, [1, 2, 3, 4]),
        ({"kind": "constant", "peak_lr": 4.0, "init_lr": 8.0, "total_steps": 3, "warmup_steps": 2}, [6, 4, 4]),
        ({"kind": "linear", "peak_lr": 4.0, "total_steps": 4}, [3, 2, 1, 0]),
        ({"kind": "linear", "peak_lr": 5.0, "min_lr": 1.0, "total_steps": 4}, [4, 3, 2, 1]),
        ({"kind": "linear", "peak_lr": 4.0, "total_steps": 6, "warmup_steps": 2}, [2, 4, 3, 2, 1, 0]),
        ({"kind": "linear", "peak_lr": 4.0, "total_steps": 2, "warmup_steps": 2}, [2, 4]),
        ({"kind": "linear", "peak_lr": 4.0, "total_steps": 1}, [0]),
        # cosine of 60, 90, 120, 180 degrees: 1/2, 0, -1/2, -1
        ({"kind": "cosine", "peak_lr": 4.0, "total_steps": 3}, [3, 1, 0]),
        ({"kind": "cosine", "peak_lr": 5.0, "min_lr": 1.0, "total_steps": 4, "warmup_steps": 2}, [2.5, 5, 3, 1]),
        ({"kind": "cosine", "peak_lr": 4.0, "total_steps": 2, "warmup_steps": 2}, [2, 4]),
        ({"kind": "wsd", "peak_lr": 4.0, "total_steps": 6, "decay_steps": 4}, [4, 4, 3, 2, 1, 0]),
        ({"kind": "wsd", "peak_lr": 4.0, "total_steps": 3, "decay_steps": 0}, [4, 4, 4]),
        ({"kind": "wsd", "peak_lr": 4.0, "total_steps": 3, "decay_steps": 0, "warmup_steps": 3}, [4 / 3, 8 / 3, 4]),
        ({"kind": "wsd", "peak_lr": 4.0, "total_steps": 4, "decay_steps": 4}, [3, 2, 1, 0]),
        ({"kind": "wsd", "peak_lr": 4.0, "total_steps": 6, "warmup_steps": 2, "decay_steps": 4}, [2, 4, 3, 2, 1, 0]),
        (
            {"kind": "wsd", "peak_lr": 4.0, "total_steps": 4, "decay_steps": 3, "decay_shape": "cosine"},
            [4, 3, 1, 0],
        ),
        # 1 - sqrt(p) at p = 1/4, 1/2, 3/4, 1
        (
            {"kind": "wsd", "peak_lr": 4.0, "total_steps": 5, "decay_steps": 4, "decay_shape": "sqrt"},
            [4, 2, 4 - 8**0.5, 4 - 12**0.5, 0],
        ),
        # geometric: halved at every step from 16 to 1
        (
            {
                "kind": "wsd",
                "peak_lr": 16.0,
                "min_lr": 1.0,
                "total_steps": 5,
                "decay_steps": 4,
                "decay_shape": "exponential",
            },
            [16, 8, 4, 2, 1],
        ),
        # cool-down by cosine over 3 steps, two of plateau, two of halving
        (
            {
                "kind": "infinite",
                "peak_lr": 8.0,
                "const_lr": 4.0,
                "min_lr": 1.0,
                "warmup_steps": 2,
                "cooldown_steps": 3,
                "decay_steps": 2,
                "total_steps": 9,
            },
            [4, 8, 7, 5, 4, 4, 4, 2, 1],
        ),
        (
            {"kind": "infinite", "peak_lr": 8.0, "const_lr": 4.0, "cooldown_steps": 0, "total_steps": 2},
            [4, 4],
        ),
        (
            {
                "kind": "infinite",
                "peak_lr": 8.0,
                "const_lr": 4.0,
                "warmup_steps": 2,
                "cooldown_steps": 0,
                "total_steps": 3,
            },
            [4, 8, 4],
        ),
        ({"kind": "two_stage", "peak_lr": 4.0, "min_lr": 1.0, "switch_step": 3, "total_steps": 5}, [4, 4, 4, 1, 1]),
        ({"kind": "two_stage", "peak_lr": 4.0, "switch_step": 3, "total_steps": 3}, [4, 4, 4]),
        (
            {"kind": "two_stage", "peak_lr": 4.0, "warmup_steps": 2, "switch_step": 2, "total_steps": 3},
            [2, 4, 0],
        ),
        # peak * sqrt(1 / t), not below the floor
        (
            {"kind": "inverse_sqrt", "peak_lr": 6.0, "min_lr": 2.5, "warmup_steps": 1, "total_steps": 9},
            [6, 6 / 2**0.5, 6 / 3**0.5, 3, 6 / 5**0.5, 2.5, 2.5, 2.5, 2.5],
        ),
        # flat before the first point and after the last; points may lie between steps
        ({"kind": "piecewise", "points": [[2, 1.0], [4, 3.0]], "total_steps": 5}, [1, 1, 2, 3, 3]),
        ({"kind": "piecewise", "points": [[0.5, 0.0], [2.5, 4.0]], "total_steps": 3}, [1, 3, 4]),
        ({"kind": "piecewise", "points": [[0, 2.0]], "total_steps": 2}, [2, 2]),
        ({"kind": "table", "values": [1.0, 0.0, 3.0]}, [1, 0, 3]),
        (
            {
                "kind": "segments",
                "segments": [
                    {"kind": "linear", "peak_lr": 4.0, "total_steps": 2},
                    {"kind": "constant", "peak_lr": 6.0, "warmup_steps": 3, "total_steps": 4},
                ],
            },
            [2, 0, 2, 4, 6, 6],
        ),
        (ONE_OF_EACH[-1], [1e-3, 1e-3, 5e-4]),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
def test_rates_of_every_step(schedule: dict[str, Any], expected: list[float]) -> None:
    found = read_schedule(schedule, "run.json")
    assert found.total_steps == len(expected)
    assert found.lr().dtype == np.float64
    np.testing.assert_allclose(found.lr(), expected, **CLOSE)


@pytest.mark.parametrize("shape", ["linear", "cosine", "sqrt", "exponential"])
@pytest.mark.parametrize(("start", "stop"), [(3e-4, 0.0), (2.8e-3, 2.5e-4), (0.1, 0.1)])
def test_decay_is_exact_at_both_ends_and_never_rises(shape: Any, start: float, stop: float) -> None:
    rates = decay(shape, np.linspace(0.0, 1.0, 1001), start, stop)
    assert rates[0] == start
    assert rates[-1] == stop
    assert np.all(np.diff(rates) <= 0)


def test_exponential_decay_to_zero_stops_at_its_floor_and_then_at_zero() -> None:
    rates = decay("exponential", np.array([0.5, 1.0 - 1e-12, 1.0]), 1.0, 0.0)
    np.testing.assert_allclose(rates, [EXPONENTIAL_FLOOR**0.5, EXPONENTIAL_FLOOR, 0.0], rtol=1e-10)


def test_peak_and_floor_are_met_exactly() -> None:
    # rates that do not add up in binary: 2.5e-4 + (2.8e-3 - 2.5e-4) != 2.8e-3
    lr = read(kind="cosine", peak_lr=2.8e-3, init_lr=2.5e-4, min_lr=2.5e-4, warmup_steps=3, total_steps=10).lr()
    assert lr.max() == lr[2] == 2.8e-3
    assert lr[-1] == 2.5e-4


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (
            {"kind": "cosine", "peak_lr": 1e-3, "total_steps": 5, "warmup_steps": 6},
            ScheduleError,
            "total_steps must be at least warmup_steps; got total_steps 5 and warmup_steps 6 in run.json",
        ),
        (
            {"kind": "linear", "peak_lr": 1e-3, "min_lr": 2e-3, "total_steps": 5},
            ScheduleError,
            "min_lr must be at most peak_lr; got min_lr 0.002 and peak_lr 0.001 in run.json",
        ),
        (
            {"kind": "wsd", "peak_lr": 1e-3, "total_steps": 10, "warmup_steps": 5, "decay_steps": 6},
            ScheduleError,
            "warmup_steps + decay_steps must be at most total_steps; got 5 + 6 > 10 in run.json",
        ),
        (
            {"kind": "infinite", "peak_lr": 1e-3, "const_lr": 2e-3, "cooldown_steps": 1, "total_steps": 10},
            ScheduleError,
            "const_lr must lie between min_lr and peak_lr; got 0.002 outside [0, 0.001] in run.json",
        ),
        (
            {
                "kind": "infinite",
                "peak_lr": 1e-3,
                "const_lr": 1e-3,
                "warmup_steps": 3,
                "cooldown_steps": 4,
                "decay_steps": 5,
                "total_steps": 11,
            },
            ScheduleError,
            "got 3 + 4 + 5 > 11 in run.json",
        ),
        (
            {"kind": "two_stage", "peak_lr": 1e-3, "switch_step": 11, "total_steps": 10},
            ScheduleError,
            "switch_step must lie between warmup_steps and total_steps; got 11 outside [0, 10] in run.json",
        ),
        (
            {"kind": "two_stage", "peak_lr": 1e-3, "warmup_steps": 3, "switch_step": 2, "total_steps": 10},
            ScheduleError,
            "got 2 outside [3, 10] in run.json",
        ),
        (
            {"kind": "piecewise", "points": [[0, 1.0], [5, 1.0], [5, 0.5]], "total_steps": 10},
            ScheduleError,
            "points must have rising steps; got [0.0, 5.0, 5.0] in run.json",
        ),
        ({"kind": "table"}, ScheduleError, "table must have either values or file; got neither in run.json"),
        (
            {"kind": "table", "values": [1.0], "file": "a.npy"},
            ScheduleError,
            "table must have either values or file; got both in run.json",
        ),
        ({"kind": "table", "values": []}, ConfigError, "values must have 1 or more entries; got [] in run.json"),
        ({"kind": "table", "values": [1, -1]}, ConfigError, "values.1 must be at least 0; got -1 in run.json"),
        ({"kind": "segments", "segments": []}, ConfigError, "segments must have 1 or more entries"),
        (
            {"kind": "segments", "segments": [{"kind": "cosine", "peak_lr": 1, "total_steps": 1, "warmup_steps": 2}]},
            ScheduleError,
            "total_steps must be at least warmup_steps",
        ),
        ({"kind": "constant", "peak_lr": 0, "total_steps": 5}, ConfigError, "peak_lr must be greater than 0; got 0"),
        ({"kind": "constant", "peak_lr": 1e-3, "total_steps": 0}, ConfigError, "total_steps must be greater than 0"),
        (
            {"kind": "constant", "peak_lr": float("inf"), "total_steps": 5},
            ConfigError,
            "peak_lr must be finite; got inf in run.json",
        ),
        (
            {"kind": "inverse_sqrt", "peak_lr": 1e-3, "total_steps": 5},
            ConfigError,
            "warmup_steps must be given; it is missing in run.json",
        ),
        (
            {"kind": "wsd", "peak_lr": 1e-3, "total_steps": 5, "decay_steps": 2, "decay_shape": "cosin"},
            ConfigError,
            "hint: did you mean 'cosine'?",
        ),
        ({"kind": "WSD", "peak_lr": 1e-3, "total_steps": 5}, ConfigError, "kind must be known; got 'WSD' in run.json"),
    ],
)
def test_schedule_that_cannot_be_followed(values: dict[str, Any], kind: type[ConfigError], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_schedule(values, "run.json")
    assert type(caught.value) is kind
    assert expected in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("values", ONE_OF_EACH, ids=lambda values: values["kind"])
def test_json_round_trip(values: dict[str, Any]) -> None:
    schedule: Contract = read_schedule(values, "run.json")
    again = read_schedule(json.loads(json.dumps(schedule.to_json())), "run.json")
    assert again == schedule
    assert again.hash == schedule.hash
    np.testing.assert_array_equal(again.lr(), schedule.lr())


def test_every_kind_has_a_round_trip() -> None:
    kinds = {model.model_fields["kind"].annotation.__args__[0] for model in Schedule.__args__[0].__args__}  # type: ignore[attr-defined]
    assert {values["kind"] for values in ONE_OF_EACH} == kinds


def test_table_file_is_read_from_beside_the_file_that_names_it(tmp_path: Path) -> None:
    np.save(tmp_path / "a.lr.npy", np.array([1e-4, 2e-4], dtype=np.float32))
    schedule = read_schedule({"kind": "table", "file": "a.lr.npy"}, "run.json", tmp_path)
    np.testing.assert_array_equal(schedule.lr(), np.array([1e-4, 2e-4], dtype=np.float32).astype(np.float64))
    assert schedule.to_json().get("file") is None  # stands by itself: the file may go


def test_table_file_inside_nested_segments(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([1.0, 2.0]))
    nested = {"kind": "segments", "segments": [{"kind": "table", "file": "a.npy"}, {"kind": "table", "values": [3]}]}
    schedule = read_schedule({"kind": "segments", "segments": [nested, nested]}, "run.json", tmp_path)
    np.testing.assert_array_equal(schedule.lr(), [1, 2, 3, 1, 2, 3])
    assert schedule.total_steps == 6


def test_loading_tables_of_a_schedule_without_files_changes_nothing() -> None:
    schedule = read(**ONE_OF_EACH[0])
    assert load_tables(schedule, "run.json", Path()) is schedule


def test_table_file_that_was_not_loaded_says_so() -> None:
    with pytest.raises(ScheduleError, match=r"table must be loaded first; got the file a\.npy"):
        TableSchedule(kind="table", file="a.npy").lr()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (np.array([[1.0, 2.0]]), "table must be one rate for each step; got an array of shape (1, 2)"),
        (np.array([]), "table must be one rate for each step; got an array of shape (0,)"),
        (np.array([1.0, np.nan]), "rates must be finite and at least 0; got nan at index 1"),
        (np.array([1.0, 2.0, -3.0]), "rates must be finite and at least 0; got -3 at index 2"),
        (np.array(["a", "b"]), "table file must be a .npy array of numbers"),
    ],
)
def test_table_file_with_wrong_content(tmp_path: Path, content: Any, expected: str) -> None:
    np.save(tmp_path / "bad.npy", content)
    with pytest.raises(ScheduleError) as caught:
        read_schedule({"kind": "table", "file": "bad.npy"}, "run.json", tmp_path)
    assert expected in str(caught.value)
    assert str(tmp_path / "bad.npy") in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"hello world", b"1e-4,2e-4\n"])
def test_table_file_that_is_no_array(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.npy").write_bytes(content)
    with pytest.raises(ScheduleError, match=r"table file must be a \.npy array of numbers; .*bad\.npy, named in run"):
        read_schedule({"kind": "table", "file": "bad.npy"}, "run.json", tmp_path)


def test_table_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ScheduleError, match=r"table file must exist; got no .*none\.npy, named in run\.json"):
        read_schedule({"kind": "table", "file": "none.npy"}, "run.json", tmp_path)
