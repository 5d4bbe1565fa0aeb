"""Where a run to be predicted leaves what the curves of a fit span: each flag, and none inside."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from law_examples import REFERENCE_LR, cpt_run, pretrain_run, wsd

from cptplan.errors import ConfigError
from cptplan.fitting.support import Support, passes_of, potential_of, support_of
from cptplan.laws.history import Observations, RunHistory

ANNEALED, STABLE = wsd(100, decay=20), wsd(80)
TRIED = {
    "high": cpt_run(np.full(100, 2e-3), 0.0, ANNEALED, np.arange(100) / 100),
    "low": cpt_run(wsd(50, peak=5e-4, decay=20), 0.3, ANNEALED),
    "stable": cpt_run(np.full(60, 1e-3), 0.05, STABLE),
}


def support(runs=TRIED, measured: int | None = None) -> Support:
    data = [
        Observations(name=name, history=run, steps=np.array([0, measured or len(run.lr)]), loss=np.array([3.0, 2.9]))
        for name, run in runs.items()
    ]
    return support_of(data, REFERENCE_LR)


def flags(run: RunHistory) -> tuple[str, ...]:
    return support().flags(run, REFERENCE_LR)


def test_support_is_the_range_of_the_curves() -> None:
    found = support()
    assert found.peak_lr == (5e-4, 2e-3)
    assert found.replay_ratio == pytest.approx((0.0, 0.3))
    assert found.longest_steps == 100
    assert found.longest_area == pytest.approx(100.0)
    assert found.loss_potential == (0.0, 1.0)
    assert found.most_passes == 1.0
    assert found.num_params == (1.6e8, 1.6e8)
    assert Support.parse(found.to_json(), "test") == found


def test_steps_that_were_not_measured_do_not_support() -> None:
    found = support(measured=30)
    assert (found.longest_steps, found.longest_area) == (30, pytest.approx(30.0))


@pytest.mark.parametrize("run", TRIED.values(), ids=TRIED)
def test_curves_themselves_are_inside(run: RunHistory) -> None:
    assert flags(run) == ()


INSIDE = cpt_run(wsd(390, peak=1e-3, decay=100, low=1e-5), 0.1, ANNEALED)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lr": np.full(50, 2.1e-3)}, "peak rate 0.0021 is outside the tried 0.0005 to 0.002"),
        ({"lr": np.full(50, 4e-4)}, "peak rate 0.0004 is outside the tried"),
        ({"replay_ratio": np.full(390, 0.5)}, "replay ratio 50.0% is outside the tried 0.0% to 30.0%"),
        ({"lr": np.full(401, 6e-4)}, "401 steps are 4.0 times the longest curve"),
        ({"lr": np.full(1000, 1e-3)}, "1,000 steps are 10.0 times the longest curve"),
        ({"lr": np.full(1000, 2e-3)}, "forward area is 10.0 times the largest tried"),
        ({"domain_passes": np.arange(390) / 100}, "domain tokens are read 3.9 times, tried 1.0"),
        ({"num_params": 8e9}, "8e+09 parameters are outside the tried 1.6e+08"),
        ({"lr": np.append(np.full(50, 1e-3), np.zeros(9))}, "the last 9 steps have rate 0: they train nothing"),
    ],
)
def test_run_outside_is_flagged(changes: dict, says: str) -> None:
    steps = len(changes.get("lr", INSIDE.lr))
    run = replace(INSIDE, **{"replay_ratio": np.full(steps, 0.1), **changes})
    assert any(flag.startswith(says) for flag in flags(run)), flags(run)


def test_run_inside_has_no_flag() -> None:
    assert flags(INSIDE) == ()
    assert flags(replace(INSIDE, lr=wsd(390, peak=2.03e-3, decay=100))) == ()  # 1.5 % above the highest
    assert flags(replace(INSIDE, num_params=None)) == ()
    assert flags(replace(INSIDE, domain_passes=np.arange(390) / 300)) == ()  # 1.3 passes
    assert flags(replace(INSIDE, replay_ratio=np.full(390, 0.305))) == ()


@pytest.mark.parametrize(
    ("replay", "flagged"), [(0.0, True), (0.004, True), (0.006, False), (0.02, False), (0.7, True)]
)
def test_replay_below_half_of_the_least_tried_is_far(replay: float, flagged: bool) -> None:
    tried = support().model_copy(update={"replay_ratio": (0.01, 0.3)})
    found = tried.flags(replace(INSIDE, replay_ratio=np.full(390, replay)), REFERENCE_LR)
    assert any("replay ratio" in flag for flag in found) == flagged


@pytest.mark.parametrize(
    ("fitted", "run", "refused"), [(256, 512, True), (256, 256, False), (None, 512, False), (256, None, False)]
)
def test_another_batch_size_is_refused(fitted, run, refused) -> None:
    tried, history = support().model_copy(update={"batch_tokens": fitted}), replace(INSIDE, batch_tokens=run)
    if refused:
        with pytest.raises(ConfigError, match=r"batch_tokens must be 256, .*; got 512 in long\."):
            tried.check_batch(history, "long")
    else:
        tried.check_batch(history, "long")


@pytest.mark.parametrize(
    ("low", "high", "start", "flagged"),
    [
        (0.0, 0.0, ANNEALED, False),
        (0.0, 0.0, STABLE, True),
        (1.0, 1.0, ANNEALED, True),
        (0.0, 1.0, wsd(100, decay=20, low=5e-4), False),
    ],
)
def test_start_of_another_loss_potential_is_flagged(low, high, start, flagged) -> None:
    tried = support().model_copy(update={"loss_potential": (low, high)})
    found = tried.flags(replace(INSIDE, pretrain_lr=start), REFERENCE_LR)
    assert any("loss potential" in flag for flag in found) == flagged


def test_pretraining_has_neither_replay_nor_start() -> None:
    tried = support({"run": pretrain_run(wsd(100, decay=20))})
    assert tried.flags(pretrain_run(wsd(200, decay=40)), REFERENCE_LR) == ()
    assert tried.loss_potential == (0.0, 0.0)
    assert tried.replay_ratio == (1.0, 1.0)


def test_potential_and_passes() -> None:
    assert potential_of(cpt_run(wsd(10), before=wsd(50, decay=10, low=1e-3))) == pytest.approx(0.5)
    assert potential_of(cpt_run(wsd(10))) == 0.0
    assert potential_of(pretrain_run(wsd(10))) == 0.0
    assert passes_of(cpt_run(wsd(10))) == 1.0
    assert passes_of(cpt_run(wsd(10), passes=np.arange(10) / 4)) == 2.25
    assert passes_of(cpt_run(wsd(10), passes=np.arange(10) / 100)) == 1.0
