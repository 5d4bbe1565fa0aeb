"""What can be done from a step on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from watch_examples import STEPS, history, record

from cptplan.watch.options import ways_on

RUN = history(record())


def test_all_ways_keep_what_is_done():
    found = ways_on(RUN, 1000, 0.2)
    assert list(found) == ["go on", "anneal now", "replay + 10%", "rate x 0.5", "stop"]
    for way in found.values():
        np.testing.assert_array_equal(way.lr[:1000], RUN.lr[:1000])
        np.testing.assert_array_equal(way.replay_ratio[:1000], RUN.replay_ratio[:1000])
        assert len(way.lr) == len(way.replay_ratio)


def test_annealing_now_ends_at_zero_with_the_planned_share_of_decay():
    lr = ways_on(RUN, 1000, 0.2)["anneal now"].lr
    assert len(lr) == 1250
    assert lr[-1] == 0.0
    np.testing.assert_allclose(np.diff(lr[1000:]), np.diff(lr[1000:])[0])


@pytest.mark.parametrize("share", [0.0, 0.8, 1.0])
def test_a_share_that_does_not_fit_gives_way_to_a_fifth(share):
    assert len(ways_on(RUN, 1000, share)["anneal now"].lr) == 1250


def test_late_in_the_run_there_is_nothing_to_anneal_earlier():
    assert "anneal now" not in ways_on(RUN, 1900, 0.2)


def test_rate_and_replay_change_from_here_on():
    found = ways_on(RUN, 1000, 0.2)
    np.testing.assert_allclose(found["rate x 0.5"].lr[1000:], 0.5 * RUN.lr[1000:])
    np.testing.assert_allclose(found["replay + 10%"].replay_ratio[1000:], 0.3)
    full = replace(RUN, replay_ratio=np.ones(STEPS))
    assert ways_on(full, 1000, 0.2)["replay + 10%"].replay_ratio.max() == 1.0


def test_before_the_first_step_there_is_nothing_to_stop():
    assert list(ways_on(RUN, 0, 0.2)) == ["go on", "replay + 10%", "rate x 0.5"]


def test_passes_are_cut_with_the_run():
    repeated = replace(RUN, domain_passes=np.linspace(0, 2, STEPS))
    assert len(ways_on(repeated, 1000, 0.2)["stop"].domain_passes) == 1000
