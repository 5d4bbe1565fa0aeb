"""The CPT law in all its forms: a slow twin as judge, limits in closed form, what each switch does."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from law_examples import (
    REFERENCE_LR,
    RUNS,
    coefficients_of,
    cpt_run,
    pretrain_run,
    steps_of,
    values_of,
    wsd,
)
from slow_laws import slow_loss

from cptplan.errors import CurveError
from cptplan.laws.cpt import PUBLISHED, CptForm, CptLaw, memory_prior

SIDES = ("general", "domain")
FORMS = [
    CptForm(amplitude=amplitude, clock=clock, free_power=power)
    for amplitude, clock, power in product(("exponential", "logarithmic", "none"), (False, True), (False, True))
]
EXTRAS = CptForm(open_start=True, repetition=True, transient=True, sizes=True)
UNDO = CptForm(open_start=True, undo=True)
every_form = pytest.mark.parametrize("form", [*FORMS, EXTRAS, UNDO], ids=lambda f: f.name + "+open" * f.open_start)
every_side = pytest.mark.parametrize("side", SIDES)


def column(law: CptLaw, name: str, run, steps, **values: float) -> np.ndarray:
    """One column at the priors' centres, some parameters set."""
    p = {parameter.name: value for parameter, value in zip(law.parameters, values_of(law), strict=True)}
    assert set(values) <= set(p)
    table = law.columns(np.array(list({**p, **values}.values())), run, np.asarray(steps))
    return table[:, [term.name for term in law.terms].index(name)]


@every_side
@every_form
def test_law_agrees_with_its_formula_step_by_step(form: CptForm, side: str) -> None:
    law = CptLaw(side, REFERENCE_LR, form)
    for name, run in RUNS.items():
        if name == "open" and not form.open_start:
            continue
        values, coefficients, steps = values_of(law, seed=4), coefficients_of(law), steps_of(run)[::4]
        slow = [slow_loss(law, values, coefficients, run, int(step)) for step in steps]
        # some hundred float64 additions in another order
        np.testing.assert_allclose(law.columns(values, run, steps) @ coefficients, slow, rtol=1e-10)


@every_side
@every_form
def test_shift_begins_at_nothing_and_lies_between_nothing_and_all(form: CptForm, side: str) -> None:
    law = CptLaw(side, REFERENCE_LR, form)
    for run in (RUNS["cpt"], RUNS["uneven"], RUNS["told"]):
        shift = column(law, "B", run, steps_of(run))
        assert shift[0] == 0.0
        assert np.all((shift >= 0.0) & (shift <= 1.0))
    endless = column(law, "B", cpt_run(np.full(20, REFERENCE_LR), 0.0, wsd(10)), [20], E=100.0, beta=2.0)
    assert endless[0] == pytest.approx(1.0, abs=1e-6)  # (1 + 100 x 20)^-2 is left
    pretraining = RUNS["pretrain"]
    assert not column(law, "B", pretraining, steps_of(pretraining)).any()


@every_side
@every_form
def test_shift_is_nothing_at_full_replay(form: CptForm, side: str) -> None:
    law = CptLaw(side, REFERENCE_LR, form)
    full = cpt_run(np.full(20, 1e-3), 1.0, np.full(10, 1e-3))
    shift = column(law, "B", full, np.arange(21))
    if form.amplitude == "none" and not form.clock:
        assert shift[20] > 0  # the one form that does not know replay
    else:
        np.testing.assert_allclose(shift, 0.0, atol=1e-12)


@pytest.mark.parametrize("form", [f for f in FORMS if f.clock or f.amplitude != "none"], ids=lambda f: f.name)
@every_side
def test_more_replay_weakens_the_shift_down_to_half_a_percent(form: CptForm, side: str) -> None:
    law = CptLaw(side, REFERENCE_LR, form)
    shifts = [
        column(law, "B", cpt_run(np.full(50, 1e-3), ratio, np.full(10, 1e-3)), [50])[0]
        for ratio in (0.0, 0.005, 0.01, 0.05, 0.3, 0.7, 0.99, 1.0)
    ]
    assert np.all(np.diff(shifts) < 0)


def test_replay_factors_are_the_published_ones_in_the_corrected_orientation() -> None:
    # general: convex in the domain share (paper's own fits at 67, 50 and 33 % replay); domain: concave
    shares = np.array([0.33, 0.5, 0.67])
    for side, a, expected in (
        ("general", 3.238, np.expm1(3.238 * shares) / np.expm1(3.238)),
        ("domain", 5.696, np.expm1(-5.696 * shares) / np.expm1(-5.696)),
    ):
        law = CptLaw(side, REFERENCE_LR, PUBLISHED)
        runs = [cpt_run(np.full(30, 1e-3), 1.0 - share, wsd(10)) for share in (*shares, 1.0)]
        shifts = np.array([column(law, "B", run, [30], a=a)[0] for run in runs])
        np.testing.assert_allclose(shifts[:3] / shifts[3], expected, rtol=1e-12)
    assert (np.expm1(3.238 * 0.5) / np.expm1(3.238)) == pytest.approx(0.165, abs=5e-4)  # laws table: 0.078 0.165 0.317


def test_small_replay_form_is_the_logarithm() -> None:
    law = CptLaw("general", REFERENCE_LR, CptForm(clock=False, free_power=False))
    full, one = (column(law, "B", cpt_run(np.full(9, 1e-3), r, wsd(5)), [9], epsilon=3.8e-5)[0] for r in (0.0, 0.01))
    # published tables (German, arXiv:2403.08763): the first percent of replay removes half of the forgetting
    assert one / full == pytest.approx(
        np.log((1 + 3.8e-5) / (0.01 + 3.8e-5)) / np.log((1 + 3.8e-5) / 3.8e-5), rel=1e-12
    )
    assert one / full == pytest.approx(0.45, abs=0.01)


@every_side
@pytest.mark.parametrize("form", [PUBLISHED, CptForm(), CptForm(amplitude="none")], ids=lambda f: f.name)
def test_replay_that_changes_is_followed_step_by_step(form: CptForm, side: str) -> None:
    law, lr, before = CptLaw(side, REFERENCE_LR, form), np.full(40, 1e-3), wsd(20)
    early, late = np.repeat([0.0, 0.6], 20), np.repeat([0.6, 0.0], 20)
    first = column(law, "B", cpt_run(lr, early, before), np.arange(41))
    second = column(law, "B", cpt_run(lr, late, before), np.arange(41))
    constant = column(law, "B", cpt_run(lr, 0.0, before), np.arange(41))
    np.testing.assert_allclose(first[:21], constant[:21], rtol=1e-12)  # as if the change never came
    assert np.all(first[1:21] > second[1:21])
    # at a constant rate the order of the shares no longer matters once all are in
    assert first[-1] == pytest.approx(second[-1], rel=1e-12)


def test_clock_runs_at_a_power_of_the_domain_share() -> None:
    law = CptLaw("domain", REFERENCE_LR, CptForm(amplitude="none", free_power=False))
    replayed = column(law, "B", cpt_run(np.full(80, REFERENCE_LR), 0.75, wsd(5)), [80], gamma=0.5)
    fresh = column(law, "B", cpt_run(np.full(80, REFERENCE_LR), 0.0, wsd(5)), [40], gamma=0.5)
    assert replayed[0] == pytest.approx(fresh[0], rel=1e-12)  # 0.25^0.5: twice the steps


@every_side
def test_without_shift_the_law_is_that_of_one_schedule(side: str) -> None:
    # C1 = C2 and B = 0: CPT is pre-training that goes on, its re-warm-up counted as a rise in both
    law = CptLaw(side, REFERENCE_LR, CptForm())
    coefficients = coefficients_of(law)
    coefficients[[2, 3, 4]] = [0.3, 0.3, 0.0]
    before, lr = wsd(60, warmup=5, decay=20, low=2e-4), wsd(30, peak=8e-4, warmup=6, decay=10)
    steps = np.arange(31)
    whole = law.columns(values_of(law), pretrain_run(np.concatenate([before, lr])), steps + 60) @ coefficients
    parts = law.columns(values_of(law), cpt_run(lr, 0.3, before), steps) @ coefficients
    np.testing.assert_allclose(parts, whole, rtol=1e-12)


def test_a_rise_of_the_rate_costs_and_a_fall_pays() -> None:
    law, before = CptLaw("general", REFERENCE_LR), np.full(20, 1e-3)
    up, same, down = (
        column(law, "C2", cpt_run(np.full(200, rate), 0.0, before), [200])[0] for rate in (1.5e-3, 1e-3, 5e-4)
    )
    # the columns are subtracted: -1 x the gain; after 200 steps at a memory of 20 all but e^-10 is paid
    assert (up, same, down) == (pytest.approx(0.25, rel=1e-4), 0.0, pytest.approx(-0.25, rel=1e-4))


def test_annealing_of_pretraining_goes_on_paying() -> None:
    law = CptLaw("general", REFERENCE_LR)
    before = np.concatenate([np.full(30, REFERENCE_LR), np.zeros(1)])
    gain = -column(law, "C1", cpt_run(np.zeros(300), 0.0, before), [0, 20, 300], forgetting_time=20.0)
    lam = 1 - 1 / 20
    np.testing.assert_allclose(gain, [1 - lam, 1 - lam**21, 1 - lam**301], rtol=1e-12)


def test_open_start_adds_the_unknown_area() -> None:
    law = CptLaw("general", REFERENCE_LR, CptForm(open_start=True, free_power=False))
    base = column(law, "A", cpt_run(np.full(5, REFERENCE_LR)), [0, 5], S_pt=700.0)
    np.testing.assert_allclose(base, [700**-0.5, 705**-0.5], rtol=1e-12)
    # a pre-training that is known has its own area, also under this form
    known = column(law, "A", cpt_run(np.full(5, REFERENCE_LR), before=np.full(100, 1e-3)), [0, 5], S_pt=700.0)
    np.testing.assert_allclose(known, [50**-0.5, 55**-0.5], rtol=1e-12)
    # so has one whose area is told
    told = replace(cpt_run(np.full(5, REFERENCE_LR)), known_area=0.4)
    np.testing.assert_allclose(column(law, "A", told, [0, 5], S_pt=700.0), [200**-0.5, 205**-0.5], rtol=1e-12)


def test_unknown_pretraining_is_taken_as_annealed_unless_its_last_rate_is_told() -> None:
    law = CptLaw("general", REFERENCE_LR, CptForm(open_start=True))
    run = cpt_run(np.full(400, 1e-3))
    assert column(law, "C2", run, [400])[0] == pytest.approx(0.5, rel=1e-6)  # the rate rose from 0
    assert column(law, "C2", replace(run, last_lr=1e-3), [400])[0] == 0.0
    assert not column(law, "C1", run, [0, 400]).any()


def test_rewarming_undoes_the_annealing_of_pretraining() -> None:
    """With undo, runs of one peak from before and after a decay end alike, but for the steps of the decay itself."""
    law = CptLaw("general", REFERENCE_LR, CptForm(undo=True))
    lr, values = wsd(3000, warmup=20, decay=500), {"forgetting_time": 20.0}
    for before in (wsd(400), wsd(400, decay=100), wsd(400, decay=100, low=1e-4)):
        run = cpt_run(lr, 0.2, before)
        # pre-training's peak is this run's: all of its gain is gone when the peak is reached
        assert column(law, "C1", run, [2400], **values)[0] == pytest.approx(0.0, abs=1e-9)
        assert column(law, "C2", run, [2400], **values)[0] == pytest.approx(0.0, abs=1e-9)
        assert column(law, "C2", run, [3000], **values)[0] == pytest.approx(-1.0, rel=0.05)  # the end's decay alone


def test_transient_jumps_with_the_rate_and_the_share_and_relaxes() -> None:
    law = CptLaw("general", REFERENCE_LR, CptForm(transient=True))
    assert "D" not in {term.name for term in CptLaw("domain", REFERENCE_LR, CptForm(transient=True)).terms}
    run = cpt_run(np.full(400, 5e-4), 0.3, wsd(10))
    jump = column(law, "D", run, np.arange(401), T=20.0)
    assert jump[0] == 0.0
    np.testing.assert_allclose(jump[1:141], np.sqrt(0.25) * 0.7 * np.exp(-np.arange(1, 141) / 20), rtol=1e-12)
    assert not jump[141:].any()  # past 7 T: points that see a thousandth of it must not say how large it was
    assert not column(law, "D", RUNS["pretrain"], steps_of(RUNS["pretrain"])).any()


def test_repeated_tokens_count_less_and_may_harm_on_the_domain_alone() -> None:
    assert "R" not in {p.name for p in CptLaw("general", REFERENCE_LR, CptForm(repetition=True)).parameters}
    law = CptLaw("domain", REFERENCE_LR, CptForm(amplitude="none", free_power=False, repetition=True))
    lr, before, steps = np.full(100, REFERENCE_LR), wsd(10), np.arange(101)
    fresh, once = (
        cpt_run(lr, 0.0, before, passes)
        for passes in (None, np.arange(100) / 100)  # one pass is fresh all through
    )
    four = cpt_run(lr, 0.0, before, np.arange(100) / 25)
    shift = {
        name: column(law, "B", run, steps, R=2.0) for name, run in (("fresh", fresh), ("once", once), ("four", four))
    }
    np.testing.assert_array_equal(shift["once"], shift["fresh"])
    np.testing.assert_array_equal(shift["four"][:26], shift["fresh"][:26])
    assert np.all(shift["four"][27:] < shift["fresh"][27:])
    # hardly any token loses worth when R is large
    np.testing.assert_allclose(column(law, "B", four, steps, R=300.0), shift["fresh"], rtol=2e-3)
    harm = column(law, "O", four, steps)
    assert not harm[:26].any()
    assert harm[100] == pytest.approx(3.0**2, rel=1e-12)  # three passes beyond the first
    assert not column(law, "O", once, steps).any()


def test_effective_tokens_are_the_published_ones() -> None:
    # arXiv:2305.16264 with R = 15.39: four epochs are worth 3.73 of fresh data; here as the area of the clock, by the
    # step of fresh data with the same shift
    law = CptLaw("domain", REFERENCE_LR, CptForm(amplitude="none", free_power=False, repetition=True))
    four = cpt_run(np.full(4000, REFERENCE_LR), 0.0, wsd(10), np.arange(4000) / 1000)
    fresh = cpt_run(np.full(4000, REFERENCE_LR), 0.0, wsd(10))
    shift = column(law, "B", four, [4000], R=15.39)
    steps = np.arange(3700, 3801)
    found = np.interp(shift[0], column(law, "B", fresh, steps, R=15.39), steps)
    assert found / 1000 == pytest.approx(1 + 15.39 * (1 - np.exp(-3 / 15.39)), abs=1e-3)
    assert found / 1000 == pytest.approx(3.73, abs=0.005)


def test_size_scales_annealing_and_base_and_must_be_known() -> None:
    law = CptLaw("general", REFERENCE_LR, CptForm(free_power=False, sizes=True))
    small, large = (replace(RUNS["cpt"], num_params=n * 1e6) for n in (100, 800))
    steps = steps_of(small)[1:]
    for name, power in (("C1", 0.3), ("C2", 0.2)):
        values = {"g1": 0.3, "g2": 0.2}
        ratio = column(law, name, large, steps, **values) / column(law, name, small, steps, **values)
        np.testing.assert_allclose(ratio, 8**power, rtol=1e-12)
    np.testing.assert_allclose(column(law, "F", large, steps, g3=0.19), 800**-0.19, rtol=1e-12)
    np.testing.assert_array_equal(column(law, "B", large, steps), column(law, "B", small, steps))
    with pytest.raises(CurveError, match="num_params must be known for a law of several sizes"):
        column(law, "F", replace(small, num_params=None), steps)


@pytest.mark.parametrize(("steps", "memory"), [(40_000, 1000.0), (2_000, 50.0), (10, 10.0), (10**7, 1000.0)])
def test_memory_prior_is_a_fortieth_of_the_steps(steps: int, memory: float) -> None:
    assert memory_prior(steps) == memory
    law = CptLaw("general", REFERENCE_LR, memory_steps=memory)
    assert {p.name: p.start for p in law.parameters}["forgetting_time"] == memory


def test_names_of_forms() -> None:
    assert PUBLISHED.name == "published"
    assert CptForm().name == "log+clock+power"
    assert CptForm(amplitude="none").name == "clock+power"
    assert CptForm(amplitude="exponential", free_power=False).name == "exp+clock"
    assert EXTRAS.name == "log+clock+power+transient+repetition+sizes"
    assert CptForm(amplitude="none", clock=False, free_power=False).name == "plain"
