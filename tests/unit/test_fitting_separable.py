"""The solver: known truth comes back, outliers and dense logs do not move it, priors stay where data are blind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from fit_examples import (
    CELLS,
    DOMAIN,
    GENERAL,
    LONG,
    PEAK,
    blank_campaign,
    blank_pretraining,
    coefficients,
    measured,
    truth,
)

from cptplan.curves import LossCurve
from cptplan.fitting.select import FORMS
from cptplan.fitting.separable import HUBER_DELTA, Solution, posterior_width, predict, solve
from cptplan.laws.cpt import PUBLISHED, CptLaw
from cptplan.laws.history import Observations, observations
from cptplan.laws.pretraining import AnnealingLaw, FslLaw, MultiPowerLaw, PowerLaw
from cptplan.laws.protocol import Law

NOISE = 0.002  # relative: 0.006 nat at a loss of 3
SCHEDULE_LAWS = [
    PowerLaw(PEAK),
    AnnealingLaw(PEAK, 100.0),
    MultiPowerLaw(PEAK),
    MultiPowerLaw(PEAK, late=True),
    FslLaw(PEAK),
]
CPT_LAWS = [CptLaw(side, PEAK, form) for side in ("general", "domain") for form in (*FORMS[side], PUBLISHED)]
ALL = [*SCHEDULE_LAWS, GENERAL, DOMAIN]
of_each_kind = pytest.mark.parametrize("law", [SCHEDULE_LAWS[1], SCHEDULE_LAWS[2], GENERAL], ids=lambda law: law.name)


def curves_for(law: Law, noise: float = 0.0, seed: int = 0, points: int | None = None) -> dict[str, LossCurve]:
    """What a law of its kind is fitted to."""
    if isinstance(law, CptLaw):
        return measured(blank_campaign(points=points or 22), law, noise, seed)
    return measured(blank_pretraining(points=points or 40), law, noise, seed)


def data_for(law: Law, noise: float = 0.0, seed: int = 0, points: int | None = None) -> tuple[Observations, ...]:
    return observations(curves_for(law, noise, seed, points), "general")


@cache
def fitted(law: Law) -> Solution:
    """The fit of its noisy curves that others are compared with."""
    return solve(law, data_for(law, NOISE))


@cache
def unseen_run(law: Law) -> tuple[Observations, np.ndarray]:
    """A run three times as long as those that are fitted, and what it truly gives."""
    whole = blank_campaign([*CELLS, LONG]) if isinstance(law, CptLaw) else blank_pretraining(["unseen"])
    run = observations(measured(whole, law), "general")[-1]
    return run, run.loss


def unseen_error(law: Law, solution: Solution) -> np.ndarray:
    """Relative errors along the unseen run."""
    run, loss = unseen_run(law)
    return predict(law, solution, run.history, run.steps) / loss - 1


def shift(law: Law, one: Solution, other: Solution) -> float:
    """By how much two solutions differ along the unseen run, at most."""
    run, _ = unseen_run(law)
    curves = [predict(law, solution, run.history, run.steps) for solution in (one, other)]
    return float(np.abs(curves[0] / curves[1] - 1).max())


@pytest.mark.parametrize(("noise", "mean", "end"), [(0.0, 2e-4, 6e-4), (NOISE, 0.004, 0.008)])
@pytest.mark.parametrize("law", [*SCHEDULE_LAWS, *CPT_LAWS], ids=lambda law: f"{getattr(law, 'side', '')} {law.name}")
def test_unseen_long_run_of_a_known_law_is_predicted(law: Law, noise: float, mean: float, end: float) -> None:
    solution = solve(law, data_for(law, noise))
    error = np.abs(unseen_error(law, solution))
    # without noise only the weak priors pull (measured: 1e-4 on the mean, 3.7e-4 at the end at most); with it, measured
    # over six seeds: at most 0.15 % and 0.5 %
    assert error.mean() < mean
    assert error[-1] < end
    assert solution.converged


@pytest.mark.parametrize("law", CPT_LAWS[:1] + CPT_LAWS[4:5], ids=["general", "domain"])
@pytest.mark.parametrize("extra", ["sizes", "open_start", "repetition"])
def test_unseen_run_is_predicted_with_what_curves_call_for(law: CptLaw, extra: str) -> None:
    law = CptLaw(law.side, PEAK, replace(law.form, **{extra: True}))
    changes = {
        "sizes": [{"num_params": n} for n in (30_000_000, 60_000_000, 120_000_000, 200_000_000)],
        "open_start": [{"parent_step": None}] * 4,
        "repetition": [{"unique_tokens": n} for n in (150_000, 30_000, 60_000, 100_000)],
    }[extra]
    cells = [replace(cell, **changes[n % 3]) for n, cell in enumerate(CELLS)]
    blank = blank_campaign([*cells, replace(LONG, **changes[3])])
    if extra == "open_start":
        del blank["base"]
    *seen, _ = observations(measured(blank, law, NOISE), "general")
    unseen = observations(measured(blank, law), "general")[-1]
    error = np.abs(predict(law, solve(law, seen), unseen.history, unseen.steps) / unseen.loss - 1)
    # measured over three seeds: at most 0.3 % and 0.5 %
    assert error.mean() < 0.005
    assert error[-1] < 0.01


def test_truth_itself_is_found_when_curves_are_many_and_exact() -> None:
    law = AnnealingLaw(PEAK, 100.0)
    solution = solve(law, data_for(law, points=300))
    np.testing.assert_allclose(solution.values, truth(law), rtol=0.01)
    np.testing.assert_allclose(solution.coefficients, coefficients(law), rtol=0.01)


@pytest.mark.parametrize("law", ALL, ids=lambda law: law.name)
@pytest.mark.parametrize("factor", [1.3, 0.7])
def test_corrupted_points_do_not_move_predictions(law: Law, factor: float) -> None:
    clean = data_for(law, NOISE)
    rng = np.random.default_rng(2)
    spiked = [replace(d, loss=np.where(rng.random(len(d.loss)) < 0.05, d.loss * factor, d.loss)) for d in clean]
    assert sum(int((a.loss != b.loss).sum()) for a, b in zip(clean, spiked, strict=True)) >= 5
    # measured over seeds: 0.12 % at most anywhere along the run, where least squares moves by several percent; the two
    # gains of fsl stand in for each other, and it moves by up to 0.7 %
    assert shift(law, solve(law, spiked), fitted(law)) < (0.01 if law.name == "fsl" else 0.002)


@of_each_kind
def test_curve_does_not_count_by_how_often_it_was_logged(law: Law) -> None:
    data = data_for(law, NOISE)
    tenfold = [replace(d, steps=np.repeat(d.steps, 10), loss=np.repeat(d.loss, 10)) for d in data[1:2]]
    one = fitted(law)
    # the same points ten times: only the robust scale, a median over points, sees them; measured 1.6e-4 at most
    assert shift(law, solve(law, [data[0], *tenfold, *data[2:]]), one) < 5e-4
    # ten times as many points with noise of their own: the curve is known better, but weighs as before; measured
    # 0.4 % at most, which is what another draw of the noise does
    dense = data_for(law, NOISE, seed=50, points=220 if isinstance(law, CptLaw) else 400)
    assert shift(law, solve(law, [data[0], dense[1], *data[2:]]), one) < 0.006


@of_each_kind
def test_copied_curves_change_next_to_nothing(law: Law) -> None:
    data = data_for(law, NOISE)
    copies = [replace(d, name=f"{d.name}-copy") for d in data]
    # all twice: only the priors weigh half as much; measured 3e-4 at most
    assert shift(law, solve(law, [*data, *copies]), fitted(law)) < 1e-3


def test_solve_keeps_signs_and_bounds() -> None:
    law = CptLaw("domain", PEAK)
    solution = solve(law, data_for(GENERAL, 0.01))  # the wrong side on purpose
    assert np.all(solution.coefficients[:4] >= 0)
    assert solution.coefficients[4] <= 0
    for parameter, value in zip(law.parameters, solution.values, strict=True):
        assert parameter.low <= value <= parameter.high


def test_solve_is_reproducible_and_hardly_depends_on_its_starts() -> None:
    again, other = (solve(GENERAL, data_for(GENERAL, NOISE), seed=seed) for seed in (0, 1))
    np.testing.assert_array_equal(fitted(GENERAL).values, again.values)
    assert shift(GENERAL, again, other) < 1e-4


@pytest.mark.parametrize(("noise", "scale"), [(0.0, HUBER_DELTA), (0.005, 0.005)])
def test_scale_is_that_of_the_residuals(noise: float, scale: float) -> None:
    # 160 points less 5 parameters: a median deviation is known to 10 %; without noise the floor
    assert solve(GENERAL, data_for(GENERAL, noise)).scale == pytest.approx(scale, rel=0.25)


def width(law: Law, data: Sequence[Observations]) -> dict[str, float]:
    """Posterior width over prior width by parameter."""
    found = posterior_width(law, data, solve(law, data))
    return {p.name: sd / p.prior_sd for p, sd in zip(law.parameters, found, strict=True)}


def test_parameter_that_no_curve_sees_keeps_its_prior() -> None:
    law = AnnealingLaw(PEAK, 100.0)
    constant = observations(measured(blank_pretraining(["constant"]), law, NOISE), "general")
    blind = width(law, constant)
    assert blind["forgetting_time"] == pytest.approx(1.0, abs=1e-9)
    assert blind["alpha"] < 0.5
    solution = solve(law, constant)
    assert solution.values[1] == pytest.approx(100.0, rel=1e-6)
    assert solution.coefficients[2] == 0.0
    # curves whose rate falls tell it
    assert width(law, data_for(law, NOISE))["forgetting_time"] < 0.3


def test_gamma_of_replay_needs_more_than_one_ratio() -> None:
    law = CptLaw("domain", PEAK, FORMS["domain"][0])
    for ratios, low, high in (((0.0,) * 6, 0.999, 1.001), ((0.0, 0.3, 0.6) * 2, 0.0, 0.7)):
        cells = [replace(cell, replay=ratio) for cell, ratio in zip(CELLS, ratios, strict=True)]
        found = width(law, observations(measured(blank_campaign(cells), law, NOISE), "general"))
        assert low <= found["gamma"] <= high


def test_width_shrinks_with_curves_but_not_with_points() -> None:
    law = SCHEDULE_LAWS[1]
    few, dense = (posterior_width(law, data_for(law, NOISE, points=n), fitted(law)) for n in (40, 400))
    np.testing.assert_allclose(dense, few, rtol=0.15)
    one = observations(measured(blank_pretraining(["cosine"]), law, NOISE), "general")
    assert np.all(posterior_width(law, one, fitted(law)) > few)


@pytest.mark.parametrize("law", ALL, ids=lambda law: law.name)
def test_one_curve_is_followed(law: Law) -> None:
    points = data_for(law, NOISE)[-1]
    solution = solve(law, [points])
    error = predict(law, solution, points.history, points.steps) / points.loss - 1
    assert np.sqrt(np.mean(error**2)) < 2 * NOISE


@pytest.mark.parametrize("law", [GENERAL, FslLaw(PEAK)], ids=lambda law: law.name)
def test_fewer_points_than_parameters_are_left_to_the_priors(law: Law) -> None:
    points = data_for(law)[-1]
    few = replace(points, steps=points.steps[-3:], loss=points.loss[-3:])
    solution = solve(law, [few])
    assert np.isfinite(solution.values).all()
    assert np.isfinite(solution.coefficients).all()
    np.testing.assert_allclose(predict(law, solution, few.history, few.steps), few.loss, rtol=0.01)
    assert np.isfinite(posterior_width(law, [few], solution)).all()
