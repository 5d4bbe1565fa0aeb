"""Out-of-domain loss: the published combination comes back, and the test says no where it does not hold."""

from __future__ import annotations

import json

import numpy as np
import pytest
from third_set import CELLS, Extra, campaign, nothing

from cptplan.errors import CurveError
from cptplan.fitting.out_of_domain import fit_out_of_domain


@pytest.mark.parametrize("form", ["plain", "constant"])
def test_combination_comes_back(form: str) -> None:
    fit = fit_out_of_domain(campaign((0.4, 0.4), 0.6 if form == "constant" else 0.0), "third")
    assert fit.valid
    assert fit.form == form
    assert ("only with a constant" in fit.reason) == (form == "constant")
    # 150 points of 0.1 % noise over a change of some 0.3 nat
    assert fit.weights == pytest.approx({"general": 0.4, "domain": 0.4}, abs=0.02)
    assert fit.held_out_error < 0.0015
    assert fit.held_out_error < min(fit.unchanged_error, fit.same_as_general_error)


def test_plain_form_is_kept_when_it_holds() -> None:
    fits = [fit_out_of_domain(campaign((0.4, 0.6), noise=0.002, seed=s), "third", num_draws=5) for s in range(20)]
    # a test at 5 % that also asks for a tenth of the error: one false alarm in 20 at most
    assert sum(not fit.valid or fit.form != "plain" for fit in fits) <= 1


@pytest.mark.parametrize(
    ("extra", "weights", "constant", "noise", "reason"),
    [
        (lambda g, d, s: 0.15 * s / 20 * np.exp(1 - s / 20), (0.4, 0.6), 0.0, 0.001, "first steps follow another path"),
        (lambda g, d, s: 0.6 * s / 400, (0.4, 0.6), 0.0, 0.001, "residuals go in waves"),
        (lambda g, d, s: -1.5 * (d - 2.7) ** 2, (0.4, 0.6), 0.0, 0.001, "residuals go in waves"),
        (nothing, (0.0, 0.0), 3.0, 0.02, "unseen curves are missed by"),
        (lambda g, d, s: g - g[0], (0.0, 0.0), 3.1, 0.0, "to say that it changes as general loss does"),
    ],
    ids=["transient", "own path", "curved", "noise", "baseline"],
)
def test_no_is_said_with_a_reason(
    extra: Extra, weights: tuple[float, float], constant: float, noise: float, reason: str
) -> None:
    fit = fit_out_of_domain(campaign(weights, constant, extra=extra, noise=noise), "third", num_draws=20)
    assert not fit.valid
    assert reason in fit.reason
    assert fit.weights is None


def test_runs_that_move_alike_do_not_tell_weights_apart() -> None:
    curves = campaign((0.4, 0.6), cells=[(0.0, 1.0), (0.0, 0.8), (0.0, 1.25)])
    for curve in curves.values():
        general = curve.losses["general"]
        domain = 5.0 - 0.9 * general + 1e-3 * np.sin(curve.steps)
        curve.losses["domain"][:] = domain
        curve.losses["third"][:] = 0.6 * general + 0.4 * domain
    fit = fit_out_of_domain(curves, "third")
    assert fit.condition_number > 15
    assert fit.weights is None
    assert "too much alike" in fit.reason


def test_interval_holds_new_runs_and_extrapolation_is_said() -> None:
    inside = []
    for seed in range(20):
        fit = fit_out_of_domain(campaign((0.385, 0.622), noise=0.002, seed=seed), "third", num_draws=60)
        new = campaign((0.385, 0.622), noise=0.002, seed=100 + seed, cells=[(0.2, 0.8)])["run-0"].losses
        prediction = fit.predict(new["general"], new["domain"])
        inside.append(np.mean((prediction.low <= new["third"]) & (new["third"] <= prediction.high)))
        assert not prediction.outside
    # 500 points; a Student t offset of few curves is a little wide
    assert 0.85 < np.mean(inside) <= 1.0
    assert fit.predict([4.5], [2.4]).outside


@pytest.mark.parametrize("num_curves", [4, len(CELLS)])
def test_interval_of_the_weights_holds_the_true_ones(num_curves: int) -> None:
    held, true = [], np.array([0.622, 0.385])
    for seed in range(150):
        fit = fit_out_of_domain(campaign((0.385, 0.622), seed=seed, cells=CELLS[:num_curves]), "third")
        low, high = np.percentile(fit.draws[:, :2], [5, 95], axis=0)
        held.append((low <= true) & (true <= high))
    # 90 % of 150, two and a half standard deviations to either side; random weights of the curves held 65 %
    assert 0.84 <= np.mean(held) <= 0.96


def test_draws_of_the_two_losses_widen_the_interval() -> None:
    fit = fit_out_of_domain(campaign((0.385, 0.622)), "third")
    rng = np.random.default_rng(0)
    known = fit.sample([3.4], [2.8])
    drawn = fit.sample(3.4 + 0.05 * rng.standard_normal((200, 1)), np.full((200, 1), 2.8))
    assert known.shape == drawn.shape == (200, 1)
    assert drawn.std() > 2 * known.std()


def test_spikes_do_not_move_the_weights() -> None:
    curves = campaign((0.4, 0.6))
    rng = np.random.default_rng(1)
    for curve in curves.values():
        curve.losses["third"][rng.random(len(curve.steps)) < 0.05] *= 1.3
    fit = fit_out_of_domain(curves, "third", num_draws=20)
    # 5 % of points 30 % too high would move the level by 1.5 %
    np.testing.assert_allclose(fit.coefficients[:2] @ [3.4, 2.8], 0.6 * 3.4 + 0.4 * 2.8, rtol=0.004)


def test_points_without_all_three_sets_are_left_out_and_too_few_curves_refused() -> None:
    curves = campaign((0.4, 0.6))
    curves["run-0"].losses["third"][1::2] = np.nan
    assert fit_out_of_domain(curves, "third", num_draws=5).valid
    with pytest.raises(
        CurveError, match=r"at least 3 CPT curves must have loss_thrid, .* got 0\. .*did you mean 'third'"
    ):
        fit_out_of_domain(curves, "thrid")
    with pytest.raises(CurveError, match="got 2"):
        fit_out_of_domain({name: curves[name] for name in ("run-1", "run-2")}, "third")


def test_json_of_the_verdict() -> None:
    fit = fit_out_of_domain(campaign((0.4, 0.6)), "third", num_draws=5)
    read_back = json.loads(json.dumps(fit.to_json(), allow_nan=False))
    assert read_back["valid"] is True
    assert set(read_back["held_out"]) == {f"run-{number}" for number in range(6)}
