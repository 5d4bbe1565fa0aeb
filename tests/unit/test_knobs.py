"""Knobs: the schedule and the mixture that they make."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cptplan.planning.knobs import COSINE_FLOOR, Knobs

KNOBS = Knobs(peak_lr=1e-3, replay_ratio=0.2, total_steps=40, decay_share=0.5, start="stable")


@pytest.mark.parametrize(
    ("kind", "last", "falls_from"),
    [("constant", 1.0, None), ("wsd", 0.0, 20), ("cosine", COSINE_FLOOR, 4), ("linear", 0.0, 4)],
)
def test_schedule_ends_where_its_kind_says(kind, last, falls_from):
    lr = replace(KNOBS, kind=kind).schedule(4).lr()
    assert lr.max() == 1e-3
    assert lr[-1] == pytest.approx(last * 1e-3)
    assert len(lr) == 40
    assert np.all(np.diff(lr[:4]) > 0)
    fell = np.flatnonzero(np.diff(lr) < 0)
    assert (fell[0] + 1 if len(fell) else None) == falls_from


def test_own_warmup_wins_and_fits_into_the_run():
    assert KNOBS.schedule(4).warmup_steps == 4
    assert replace(KNOBS, warmup_steps=7).schedule(4).warmup_steps == 7
    assert replace(KNOBS, warmup_steps=70).schedule(4).warmup_steps == 40


@pytest.mark.parametrize("kind", ["constant", "wsd", "cosine", "linear"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_runs_of_a_few_steps(kind, steps):
    knobs = replace(KNOBS, kind=kind, total_steps=steps, end_replay=0.4)
    assert knobs.schedule(2).lr().shape == knobs.mixture().replay_ratios(steps).shape == (steps,)


def test_ramp_has_the_mean_that_the_limits_count():
    knobs = replace(KNOBS, end_replay=0.5)
    ratios = knobs.mixture().replay_ratios(40)
    assert (ratios[0], ratios[-1]) == pytest.approx((0.2, 0.5))
    assert ratios.mean() == pytest.approx(knobs.mean_replay)
    assert KNOBS.mean_replay == 0.2
