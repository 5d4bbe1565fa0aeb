"""The test that may be asked after every point: its rate of false alarms, what it finds, and what it blames."""

from __future__ import annotations

import numpy as np
import pytest
from watch_examples import END, STABLE, STEPS, evaluated, history, models, points, record

from cptplan.watch.alarm import FALSE_ALARMS, OTHER_REPLAY, _leaving, judge_run, rivals_of
from cptplan.watch.model import Points

PLANNED = history(record())
RIVALS = rivals_of(PLANNED, {"stable": history(record(parent_step=STABLE))})
NONE = Points(steps=np.zeros(0, dtype=np.int64), loss=np.zeros(0))
AT = evaluated()


def judge(seen):
    return judge_run(models(), PLANNED, seen, RIVALS)


def test_false_alarms_are_as_rare_as_stated():
    drawn = {
        name: model.sample(PLANNED, NONE, PLANNED, AT, seed=number + 10, measured=True)
        for number, (name, model) in enumerate(models().items())
    }
    rng, few = np.random.default_rng(0), rivals_of(PLANNED, {})[::6]
    number = 60
    order = {name: rng.permutation(len(draws))[:number] for name, draws in drawn.items()}
    alarms = 0
    for place in range(number):
        seen = {name: Points(steps=AT, loss=draws[order[name][place]]) for name, draws in drawn.items()}
        alarms += judge_run(models(), PLANNED, seen, few).alarm_step is not None
    # at most 5 % of 60 is 3; 8 or more would come once in 300 times
    assert alarms < 8


def test_innovations_that_are_normal_give_no_evidence():
    """Whole paths: their evidence reaches 20 in at most 5 % of 2,000, which is Ville's bound (here about 2 %)."""
    rng = np.random.default_rng(1)
    highest = [_leaving(rng.standard_normal(40)).max() for _ in range(2000)]
    assert np.mean(np.array(highest) >= -np.log(FALSE_ALARMS)) < 0.05 + 0.01


@pytest.mark.parametrize(
    ("made", "kind", "words", "within"),
    [
        (record(lr_factor=2.0), "lr", "2 times", 0.3),
        (record(lr_factor=0.5), "lr", "0.5 times", 0.5),
        (record(replay=0.6), "replay", "60%", 0.9),
        (record(replay=0.0), "replay", "0%", 0.3),
        (record(parent_step=STABLE), "start", "stable", 0.2),
    ],
    ids=["twice the rate", "half the rate", "more replay", "no replay", "wrong start"],
)
def test_fault_is_found_early_and_blamed_on_its_cause(made, kind, words, within):
    found = judge(points(made))
    assert found.alarm_step is not None
    assert found.alarm_step <= within * STEPS
    assert found.causes[0].kind == kind
    assert words in found.causes[0].text
    assert sum(cause.share for cause in found.causes) == pytest.approx(1.0)


def test_a_domain_that_is_learnt_less_is_blamed_on_its_data():
    seen = points(record())
    first = seen["domain"].loss[0]
    seen["domain"] = Points(steps=AT, loss=first + 0.7 * (seen["domain"].loss - first))
    found = judge(seen)
    assert found.alarm_step is not None
    assert found.causes[0].kind == "data of domain"
    assert "30% less" in found.causes[0].text


def test_a_run_as_planned_raises_nothing():
    found = judge(points(record()))
    assert found.alarm_step is None
    assert set(found.innovations) == {"general", "domain"}


@pytest.mark.parametrize("name", ["general", "domain"])
def test_one_set_that_jumps_is_told_from_both(name):
    seen = points(record())
    late = seen[name].steps > STEPS // 2
    seen[name] = Points(steps=seen[name].steps, loss=seen[name].loss + 0.1 * late)
    found = judge(seen)
    assert STEPS // 2 < (found.alarm_step or 0) <= 0.7 * STEPS
    assert found.causes[0].kind == f"{name} alone"


def test_both_sets_that_jump_are_explained_by_nothing():
    seen = {
        name: Points(steps=one.steps, loss=one.loss + 0.2 * (one.steps > STEPS // 2))
        for name, one in points(record()).items()
    }
    found = judge(seen)
    assert STEPS // 2 < (found.alarm_step or 0) <= 0.7 * STEPS
    assert found.causes[0].kind == "unknown"


def test_an_alarm_stays_where_it_was_when_the_run_goes_on():
    whole = points(record(lr_factor=2.0))
    first = judge(whole).alarm_step
    assert judge({name: one.until(first) for name, one in whole.items()}).alarm_step == first
    assert judge({name: one.until(first - 1) for name, one in whole.items()}).alarm_step is None


def test_sets_evaluated_at_different_steps_count_from_their_own():
    seen = points(record(lr_factor=2.0))
    rare = Points(steps=seen["general"].steps[::4], loss=seen["general"].loss[::4])
    found = judge({"general": rare, "domain": seen["domain"]})
    assert len(found.steps) == len(np.union1d(rare.steps, seen["domain"].steps))
    assert found.alarm_step is not None


def test_nothing_measured_is_no_evidence():
    found = judge({"general": NONE})
    assert found.alarm_step is None
    assert found.causes == ()


def test_rivals_are_other_runs():
    assert {rival.kind for rival in RIVALS} == {"lr", "replay", "start", "data of general", "data of domain"}
    replays = [rival.value for rival in RIVALS if rival.kind == "replay"]
    assert all(abs(value - 0.2) >= OTHER_REPLAY for value in replays)
    assert all(not np.array_equal(r.history.lr, PLANNED.lr) for r in RIVALS if r.kind == "lr")
    assert [len(r.history.pretrain_lr) for r in RIVALS if r.kind == "start"] == [STABLE]
    assert len(PLANNED.pretrain_lr) == END
