"""The published parameter sets as our law predicts them, against the printed formula written out as it stands.

Source of the parameters: arXiv:2505.07796, figures 3, 11, 12, 15, 16 and appendix G (see
cptplan/simulation/published.yaml). The oracles for given areas, the loss-potential table and the re-warmed cosine were
worked out by hand from the printed formulas and parameters of figures 3 and 11, outside of this package.
"""

from __future__ import annotations

import numpy as np
import pytest

from cptplan.laws.history import RunHistory
from cptplan.schedule import read_schedule
from cptplan.simulation.published import PublishedSet, find_published, read_published

PEAK = 2e-4
PRETRAIN = {
    "wsd": {"kind": "wsd", "peak_lr": PEAK, "total_steps": 4000, "decay_steps": 800},
    "cosine": {"kind": "cosine", "peak_lr": PEAK, "total_steps": 3500, "warmup_steps": 500, "min_lr": 2e-5},
    "constant": {"kind": "constant", "peak_lr": PEAK, "total_steps": 3000},
}
CPT = {
    "wsd": {"kind": "wsd", "peak_lr": PEAK, "total_steps": 4000, "decay_steps": 2000, "warmup_steps": 500},
    "cosine": {"kind": "cosine", "peak_lr": 1e-4, "total_steps": 3000, "warmup_steps": 100},
    "no re-warm": {"kind": "linear", "peak_lr": 2e-5, "total_steps": 3000},
    "re-warm to a tenth": {"kind": "cosine", "peak_lr": 2e-5, "total_steps": 4000, "warmup_steps": 1000},
}
FITTED_ALONE = [name for name in read_published() if name != "knowledge-pile-sizes"]


def rates(schedule: dict[str, object]) -> np.ndarray:
    return read_schedule(schedule, "test").lr()


def run(pretrain: np.ndarray, cpt: np.ndarray, replay: float = 0.0, *, known: bool = True) -> RunHistory:
    return RunHistory(
        phase="cpt",
        pretrain_lr=pretrain if known else np.zeros(0),
        pretrain_known=known,
        lr=cpt,
        replay_ratio=np.full(len(cpt), replay),
    )


def predicted(source: PublishedSet, side: str, history: RunHistory, steps: list[int], **options) -> np.ndarray:
    return source.laws(**options)[side].mean(history, np.array(steps))


def annealing(lr: np.ndarray, previous: float, later: int, decay: float, first: int = 0) -> float:
    """S2 of the rates, `later` steps after the last of them: each fall by itself, as in the closed form of eq. 1."""
    total = 0.0
    for step, now in enumerate(lr):
        before = lr[step - 1] if step else previous
        if before != now and step >= first:
            total += (before - now) * (1 - decay ** (len(lr) - step + later)) / (1 - decay)
    return total


def printed(source: PublishedSet, side: str, history: RunHistory, step: int) -> float:
    """Eq. 4 with the printed numbers and raw areas; S2 of pre-training goes on relaxing; its warm-up does not count."""
    p, decay = getattr(source, side), source.annealing_decay
    before, own = history.pretrain_lr, history.lr[:step]
    s2_pretrain = 0.0
    if len(before):
        s2_pretrain = annealing(before, before[0], step, decay, first=int(np.argmax(before)) + 1)
    s2_cpt = annealing(own, history.previous_lr, 0, decay)
    area = before.sum() + own.sum() + (p.S_pt or 0.0)
    shift = p.B * (1 - (1 + p.E * own.sum()) ** -p.beta)
    return float(p.L0 + p.A * area**-p.alpha - p.C1 * s2_pretrain - p.C2 * s2_cpt + shift)


# (7.2, 0, 0.18, 0) and so on are reached exactly by steps that are long against the memory of 1,000
@pytest.mark.parametrize(
    ("pretrain", "cpt", "step", "general", "domain"),
    [
        ([(PEAK, 30_000)], [(PEAK, 1)], 0, 3.25812, 3.14649),
        ([(PEAK, 32_000), (0.1 * PEAK, 40_000)], [(PEAK, 1)], 0, 3.18688, 3.08222),
        ([(PEAK, 36_000), (0.0, 40_000)], [(0.05 * PEAK, 100_000)], 100_000, 3.34470, 2.59337),
        ([(PEAK, 30_000)], [(0.25 * PEAK, 40_000)], 40_000, 3.38217, 2.58066),
        ([(PEAK, 40_000), (0.0, 40_000)], [(0.25 * PEAK, 80_000)], 80_000, 3.37083, 2.54925),
    ],
    ids=["(6,0,0,0)", "(7.2,0,.18,0)", "(7.2,1,.2,-.01)", "(6,2,0,.15)", "(8,4,.2,-.05)"],
)
def test_knowledge_pile_at_given_areas(pretrain, cpt, step, general, domain) -> None:
    pieces = [np.concatenate([np.full(steps, lr) for lr, steps in part]) for part in (pretrain, cpt)]
    source, history = find_published("knowledge-pile"), run(*pieces)
    for side, expected in (("general", general), ("domain", domain)):
        # 1e-5: the oracle has five digits
        assert predicted(source, side, history, [step])[0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("side", ["general", "domain"])
@pytest.mark.parametrize(
    ("pretrain", "cpt"),
    [
        ("wsd", "wsd"),
        ("cosine", "cosine"),
        ("wsd", "no re-warm"),
        ("cosine", "re-warm to a tenth"),
        ("constant", "no re-warm"),
    ],
)
@pytest.mark.parametrize("name", ["knowledge-pile", "pile-of-law", "knowledge-pile-594m"])
def test_law_is_the_printed_formula_along_schedules(name, pretrain, cpt, side) -> None:
    source, history = find_published(name), run(rates(PRETRAIN[pretrain]), rates(CPT[cpt]))
    steps = [0, 1, 30, 700, len(history.lr) // 2, len(history.lr)]
    expected = [printed(source, side, history, step) for step in steps]
    # schedules this short are summed step by step: only rounding is left
    np.testing.assert_allclose(predicted(source, side, history, steps), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("side", ["general", "domain"])
def test_law_is_the_printed_formula_after_a_long_pretraining(side) -> None:
    source = find_published("knowledge-pile")
    history = run(source.pretrain_record().lr.lr(), rates(CPT["wsd"]))
    steps = [0, 1, 700, 4000]
    expected = [printed(source, side, history, step) for step in steps]
    # 1e-5: a schedule of 40,000 steps is summed in blocks of ten
    np.testing.assert_allclose(predicted(source, side, history, steps), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", ["general", "domain"])
@pytest.mark.parametrize("name", FITTED_ALONE)
def test_every_set_is_its_printed_formula(name, side) -> None:
    source = find_published(name)
    history = run(
        rates(PRETRAIN["cosine"]),
        rates(CPT["cosine"]) * source.peak_lr / PEAK,
        source.replay_ratio or 0.0,
        known=source.pretrain is not None,
    )
    steps = [0, 200, 3000]
    expected = [printed(source, side, history, step) for step in steps]
    np.testing.assert_allclose(predicted(source, side, history, steps), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("side", ["general", "domain"])
@pytest.mark.parametrize("millions", [106, 594, 1720])
def test_size_form_is_the_printed_formula_and_meets_the_single_fits(millions, side) -> None:
    source = find_published("knowledge-pile-sizes")
    history, p = run(rates(PRETRAIN["wsd"]), rates(CPT["wsd"])), getattr(source, side)
    n = float(millions)
    written_out = p.model_copy(
        update={"L0": p.L0 + p.F * n**-p.g3, "C1": p.C1 * n**p.g1, "C2": p.C2 * n**p.g2, "F": None}
    )
    expected = printed(source.model_copy(update={side: written_out}), side, history, 4000)
    found = predicted(source, side, history, [4000], num_params=millions * 10**6)[0]
    assert found == pytest.approx(expected, abs=1e-9)
    single = find_published({106: "knowledge-pile", 594: "knowledge-pile-594m", 1720: "knowledge-pile-1720m"}[millions])
    # measured: the joint fit stays within 0.05 nat of the single ones; N in another unit than millions misses by a nat
    assert found == pytest.approx(predicted(single, side, history, [4000])[0], abs=0.06)


@pytest.mark.parametrize(
    ("name", "peak_lr", "general", "domain"),
    [
        ("knowledge-pile", 2e-4, 0.156, -0.490),
        ("knowledge-pile", 2e-5, 0.073, -0.410),
        ("pile-of-law", 2e-4, 0.815, -1.266),
        ("pile-of-law", 2e-5, 0.443, -1.052),
    ],
)
def test_change_of_loss_over_a_rewarmed_cosine(name, peak_lr, general, domain) -> None:
    cpt = {"kind": "cosine", "peak_lr": peak_lr, "total_steps": 10_000, "warmup_steps": 500}
    history = run(find_published(name).pretrain_record().lr.lr(), rates(cpt))
    for side, expected in (("general", general), ("domain", domain)):
        start, end = predicted(find_published(name), side, history, [0, 10_000])
        assert end - start == pytest.approx(expected, abs=0.001)  # three digits were written down


@pytest.mark.parametrize(
    ("loss_potential", "cpt_steps", "general", "domain"),
    [
        (0.1, 20_000, 3.288, 2.646),
        (0.3, 20_000, 3.326, 2.604),
        (0.5, 20_000, 3.339, 2.584),
        (1.0, 20_000, 3.352, 2.554),
        (0.1, 50_000, None, 2.613),
        (0.3, 50_000, None, 2.571),
        (0.5, 50_000, None, 2.550),
        (1.0, 50_000, None, 2.516),
    ],
)
def test_loss_potential_without_rewarming(loss_potential, cpt_steps, general, domain) -> None:
    source = find_published("knowledge-pile")
    cpt = {"kind": "linear", "peak_lr": loss_potential * PEAK, "total_steps": cpt_steps}
    history = run(source.pretrain_record(loss_potential).lr.lr(), rates(cpt))
    for side, expected in (("general", general), ("domain", domain)):
        if expected is not None:
            assert predicted(source, side, history, [cpt_steps])[0] == pytest.approx(expected, abs=0.001)


def test_loss_potential_is_worth_little_when_the_rate_warms_up_again() -> None:
    source = find_published("knowledge-pile")
    cpt = rates({"kind": "linear", "peak_lr": 0.1 * PEAK, "total_steps": 20_000, "warmup_steps": 1000})
    starts = [run(source.pretrain_record(potential).lr.lr(), cpt) for potential in (0.0, 1.0)]
    annealed, stable = (predicted(source, "domain", history, [20_000])[0] for history in starts)
    assert (annealed, stable) == (pytest.approx(2.648, abs=0.001), pytest.approx(2.631, abs=0.001))
    annealed, stable = (predicted(source, "general", history, [20_000])[0] for history in starts)
    assert annealed - stable == pytest.approx(0.009, abs=0.001)


@pytest.mark.parametrize(
    ("name", "general", "domain"),
    [
        ("knowledge-pile", 0.208, -0.505),
        ("knowledge-pile-594m", 0.166, -0.472),
        ("knowledge-pile-1720m", 0.197, -0.470),
    ],
)
def test_shift_at_one_area_is_alike_for_all_sizes(name, general, domain) -> None:
    # constant rate from a constant pre-training: nothing but base and shift change, and the base is the same on both
    # sides of the difference to a law without shift
    source = find_published(name)
    history = run(np.full(10_000, PEAK), np.full(15_000, PEAK))
    for side, expected in (("general", general), ("domain", domain)):
        p = getattr(source, side)
        base = p.L0 + p.A * 5.0**-p.alpha  # S1 = 2 + 3
        assert predicted(source, side, history, [15_000])[0] - base == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize(
    ("name", "asymptote", "start", "comes_back"),
    [("knowledge-pile", 3.423, 3.188, False), ("knowledge-pile-replay-67", 3.174, 3.189, True)],
)
def test_general_loss_comes_back_only_from_above_the_critical_point(name, asymptote, start, comes_back) -> None:
    source = find_published(name)
    critical_point = source.general.L0 + source.general.B
    assert critical_point == pytest.approx(asymptote, abs=1e-9)
    # S2 = 0.175 by the schedule of 40,000 steps; the oracle's start rounds it to 0.18
    history = run(
        source.pretrain_record().lr.lr(),
        np.full(1_000_000, PEAK),
        source.replay_ratio or 0.0,
    )
    curve = predicted(source, "general", history, [0, 1_000_000])
    assert curve[0] == pytest.approx(start, abs=0.002)
    # S2_cpt is -0.2 in the end, the rate having risen from 0 for good; the critical point is drawn without it
    assert (curve[1] - source.general.C2 * 0.2 < curve[0]) == comes_back


@pytest.mark.parametrize(
    ("replay_percent", "general", "domain"), [(67, 0.109, 0.844), (50, 0.194, 0.899), (33, 0.308, 0.941)]
)
def test_replay_acts_the_other_way_round_than_printed(replay_percent, general, domain) -> None:
    # experiments/02_replay_orientation: shift at S1 = 3 over the one without replay, fitted ratio by ratio
    whole, own = find_published("knowledge-pile"), find_published(f"knowledge-pile-replay-{replay_percent}")
    for side, expected in (("general", general), ("domain", domain)):
        shifts = [p.B * (1 - (1 + p.E * 3.0) ** -p.beta) for p in (getattr(own, side), getattr(whole, side))]
        assert shifts[0] / shifts[1] == pytest.approx(expected, abs=6e-4)
        law = whole.laws()[side]
        mixed = [run(np.full(100, PEAK), np.full(15_000, PEAK), r) for r in (replay_percent / 100, 0.0, 1.0)]
        mixed_end, whole_end, none_end = (law.mean(history, np.array([15_000]))[0] for history in mixed)
        # measured: the swapped exponential is within 0.05 of the fits; as printed it is off by 0.6 and 0.8
        assert (mixed_end - none_end) / (whole_end - none_end) == pytest.approx(expected, abs=0.05)
