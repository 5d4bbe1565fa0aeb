"""Curve directories: reading, checking, writing, and what a broken one is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cptplan.curves import (
    CurveRecord,
    LossCurve,
    check_curve,
    read_curve,
    read_curve_directory,
    table_text,
    write_curve,
)
from cptplan.errors import ConfigError, CptplanError, CurveError, MixtureError, ScheduleError

RECORD: dict[str, Any] = {"phase": "cpt", "lr": {"kind": "constant", "peak_lr": 1e-4, "total_steps": 10}}
TABLE = "step,loss_general,loss_domain\n0,3.0,4.0\n5,3.1,\n10,3.2,3.5\n"


def write(directory: Path, name: str = "a", table: str | None = TABLE, record: Any = RECORD) -> Path:
    if table is not None:
        (directory / f"{name}.csv").write_text(table)
    if record is not None:
        (directory / f"{name}.json").write_text(json.dumps(record))
    return directory


def refusal(directory: Path, name: str = "a") -> CptplanError:
    with pytest.raises(CptplanError) as caught:
        read_curve(directory, name)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return caught.value


def test_curve_is_read(tmp_path: Path) -> None:
    curve = read_curve(write(tmp_path), "a")
    assert curve.steps.tolist() == [0, 5, 10]
    np.testing.assert_array_equal(curve.losses["general"], [3.0, 3.1, 3.2])
    np.testing.assert_array_equal(curve.losses["domain"], [4.0, np.nan, 3.5])
    assert curve.total_steps == 10
    assert curve.lr().tolist() == [1e-4] * 10
    assert curve.final_loss("domain") == 3.5


def test_final_loss_is_the_last_that_was_evaluated(tmp_path: Path) -> None:
    curve = read_curve(write(tmp_path, table="step,loss_general\n0,3.0\n5,2.5\n10,\n"), "a")
    assert curve.final_loss("general") == 2.5


@pytest.mark.parametrize(
    "table",
    [
        "\ufeffstep,loss_general\n0,3.0\n10,2.5\n",  # byte-order mark of spreadsheets
        "step,loss_general\r\n0,3.0\r\n10,2.5\r\n",
        "loss_general, time, step\n3.0,noon,0\n2.5,,10\n",  # any order, spaces, other columns
        "step,loss_general\n0.0,3.0\n1e1,2.5\n\n",  # whole numbers written as floats; an empty last line
        '"step","loss_general"\n"0","3.0"\n"10","2.5"\n',
    ],
)
def test_forms_of_csv_that_are_read(tmp_path: Path, table: str) -> None:
    (tmp_path / "a.csv").write_bytes(table.encode())
    curve = read_curve(write(tmp_path, table=None), "a")
    assert curve.steps.tolist() == [0, 10]
    assert curve.losses["general"].tolist() == [3.0, 2.5]


def test_numbers_are_read_to_the_last_digit(tmp_path: Path) -> None:
    value = 2.7182818284590455  # one unit in the last place above e; fast parsers miss it
    curve = read_curve(write(tmp_path, table=f"step,loss_general\n0,{value!r}\n"), "a")
    assert curve.losses["general"][0] == value


@pytest.mark.parametrize(
    ("phase", "replay", "expected"),
    [
        ("cpt", None, [0.0] * 10),
        ("pretrain", None, [1.0] * 10),
        ("cpt", 0.25, [0.25] * 10),
        ("cpt", 0, [0.0] * 10),
        ("cpt", {"kind": "table", "steps": [0, 8], "ratios": [0.5, 0.1]}, [0.5] * 8 + [0.1] * 2),
    ],
)
def test_replay_ratio_of_every_step(tmp_path: Path, phase: str, replay: object, expected: list[float]) -> None:
    record = {**RECORD, "phase": phase, "replay_ratio": replay}
    assert read_curve(write(tmp_path, record=record), "a").replay_ratios().tolist() == expected


def test_rates_from_a_table_beside_the_curve(tmp_path: Path) -> None:
    np.save(tmp_path / "a.lr.npy", np.linspace(1e-4, 0, 10))
    curve = read_curve(write(tmp_path, record={**RECORD, "lr": {"kind": "table", "file": "a.lr.npy"}}), "a")
    np.testing.assert_array_equal(curve.lr(), np.linspace(1e-4, 0, 10))


def test_all_that_a_record_may_say(tmp_path: Path) -> None:
    record = {
        **RECORD,
        "schema_version": 1,
        "pretrain": {"forward_area": 8.0, "annealing_area": None, "loss_potential": 0.1},
        "batch_tokens": 4_000_000,
        "seq_len": 4096,
        "num_params": 106_000_000,
        "unique_tokens": {"general": 10**9, "law": 10**8},
        "seed": 1,
        "tokenizer": "llama-3",
    }
    found = read_curve(write(tmp_path, record=record), "a").record
    assert found.pretrain is not None
    assert (found.pretrain.forward_area, found.pretrain.annealing_area) == (8.0, None)
    assert found.unique_tokens == {"general": 10**9, "law": 10**8}


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ("step,loss_general\n0,3.0\n5,nan\n10,3.0\n", "loss_general must be finite; got nan in {csv}:3."),
        ("step,loss_general\n0,3.0\n5,NaN\n", "loss_general must be finite; got NaN in {csv}:3."),
        ("step,loss_general\n0,inf\n", "loss_general must be finite; got inf in {csv}:2."),
        ("step,loss_general\n0,3.0\n5,null\n", "loss_general must be a number; got 'null' in {csv}:3."),
        ("step,loss_general\n0,oops\n", "loss_general must be a number; got 'oops' in {csv}:2."),
        ("step,loss_general\n0,3.0\n5,-1.5\n", "must be finite and positive; got -1.5 at step 5 in {csv}:3."),
        ("step,loss_general\n0,0\n", "loss_general must be finite and positive; got 0 at step 0 in {csv}:2."),
        ("step,loss_general\n0,\n5,\n", "loss_general must have a value somewhere; got none in {csv}."),
        ("step,loss_general\n0,3\n5,3\n4,3\n", "step must rise from row to row; got 4 after 5 in {csv}:4."),
        ("step,loss_general\n0,3\n5,3\n5,3\n", "step must rise from row to row; got 5 after 5 in {csv}:4."),
        ("step,loss_general\n-1,3\n", "step must lie in [0, 10], the steps of the schedule; got -1 in {csv}:2."),
        ("step,loss_general\n0,3\n11,3\n", "step must lie in [0, 10], the steps of the schedule; got 11 in {csv}:3."),
        ("step,loss_general\n0.5,3\n", "step must be a whole number; got 0.5 in {csv}:2."),
        ("step,loss_general\n0,3\n1e300,3\n", "step must be a whole number; got 1e300 in {csv}:3."),
        ("step,loss_general\nnan,3\n", "step must be finite; got nan in {csv}:2."),
        ("step,loss_general\n0,3\n,3\n", "step must be a number; got '' in {csv}:3."),
        ("step,loss\n0,3\n", "curve must have a validation column loss_<set> for each set; got step, loss in {csv}."),
        ("step,loss_a,loss_a\n0,3,3\n", "got step, loss_a, loss_a in {csv}."),
        ("steps,loss_general\n0,3\n", "column step; got steps, loss_general in {csv}. hint: did you mean 'steps'?"),
        ("", "curve must have a column step; got none in {csv}."),
        ("step,loss_general\n", "curve must have at least one row; got none in {csv}."),
        ("step,loss_general\n0,3\n5,3,4\n", "row must have 2 cells; got 3 in {csv}:3."),
        ("step,loss_general\n0,3\n5\n", "row must have 2 cells; got 1 in {csv}:3."),  # cut off in the middle
        ("step,loss_general\n0,3\n\n5,oops\n", "got 'oops' in {csv}:4."),  # the row of the file, empty lines counted
    ],
)  # fmt: skip
def test_broken_table_names_value_file_and_row(tmp_path: Path, table: str, expected: str) -> None:
    error = refusal(write(tmp_path, table=table))
    assert type(error) is CurveError
    assert expected.format(csv=tmp_path / "a.csv") in str(error)
    assert error.hint


def test_table_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00step")
    error = refusal(write(tmp_path, table=None))
    assert type(error) is CurveError
    assert "curve must be a CSV file" in str(error)


@pytest.mark.parametrize(
    ("record", "kind", "expected"),
    [
        ({**RECORD, "phas": "cpt"}, ConfigError, "keys must be known; got phas in {json}. hint: did you mean 'phase'?"),
        ({"lr": RECORD["lr"]}, ConfigError, "phase must be given; it is missing in {json}."),
        ({"phase": "cpt"}, CurveError, "lr must give the rate of every optimiser step; it is missing in {json}."),
        ({"phase": "cpt", "lr": None}, CurveError, "lr must give the rate of every optimiser step; it is missing in "),
        ({"phase": "cpt", "learning_rate": 1e-4}, CurveError, "lr must give the rate of every optimiser step"),
        ({**RECORD, "phase": "sft"}, ConfigError, "phase must be 'pretrain' or 'cpt'; got 'sft' in {json}."),
        ({**RECORD, "lr": {"peak_lr": 1}}, ConfigError, "kind must be given; it is missing in lr of {json}."),
        ({**RECORD, "lr": 1e-4}, ConfigError, "must be an object of keys and values; got 0.0001 in lr of {json}."),
        (
            {**RECORD, "lr": {**RECORD["lr"], "warmup_steps": 11}},
            ScheduleError,
            "total_steps must be at least warmup_steps; got total_steps 10 and warmup_steps 11 in lr of {json}.",
        ),
        ({**RECORD, "lr": {"kind": "table", "file": "no.npy"}}, ScheduleError, "named in lr of {json}."),
        ({**RECORD, "replay_ratio": 1.5}, MixtureError, "got 1.5 in replay_ratio of {json}."),
        ({**RECORD, "schema_version": 2}, ConfigError, "schema_version must be 1; got 2 in {json}."),
        ({**RECORD, "pretrain": {"loss_potential": 2}}, ConfigError, "loss_potential must be at most 1; got 2 in"),
        ([RECORD], ConfigError, "content must be an object of keys and values; got "),
    ],
)  # fmt: skip
def test_broken_record_names_value_field_and_file(
    tmp_path: Path, record: Any, kind: type[CptplanError], expected: str
) -> None:
    error = refusal(write(tmp_path, record=record))
    assert type(error) is kind
    assert expected.format(json=tmp_path / "a.json") in str(error)


@pytest.mark.parametrize("missing", ["csv", "json"])
def test_missing_file_of_a_pair_is_named(tmp_path: Path, missing: str) -> None:
    write(tmp_path)
    (tmp_path / f"a.{missing}").unlink()
    error = refusal(tmp_path)
    assert type(error) is CurveError
    assert f"got no {tmp_path / 'a'}.{missing}." in str(error)


def test_record_that_is_not_json_names_the_file(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "a.json").write_text("{")
    assert f"{tmp_path / 'a.json'}" in str(refusal(tmp_path))


def directory_refusal(directory: Path) -> str:
    with pytest.raises(CurveError) as caught:
        read_curve_directory(directory)
    return str(caught.value)


def test_directory_is_read_in_order_with_parents(tmp_path: Path) -> None:
    write(tmp_path, "b", record={**RECORD, "parent": "a", "parent_step": 10})
    write(tmp_path, "a", record={**RECORD, "phase": "pretrain"})
    curves = read_curve_directory(tmp_path)
    assert list(curves) == ["a", "b"]
    assert curves["b"].record.parent_step == 10


def test_named_curves_of_a_directory_are_read_alone(tmp_path: Path) -> None:
    write(tmp_path, "a")
    write(tmp_path, "broken", table="nothing")
    assert list(read_curve_directory(tmp_path, ["a"])) == ["a"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["pilot-1"], ["base", "pilot-1", "root"]),  # its parent and its parent's parent come along
        (["base"], ["base", "root"]),
        (["pilot-*"], ["base", "pilot-1", "pilot-2", "root"]),
        (["*-[2]", "alone"], ["alone", "base", "pilot-2", "root"]),
        (["alone", "al*", "alone"], ["alone"]),
        (["x[1]"], ["x[1]"]),  # a name that is there is no pattern
        (["*"], ["alone", "base", "pilot-1", "pilot-2", "root", "x[1]"]),
        (None, ["alone", "base", "pilot-1", "pilot-2", "root", "x[1]"]),
    ],
)
def test_names_and_patterns_bring_their_parents(tmp_path: Path, names: list[str] | None, expected: list[str]) -> None:
    write(tmp_path, "root", record={**RECORD, "phase": "pretrain"})
    write(tmp_path, "base", record={**RECORD, "phase": "pretrain", "parent": "root"})
    for name in ("pilot-1", "pilot-2"):
        write(tmp_path, name, record={**RECORD, "parent": "base"})
    write(tmp_path, "alone")
    write(tmp_path, "x[1]")
    assert list(read_curve_directory(tmp_path, names)) == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["pilot1"], "got 'pilot1' for {dir}. hint: did you mean 'pilot-1'?"),
        (["a", "nothing-*"], "got 'nothing-*' for {dir}. hint: curves there: a, pilot-1"),
        (["PILOT-*"], "got 'PILOT-*' for {dir}."),
        ([""], "got '' for {dir}."),
        ([], "names must hold at least one curve; got none for {dir}."),
    ],
)
def test_name_or_pattern_that_matches_nothing(tmp_path: Path, names: list[str], expected: str) -> None:
    write(tmp_path, "a")
    write(tmp_path, "pilot-1")
    with pytest.raises(CurveError) as caught:
        read_curve_directory(tmp_path, names)
    assert expected.format(dir=tmp_path) in str(caught.value)


def test_names_that_differ_only_in_case(tmp_path: Path) -> None:
    write(tmp_path, "Pilot")
    if (tmp_path / "pilot.csv").exists():
        pytest.skip("this file system takes them for one file")
    write(tmp_path, "pilot")
    assert f"names must differ in more than case; got Pilot and pilot in {tmp_path}." in directory_refusal(tmp_path)


@pytest.mark.parametrize("missing", ["csv", "json"])
def test_half_of_a_pair_in_a_directory_is_named(tmp_path: Path, missing: str) -> None:
    write(tmp_path, "a")
    write(tmp_path, "b")
    (tmp_path / f"a.{missing}").unlink()
    other = "csv" if missing == "json" else "json"
    found = directory_refusal(tmp_path)
    assert f"got no {tmp_path / 'a'}.{missing}. hint: add the file, or move a.{other} elsewhere" in found


def test_hidden_files_are_no_curves(tmp_path: Path) -> None:
    write(tmp_path, "a")
    (tmp_path / "._a.csv").write_bytes(b"\x00\x05")  # what some systems leave beside a copied file
    assert list(read_curve_directory(tmp_path)) == ["a"]


@pytest.mark.parametrize("name", ["", "nowhere"])
def test_directory_without_curves(tmp_path: Path, name: str) -> None:
    assert f"curve directory must hold <name>.csv files; got none in {tmp_path / name}." in directory_refusal(
        tmp_path / name
    )


def test_missing_parent_is_named_with_a_suggestion(tmp_path: Path) -> None:
    write(tmp_path, "base", record={**RECORD, "phase": "pretrain"})
    write(tmp_path, "b", record={**RECORD, "parent": "bass"})
    assert directory_refusal(tmp_path) == (
        f"parent must be a curve of the same directory; got 'bass' in {tmp_path / 'b.json'}. hint: did you mean 'base'?"
    )


def test_parent_that_ended_before_the_child_began(tmp_path: Path) -> None:
    write(tmp_path, "a", record={**RECORD, "phase": "pretrain"})
    write(tmp_path, "b", record={**RECORD, "parent": "a", "parent_step": 11})
    assert f"parent_step must be at most 10, the steps of a; got 11 in {tmp_path / 'b.json'}." in directory_refusal(
        tmp_path
    )


@pytest.mark.parametrize(("first", "second"), [("a", "a"), ("b", "a")])
def test_parents_in_a_circle(tmp_path: Path, first: str, second: str) -> None:
    write(tmp_path, "a", record={**RECORD, "parent": first})
    write(tmp_path, "b", record={**RECORD, "parent": second})
    assert f"parents must not form a circle; got a <- {first}" in directory_refusal(tmp_path)


def test_written_curve_is_read_back(tmp_path: Path) -> None:
    curve = read_curve(write(tmp_path, record={**RECORD, "replay_ratio": 0.2, "pretrain": {"forward_area": 1.0}}), "a")
    write_curve(tmp_path / "copy", curve)
    again = read_curve(tmp_path / "copy", "a")
    assert again.record == curve.record
    assert (tmp_path / "copy" / "a.csv").read_text() == TABLE


@pytest.mark.parametrize(("steps", "beside"), [(100, False), (101, True)])
def test_long_table_of_rates_is_written_beside_the_curve(tmp_path: Path, steps: int, beside: bool) -> None:
    rates = tuple(np.linspace(1e-4, 0, steps).tolist())
    record = {**RECORD, "lr": {"kind": "table", "values": rates}}
    curve = read_curve(write(tmp_path, record=record), "a")
    write_curve(tmp_path / "copy", curve)
    assert (tmp_path / "copy" / "a.lr.npy").exists() == beside
    again = read_curve(tmp_path / "copy", "a")
    assert again.record == curve.record
    assert again.lr().tolist() == list(rates)


def test_table_text_uses_the_shortest_digits() -> None:
    text = table_text(np.array([0, 7]), {"x": np.array([0.1, np.nan]), "y": np.array([1 / 3, 1e-9])})
    assert text == "step,loss_x,loss_y\n0,0.1,0.3333333333333333\n7,,1e-09\n"


def test_check_of_a_curve_in_memory() -> None:
    curve = LossCurve(
        name="a",
        record=CurveRecord.parse(RECORD, "here"),
        steps=np.array([0, 1]),
        losses={"general": np.array([3.0, np.inf])},
    )
    with pytest.raises(CurveError, match="loss_general must be finite and positive; got inf at step 1 in run 7:3"):
        check_curve(curve, "run 7")
