"""The monitor: when each rule speaks, how often, and what follows for rates, replay and ewc."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from cptplan.errors import ConfigError
from cptplan.mixture import ConstantMixture, Mixture, TableMixture, source_of_sequences
from cptplan.run_options import Monitor, Rule, Tasks
from cptplan.run_spec import ModelSource, RunSpec, Source, ValidationSet
from cptplan.schedule import ConstantSchedule
from executor.monitor import Intervention, Watch, describe, ewc_strength, lr_factors, replay_ratios

SEQ_LEN = 16
TOTAL_STEPS = 100


def make_spec(*rules: Rule, mixture: Mixture | None = None, sets: tuple[str, ...] = ("general", "code")) -> RunSpec:
    return RunSpec(
        name="run",
        phase="cpt",
        model=ModelSource(config={"model_type": "llama"}),
        sources=(
            Source(name="code", role="domain", path="code", weight=3.0),
            Source(name="web", role="general", path="web"),
            Source(name="maths", role="domain", path="maths", weight=1.0),
        ),
        validation=tuple(ValidationSet(name=name, path=name, num_tokens=64) for name in sets),
        schedule=ConstantSchedule(kind="constant", peak_lr=1e-3, total_steps=TOTAL_STEPS),
        mixture=mixture or ConstantMixture(replay_ratio=0.2),
        seq_len=SEQ_LEN,
        batch_tokens=10 * SEQ_LEN,
        monitor=Monitor(rules=rules) if rules else None,
        tasks=Tasks(names=("arc",)),
    )


def watch_losses(spec: RunSpec, of: str, losses: list[float | None]) -> list[list[Intervention]]:
    """Evaluations every 10 steps from 0; None: the set was not measured then."""
    watch = Watch(spec)
    return [watch.evaluated(10 * number, {} if loss is None else {of: loss}, {}) for number, loss in enumerate(losses)]


def spoken(found: list[list[Intervention]]) -> list[int]:
    """Numbers of the evaluations after which something was done."""
    return [number for number, interventions in enumerate(found) if interventions]


def intervention(action: str, step: int, amount: float | None = None, **changes: Any) -> Intervention:
    values = {"rule": "general_increase of general", "measured": 0.2, "threshold": 0.1, "patience": 1}
    return Intervention(**{**values, "step": step, "action": action, "amount": amount, **changes})


@pytest.mark.parametrize(
    ("when", "threshold", "loss", "measured"),
    [
        ("general_increase", 0.25, 3.5, 0.5),
        ("general_increase_relative", 0.15, 3.5, 0.5 / 3.0),
        ("forgetting_ratio", 1.6, 3.5, math.exp(0.5)),
    ],
)
def test_rise_of_general_speaks_beyond_the_threshold(when, threshold, loss, measured):
    spec = make_spec(Rule(when=when, threshold=threshold))
    found = watch_losses(spec, "general", [3.0, 3.0, loss])
    assert spoken(found) == [2]
    (only,) = found[2]
    assert (only.step, only.rule, only.action, only.amount) == (20, f"{when} of general", "warn", None)
    assert only.measured == pytest.approx(measured, rel=1e-12)
    quiet = make_spec(Rule(when=when, threshold=measured * 1.001))
    assert spoken(watch_losses(quiet, "general", [3.0, 3.0, loss])) == []


def test_rule_with_a_set_of_its_own_looks_at_that_set():
    watch = Watch(make_spec(Rule(when="general_increase", threshold=0.1, of="code")))
    watch.evaluated(0, {"general": 3.0, "code": 2.0}, {})
    assert watch.evaluated(10, {"general": 9.0, "code": 2.0}, {}) == []
    (only,) = watch.evaluated(20, {"general": 3.0, "code": 2.2}, {})
    assert only.rule == "general_increase of code"


def test_losses_beyond_every_perplexity_are_finite():
    spec = make_spec(
        Rule(when="forgetting_ratio", threshold=1.1), Rule(when="general_increase_relative", threshold=0.1)
    )
    ratio, relative = watch_losses(spec, "general", [0.0, 1e4])[1]
    assert math.isfinite(ratio.measured)
    assert math.isfinite(relative.measured)


def test_patience_counts_evaluations_in_a_row():
    rule = Rule(when="general_increase", threshold=0.1, patience=3)
    losses = [3.0, 3.2, 3.2, 3.0, 3.2, 3.2, 3.2, 3.0]
    assert spoken(watch_losses(make_spec(rule), "general", losses)) == [6]


def test_set_that_was_not_measured_leaves_the_patience_as_it_is():
    rule = Rule(when="general_increase", threshold=0.1, patience=2)
    assert spoken(watch_losses(make_spec(rule), "general", [3.0, 3.2, None, 3.2])) == [3]


def test_patience_starts_again_after_an_action():
    rule = Rule(when="general_increase", threshold=0.1, patience=2, action="lower_lr", times=2)
    assert spoken(watch_losses(make_spec(rule), "general", [3.0] + [4.0] * 9)) == [2, 4]


def test_warnings_are_always_said():
    rule = Rule(when="general_increase", threshold=0.1, times=1)
    assert spoken(watch_losses(make_spec(rule), "general", [3.0] + [4.0] * 4)) == [1, 2, 3, 4]


@pytest.mark.parametrize(("patience", "heard"), [(1, [3]), (2, [4]), (3, [5])])
def test_plateau_is_the_fall_over_the_last_evaluations(patience, heard):
    # 0.1 less each time until the third, then level: over `patience` evaluations the fall is below 0.05 only once all
    # of them are on the level; other sets than the first domain do not count
    rule = Rule(when="domain_plateau", threshold=0.05, patience=patience, action="stop")
    found = watch_losses(make_spec(rule), "code", [2.2, 2.1, 2.0, 2.0, 2.0, 2.0, 2.0])
    assert spoken(found) == heard
    (only,) = found[heard[0]]
    assert (only.rule, only.action) == ("domain_plateau of code", "stop")
    assert only.measured == pytest.approx(0.0, abs=1e-12)


def test_plateau_after_an_action_is_counted_from_there():
    rule = Rule(when="domain_plateau", threshold=0.05, patience=2, action="lower_lr", times=5)
    assert spoken(watch_losses(make_spec(rule), "code", [2.0] * 8)) == [2, 4, 6]


@pytest.mark.parametrize(("when", "of"), [("general_increase", "general"), ("domain_plateau", "code")])
def test_threshold_itself_is_allowed(when, of):
    assert spoken(watch_losses(make_spec(Rule(when=when, threshold=0.0)), of, [2.0, 2.0, 2.0])) == []


def test_plateau_without_a_set_besides_general_is_refused():
    with pytest.raises(ConfigError, match="set besides general"):
        Watch(make_spec(Rule(when="domain_plateau", threshold=0.1), sets=("general",)))


def test_task_drop_looks_at_scores_where_they_were_run():
    watch = Watch(make_spec(Rule(when="task_drop", of="arc", threshold=0.02, patience=2, action="stop")))
    scores = [0.5, None, 0.47, None, 0.46]
    found = [watch.evaluated(10 * n, {}, {}, None if s is None else {"arc": s}) for n, s in enumerate(scores)]
    assert spoken(found) == [4]
    assert found[4][0].rule == "task_drop of arc"
    assert found[4][0].measured == pytest.approx(0.04)
    assert watch.stopped


def tokens_of(spec: RunSpec, step: int, ratios: np.ndarray | None = None) -> dict[str, int]:
    """What the data order of the executor feeds in the first steps."""
    source, _ = source_of_sequences(
        spec.replay_ratios() if ratios is None else ratios, np.array([3.0, 1.0]), spec.sequences_per_step
    )
    counts = np.bincount(source[: step * spec.sequences_per_step], minlength=3) * SEQ_LEN
    return dict(zip(["web", "code", "maths"], counts.tolist(), strict=True))


def test_mixing_error_says_the_worst_source():
    watch = Watch(make_spec(Rule(when="mixing_error", threshold=0.05)))
    # planned 0.2, 0.6, 0.2 of 100 sequences
    assert watch.evaluated(10, {}, {"web": 22 * SEQ_LEN, "code": 58 * SEQ_LEN, "maths": 20 * SEQ_LEN}) == []
    (only,) = watch.evaluated(10, {}, {"web": 25 * SEQ_LEN, "code": 40 * SEQ_LEN, "maths": 35 * SEQ_LEN})
    assert only.rule == "mixing_error of code"
    assert only.measured == pytest.approx(0.2 - 0.01)  # one sequence of 100 is rounding for the first domain


def test_mixing_error_of_one_source_looks_at_no_other():
    watch = Watch(make_spec(Rule(when="mixing_error", threshold=0.05, of="web")))
    assert watch.evaluated(10, {}, {"web": 20 * SEQ_LEN, "code": 40 * SEQ_LEN, "maths": 40 * SEQ_LEN}) == []
    (only,) = watch.evaluated(10, {}, {"code": 50 * SEQ_LEN, "maths": 50 * SEQ_LEN})
    assert only.rule == "mixing_error of web"


def test_mixing_error_before_the_first_step_says_nothing():
    watch = Watch(make_spec(Rule(when="mixing_error", threshold=0.0)))
    assert watch.evaluated(0, {}, {"web": 0, "code": 0, "maths": 0}) == []


def test_mixing_error_plans_with_a_raised_replay():
    raised = Rule(when="general_increase", threshold=0.1, action="raise_replay", amount=0.4)
    spec = make_spec(raised, Rule(when="mixing_error", threshold=0.02))
    watch = Watch(spec)
    watch.evaluated(0, {"general": 3.0}, {})
    (done,) = watch.evaluated(20, {"general": 3.5}, tokens_of(spec, 20))
    assert done.action == "raise_replay"
    ratios = replay_ratios(spec.replay_ratios(), watch.interventions)
    assert watch.evaluated(60, {}, tokens_of(spec, 60, ratios)) == []
    assert watch.evaluated(60, {}, tokens_of(spec, 60)) != []


def test_rules_are_applied_in_order():
    rules = (
        Rule(when="forgetting_ratio", threshold=1.2, action="ewc", amount=5.0),
        Rule(when="general_increase", threshold=0.1, action="lower_lr"),
        Rule(when="general_increase", threshold=0.1, action="raise_replay"),
    )
    watch = Watch(make_spec(*rules))
    watch.evaluated(0, {"general": 3.0, "code": 2.0}, {})
    found = watch.evaluated(10, {"general": 3.5, "code": 2.0}, {})
    assert [(done.action, done.amount) for done in found] == [("ewc", 5.0), ("lower_lr", 0.5), ("raise_replay", 0.1)]
    assert watch.interventions == found
    assert not watch.stopped


def test_run_without_a_monitor_is_left_alone():
    watch = Watch(make_spec())
    assert watch.evaluated(0, {"general": 3.0}, {}) == []
    assert watch.evaluated(10, {"general": 99.0}, {}) == []
    assert not watch.stopped


def test_restored_watch_remembers_base_patience_and_times():
    rule = Rule(when="general_increase", threshold=0.1, patience=2, action="lower_lr", times=1)
    spec = make_spec(rule)
    watch = Watch(spec)
    heard = []
    for number, loss in enumerate([3.0, 3.2, 3.2, 3.2, 3.2]):
        heard.append(bool(watch.evaluated(number, {"general": loss}, {})))
        watch = Watch(spec, json.loads(json.dumps(watch.state())))
    assert heard == [False, False, True, False, False]


def test_lr_factors_multiply_from_the_step_on():
    done = [intervention("lower_lr", 3, 0.5), intervention("stop", 4), intervention("lower_lr", 5, 0.1)]
    np.testing.assert_allclose(lr_factors(done, 7), [1, 1, 1, 0.5, 0.5, 0.05, 0.05], rtol=1e-15)
    np.testing.assert_array_equal(lr_factors([intervention("lower_lr", 7, 0.5)], 7), np.ones(7))


def test_replay_is_raised_from_the_step_on_and_never_above_one():
    planned = TableMixture(kind="table", steps=(0, 4), ratios=(0.2, 0.8)).replay_ratios(6)
    done = [intervention("raise_replay", 2, 0.1), intervention("raise_replay", 3, 0.3)]
    np.testing.assert_allclose(replay_ratios(planned, done), [0.2, 0.2, 0.3, 0.6, 1.0, 1.0], rtol=1e-15)
    np.testing.assert_array_equal(planned, [0.2, 0.2, 0.2, 0.2, 0.8, 0.8])


def test_ewc_has_the_last_strength():
    done = [intervention("ewc", 3, 2.0), intervention("lower_lr", 4, 0.5), intervention("ewc", 5, 7.0)]
    assert [ewc_strength(done, step) for step in (0, 2, 3, 4, 5, 9)] == [0.0, 0.0, 2.0, 2.0, 7.0, 7.0]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"rule": "forgetting_ratio of general", "measured": 1.0612, "threshold": 1.05, "patience": 2},
            "step 400: forgetting_ratio of general is 1.061 (> 1.05, 2 evaluations): lr x 0.5 from here on",
        ),
        (
            {"rule": "domain_plateau of code", "measured": 0.001, "threshold": 0.01, "action": "stop", "amount": None},
            "step 400: domain_plateau of code is 0.001 (< 0.01, 1 evaluation): the run stops",
        ),
        (
            {"action": "warn", "amount": None},
            "step 400: general_increase of general is 0.2 (> 0.1, 1 evaluation): warning only",
        ),
        (
            {"action": "raise_replay", "amount": 0.1},
            "step 400: general_increase of general is 0.2 (> 0.1, 1 evaluation): replay_ratio + 0.1 from here on",
        ),
        (
            {"action": "ewc", "amount": 50.0},
            "step 400: general_increase of general is 0.2 (> 0.1, 1 evaluation): ewc of strength 50 from here on",
        ),
    ],
)
def test_description_is_one_readable_line(changes, line):
    assert describe(intervention(**{"action": "lower_lr", "step": 400, "amount": 0.5, **changes})) == line
