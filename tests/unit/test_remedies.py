"""What a law says of a remedy: the run with one knob turned against the run as it was."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from known_fits import SUPPORT
from logged_runs import PEAK, STEPS, healthy, write_log

from cptplan.advice.diagnosis import Finding, Remedy
from cptplan.advice.remedies import predicted_effect, turned
from cptplan.advice.run_log import read_run_log
from cptplan.laws.cpt import CptForm, CptLaw
from cptplan.laws.history import RunHistory
from cptplan.simulation.known_law import KnownLaw

HISTORY = RunHistory(
    phase="cpt",
    pretrain_lr=np.full(100, PEAK),
    pretrain_known=True,
    lr=np.concatenate([np.full(60, PEAK), np.full(40, 0.5 * PEAK)]),
    replay_ratio=np.full(100, 0.2),
    domain_passes=np.linspace(0.0, 0.8, 100),
)


class Law:
    """A law over an unknown start with a support, as a fitted one has."""

    def __init__(self, side):
        law = CptLaw(side, PEAK, CptForm(amplitude="exponential", clock=False, free_power=False, open_start=True))
        numbers = {"alpha": 0.5, "E": 0.05, "beta": 0.3, "forgetting_time": 20.0, "a": 3.0, "S_pt": 1000.0}
        sizes = {"L0": 2.0, "A": 5.0, "C1": 0.1, "C2": 0.1, "B": 0.4 if side == "general" else -0.8}
        self.known = KnownLaw(
            law=law,
            values=np.array([numbers[p.name] for p in law.parameters]),
            coefficients=np.array([sizes[t.name] for t in law.terms]),
        )
        self.law, self.support = law, SUPPORT.model_copy(update={"peak_lr": (PEAK / 10, PEAK)})

    def mean(self, history, steps):
        return self.known.mean(history, steps)


LAWS = {side: Law(side) for side in ("general", "domain")}


def finding(remedy):
    return Finding(mode="forgetting", run="one", evidence="e", advice="a", remedy=remedy)


def test_peak_rate_is_turned():
    changed, words = turned(HISTORY, Remedy(knob="peak_lr", factor=0.5))
    np.testing.assert_allclose(changed.lr, 0.5 * HISTORY.lr)
    assert words == "lower peak_lr to 0.0005"
    assert turned(HISTORY, Remedy(knob="peak_lr", factor=3.0))[1] == "raise peak_lr to 0.003"


def test_replay_is_turned_and_the_domain_read_less():
    changed, words = turned(HISTORY, Remedy(knob="replay_ratio", value=0.6))
    np.testing.assert_array_equal(changed.replay_ratio, 0.6)
    assert changed.domain_passes[-1] == pytest.approx(0.4)
    assert words == "set replay_ratio to 60%"


def test_length_is_turned_with_the_whole_schedule():
    changed, words = turned(HISTORY, Remedy(knob="total_steps", factor=2.0))
    assert (len(changed.lr), len(changed.replay_ratio)) == (200, 200)
    assert (changed.lr == PEAK).sum() == pytest.approx(120, abs=2)
    assert changed.domain_passes[-1] == pytest.approx(1.6)
    assert words == "train 200 steps instead of 100"


def test_decay_is_turned():
    changed, _ = turned(HISTORY, Remedy(knob="decay_share", value=0.3))
    np.testing.assert_array_equal(changed.lr[:70], HISTORY.lr[:70])
    assert np.all(np.diff(changed.lr[70:]) < 0)
    assert changed.lr[-1] == pytest.approx(0.5 * PEAK / 30)


def test_effect_is_the_difference_of_two_runs_under_the_law(tmp_path):
    log = read_run_log(write_log(tmp_path / "one", healthy()))
    found = predicted_effect(
        finding(Remedy(knob="replay_ratio", value=0.6)), log, LAWS, tmp_path, {"general": 0.4, "domain": 0.6}
    )
    history = replace(
        HISTORY, pretrain_lr=np.zeros(0), pretrain_known=False, domain_passes=None, lr=log.lr,
        replay_ratio=log.replay_ratios,
    )  # fmt: skip
    changed = replace(history, replay_ratio=np.full(STEPS, 0.6))
    end = np.array([STEPS])
    for name, law in LAWS.items():
        expected = law.mean(changed, end)[0] - law.mean(history, end)[0]
        assert found.losses[name].mean == pytest.approx(expected, abs=1e-9)
    assert found.losses["general"].mean < 0 < found.losses["domain"].mean
    assert found.weighted.mean == pytest.approx(0.4 * found.losses["general"].mean + 0.6 * found.losses["domain"].mean)
    assert "replay ratio 60.0% is outside the tried" in " ".join(found.notes)


def test_no_effect_without_a_change_a_curve_or_a_known_start(tmp_path):
    log = read_run_log(write_log(tmp_path / "one", healthy()))
    weights = {"general": 0.4, "domain": 0.6}
    assert predicted_effect(finding(None), log, LAWS, tmp_path, weights) is None
    remedy = Remedy(knob="peak_lr", factor=0.5)
    assert predicted_effect(finding(remedy), replace(log, curve=None), LAWS, tmp_path, weights) is None
    record = log.curve.record.model_copy(update={"parent": "base"})
    orphan = replace(log, curve=replace(log.curve, record=record))
    assert predicted_effect(finding(remedy), orphan, LAWS, tmp_path, weights) is None
    closed = Law("general")
    closed.law = CptLaw("general", PEAK)
    assert predicted_effect(finding(remedy), log, {"general": closed}, tmp_path, weights) is None
