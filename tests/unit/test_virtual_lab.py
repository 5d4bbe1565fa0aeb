"""Virtual campaigns: drawn as announced, the same for a seed, pilots as designed, and nothing leaks from the finals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cptplan.errors import ConfigError
from cptplan.simulation.simulation import Noise
from cptplan.simulation.virtual_lab import Lab, draw_lab, run_lab

LAB = Lab(law="knowledge-pile", final_steps=2000, pilot_share=0.2, noise=Noise(sd_nats=0.005, seed=7), seed=7)


def test_drawn_labs_keep_their_ranges():
    labs = [draw_lab(seed) for seed in range(200)]
    assert {lab.replay for lab in labs} == {"exponential", "logarithmic"}
    assert len({lab.law for lab in labs}) == 5
    for lab in labs:
        assert 6 <= lab.num_pilots <= 12
        assert lab.pilot_steps <= 0.25 * lab.final_steps + 1
        assert 0.002 <= lab.noise.sd_nats <= 0.01
        assert (lab.num_params is not None) == (lab.law == "knowledge-pile-sizes")
    assert {draw_lab(seed, replay="logarithmic").replay for seed in range(20)} == {"logarithmic"}


def test_same_lab_gives_the_same_campaign():
    one, two, other = run_lab(LAB), run_lab(LAB), run_lab(replace(LAB, seed=8))
    for name, curve in one.seen.items():
        np.testing.assert_array_equal(curve.losses["general"], two.seen[name].losses["general"])
    assert one.finals["final-01"].record == two.finals["final-01"].record
    assert one.finals["final-01"].record != other.finals["final-01"].record


def test_pilots_are_the_designed_ones():
    campaign = run_lab(replace(LAB, num_pilots=10))
    pilots = {name: curve for name, curve in campaign.seen.items() if name != "base"}
    assert list(pilots) == [f"pilot-{number:02d}" for number in range(1, 11)]
    assert {curve.total_steps for curve in pilots.values()} == {400}
    assert {curve.record.parent_step for curve in pilots.values()} == {32_000, 40_000}
    first = pilots["pilot-01"]
    assert (first.record.lr.peak_lr, first.replay_ratios()[0]) == (2e-4, 0.0)


def test_finals_are_long_runs_inside_what_the_pilots_span():
    campaign = run_lab(replace(LAB, num_finals=30))
    assert not set(campaign.finals) & set(campaign.seen)
    for name, curve in campaign.finals.items():
        assert curve.total_steps == 2000
        assert 2e-4 / 30 <= curve.lr().max() <= 2e-4 * (1 + 1e-9)
        assert 0.0 <= curve.replay_ratios()[0] <= 0.6
        for set_name, exact in campaign.exact[name].items():
            # 30 runs x 40 points: none should be six standard deviations off
            assert np.abs(curve.losses[set_name] - exact).max() < 6 * 0.005
    kinds = {curve.record.lr.kind for curve in campaign.finals.values()}
    assert kinds == {"wsd", "cosine"}


def test_small_replay_form_forgets_less_at_the_same_ratios():
    campaigns = {form: run_lab(replace(LAB, replay=form)) for form in ("exponential", "logarithmic")}
    ends = {form: campaign.seen["pilot-03"].losses["general"][-1] for form, campaign in campaigns.items()}
    assert ends["logarithmic"] < ends["exponential"] - 0.02  # 3 % replay


def test_set_of_one_replay_ratio_cannot_be_a_lab():
    with pytest.raises(ConfigError, match=r"replay_ratio must be 0\.5"):
        run_lab(replace(LAB, law="knowledge-pile-replay-50"))
