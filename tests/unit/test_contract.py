"""Contracts: strict reading, and every finding as one line with rule, value, the file's own field, and the file."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, ValidationError

from cptplan.contract import Contract, parse_as
from cptplan.errors import ConfigError, MixtureError
from cptplan.mixture import Mixture
from cptplan.schedule import Schedule

KINDS = "constant, linear, cosine, wsd, infinite, two_stage, inverse_sqrt, piecewise, table, segments"


class Wheel(Contract):
    """A part."""

    size: Annotated[float, Field(gt=0, le=30)]
    spokes: int = 32
    material: Literal["steel", "carbon"] = "steel"


class Bicycle(Contract):
    """A whole with parts, a union and a table."""

    schema_version: Literal[1] = 1
    name: Annotated[str, Field(pattern="^[a-z]+$")]
    wheels: Annotated[tuple[Wheel, ...], Field(min_length=1)]
    folds: bool = False
    lr: Schedule | None = None
    notes: dict[str, float] | None = None


GOOD: dict[str, Any] = {"name": "red", "wheels": [{"size": 28}]}


def message(value: object, kind: Any = Bicycle) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_as(kind, value, "shop.json")
    text = str(caught.value)
    assert "\n" not in text
    assert caught.value.exit_code == 2
    return text


def test_good_value_is_read_and_frozen() -> None:
    bicycle = Bicycle.parse(GOOD, "shop.json")
    assert bicycle.wheels[0].size == 28.0
    with pytest.raises(ValidationError, match="frozen"):
        bicycle.name = "blue"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"nam": "x"}, "keys must be known; got nam in shop.json. hint: did you mean 'name'?"),
        (
            {"zz": 1},
            "keys must be known; got zz in shop.json. hint: known keys: folds, lr, name, notes, schema_version, wheels",
        ),
        (
            {"wheels": [{"size": 1}, {"size": 1, "spoke": 3}]},
            "keys must be known; got wheels.1.spoke in shop.json. hint: did you mean 'spokes'?",
        ),
        ({"wheels": [{}]}, "wheels.0.size must be given; it is missing in shop.json. hint: add size"),
        ({"wheels": []}, "wheels must have 1 or more entries; got [] in shop.json. hint: mend wheels"),
        ({"wheels": 2}, "wheels must be a list; got 2 in shop.json. hint: mend wheels"),
        ({"wheels": [7]}, "wheels.0 must be an object of keys and values; got 7 in shop.json. hint: mend wheels.0"),
        (
            {"wheels": [{"size": 0}]},
            "wheels.0.size must be greater than 0; got 0 in shop.json. hint: mend wheels.0.size",
        ),
        ({"wheels": [{"size": 31}]}, "wheels.0.size must be at most 30; got 31 in shop.json. hint: mend wheels.0.size"),
        (
            {"wheels": [{"size": "big"}]},
            "wheels.0.size must be a number; got 'big' in shop.json. hint: mend wheels.0.size",
        ),
        (
            {"wheels": [{"size": float("nan")}]},
            "wheels.0.size must be finite; got nan in shop.json. hint: mend wheels.0.size",
        ),
        (
            {"wheels": [{"size": 1, "spokes": 1.5}]},
            "wheels.0.spokes must be a whole number; got 1.5 in shop.json. hint: mend wheels.0.spokes",
        ),
        (
            {"wheels": [{"size": 1, "material": "steal"}]},
            "wheels.0.material must be 'steel' or 'carbon'; got 'steal' in shop.json. hint: did you mean 'steel'?",
        ),
        ({"name": 5}, "name must be text; got 5 in shop.json. hint: mend name"),
        ({"name": "A 1"}, "name must match ^[a-z]+$; got 'A 1' in shop.json. hint: mend name"),
        ({"folds": "sometimes"}, "folds must be true or false; got 'sometimes' in shop.json. hint: mend folds"),
        ({"schema_version": 2}, "schema_version must be 1; got 2 in shop.json. hint: mend schema_version"),
        ({"notes": {"a": "b"}}, "notes.a must be a number; got 'b' in shop.json. hint: mend notes.a"),
    ],
)
def test_each_finding_is_one_line(change: dict[str, Any], expected: str) -> None:
    assert message({**GOOD, **change}) == expected


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({"peak_lr": 1}, f"lr.kind must be given; it is missing in shop.json. hint: known kinds: {KINDS}"),
        ({"kind": "cosin"}, "lr.kind must be known; got 'cosin' in shop.json. hint: did you mean 'cosine'?"),
        ({"kind": "zzz"}, f"lr.kind must be known; got 'zzz' in shop.json. hint: known kinds: {KINDS}"),
        ({"kind": 3}, f"lr.kind must be known; got 3 in shop.json. hint: known kinds: {KINDS}"),
        (
            {"kind": "cosine", "peak_lr": 1},
            "lr.total_steps must be given; it is missing in shop.json. hint: add total_steps",
        ),
        (
            {"kind": "cosine", "peak_lr": 1, "total_steps": 5, "warmup": 1},
            "keys must be known; got lr.warmup in shop.json. hint: did you mean 'warmup_steps'?",
        ),
        (
            {"kind": "segments", "segments": [{"kind": "segments", "segments": [{"kind": "linear"}]}]},
            "lr.segments.0.segments.0.total_steps must be given; it is missing in shop.json. hint: add total_steps",
        ),
        ("cosine", "lr must be an object of keys and values; got 'cosine' in shop.json. hint: mend lr"),
    ],
)
def test_chosen_kind_is_not_part_of_the_field(schedule: object, expected: str) -> None:
    assert message({**GOOD, "lr": schedule}) == expected


def test_rule_over_several_fields_keeps_its_class_and_names_the_file() -> None:
    with pytest.raises(MixtureError) as caught:
        parse_as(Mixture, {"kind": "constant", "replay_ratio": 1.2}, "run.json")
    assert str(caught.value) == (
        "replay_ratio must be in [0, 1]; got 1.2 in run.json. hint: give the general share of tokens, such as 0.2"
    )


@pytest.mark.parametrize("value", [None, 3, [], "text"])
def test_content_that_is_no_object(value: object) -> None:
    assert message(value).startswith("content must be an object of keys and values; got ")


def test_key_over_several_lines_stays_on_one() -> None:
    assert (
        message({**GOOD, "na\nme": 1}) == "keys must be known; got 'na\\nme' in shop.json. hint: did you mean 'name'?"
    )


def test_long_value_is_cut() -> None:
    assert len(message({**GOOD, "name": "X" * 5000})) < 200


def test_number_written_as_text_is_read() -> None:
    # YAML 1.1 readers hand on 1e-5 as text, and so do spreadsheets
    assert Wheel.parse({"size": "1e-5"}, "shop.json").size == 1e-5


def test_hash_does_not_depend_on_defaults_being_written_out() -> None:
    short = Bicycle.parse(GOOD, "a")
    long = Bicycle.parse({**GOOD, "folds": False, "lr": None, "schema_version": 1}, "b")
    assert short.hash == long.hash


def test_hash_depends_on_the_content() -> None:
    assert Bicycle.parse(GOOD, "a").hash != Bicycle.parse({**GOOD, "name": "blue"}, "a").hash


def test_null_inside_free_content_survives() -> None:
    class Free(Contract):
        """A record with content of its own."""

        config: dict[str, Any]

    free = Free.parse({"config": {"pad": None, "list": [None]}}, "a")
    assert Free.parse(free.to_json(), "a") == free
    assert free.to_json() == {"config": {"pad": None, "list": [None]}}
