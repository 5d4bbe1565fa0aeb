"""An interruption changes nothing that the monitor or the spike detector decides; what they do to the data is exact."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import numpy as np
from contract_strategies import mixtures
from hypothesis import given
from hypothesis import strategies as st

from cptplan.mixture import read_mixture, source_of_sequences
from cptplan.run_options import Monitor, Rule, Spikes, Tasks
from cptplan.run_spec import ModelSource, RunSpec, Source, ValidationSet
from cptplan.schedule import ConstantSchedule
from executor.monitor import Intervention, Watch, ewc_strength, lr_factors, replay_ratios
from executor.spikes import SpikeDetector

SEQ_LEN = 8
WEIGHTS = {"first": 3.0, "second": 1.0, "third": 0.5}
ACTIONS = ("warn", "stop", "raise_replay", "lower_lr", "ewc")
NAMES = {"mixing_error": [None, "general", "second"], "task_drop": ["arc"], "domain_plateau": [None, "general"]}


def make_spec(rules: list[Rule], mixture: Any = 0.25, total_steps: int = 60, sequences: int = 4) -> RunSpec:
    domains = [Source(name=name, role="domain", path=name, weight=weight) for name, weight in WEIGHTS.items()]
    return RunSpec(
        name="run",
        phase="cpt",
        model=ModelSource(config={"model_type": "llama"}),
        sources=(*domains, Source(name="general", role="general", path="general")),
        validation=tuple(ValidationSet(name=name, path=name, num_tokens=64) for name in ("general", "first")),
        schedule=ConstantSchedule(kind="constant", peak_lr=1e-3, total_steps=total_steps),
        mixture=read_mixture(mixture, "test"),
        seq_len=SEQ_LEN,
        batch_tokens=sequences * SEQ_LEN,
        monitor=Monitor(rules=tuple(rules)),
        tasks=Tasks(names=("arc",)),
    )


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    when = draw(
        st.sampled_from(["general_increase", "general_increase_relative", "forgetting_ratio", "domain_plateau"])
        | st.sampled_from(["mixing_error", "task_drop"])
    )
    action = draw(st.sampled_from(ACTIONS))
    return Rule(
        when=when,
        threshold=draw(st.floats(0.0, 0.3)) + (when == "forgetting_ratio"),
        of=draw(st.sampled_from(NAMES.get(when, [None, "first"]))),
        patience=draw(st.integers(1, 3)),
        action=action,
        amount=draw(st.floats(0.01, 0.9)) if action == "ewc" or draw(st.booleans()) else None,
        times=draw(st.integers(1, 3)),
    )


@st.composite
def evaluations(draw: st.DrawFn) -> dict[str, Any]:
    values = {name: draw(st.floats(2.0, 3.0)) for name in ("general", "first")}
    tokens = {name: SEQ_LEN * draw(st.integers(0, 50)) for name in ("general", *WEIGHTS)}
    scores = draw(st.none() | st.fixed_dictionaries({"arc": st.floats(0.2, 0.5)}))
    return {"losses": values, "tokens_by_source": tokens, "task_scores": scores}


@given(st.lists(rules(), min_size=1, max_size=4), st.lists(st.tuples(evaluations(), st.booleans()), max_size=12))
def test_interrupted_watch_decides_the_same(chosen, found):
    spec = make_spec(chosen)
    straight, resumed = Watch(spec), Watch(spec)
    for number, (values, interrupted) in enumerate(found):
        step = 5 * number
        assert resumed.evaluated(step, **values) == straight.evaluated(step, **values)
        if interrupted:
            resumed = Watch(spec, json.loads(json.dumps(resumed.state(), allow_nan=False)))
    assert resumed.interventions == straight.interventions
    assert resumed.stopped == straight.stopped
    assert resumed.state() == straight.state()


@given(st.lists(rules(), min_size=1, max_size=3), st.lists(evaluations(), max_size=12))
def test_no_action_is_taken_more_often_than_allowed(chosen, found):
    watch = Watch(make_spec(chosen))
    for number, values in enumerate(found):
        watch.evaluated(5 * number, **values)
    for action in ACTIONS[1:]:
        allowed = sum(rule.times for rule in chosen if rule.action == action)
        assert sum(done.action == action for done in watch.interventions) <= allowed
    for done in watch.interventions:
        assert (done.measured < done.threshold) == done.rule.startswith("domain_plateau")


@given(
    mixtures(), st.integers(1, 60), st.integers(1, 12), st.lists(st.tuples(st.integers(0, 60), st.floats(0.01, 0.9)))
)
def test_data_as_planned_have_no_mixing_error(mixture, total_steps, sequences, raised):
    spec = make_spec([Rule(when="mixing_error", threshold=1e-9)], mixture, total_steps, sequences)
    done = [
        Intervention(step=step, rule="", action="raise_replay", amount=amount, measured=1.0, threshold=0.0, patience=1)
        for step, amount in sorted(raised)
    ]
    ratios = replay_ratios(spec.replay_ratios(), done)
    source, _ = source_of_sequences(ratios, np.array(list(WEIGHTS.values())), sequences)
    state = Watch(spec).state() | {"interventions": [asdict(one) for one in done]}
    for step in range(total_steps + 1):
        counts = np.bincount(source[: step * sequences], minlength=4) * SEQ_LEN
        tokens = dict(zip(("general", *WEIGHTS), counts.tolist(), strict=True))
        assert Watch(spec, state).evaluated(step, {}, tokens) == []


amounts = st.lists(st.tuples(st.integers(0, 40), st.sampled_from(ACTIONS[2:]), st.floats(0.01, 0.9)), max_size=6)


@given(amounts, st.floats(0.0, 1.0), st.integers(1, 40))
def test_interventions_leave_the_past_alone(done, ratio, total_steps):
    interventions = [
        Intervention(step=step, rule="", action=action, amount=amount, measured=1.0, threshold=0.0, patience=1)
        for step, action, amount in sorted(done)
    ]
    planned = np.full(total_steps, ratio)
    for number, last in enumerate(interventions):
        before, after = interventions[:number], interventions[: number + 1]
        past = slice(0, last.step)
        np.testing.assert_array_equal(lr_factors(before, total_steps)[past], lr_factors(after, total_steps)[past])
        np.testing.assert_array_equal(replay_ratios(planned, before)[past], replay_ratios(planned, after)[past])
        assert [ewc_strength(before, s) for s in range(last.step)] == [ewc_strength(after, s) for s in range(last.step)]
    assert lr_factors(interventions, total_steps).min() > 0
    assert replay_ratios(planned, interventions).max() <= 1
    assert replay_ratios(planned, interventions).min() >= ratio


step_losses = st.floats(1.0, 1.1) | st.floats() | st.floats(2.0, 9.0)
measured_steps = st.lists(st.tuples(step_losses, st.just(1.0) | st.floats(), st.booleans()), max_size=60)
spike_settings = st.none() | st.builds(
    Spikes,
    policy=st.sampled_from(["skip", "rollback", "stop"]),
    z=st.floats(1.0, 10.0),
    window=st.integers(8, 16),
    most=st.integers(1, 20),
)


@given(spike_settings, measured_steps, st.sets(st.integers(0, 60), max_size=3))
def test_interrupted_detector_judges_the_same(settings, found, left_out):
    straight, resumed = SpikeDetector(settings), SpikeDetector(settings)
    for step in left_out:
        straight.leave_out(step)
        resumed.leave_out(step)
    for step, (loss, grad_norm, interrupted) in enumerate(found):
        # repr: not-a-number is not equal to itself
        assert repr(resumed.judge(step, loss, grad_norm)) == repr(straight.judge(step, loss, grad_norm))
        if interrupted:
            resumed = SpikeDetector(settings, json.loads(json.dumps(resumed.state(), allow_nan=False)))
    assert resumed.state() == straight.state()


@given(
    st.sets(st.integers(0, 79)),
    st.integers(1, 90),
    st.integers(1, 12),
    st.lists(st.integers(0, 200), max_size=5),
)
def test_run_with_rollbacks_ends_the_same_wherever_it_is_interrupted(bad, every, most, kills):
    straight = run_with_rollbacks(bad, every, most, [])
    assert run_with_rollbacks(bad, every, most, kills) == straight
    left_out, num_steps = straight
    assert left_out <= bad
    assert (num_steps == 80) == (len(bad) < most)


def run_with_rollbacks(bad: set[int], every: int, most: int, kills: list[int]) -> tuple[set[int], int]:
    """A run of 80 steps, killed at some moments and resumed from its last checkpoint: steps left out, and done."""
    settings = Spikes(policy="rollback", window=8, most=most)
    detector = SpikeDetector(settings)
    saved: tuple[int, str] = (0, json.dumps(detector.state()))
    step = 0
    for moment in range(10_000):
        if step == 80:
            return detector.left_out, step
        if moment in kills:
            step, detector = saved[0], SpikeDetector(settings, json.loads(saved[1]))
            continue
        spike = None if detector.is_left_out(step) else detector.judge(step, 1.0, math.inf if step in bad else 1.0)
        if spike is not None and spike.action == "stop":
            return detector.left_out, step
        if spike is not None:
            step = saved[0]
            detector.after_rollback(spike, json.loads(saved[1]))
            continue
        step += 1
        if step % every == 0:
            saved = (step, json.dumps(detector.state()))
    raise AssertionError("the run never ends")
