"""What holds for every contract: its name depends on what it says, not on how it was written down."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from contract_strategies import mixtures, schedules
from hypothesis import given
from hypothesis import strategies as st

from cptplan.errors import ConfigError
from cptplan.files import canonical_json, hash_json
from cptplan.run_spec import RunSpec
from cptplan.schedule import read_schedule

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(), inner, max_size=4)),
    max_leaves=12,
)


def reordered(value: Any) -> Any:
    """The same content with the keys of every object in the opposite order."""
    if isinstance(value, dict):
        return {key: reordered(value[key]) for key in reversed(value)}
    return [reordered(part) for part in value] if isinstance(value, list) else value


def spec_values(schedule: dict[str, Any], mixture: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": "a",
        "phase": "cpt",
        "model": {"config": {"model_type": "llama", "hidden_size": 64}},
        "sources": [
            {"name": "general", "role": "general", "path": "g", "weight": 1.0},
            {"name": "law", "role": "domain", "path": "d", "weight": 2.0},
        ],
        "validation": [{"name": "general", "path": "v", "num_tokens": 100}],
        "schedule": schedule,
        "mixture": mixture,
        "seq_len": 8,
        "batch_tokens": 32,
    }


@given(schedules, mixtures())
def test_hash_of_a_spec_does_not_depend_on_key_order(schedule: dict[str, Any], mixture: dict[str, Any]) -> None:
    values = spec_values(schedule, mixture)
    assert list(reordered(values)) != list(values)
    assert RunSpec.parse(reordered(values), "x").hash == RunSpec.parse(values, "x").hash


@given(schedules, mixtures())
def test_reading_a_written_spec_is_the_identity(schedule: dict[str, Any], mixture: dict[str, Any]) -> None:
    spec = RunSpec.parse(spec_values(schedule, mixture), "x")
    again = RunSpec.parse(json.loads(json.dumps(spec.to_json())), "x")
    assert again == spec
    assert again.hash == spec.hash


@given(JSON)
def test_canonical_json_is_the_same_for_any_key_order_and_loses_nothing(value: Any) -> None:
    assert canonical_json(reordered(value)) == canonical_json(value)
    assert hash_json(reordered(value)) == hash_json(value)
    assert json.loads(canonical_json(value)) == value


def refusal(parse: Callable[[], object]) -> str | None:
    """What the user is told, or None when the content is read."""
    try:
        parse()
    except ConfigError as error:
        return str(error)
    return None


@given(JSON)
def test_any_content_is_read_or_refused_in_one_line(value: Any) -> None:
    for parse in (lambda: read_schedule(value, "x"), lambda: RunSpec.parse(value, "x")):
        assert "\n" not in (refusal(parse) or "")


@given(schedules, st.data())
def test_a_spec_with_one_part_replaced_is_read_or_refused_in_one_line(schedule: dict[str, Any], data: Any) -> None:
    values = spec_values(schedule, {"kind": "constant", "replay_ratio": 0.5})
    place: Any = values
    while True:  # walk down to a place drawn at random and put any content there
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else list(range(len(place)))))
        if not place[key] or not isinstance(place[key], dict | list) or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(JSON)
    told = refusal(lambda: RunSpec.parse(values, "spec.json"))
    assert told is None or ("\n" not in told and "spec.json" in told)
