"""What laws that are known by hand say of a run: losses, forgetting, objective, constraints."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from simple_laws import BASE_LOSSES, LAWS, BowlLaw, make_forecaster

from cptplan.errors import ConfigError
from cptplan.planning.knobs import Knobs

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
    score = forecaster.score(KNOBS)
    assert score.violations["max_general_increase"] == pytest.approx(excess)
    assert score.violation == pytest.approx(excess)
    # draws lie evenly in 3.1 +- 0.1, 101 of them
    cap = 3.0 * (1.0 + increase)
    assert forecaster.chance(KNOBS) == pytest.approx(np.clip((cap - 3.0) / 0.2, 0.0, 1.0), abs=0.011)
    # without draws: the mean
    assert forecaster.rough(KNOBS).violations["max_general_increase"] == pytest.approx(3.1 - cap)


@pytest.mark.parametrize(
    ("changes", "name", "cap"),
    [
        ({"max_forgetting_ratio": 1.2}, "max_forgetting_ratio", 3.0 + np.log(1.2)),
        ({"max_general_loss": 3.15}, "max_general_loss", 3.15),
        ({"max_general_loss": 3.15, "max_forgetting_ratio": 1.2}, "max_general_loss", 3.15),
    ],
)
def test_other_limits_on_general_loss(changes, name, cap):
    forecaster = make_forecaster(confidence=0.5, **changes)
    assert forecaster.score(KNOBS).violations[name] == pytest.approx(3.1 - cap)
    assert forecaster.needs_draws
    assert make_forecaster().chance(KNOBS) is None


def test_risk_is_the_mean_of_the_worst_draws():
    """Both sets move together, evenly within 0.1: the worst fifth has its mean at 0.08."""
    mean = make_forecaster().score(KNOBS).objective
    careful = make_forecaster(cvar=0.8).score(KNOBS).objective
    assert careful - mean == pytest.approx(0.08, abs=0.002)


def test_difference_of_two_runs_is_sharper_than_each():
    """What the fit does not know moves both runs alike; nothing here is a run's own."""
    other = replace(KNOBS, peak_lr=2e-3)
    quiet = {name: replace(law, discrepancy=0.0) for name, law in LAWS.items()}
    forecaster = make_forecaster(laws=quiet)
    found = forecaster.difference(KNOBS, other)
    assert found.mean == pytest.approx(forecaster.score(KNOBS).objective - forecaster.score(other).objective)
    assert (found.low, found.high) == pytest.approx((found.mean, found.mean))
    noisy = {name: replace(law, noise=0.01) for name, law in quiet.items()}
    own = make_forecaster(laws=noisy)
    wide = own.difference(KNOBS, other)
    # 1 % noise of the losses, a fifth of it a run's own, two runs, two sets, 90 %; 101 draws
    sd = np.sqrt(2.0) * 0.2 * 0.01 * np.hypot(0.4 * 3.1, 0.6 * 3.2)
    assert 0.5 * (wide.high - wide.low) == pytest.approx(1.645 * sd, rel=0.25)


def test_ramp_changes_the_ratio_along_the_run():
    history = make_forecaster().history(replace(KNOBS, end_replay=0.6))
    assert history.replay_ratio[0] == pytest.approx(0.2)
    assert history.replay_ratio[-1] == pytest.approx(0.6)
    assert make_forecaster(general_tokens=4096.0).token_excess(replace(KNOBS, end_replay=0.6)) == pytest.approx(
        {"general_tokens": 0.0, "domain_tokens": -1.0}
    )


def test_passes_are_told_to_the_law_and_the_epochs_to_the_limit():
    forecaster = make_forecaster(domain_tokens=2048.0, max_epochs=4.0)
    assert forecaster.history(KNOBS).domain_passes[[0, 39]] == pytest.approx([0.0, 39 * 0.8 * 256 / 2048])
    assert forecaster.token_excess(KNOBS)["domain_tokens"] == pytest.approx(0.0)
    assert make_forecaster().history(KNOBS).domain_passes is None


def test_support_flags_name_each_excess_once():
    flags = make_forecaster().support_flags(replace(KNOBS, peak_lr=1e-2))
    assert [flag for flag in flags if "peak rate" in flag] == ["peak rate 0.01 is outside the tried 0.0001 to 0.003"]


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
    assert max(forecaster.token_excess(KNOBS).values()) == pytest.approx(excess)
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
