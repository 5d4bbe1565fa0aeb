"""The CPT law against numbers that were published, or computed from published parameters, for Wang et al. 2025.

Source: arXiv:2505.07796, figure 3 (106M parameters, FineWeb to Knowledge-Pile). Parameters in raw units of the paper:
areas are sums of the rate itself, lambda = 0.999, so reference_lr = 1 here and S2 coefficients times 1 / (1 - lambda).
"""

from __future__ import annotations

import numpy as np
import pytest

from cptplan.laws.cpt import PUBLISHED, CptLaw
from cptplan.laws.history import RunHistory
from cptplan.schedule import read_schedule

# alpha, E, beta, 1 / (1 - lambda), a (of no effect without replay); then L0, A, C1, C2, B
GENERAL = (np.array([0.497, 28.0, 0.189, 1000.0, 3.0]), np.array([3.057, 0.490, 0.299e3, 0.298e3, 0.366]))
DOMAIN = (np.array([0.677, 5662.0, 0.146, 1000.0, 3.0]), np.array([3.024, 0.412, 0.278e3, 0.324e3, -0.666]))

PRETRAIN = {"kind": "wsd", "peak_lr": 2e-4, "total_steps": 40_000, "decay_steps": 8000}


def history(cpt: dict[str, object]) -> RunHistory:
    lr = read_schedule(cpt, "test").lr()
    before = read_schedule(PRETRAIN, "test").lr()
    return RunHistory(phase="cpt", pretrain_lr=before, pretrain_known=True, lr=lr, replay_ratio=np.zeros(len(lr)))


def losses(side: str, run: RunHistory, steps: list[int]) -> np.ndarray:
    values, coefficients = GENERAL if side == "general" else DOMAIN
    law = CptLaw(side, reference_lr=1.0, form=PUBLISHED)
    # the paper's areas stay above 1 wherever it is evaluated here, so the floor of the base term is not met
    return law.columns(values, run, np.array(steps)) @ coefficients


@pytest.mark.parametrize(("peak_lr", "general", "domain"), [(2e-4, 0.156, -0.490), (2e-5, 0.073, -0.410)])
def test_change_of_loss_over_a_rewarmed_cosine(peak_lr: float, general: float, domain: float) -> None:
    run = history({"kind": "cosine", "peak_lr": peak_lr, "total_steps": 10_000, "warmup_steps": 500})
    # computed from the published parameters with S2 of pre-training relaxing on; three digits were written down
    for side, expected in (("general", general), ("domain", domain)):
        start, end = losses(side, run, [0, 10_000])
        assert end - start == pytest.approx(expected, abs=0.001)


def test_loss_at_the_end_of_pretraining() -> None:
    run = history({"kind": "constant", "peak_lr": 2e-4, "total_steps": 10})
    # S1 = 7.2 and S2 = 0.175 by the schedule (0.18 in the published reading): 3.18688 and 3.08222, C x 0.005 apart
    assert losses("general", run, [0])[0] == pytest.approx(3.18688, abs=2e-3)
    assert losses("domain", run, [0])[0] == pytest.approx(3.08222, abs=2e-3)


def test_critical_point_by_the_asymptote() -> None:
    # L0 + B = 3.423: a start at 3.188 is post-critical, general loss never comes back
    run = history({"kind": "constant", "peak_lr": 2e-4, "total_steps": 200_000})
    curve = losses("general", run, [0, 1000, 20_000, 200_000])
    assert curve[0] < 3.423
    assert np.all(curve[1:] > curve[0])
