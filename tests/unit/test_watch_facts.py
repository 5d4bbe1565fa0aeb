"""What record and log tell against the plan, without statistics."""

from __future__ import annotations

import json

import numpy as np
import pytest
from watch_examples import END, STABLE, STEPS, history, losses, record, write_run

from cptplan.watch.facts import Planned, actual_rates, actual_replay, told_alarms
from cptplan.watch.run import find_run, read_watched

START = {name: float(loss[0]) for name, loss in losses(record(), np.array([0])).items()}
PLANNED = Planned(
    history=history(record()),
    start="annealed",
    start_losses=START,
    parent=("base", END),
    noise=dict.fromkeys(START, 0.006),
)


def run(tmp_path, told, real=None, **changes):
    return read_watched(find_run(str(write_run(tmp_path / "run", told, real, share=0.5, **changes)), tmp_path))


def test_a_run_as_planned_tells_nothing(tmp_path):
    assert told_alarms(run(tmp_path, record()), PLANNED) == ()


@pytest.mark.parametrize(
    ("told", "real", "kind", "words"),
    [
        (record(lr_factor=2.0), None, "lr", "2 times the planned one from the first step: peak 0.0002 in place of"),
        (record(), record(lr_factor=0.5), "lr", "0.5 times"),
        (record(replay=0.1), None, "replay", "10.0% in place of 20.0%"),
        (record(), record(replay=0.4), "replay", "40.0% in place of 20.0%"),
        (record(parent_step=STABLE), None, "start", f"from step {STABLE} of base, not from annealed"),
    ],
    ids=["its schedule", "its logged rates", "its mixture", "its counted tokens", "its parent"],
)
def test_record_and_log_tell_what_is_different(tmp_path, told, real, kind, words):
    found = {alarm.kind: alarm.text for alarm in told_alarms(run(tmp_path, told, real), PLANNED)}
    assert set(found) == {kind}
    assert words in found[kind]


def test_another_length_is_told(tmp_path):
    told = record()
    longer = told.lr.model_copy(update={"total_steps": 3000})
    found = told_alarms(run(tmp_path, told.model_copy(update={"lr": longer})), PLANNED)
    assert found[0].text == "the run's schedule has 3,000 steps, the plan's 2,000"


def test_a_start_with_other_losses_is_told(tmp_path):
    told = record().model_copy(update={"parent": None, "parent_step": None})
    found = told_alarms(run(tmp_path, told, record(), bump={"general": 0.2}), PLANNED)
    assert [alarm.kind for alarm in found] == ["start"]
    assert found[0].text.startswith("loss_general was ")


def test_events_are_told_once_for_each_kind(tmp_path):
    directory = write_run(tmp_path / "run", record(), share=0.5)
    events = [(100, "skip", "first"), (200, "skip", "second"), (300, "lower_lr", "half"), (400, "warn", "no matter")]
    with (directory / "metrics.jsonl").open("a") as file:
        for step, kind, text in events:
            file.write(json.dumps({"step": step, "event": kind, "text": text}) + "\n")
    found = told_alarms(read_watched(find_run(str(directory), tmp_path)), PLANNED)
    assert [(alarm.step, alarm.text) for alarm in found] == [
        (100, "2 times, the last: second"),
        (300, "the last: half"),
    ]


def test_loss_that_is_not_finite_is_told(tmp_path):
    directory = write_run(tmp_path / "run", record(), share=0.5)
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 992, "lr": 1e-4, "train_loss": null}\n')
    (found,) = told_alarms(read_watched(find_run(str(directory), tmp_path)), PLANNED)
    assert (found.kind, found.step) == ("not_finite", 992)


def test_rates_go_on_as_the_log_ends(tmp_path):
    found = actual_rates(run(tmp_path, record(), record(lr_factor=2.0)))
    planned = record().lr.lr()
    np.testing.assert_allclose(found, 2 * planned)  # though only every tenth step was logged
    assert len(found) == STEPS


def test_rounding_of_sequences_is_no_other_mixture(tmp_path):
    directory = write_run(tmp_path / "run", record(), share=0.5)
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    lines[-1]["tokens_by_source"]["general"] += 2 * 4096
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_watched(find_run(str(directory), tmp_path))
    np.testing.assert_array_equal(actual_replay(found), record().replay_ratio.replay_ratios(STEPS))
