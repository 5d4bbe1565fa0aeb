"""The plan's file: what is written is read back, and what is broken or old is refused in one line."""

from __future__ import annotations

import numpy as np
import pytest
from simple_laws import make_forecaster

from cptplan.errors import ConfigError
from cptplan.files import read_json, write_json
from cptplan.planning.knobs import Knobs
from cptplan.planning.plan import planned_run, read_plan, write_plan


def test_old_plan_says_what_to_do(tmp_path, example_plan):
    write_json(tmp_path / "plan.json", {**example_plan.to_json(), "schema_version": 1})
    with pytest.raises(ConfigError) as caught:
        read_plan(tmp_path / "plan.json")
    assert caught.value.hint == "run cptplan optimize again"


@pytest.mark.parametrize(
    "knobs",
    [
        Knobs(peak_lr=1e-3, replay_ratio=0.2, total_steps=20, decay_share=0.5, start="stable"),
        Knobs(peak_lr=1e-3, replay_ratio=0.2, total_steps=20, decay_share=0.0, start="stable", kind="cosine"),
        Knobs(peak_lr=1e-3, replay_ratio=0.2, total_steps=20, decay_share=0.0, start="annealed", kind="linear"),
        Knobs(peak_lr=1e-3, replay_ratio=0.5, end_replay=0.1, total_steps=20, decay_share=0.2, start="stable"),
    ],
    ids=["wsd", "cosine", "linear", "ramp"],
)
def test_planned_run_gives_its_knobs_back(knobs):
    """With the pilots' warm-up where the knobs name none."""
    forecaster = make_forecaster()
    run = planned_run(knobs, forecaster)
    again = run.knobs()
    assert again.warmup_steps == forecaster.warmup_steps
    assert run.schedule == forecaster.schedule(knobs) == forecaster.schedule(again)
    assert run.mixture == again.mixture()
    assert np.mean(run.mixture.replay_ratios(20)) == pytest.approx(knobs.mean_replay)
    assert type(run).parse(run.to_json(), "here") == run


def test_plan_reads_back_as_it_was_written(tmp_path, example_plan):
    write_plan(tmp_path / "plan.json", example_plan)
    assert read_plan(tmp_path / "plan.json") == example_plan
    assert read_json(tmp_path / "plan.json")["schema_version"] == 2


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda plan: plan.pop("chosen"), "chosen must be given; it is missing in .*plan.json"),
        (lambda plan: plan.update(choice=1), "keys must be known; got choice in .*plan.json"),
        (lambda plan: plan["chosen"].update(peak_lr="x"), "chosen.peak_lr must be a number; got 'x' in .*plan.json"),
        (lambda plan: plan.update(schema_version=1), "schema_version must be 2; got 1 in .*plan.json"),
        (lambda plan: plan.update(schema_version=3), "schema_version must be 2; got 3 in .*plan.json"),
        (lambda plan: plan.pop("schema_version") and plan.update(choice=1), "keys must be known; got choice"),
    ],
)
def test_broken_plan(tmp_path, example_plan, break_it, message):
    plan = example_plan.to_json()
    break_it(plan)
    write_json(tmp_path / "plan.json", plan)
    with pytest.raises(ConfigError, match=message):
        read_plan(tmp_path / "plan.json")
