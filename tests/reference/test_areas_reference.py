"""Areas against a slow double loop over the published sum, and against numbers worked out by hand.

Source: Wang et al. 2025, arXiv:2505.07796, eq. 1: S1(t) = sum_{i<=t} eta_i and
S2(t) = sum_{i<=t} sum_{k<=i} (eta_{k-1} - eta_k) * lambda^(i-k). The rate before the first step has no change with the
first. The oracle was worked out from the closed form
S2(t) = sum_k (eta_{k-1} - eta_k) (1 - lambda^(t-k+1)) / (1 - lambda).
"""

from __future__ import annotations

import numpy as np
import pytest

from cptplan.areas import annealing_area, forward_area
from cptplan.schedule import read_schedule

SCHEDULES = {
    "cosine with warm-up": {"kind": "cosine", "peak_lr": 3e-4, "warmup_steps": 10, "total_steps": 120, "min_lr": 3e-5},
    "wsd": {"kind": "wsd", "peak_lr": 2e-4, "total_steps": 100, "decay_steps": 30, "decay_shape": "sqrt"},
    "two stage": {"kind": "two_stage", "peak_lr": 2e-4, "min_lr": 2e-5, "switch_step": 40, "total_steps": 90},
    "re-warmed": {
        "kind": "segments",
        "segments": [
            {"kind": "linear", "peak_lr": 2e-4, "total_steps": 50},
            {"kind": "cosine", "peak_lr": 1e-4, "warmup_steps": 8, "total_steps": 60},
        ],
    },
}


def slow_areas(lr: np.ndarray, decay: float) -> tuple[float, float]:
    forward = annealing = 0.0
    for i in range(len(lr)):
        forward += lr[i]
        for k in range(1, i + 1):
            annealing += (lr[k - 1] - lr[k]) * decay ** (i - k)
    return forward, annealing


@pytest.mark.parametrize("decay", [0.999, 0.95, 0.5])
@pytest.mark.parametrize("name", SCHEDULES)
def test_areas_of_a_schedule_equal_the_double_loop(name: str, decay: float) -> None:
    lr = read_schedule(SCHEDULES[name], name).lr()
    forward, annealing = forward_area(lr), annealing_area(lr, decay=decay).area
    for steps in (1, 2, 17, len(lr)):
        slow_forward, slow_annealing = slow_areas(lr[:steps], decay)
        # some thousand additions of rates near 1e-4, in another order
        assert forward[steps] == pytest.approx(slow_forward, rel=1e-12)
        assert annealing[steps] == pytest.approx(slow_annealing, rel=1e-11, abs=1e-16)


def test_areas_of_ten_steps_worked_out_by_hand() -> None:
    lr = np.array([2e-4] * 5 + [1e-4] * 3 + [0.0] * 2)
    # the first drop has five steps to act, the second two:
    # 1e-4 * (1 + .999 + .999^2 + .999^3 + .999^4) + 1e-4 * (1 + .999) = 6.989009995001e-4
    assert forward_area(lr)[-1] == pytest.approx(0.0013, rel=1e-14)
    assert annealing_area(lr, decay=0.999).area[-1] == pytest.approx(6.989009995001e-4, rel=1e-13)


def test_largest_worth_of_a_drop_is_a_thousandfold_at_the_published_decay() -> None:
    # closed form for t steps after one drop d: d * (1 - lambda^t) / (1 - lambda)
    lr = np.concatenate([np.full(10, 2e-4), np.zeros(500)])
    expected = 2e-4 * (1 - 0.999**500) / (1 - 0.999)
    assert annealing_area(lr).area[-1] == pytest.approx(expected, rel=1e-12)
