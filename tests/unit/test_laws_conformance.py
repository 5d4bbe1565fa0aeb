"""What holds for every law of the registry: its shape, its slopes, its spec, and its agreement with a slow twin."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from law_examples import (
    EVERY_LAW,
    REFERENCE_LR,
    RUNS,
    SCHEDULE_LAWS,
    coefficients_of,
    cpt_run,
    pretrain_run,
    steps_of,
    values_of,
    wsd,
)
from slow_laws import SOURCE_POWER, slow_loss

from cptplan.errors import ConfigError
from cptplan.laws.protocol import Law
from cptplan.laws.registry import LAWS, law_from_spec

every_law = pytest.mark.parametrize("law", EVERY_LAW.values(), ids=EVERY_LAW)
every_run = pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)


def loss(law: Law, run, steps, seed: int | None = None) -> np.ndarray:
    return law.columns(values_of(law, seed), run, np.asarray(steps)) @ coefficients_of(law)


def test_every_entry_of_the_registry_is_here() -> None:
    assert {name.partition(":")[0].removesuffix("+extras") for name in EVERY_LAW} == set(LAWS)
    assert {law.name for law in SCHEDULE_LAWS.values()} == set(LAWS) - {"cpt", "cpt-published"}
    for name, entry in LAWS.items():
        assert entry.name == name
        assert all((entry.title, entry.reference, entry.needs, entry.choose_when, entry.ignores))


@every_law
def test_spec_makes_an_equal_law(law: Law) -> None:
    spec = json.loads(json.dumps(law.spec()))
    twin = law_from_spec(spec, "test")
    assert type(twin) is type(law)
    assert twin.spec() == spec
    assert (twin.name, twin.parameters, twin.terms) == (law.name, law.parameters, law.terms)
    run = RUNS["uneven"]
    np.testing.assert_array_equal(loss(twin, run, steps_of(run)), loss(law, run, steps_of(run)))


@every_law
def test_parameters_and_terms_are_whole(law: Law) -> None:
    names = [p.name for p in law.parameters]
    assert len(set(names)) == len(names)
    for p in law.parameters:
        assert p.low < p.start < p.high
        assert p.prior_sd > 0
        assert p.meaning
        assert p.to_value(p.to_z(p.start)) == pytest.approx(p.start, rel=1e-12)
        assert p.to_value(p.to_z(p.high) + 1) == p.high
        assert p.to_value(p.to_z(max(p.low, 1e-9)) - 1) == p.low
    assert len({t.name for t in law.terms}) == len(law.terms)
    assert {t.sign for t in law.terms} <= {-1, 0, 1}
    assert [t.name for t in law.terms][:2] == ["L0", "A"]
    assert law.reference_lr == pytest.approx(REFERENCE_LR)


@every_run
@every_law
def test_columns_and_slopes_have_their_shapes_and_are_finite(law: Law, run) -> None:
    found = law.evaluate(values_of(law), run, steps_of(run))
    points = len(run.lr) + 1
    assert found.values.shape == (points, len(law.terms))
    assert found.slopes.shape == (points, len(law.terms), len(law.parameters))
    assert found.values.dtype == found.slopes.dtype == np.float64
    assert np.isfinite(found.values).all()
    assert np.isfinite(found.slopes).all()
    np.testing.assert_array_equal(law.columns(values_of(law), run, steps_of(run)), found.values)
    np.testing.assert_array_equal(found.values[:, 0], 1.0)


LONG = {  # cut in blocks: another path through the sums
    "long pretrain": pretrain_run(wsd(20_000, warmup=300, decay=6000)),
    "long cpt": cpt_run(
        wsd(9000, peak=1e-3, warmup=200, decay=3000),
        np.linspace(0.9, 0.1, 9000),
        wsd(12_000, warmup=300, decay=3000),
        np.linspace(0.0, 3.0, 9000),
    ),
}


@pytest.mark.parametrize("run", [*RUNS.values(), *LONG.values()], ids=[*RUNS, *LONG])
@every_law
def test_slopes_are_the_central_differences_of_the_columns(law: Law, run) -> None:
    values, half = values_of(law, seed=5), 1e-5
    steps = steps_of(run)[:: max(len(run.lr) // 40, 1)]
    slopes = law.evaluate(values, run, steps).slopes
    for number, parameter in enumerate(law.parameters):
        ends = []
        for z in (parameter.to_z(values[number]) - half, parameter.to_z(values[number]) + half):
            moved = values.copy()
            moved[number] = parameter.to_value(z)
            ends.append(law.columns(moved, run, steps))
        difference = (ends[1] - ends[0]) / (2 * half)
        # rounding of the columns over 2e-5, and the third derivative times 1e-10
        scale = np.abs(ends[0]).max(axis=0) + 1e-3
        np.testing.assert_array_less(
            np.abs(slopes[:, :, number] - difference), 1e-5 * np.abs(difference) + 1e-9 * scale + 1e-12
        )


@every_run
@every_law
def test_columns_agree_with_the_formula_step_by_step(law: Law, run) -> None:
    for seed in (None, 2):
        values, coefficients = values_of(law, seed), coefficients_of(law)
        steps = steps_of(run)[:: 7 if seed else 3]
        slow = [slow_loss(law, values, coefficients, run, int(step)) for step in steps]
        # some thousand float64 additions in another order; gains are differences of numbers near 1
        np.testing.assert_allclose(loss(law, run, steps, seed), slow, rtol=1e-10)


@every_law
def test_runs_of_one_step_and_rates_of_zero_have_a_loss(law: Law) -> None:
    for lr in (np.array([1e-3]), np.zeros(1), np.zeros(5)):
        for run in (pretrain_run(lr), cpt_run(lr, 0.5, wsd(10)), cpt_run(lr, 0.5), cpt_run(lr, 0.0, np.zeros(3))):
            found = law.evaluate(values_of(law), run, steps_of(run))
            assert np.isfinite(found.values).all()
            assert np.isfinite(found.slopes).all()


@every_law
def test_loss_does_not_know_what_comes_after(law: Law) -> None:
    steps = np.array([0, 1, 10, 30])
    for run in RUNS.values():
        passes = None if run.domain_passes is None else run.domain_passes[:30]
        cut = replace(run, lr=run.lr[:30], replay_ratio=run.replay_ratio[:30], domain_passes=passes)
        # passes after the last step are told from those before the last two, and the replay is uneven
        atol = 1e-12 if passes is None else 0.01
        np.testing.assert_allclose(loss(law, run, steps), loss(law, cut, steps), rtol=0, atol=atol)


@every_law
def test_loss_does_not_depend_on_where_pretraining_was_cut(law: Law) -> None:
    whole = RUNS["pretrain"]
    for at in (20, 45):  # after the warm-up
        second = pretrain_run(whole.lr[at:], whole.lr[:at])
        steps = np.arange(len(second.lr) + 1)
        np.testing.assert_allclose(loss(law, second, steps), loss(law, whole, steps + at), rtol=1e-12)


@every_law
def test_loss_starts_where_pretraining_ended(law: Law) -> None:
    before = wsd(80, warmup=8, decay=20)
    end = loss(law, pretrain_run(before), [80])
    start = loss(law, cpt_run(wsd(10), 0.2, before, num_params=4e7), [0])
    np.testing.assert_allclose(start, end, rtol=1e-12)


@every_law
def test_reference_rate_is_only_a_unit(law: Law) -> None:
    # in units of twice the rate other coefficients and paces give the same curve; areas at p = 1, since there is no
    # other coefficient for a sum of rate^p in two places
    twin = law_from_spec({**law.spec(), "reference_lr": 2 * law.reference_lr}, "test")
    p = dict(zip((p.name for p in law.parameters), values_of(law), strict=True))
    if "p" in p:
        p["p"] = 1.0
    paces = {"E": 2.0, "c4": 2.0, "S_pt": 0.5, "C": 2.0 ** (1 - p.get("gamma", 0.0))}
    gains = dict.fromkeys(("C1", "C2", "C", "c2"), 2.0) | {"c3": 2.0 ** (1 - p["alpha"]), "D": 2.0**0.5}
    gains["A"] = 1.0 if law.name == "power" else 2.0 ** -p["alpha"]
    if law.name.startswith("multi_power"):
        gains["B"] = 2.0 ** (1.0 - (SOURCE_POWER if law.name == "multi_power_late" else 0.0))
    other = coefficients_of(law) * [gains.get(term.name, 1.0) for term in law.terms]
    moved = [value * paces.get(name, 1.0) for name, value in p.items()]
    run = cpt_run(wsd(50, peak=1e-3, warmup=5, decay=15, low=1e-4), 0.1, wsd(80, warmup=8, decay=20, low=2e-4))
    first = law.columns(np.array(list(p.values())), run, steps_of(run)) @ coefficients_of(law)
    np.testing.assert_allclose(twin.columns(np.array(moved), run, steps_of(run)) @ other, first, rtol=1e-9)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"law": "anealing", "reference_lr": 1e-3}, "law must be one of .*; got 'anealing' in law.json"),
        ({"reference_lr": 1e-3}, "law must be one of .*; got None in law.json"),
        ({"law": "fsl"}, "law must be whole; got .*reference_lr.* in law.json"),
        ({"law": "annealing", "reference_lr": 1e-3, "lambda": 0.999}, "law must be whole; got .*lambda"),
    ],
)
def test_spec_that_is_not_whole_is_refused(spec, message) -> None:
    with pytest.raises(ConfigError, match=message):
        law_from_spec(spec, "law.json")
