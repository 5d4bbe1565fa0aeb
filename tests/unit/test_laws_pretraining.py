"""Laws of one schedule: what each promises in the limit, and the arithmetic of published examples."""

from __future__ import annotations

import numpy as np
import pytest
from law_examples import REFERENCE_LR, SCHEDULE_LAWS, coefficients_of, cpt_run, pretrain_run, steps_of, values_of, wsd

from cptplan.areas import annealing_area, forward_area
from cptplan.laws.pretraining import SOURCE_POWER, AnnealingLaw, FslLaw, MultiPowerLaw, PowerLaw, joint

every_law = pytest.mark.parametrize("law", SCHEDULE_LAWS.values(), ids=SCHEDULE_LAWS)
GAINS = {name: law for name, law in SCHEDULE_LAWS.items() if name != "power"}
every_gain = pytest.mark.parametrize("law", GAINS.values(), ids=GAINS)
SATURATES = [law for name, law in GAINS.items() if name != "annealing"]


def values(law, **some: float) -> np.ndarray:
    """The priors' centres, some parameters set."""
    named = dict(zip((p.name for p in law.parameters), values_of(law), strict=True))
    assert set(some) <= set(named)
    return np.array(list({**named, **some}.values()))


def gain(law, run, steps, **some: float) -> np.ndarray:
    """What annealing takes off the loss per unit of the law's first gain coefficient."""
    return -law.columns(values(law, **some), run, np.asarray(steps))[:, 2]


@every_law
def test_loss_of_a_constant_rate_is_a_power_of_its_area(law) -> None:
    run = pretrain_run(np.full(300, REFERENCE_LR / 2))
    columns = law.columns(values(law, alpha=0.4), run, np.array([50, 100, 300]))
    power = {"power": 0.0, "multi_power_late": 0.9}.get(law.name, 1.0)
    np.testing.assert_allclose(columns[:, 1], (np.array([50, 100, 300]) * 0.5**power) ** -0.4, rtol=1e-12)
    assert not columns[:, 2:].any()


@every_law
def test_loss_of_a_constant_or_falling_rate_falls(law) -> None:
    for lr in (
        np.full(300, 1e-3),
        wsd(300, decay=150, low=1e-5),
        REFERENCE_LR * (1 + np.cos(np.linspace(0, 3, 300))) / 2,
    ):
        loss = law.columns(values(law), pretrain_run(lr), np.arange(2, 301)) @ coefficients_of(law)
        assert np.all(np.diff(loss) < 0)


@every_gain
def test_a_fall_pays_from_then_on_and_never_more_than_itself(law) -> None:
    lr = np.repeat([REFERENCE_LR, REFERENCE_LR / 4], [100, 3000])
    paid = gain(law, pretrain_run(lr), np.arange(3101))
    assert not paid[:101].any()
    assert np.all(np.diff(paid[100:150]) > 0)
    assert np.all(np.diff(paid) >= 0)
    assert paid[-1] <= 0.75 * (100**-SOURCE_POWER if law.name == "multi_power_late" else 1.0)
    # a rise takes some of it back
    up = np.repeat([REFERENCE_LR, REFERENCE_LR / 4, REFERENCE_LR / 2], [100, 200, 200])
    assert gain(law, pretrain_run(up), [500])[0] < 0.9 * paid[500]


@every_gain
def test_all_is_paid_in_the_end(law) -> None:
    quick = {"annealing": {"forgetting_time": 5.0}, "fsl": {"c4": 100.0, "gamma": 3.0}}
    some = quick.get(law.name, {"C": 1e3, "beta": 3.0})
    lr = np.repeat([REFERENCE_LR, REFERENCE_LR / 4], [100, 200])
    whole = 0.75 * (100**-SOURCE_POWER if law.name == "multi_power_late" else 1.0)
    assert gain(law, pretrain_run(lr), [300], **some)[0] == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("law", SATURATES, ids=lambda law: law.name)
def test_steps_at_rate_0_train_nothing(law) -> None:
    padded = pretrain_run(np.concatenate([wsd(100, decay=40), np.zeros(500)]))
    loss = law.columns(values(law), padded, np.array([100, 101, 600])) @ coefficients_of(law)
    np.testing.assert_allclose(loss, loss[0], rtol=1e-12)


def test_power_law_counts_the_steps_whose_rate_is_not_0() -> None:
    law = PowerLaw(REFERENCE_LR)
    lr = np.concatenate([np.full(50, 1e-3), np.zeros(50), np.full(100, 1e-5)])
    base = law.columns(values(law, alpha=0.5), pretrain_run(lr), np.array([50, 100, 200]))[:, 1]
    np.testing.assert_allclose(base, [50**-0.5, 50**-0.5, 150**-0.5], rtol=1e-12)


def test_annealing_law_pays_on_at_rate_0_as_its_critics_say() -> None:
    law = AnnealingLaw(REFERENCE_LR, 100.0)
    padded = pretrain_run(np.concatenate([wsd(100, decay=1), np.zeros(500)]))
    assert np.all(np.diff(gain(law, padded, [100, 200, 600])) > 0)


def test_annealing_law_is_the_published_sum() -> None:
    """S1 and S2 of the laws' own oracle: five steps at 2e-4, three at 1e-4, two at 0, lambda = 0.999."""
    lr = np.repeat([2e-4, 1e-4, 0.0], [5, 3, 2])
    columns = AnnealingLaw(2e-4).columns(np.array([1.0, 1000.0]), pretrain_run(lr), np.array([10]))[0]
    assert 2e-4 / columns[1] == pytest.approx(0.0013, rel=1e-12)  # alpha = 1: the area itself
    assert -columns[2] * 2e-4 * 1000 == pytest.approx(6.989009995e-4, rel=1e-9)
    area = annealing_area(lr).area[10]
    assert -columns[2] * 2e-4 * 1000 == pytest.approx(area, rel=1e-12)
    assert forward_area(lr)[10] == pytest.approx(0.0013, rel=1e-12)


def test_warmup_counts_its_area_and_no_annealing() -> None:
    for law in SCHEDULE_LAWS.values():
        lr = np.concatenate([np.linspace(0, REFERENCE_LR, 21)[1:], np.full(80, REFERENCE_LR)])
        columns = law.columns(values(law, alpha=1.0), pretrain_run(lr), np.array([100]))[0]
        if law.name in ("annealing", "multi_power", "fsl"):
            assert 1 / columns[1] == pytest.approx(10.5 + 80, rel=1e-12)
        assert not columns[2:].any()


def test_fsl_without_source_is_multi_power_without_slowing() -> None:
    fsl, multi_power, run = FslLaw(REFERENCE_LR), MultiPowerLaw(REFERENCE_LR), pretrain_run(wsd(90, decay=60, low=2e-5))
    one = gain(fsl, run, steps_of(run), c4=0.07, gamma=0.5)
    other = gain(multi_power, run, steps_of(run), C=0.07, beta=0.5, gamma=0.0)
    np.testing.assert_allclose(one, other, rtol=1e-12)


def test_late_multi_power_pays_less_for_late_falls() -> None:
    late, plain = MultiPowerLaw(REFERENCE_LR, late=True), MultiPowerLaw(REFERENCE_LR)
    for before in (100, 10_000):  # steps at the reference rate before the fall
        run = pretrain_run(np.repeat([REFERENCE_LR, REFERENCE_LR / 2], [before, 50]))
        ratio = gain(late, run, [before + 50]) / gain(plain, run, [before + 50])
        # blocks of three steps put the fall of the longer run between two of them
        assert ratio[0] == pytest.approx(before**-SOURCE_POWER, rel=1e-3)


@pytest.mark.parametrize(
    ("size", "parameters"),
    [
        ("25M", (3.040, 0.525, 0.508, 363.8, 2.066, 0.583, 0.641)),
        ("100M", (2.651, 0.601, 0.453, 437.9, 2.132, 0.598, 0.655)),
        ("400M", (2.375, 0.654, 0.429, 523.4, 2.025, 0.594, 0.635)),
    ],
)
def test_multi_power_is_the_published_formula_in_raw_units(size: str, parameters: tuple[float, ...]) -> None:
    # published fits of arXiv:2503.12811 (L0, A, alpha, B, C, beta, gamma): rates as they are, areas as sums of them
    l0, a, alpha, b, c, beta, gamma = parameters
    lr = np.repeat([3e-4, 9e-5, 3e-5], [2000, 1500, 500])
    area = np.cumsum(lr)
    expected = l0 + a * area[-1] ** -alpha
    for begin, fall in ((2000, 2.1e-4), (3500, 6e-5)):
        since = area[-1] - area[begin - 1]
        expected -= b * fall * (1 - (1 + c * lr[begin] ** -gamma * since) ** -beta)
    law = MultiPowerLaw(3e-4)
    ours = np.array([alpha, c * 3e-4 ** (1 - gamma), beta, gamma])
    coefficients = np.array([l0, a * 3e-4**-alpha, b * 3e-4])
    assert (law.columns(ours, pretrain_run(lr), np.array([4000])) @ coefficients)[0] == pytest.approx(
        expected, rel=1e-10
    )
    assert 2.5 < expected < 3.7, size  # losses of such models


def test_cpt_run_is_one_schedule_with_its_pretraining() -> None:
    before, lr = wsd(50, warmup=5), wsd(20, peak=1e-3, decay=5)
    run = cpt_run(lr, 0.4, before)
    whole, behind = joint(run)
    assert behind == 50
    np.testing.assert_array_equal(whole.lr, np.concatenate([before, lr]))
    assert joint(run)[0] is whole  # its blocks are made once
    assert joint(pretrain_run(before))[1] == 0
    for law in SCHEDULE_LAWS.values():
        other = law.columns(values_of(law), pretrain_run(whole.lr), np.arange(50, 71))
        np.testing.assert_array_equal(law.columns(values_of(law), run, np.arange(21)), other)
