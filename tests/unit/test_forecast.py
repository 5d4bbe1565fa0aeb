"""What laws that are known by hand say of a run: losses, forgetting, objective, constraints."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from simple_laws import BASE_LOSSES, LAWS, BowlLaw, make_forecaster

from cptplan.errors import ConfigError
from cptplan.search import Knobs

KNOBS = Knobs(peak_lr=1e-3, replay_ratio=0.2, total_steps=40, decay_share=0.5, start="stable")


def test_history_is_the_run():
    history = make_forecaster().history(KNOBS)
    assert history.phase == "cpt"
    assert history.pretrain_known
    assert history.pretrain_lr.tolist() == [3e-3] * 100
    assert history.lr.shape == history.replay_ratio.shape == (40,)
    assert set(history.replay_ratio) == {0.2}
    assert history.lr[1] == history.lr[19] == 1e-3
    assert 0.0 <= history.lr[-1] < 1e-4


def test_start_without_history_is_open():
    forecaster = make_forecaster()
    open_start = replace(forecaster.starts["stable"], pretrain_lr=np.zeros(0))
    forecaster = make_forecaster(starts={**forecaster.starts, "stable": open_start})
    assert not forecaster.history(KNOBS).pretrain_known


def test_warmup_is_no_longer_than_the_run():
    assert make_forecaster(warmup_steps=100).history(KNOBS).lr.max() == 1e-3


def test_unknown_start_gets_a_suggestion():
    with pytest.raises(ConfigError, match="got 'stabel'") as caught:
        make_forecaster().history(replace(KNOBS, start="stabel"))
    assert caught.value.hint == "did you mean 'stable'?"


def test_score_at_the_bottom_of_the_general_bowl():
    score = make_forecaster().score(KNOBS)
    domain = 3.2 + (np.log(0.5) / 10) ** 2 + 0.1**2
    assert score.losses == pytest.approx({"general": 3.1, "domain": domain})
    assert score.objective == pytest.approx(0.4 * (3.1 - 3.0) + 0.6 * (domain - 4.0))
    assert score.violation <= 0


@pytest.mark.parametrize("weights", [{"general": 1.0, "domain": 0.0}, {"general": 0.0, "domain": 1.0}])
def test_weights_say_what_counts(weights):
    forecaster = make_forecaster(weights=weights)
    (name,) = (name for name, weight in weights.items() if weight)
    score = forecaster.score(KNOBS)
    assert score.objective == pytest.approx(score.losses[name] - BASE_LOSSES[name])


def test_change_is_measured_against_the_base_whatever_the_start():
    scores = [make_forecaster().score(replace(KNOBS, start=start)).objective for start in ("stable", "annealed")]
    assert scores[0] == scores[1]
    other = make_forecaster(base="stable").score(KNOBS).objective
    assert other == pytest.approx(scores[0] - 0.2)  # the stable checkpoint is 0.2 nats worse on both sets


def test_outlook_intervals_are_the_quantiles_of_the_samples():
    outlook = make_forecaster().outlook(KNOBS)
    general = outlook.losses["general"]
    assert (general.low, general.mean, general.high) == pytest.approx((3.1 - 0.09, 3.1, 3.1 + 0.09))
    ratio = outlook.forgetting_ratio
    assert (ratio.low, ratio.mean, ratio.high) == pytest.approx(tuple(np.exp([0.01, 0.1, 0.19])))
    # both sets move together here, so the weighted sum moves as far as each of them
    assert outlook.objective.high - outlook.objective.mean == pytest.approx(0.09)
    assert outlook.objective.mean == pytest.approx(make_forecaster().score(KNOBS).objective)


def test_level_sets_the_width():
    narrow = make_forecaster(level=0.5).outlook(KNOBS).losses["general"]
    assert (narrow.low, narrow.high) == pytest.approx((3.1 - 0.05, 3.1 + 0.05))


def test_mean_always_lies_in_its_interval():
    """Draws of a skewed law can all lie on one side of the best fit."""

    class Skewed(BowlLaw):
        def sample(self, history, steps, seed=0):
            return super().sample(history, steps, seed) + 1.0

    forecaster = make_forecaster(laws={**LAWS, "general": Skewed(bottom=3.1)})
    interval = forecaster.outlook(KNOBS).losses["general"]
    assert interval.low == interval.mean == 3.1
    assert interval.high > 4.0


@pytest.mark.parametrize(
    ("increase", "confidence", "excess"),
    [
        (0.05, 0.5, 3.1 - 3.15),
        (0.05, 0.9, 3.1 + 0.08 - 3.15),
        (0.0, 0.5, 0.1),
        (0.1, 0.9, 3.18 - 3.3),
    ],
)
def test_chance_constraint_on_general_loss(increase, confidence, excess):
    forecaster = make_forecaster(max_general_increase=increase, confidence=confidence)
    assert forecaster.general_excess(KNOBS) == pytest.approx(excess)
    assert forecaster.score(KNOBS).violation == pytest.approx(excess)


@pytest.mark.parametrize(
    ("there", "excess"),
    [
        ({"general_tokens": 2048.0}, 0.0),  # 40 steps of 256 tokens, a fifth of them general
        ({"general_tokens": 1024.0}, 1.0),
        ({"domain_tokens": 8192.0}, 0.0),
        ({"domain_tokens": 4096.0, "general_tokens": 1e9}, 1.0),
        ({}, -1.0),
    ],
)
def test_tokens_that_are_there_are_a_constraint(there, excess):
    forecaster = make_forecaster(**there)
    assert forecaster.token_excess(KNOBS) == pytest.approx(excess)
    assert forecaster.score(KNOBS).violation == pytest.approx(excess)


def test_larger_excess_counts():
    forecaster = make_forecaster(general_tokens=1024.0, max_general_increase=0.0, confidence=0.5)
    assert forecaster.score(KNOBS).violation == pytest.approx(1.0)


def test_curve_is_the_laws():
    forecaster = make_forecaster()
    steps = np.array([0, 20, 40])
    found = forecaster.curve("domain", forecaster.history(KNOBS), steps)
    assert found.level == 0.9
    assert found.mean.shape == (3,)
