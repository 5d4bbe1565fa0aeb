"""Run specs: derived quantities, the file form, the hash, and rules that a broken one is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cptplan.errors import ConfigError, MixtureError, ScheduleError
from cptplan.files import write_json
from cptplan.run_spec import RunSpec, default_eval_steps, read_run_spec, write_run_spec

GENERAL = {"name": "general", "role": "general", "path": "data/general"}
DOMAIN = {"name": "law", "role": "domain", "path": "data/law"}
SPEC: dict[str, Any] = {
    "name": "pilot-1",
    "phase": "cpt",
    "model": {"path": "base"},
    "sources": [GENERAL, DOMAIN],
    "validation": [{"name": "general", "path": "data/general-val", "num_tokens": 1000}],
    "schedule": {"kind": "cosine", "peak_lr": 1e-3, "total_steps": 10, "warmup_steps": 2},
    "mixture": {"kind": "constant", "replay_ratio": 0.2},
    "seq_len": 16,
    "batch_tokens": 64,
}


def parse(**changes: Any) -> RunSpec:
    return RunSpec.parse({**SPEC, **changes}, "spec.json")


def test_derived_quantities() -> None:
    spec = parse()
    assert (spec.total_steps, spec.sequences_per_step, spec.total_tokens) == (10, 4, 640)
    assert spec.lr().shape == (10,)
    assert spec.lr()[1] == 1e-3
    np.testing.assert_array_equal(spec.replay_ratios(), np.full(10, 0.2))


def test_default_eval_steps_are_dense_early() -> None:
    assert default_eval_steps(100, points=5) == (0, 6, 25, 56, 100)  # 100 * (0, 1/4, 1/2, 3/4, 1)^2


def test_default_eval_steps_of_a_short_run_have_no_repeats() -> None:
    assert default_eval_steps(3) == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [((3, 7), (0, 3, 7, 10)), ((), (0, 10)), ((10, 0, 5), (0, 5, 10)), (None, default_eval_steps(10))],
)
def test_steps_to_evaluate_hold_first_and_last(chosen: object, expected: tuple[int, ...]) -> None:
    assert parse(eval_steps=chosen).steps_to_evaluate() == expected


def test_round_trip_through_a_file(tmp_path: Path) -> None:
    spec = parse(
        model={"config": {"model_type": "llama", "rope_scaling": None}},
        eval_steps=[5],
        keep_steps=[5, 10],
        parent="base-run",
        parent_step=100,
    )
    write_run_spec(tmp_path / "spec.json", spec)
    again = read_run_spec(tmp_path / "spec.json")
    assert again == spec
    assert again.hash == spec.hash


def test_table_schedule_is_read_from_beside_the_spec(tmp_path: Path) -> None:
    np.save(tmp_path / "lr.npy", np.linspace(1e-3, 0, 10))
    write_json(tmp_path / "spec.json", {**SPEC, "schedule": {"kind": "table", "file": "lr.npy"}})
    spec = read_run_spec(tmp_path / "spec.json")
    assert spec.total_steps == 10
    np.testing.assert_array_equal(spec.lr(), np.linspace(1e-3, 0, 10))


def test_table_schedule_that_is_missing_names_both_files(tmp_path: Path) -> None:
    write_json(tmp_path / "spec.json", {**SPEC, "schedule": {"kind": "table", "file": "no.npy"}})
    with pytest.raises(ScheduleError, match=r"got no .*no\.npy, named in schedule of .*spec\.json"):
        read_run_spec(tmp_path / "spec.json")


@pytest.mark.parametrize("content", [[], 3, None])
def test_spec_that_is_no_object(tmp_path: Path, content: object) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"content must be an object of keys and values; got .* in .*spec\.json"):
        read_run_spec(tmp_path / "spec.json")


def test_pretraining_has_no_domain() -> None:
    spec = parse(phase="pretrain", sources=[GENERAL], mixture={"kind": "constant", "replay_ratio": 1.0})
    assert spec.replay_ratios().tolist() == [1.0] * 10


def test_hash_follows_the_content() -> None:
    assert parse().hash == parse(seed=0).hash
    assert parse().hash != parse(seed=1).hash


@pytest.mark.parametrize(
    ("changes", "kind", "expected"),
    [
        ({"modle": 1}, ConfigError, "keys must be known; got modle in spec.json. hint: did you mean 'model'?"),
        (
            {"schedule": {"kind": "cosine", "peak_lr": 1e-3, "total_steps": 10, "warmup": 1}},
            ConfigError,
            "keys must be known; got schedule.warmup in spec.json. hint: did you mean 'warmup_steps'?",
        ),
        (
            {"schedule": {"kind": "cosine", "peak_lr": 1e-3, "total_steps": 10, "warmup_steps": 11}},
            ScheduleError,
            "total_steps must be at least warmup_steps; got total_steps 10 and warmup_steps 11 in spec.json.",
        ),
        (
            {"mixture": {"kind": "constant", "replay_ratio": 1.2}},
            MixtureError,
            "replay_ratio must be in [0, 1]; got 1.2 in spec.json.",
        ),
        (
            {"batch_tokens": 65},
            ConfigError,
            "batch_tokens must be a multiple of seq_len; got 65 and 16 in spec.json. hint: 64 is the nearest below",
        ),
        ({"batch_tokens": 8}, ConfigError, "got 8 and 16 in spec.json. hint: give at least 16"),
        (
            {"sources": [DOMAIN]},
            MixtureError,
            "replay_ratio must be 0 without a general source; got 0.2 in spec.json. hint: add a general source",
        ),
        (
            {"sources": [GENERAL]},
            MixtureError,
            "replay_ratio must be 1 without a domain source; got 0.2 in spec.json. hint: add a domain source",
        ),
        (
            {"sources": [GENERAL, DOMAIN, DOMAIN]},
            ConfigError,
            "sources must have different names; got general, law, law in spec.json.",
        ),
        (
            {"sources": [GENERAL, {**GENERAL, "name": "web"}, DOMAIN]},
            ConfigError,
            "sources must hold at most one of role general; got",
        ),
        (
            {"sources": [GENERAL, {**DOMAIN, "weight": 0}]},
            ConfigError,
            "weight must be above 0 for a domain source; got 0 for all in spec.json.",
        ),
        ({"sources": [GENERAL, {**DOMAIN, "weight": -1}]}, ConfigError, "sources.1.weight must be at least 0; got -1"),
        ({"sources": []}, ConfigError, "sources must have 1 or more entries; got [] in spec.json."),
        ({"validation": []}, ConfigError, "validation must have 1 or more entries; got [] in spec.json."),
        ({"eval_steps": [11]}, ConfigError, "tasks.steps must lie within the run; got 11 of 10"),
        ({"keep_steps": [12]}, ConfigError, "tasks.steps must lie within the run; got 12 of 10"),
        ({"model": {}}, ConfigError, "model must have either path or config; got neither"),
        ({"model": {"path": "a", "config": {}}}, ConfigError, "model must have either path or config; got both"),
        ({"name": "../up"}, ConfigError, "name must match ^[A-Za-z0-9][A-Za-z0-9_.-]*$; got '../up' in spec.json."),
        ({"optimizer": {"beta2": 1.0}}, ConfigError, "optimizer.beta2 must be less than 1; got 1.0 in spec.json."),
        ({"precision": "fp16"}, ConfigError, "precision must be 'fp32' or 'bf16'; got 'fp16' in spec.json."),
        ({"schema_version": 2}, ConfigError, "schema_version must be 1; got 2 in spec.json."),
        ({"seed": -1}, ConfigError, "seed must be at least 0; got -1 in spec.json."),
    ],
)
def test_spec_that_cannot_be_run(changes: dict[str, Any], kind: type[ConfigError], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(**changes)
    assert type(caught.value) is kind
    assert expected in str(caught.value)
    assert caught.value.hint
