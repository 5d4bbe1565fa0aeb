"""Spikes: what is found, what is not, and that a run which skips or rolls back comes to an end."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from cptplan.run_options import Spikes
from executor.spikes import LEAST_NOISE, SpikeDetector, robust_z

NOISE_LEVELS = [0.002, 0.02, 0.1]


def settings(policy: str = "skip", **changes) -> Spikes:
    return Spikes(policy=policy, **changes)


def level(steps: np.ndarray) -> np.ndarray:
    """A training loss as it falls from scratch, nats."""
    return 2.0 + 8.0 * (steps + 1.0) ** -0.3


def noisy_curve(num_steps: int, noise: float, seed: int = 0) -> np.ndarray:
    return level(np.arange(num_steps)) + noise * np.random.default_rng(seed).normal(size=num_steps)


def flagged(losses: np.ndarray, detector: SpikeDetector | None = None) -> list[int]:
    detector = detector or SpikeDetector(settings(most=10**9))
    return [step for step, loss in enumerate(losses.tolist()) if detector.judge(step, loss, 1.0) is not None]


@pytest.mark.parametrize("step", [64, 100, 300, 3000])
@pytest.mark.parametrize("noise", NOISE_LEVELS)
def test_spike_in_a_falling_curve_is_found(noise, step):
    losses = noisy_curve(step + 20, noise)
    # 12 noises: 8 for the threshold, the rest for the scatter of the spike itself and of the noise estimated from 64
    # steps; 6 % of the level because 4 % is the least; 0.25: the fall itself at 64
    size = 12 * noise + 0.06 * losses[step] + 0.25 * (step == 64)
    losses[step] += size
    assert flagged(losses) == [step]


@pytest.mark.parametrize("noise", NOISE_LEVELS)
def test_clean_noisy_curve_gives_no_false_alarm(noise):
    assert flagged(noisy_curve(10_000, noise)) == []


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fall", [0.0, 0.003])
def test_rewarmed_rate_is_no_spike(fall, seed):
    # the loss rises by 0.3 nats over 100 steps after it was level, or fell to the end of a decay
    steps = np.arange(1000)
    trend = 4.0 - fall * np.minimum(steps, 500) + 0.3 * np.clip((steps - 500) / 100, 0, 1)
    assert flagged(trend + 0.005 * np.random.default_rng(seed).normal(size=1000)) == []


def test_drop_is_no_spike():
    losses = noisy_curve(400, 0.01)
    losses[200] -= 1.5
    assert flagged(losses) == []


def test_only_the_window_is_remembered():
    detector = SpikeDetector(settings(window=8))
    flagged(np.arange(100.0, 50.0, -1.0), detector)
    assert detector.state()["losses"] == list(np.arange(58.0, 50.0, -1.0))


def test_spike_is_not_remembered():
    # three in a row stand out each: the first does not hide the next
    losses = noisy_curve(400, 0.01)
    losses[200:203] += 1.0
    assert flagged(losses) == [200, 201, 202]


def test_constant_losses_need_a_rise_of_the_least_noise():
    detector = SpikeDetector(settings(window=8, z=8.0))
    assert flagged(np.full(100, 3.0), detector) == []
    assert detector.judge(100, 3.0 * (1 + 7.9 * LEAST_NOISE), 1.0) is None
    spike = detector.judge(101, 3.0 * (1 + 8.1 * LEAST_NOISE), 1.0)
    assert spike is not None
    assert spike.z == pytest.approx(8.1, rel=1e-9)


def test_losses_of_zero_are_judged_without_dividing_by_zero():
    detector = SpikeDetector(settings(window=8))
    assert flagged(np.zeros(20), detector) == []
    spike = detector.judge(20, 1.0, 1.0)
    assert spike is not None
    assert math.isfinite(spike.z)


def test_robust_z_of_known_noise():
    # all changes 1, so noise 1.4826 / sqrt(2); level of the last eight: 9.5
    assert robust_z(12.0, [20.0, 19.0, *[9.0, 10.0] * 4]) == pytest.approx(2.5 * math.sqrt(2) / 1.4826)


def test_losses_that_alternate_are_no_spikes():
    # whole sequences of two sources take turns: 3 and 4 of 8 are general
    losses = np.tile([2.4, 2.6], 200) + 0.01 * np.random.default_rng(0).normal(size=400)
    assert flagged(losses) == []


def test_nothing_is_judged_before_the_window_is_full():
    detector = SpikeDetector(settings(window=16))
    assert flagged(np.array([1.0] * 15 + [100.0]), detector) == []
    full = SpikeDetector(settings(window=16))
    assert flagged(np.array([1.0] * 16 + [100.0]), full) == [16]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("policy", ["skip", "rollback", "stop"])
def test_not_finite_follows_the_policy_from_the_first_step(policy, value):
    spike = SpikeDetector(settings(policy)).judge(0, value, 1.0)
    assert (spike.reason, spike.action, spike.z) == ("loss not finite", policy, None)
    spike = SpikeDetector(settings(policy)).judge(0, 1.0, abs(value))
    assert (spike.reason, spike.action, spike.z) == ("gradient not finite", policy, None)


def test_without_settings_only_what_is_not_finite_stops():
    detector = SpikeDetector(None)
    assert flagged(np.array([1.0] * 200 + [1e6]), detector) == []
    assert detector.state()["losses"] == []
    assert detector.judge(201, math.nan, 1.0).action == "stop"


def test_most_spikes_stop_the_run_whatever_the_policy():
    detector = SpikeDetector(settings(most=3))
    assert [detector.judge(step, math.nan, 1.0).action for step in range(3)] == ["skip", "skip", "stop"]


def test_left_out_step_is_not_judged():
    detector = SpikeDetector(settings())
    detector.leave_out(5)
    assert detector.is_left_out(5)
    assert not detector.is_left_out(6)
    assert detector.judge(5, math.nan, 1.0) is None
    assert detector.state() == {"losses": [], "num_spikes": 0, "left_out": [5]}


def test_forgotten_losses_are_no_measure():
    # a mixture that jumps lifts every later loss; without forgetting each of them would stand out
    losses = np.concatenate([np.full(100, 2.0), np.full(100, 2.6)])
    assert len(flagged(losses)) == 100
    detector = SpikeDetector(settings())
    assert flagged(losses[:100], detector) == []
    detector.forget_losses()
    assert flagged(losses[100:], detector) == []


def run_with_rollbacks(bad: set[int], *, every: int, most: int, num_steps: int = 120) -> tuple[set[int], str, int]:
    """A run whose bad steps are bad whenever they are run: left-out steps, how it ended, and steps judged."""
    detector = SpikeDetector(settings("rollback", window=8, most=most))
    saved: tuple[int, str | None] = (0, None)
    step = judged = 0
    while step < num_steps:
        if not detector.is_left_out(step):
            judged += 1
            spike = detector.judge(step, 5.0 if step in bad else 2.0, 1.0)
            if spike is not None and spike.action == "stop":
                return detector.left_out, "stopped", judged
            if spike is not None:
                detector.after_rollback(spike, json.loads(saved[1]) if saved[1] else None)
                step = saved[0]
                continue
        step += 1
        if step % every == 0:
            saved = step, json.dumps(detector.state())
    return detector.left_out, "done", judged


@pytest.mark.parametrize("every", [7, 50, 1000])
def test_rollbacks_end_although_the_checkpoint_is_older_than_its_spikes(every):
    bad = {20, 21, 47, 48, 90, 119}
    assert run_with_rollbacks(bad, every=every, most=10)[:2] == (bad, "done")


@pytest.mark.parametrize("every", [7, 50, 1000])
def test_rollbacks_stop_at_the_most(every):
    left_out, ending, judged = run_with_rollbacks(set(range(20, 120)), every=every, most=10)
    assert (left_out, ending) == (set(range(20, 29)), "stopped")
    assert judged <= 10 * 30


def test_after_rollback_the_losses_are_those_of_the_checkpoint():
    detector = SpikeDetector(settings("rollback", window=8))
    flagged(np.arange(10.0, 0.0, -1.0), detector)
    state = json.loads(json.dumps(detector.state()))
    for step in range(10, 15):
        detector.judge(step, 0.5, 1.0)
    spike = detector.judge(15, 99.0, 1.0)
    assert spike.action == "rollback"
    detector.after_rollback(spike, state)
    assert detector.state() == {"losses": state["losses"], "num_spikes": 1, "left_out": [15]}
