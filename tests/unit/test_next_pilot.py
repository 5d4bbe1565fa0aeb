"""The value of one more pilot: against the exact answer of a normal model, at its limits, and its order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm
from simple_laws import LAWS, BowlLaw, make_forecaster

from cptplan.pilots.next_pilot import (
    candidate_pilots,
    decision_draws,
    decision_regret,
    next_pilot,
    pilot_value,
    plan_pool,
)
from cptplan.planning.knobs import Knobs, Space
from cptplan.planning.search import Evaluated, Score, SearchResult

SPACE = Space(
    peak_lr=(1e-4, 3e-3),
    replay_ratio=(0.0, 0.6),
    total_steps=(8, 32),
    decay_share=(0.0, 0.8),
    starts=("stable", "annealed"),
)


def two_plans(seed=0, draws=40_000, sd=0.1, lead=0.02):
    """Plan 0 leads by `lead`; the difference of the two is normal with sd."""
    rng = np.random.default_rng(seed)
    difference = lead + sd * rng.standard_normal(draws)
    return np.column_stack([np.zeros(draws), difference]), difference


def expected_gain(lead, sd):
    """E max(0, -difference) of a normal difference, the value of knowing it."""
    return sd * norm.pdf(lead / sd) - lead * norm.cdf(-lead / sd)


def test_regret_of_two_plans_is_the_closed_form():
    draws, _ = two_plans()
    assert decision_regret(draws) == pytest.approx(expected_gain(0.02, 0.1), rel=0.03)  # 40,000 draws


@pytest.mark.parametrize("noise", [0.01, 0.1, 0.5])
def test_value_of_a_noisy_reading_is_the_closed_form(noise):
    """What is learnt of the difference has the standard deviation sd^2 / sqrt(sd^2 + noise^2)."""
    draws, difference = two_plans()
    learnt = 0.1**2 / np.hypot(0.1, noise)
    found = pilot_value(draws, difference[:, None], np.array([[noise**2]]))
    assert found == pytest.approx(expected_gain(0.02, learnt), rel=0.05, abs=1e-4)


def test_reading_that_knows_nothing_is_worth_nothing_and_a_perfect_one_all():
    draws, difference = two_plans()
    other = np.random.default_rng(1).standard_normal((len(draws), 1))
    regret = decision_regret(draws)
    assert pilot_value(draws, other, np.eye(1) * 1e-6) < 0.02 * regret
    assert pilot_value(draws, difference[:, None], np.zeros((1, 1))) == pytest.approx(regret, rel=1e-6)
    assert pilot_value(draws, difference[:, None], np.eye(1) * 1e6) < 1e-3 * regret


def test_decision_without_an_alternative_has_no_regret():
    assert decision_regret(np.random.default_rng(0).normal(size=(50, 1))) == 0.0
    same = np.repeat(np.random.default_rng(0).normal(size=(50, 1)), 3, axis=1)
    assert decision_regret(same) == pytest.approx(0.0)


class UnsureRate(BowlLaw):
    """Nobody knows whether the loss falls or rises with the rate; all else is known."""

    def sample(self, history, steps, seed=0):
        slope = np.linspace(-self.spread, self.spread, 101)[:, None]
        return self.mean(history, steps) + slope * np.log(history.lr.max() / self.best_lr)


def test_pilot_far_from_what_is_known_is_worth_most():
    laws = {name: UnsureRate(bottom=law.bottom, noise=0.01) for name, law in LAWS.items()}
    forecaster = make_forecaster(laws=laws)
    rates = (1e-4, 1e-3, 3e-3)
    plans = [Knobs(peak_lr=r, replay_ratio=0.2, total_steps=32, decay_share=0.5, start="stable") for r in rates]
    draws = decision_draws(forecaster, plans)
    assert draws.mean(axis=0) == pytest.approx([forecaster.weigh(forecaster.mean(knobs)) for knobs in plans])
    found = next_pilot(forecaster, draws, candidate_pilots(SPACE, 8, 2))
    assert found[0].knobs.peak_lr == pytest.approx(1e-4)  # ln(10) from where all draws agree; 3e-3 is ln(3)
    assert all(a.value_per_cost >= b.value_per_cost for a, b in zip(found, found[1:], strict=False))
    assert all(0.0 <= one.value <= decision_regret(draws) * 1.05 for one in found)
    at_the_pivot = [one.value for one in found if one.knobs.peak_lr == pytest.approx(5.48e-4)]
    assert max(at_the_pivot) < found[0].value


def test_cost_decides_between_equals():
    laws = {name: UnsureRate(bottom=law.bottom, noise=0.01) for name, law in LAWS.items()}
    forecaster = make_forecaster(laws=laws)
    plans = [Knobs(peak_lr=r, replay_ratio=0.2, total_steps=32, decay_share=0.5, start="stable") for r in (1e-4, 3e-3)]
    short = Knobs(peak_lr=1e-4, replay_ratio=0.2, total_steps=8, decay_share=0.5, start="stable")
    draws = decision_draws(forecaster, plans)
    found = next_pilot(forecaster, draws, [replace(short, total_steps=16), short], gpu_hours_per_token=1e-6)
    assert [one.knobs.total_steps for one in found] == [8, 16]
    assert found[0].gpu_hours == pytest.approx(8 * 256 * 1e-6)
    assert found[0].value_per_cost == pytest.approx(found[0].value / found[0].gpu_hours)


def test_candidates_lie_in_the_space():
    pilots = candidate_pilots(SPACE, 8, 2)
    assert len(set(pilots)) == len(pilots) == 48
    assert {one.total_steps for one in pilots} == {8}
    assert all(SPACE.replay_ratio[0] <= one.replay_ratio <= SPACE.replay_ratio[1] for one in pilots)
    assert {one.start for one in pilots} == set(SPACE.starts)


def test_pool_holds_the_best_and_nothing_that_breaks_a_limit():
    def candidate(number, violation=-1.0):
        knobs = Knobs(peak_lr=1e-3, replay_ratio=0.2, total_steps=number, decay_share=0.5, start="stable")
        return Evaluated(knobs=knobs, score=Score(objective=number, losses={}, violations={"limit": violation}))

    found = SearchResult(
        best=candidate(1), evaluated=(*(candidate(n) for n in range(1, 400)), candidate(0, violation=1.0))
    )
    pool = plan_pool(found)
    steps = [knobs.total_steps for knobs in pool]
    assert steps[0] == 1
    assert 0 not in steps
    assert len(set(pool)) == len(pool) == 64
    assert max(steps) > 300
