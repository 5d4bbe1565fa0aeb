"""The Gaussian model of one run: calibrated on its own draws, exact against a plain normal density."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import kstest, multivariate_normal
from watch_examples import STEPS, evaluated, fitted, history, losses, models, points, record

from cptplan.fitting.fitted import Reach
from cptplan.watch.model import NUM_DRAWS, CurveModel, Points

NONE = Points(steps=np.zeros(0, dtype=np.int64), loss=np.zeros(0))
PLANNED = history(record())
AT = evaluated()
END = np.array([STEPS])


@pytest.fixture(scope="module")
def drawn():
    """Whole measured curves that the model of the domain thinks possible."""
    model = models()["domain"]
    return model, model.sample(PLANNED, NONE, PLANNED, AT, seed=5, measured=True)


def test_density_is_that_of_a_mixture_of_normals():
    model, seen = models()["general"], points(record())["general"]
    mean, spread = model._features(PLANNED, seen.steps)
    fixed = model._covariance(PLANNED, seen.steps, PLANNED, seen.steps) + model._own_noise(len(mean))
    each = [
        multivariate_normal(mean, np.outer(mean, mean) * (fixed + scale**2 * spread @ spread.T)).logpdf(seen.loss)
        for scale in model._scales()
    ]
    found = model.evidence(PLANNED, seen).log_density[-1]
    assert found == pytest.approx(logsumexp(each) - np.log(len(each)), abs=1e-6)


def test_innovations_of_its_own_draws_are_standard_normal(drawn):
    model, curves = drawn
    found = np.concatenate(
        [model.evidence(PLANNED, Points(steps=AT, loss=curve)).innovations for curve in curves[:: NUM_DRAWS // 60]]
    )
    # 60 curves of 20 points: a true normal fails this once in a thousand
    assert kstest(found, "norm").pvalue > 1e-3
    assert found.std() == pytest.approx(1.0, abs=0.06)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75])
def test_interval_of_the_end_holds_as_often_as_it_says(drawn, share):
    model, curves = drawn
    inside = []
    for curve in curves[:: NUM_DRAWS // 100]:
        seen = Points(steps=AT, loss=curve).until(int(share * STEPS)) if share else NONE
        low, high = np.percentile(model.sample(PLANNED, seen, PLANNED, END, measured=True), [5, 95])
        inside.append(low <= curve[-1] <= high)
    assert np.mean(inside) == pytest.approx(0.9, abs=0.09)  # three standard errors of 100 curves


def test_interval_shrinks_as_points_arrive():
    model, seen = models()["domain"], points(record())["domain"]
    widths = [
        np.ptp(np.percentile(model.sample(PLANNED, seen.until(step), PLANNED, END), [5, 95]))
        for step in (-1, 100, 500, 1000, 1900)
    ]
    assert all(later < earlier for earlier, later in zip(widths, widths[1:], strict=False)), widths


def test_no_points_leave_the_law_as_it_is():
    model = models()["general"]
    draws = model.sample(PLANNED, NONE, PLANNED, END)
    assert draws.shape == (NUM_DRAWS, 1)
    # odd numbers of draws leave one of a mirrored pair out
    assert draws.mean() == pytest.approx(float(model.law.mean(PLANNED, END)[0]), rel=1e-4)


def test_run_beyond_the_pilots_is_conditioned_on_its_points_within_them():
    """What the law errs with length is one direction: 0 on the early points, and theirs to narrow by what follows."""
    law, seen = fitted("domain"), points(record())["domain"]
    reach = Reach(phase="cpt", steps=STEPS // 4, doubling_error=0.02)
    far, near = CurveModel(law=replace(law, reach=reach)), CurveModel(law=law)
    early, late = seen.until(STEPS // 8), seen.until(STEPS // 2)
    width = {
        (name, when): float(np.ptp(np.percentile(model.sample(PLANNED, known, PLANNED, END)[:, 0], [5, 95])))
        for name, model in (("far", far), ("near", near))
        for when, known in (("before", NONE), ("early", early), ("late", late))
    }
    mean = far.law.mean(PLANNED, END)[0]
    assert width["near", "early"] < width["near", "before"]
    assert width["far", "early"] > 2 * 1.645 * 0.04 * mean * 0.9  # two doublings, of which nothing is seen yet
    assert width["far", "late"] < 0.5 * width["far", "early"]


def test_points_move_another_way_to_end_too():
    """What is learnt of the run holds also for what it could do instead."""
    model, seen = models()["domain"], points(record())["domain"].until(1000)
    higher = Points(steps=seen.steps, loss=seen.loss * 1.01)
    lowered = replace(PLANNED, lr=np.where(np.arange(STEPS) < 1000, PLANNED.lr, 0.5 * PLANNED.lr))
    before, after = (model.sample(PLANNED, one, lowered, END).mean() for one in (seen, higher))
    assert 1.005 < after / before < 1.011


def test_unsettled_points_are_not_used():
    model = models()["general"]
    seen = Points(steps=np.array([0, 1, 20, 39, 40, 100]), loss=np.full(6, 3.0))
    assert model.usable(seen).steps.tolist() == [0, 40, 100]


def test_a_law_without_noise_can_be_asked():
    law = replace(fitted("domain"), noise=0.0, in_sample_error=0.0, held_out=(), transient_error=0.0)
    exact = Points(steps=AT, loss=law.mean(PLANNED, AT))
    assert np.isfinite(CurveModel(law=law).evidence(PLANNED, exact).innovations).all()


def test_a_wild_fit_says_nothing_and_breaks_nothing():
    law = fitted("domain")
    wild = replace(law.left_out[0], coefficients=law.left_out[0].coefficients * 1e12)
    model = CurveModel(law=replace(law, left_out=(wild, *law.left_out[1:])))
    seen = points(record())["domain"]
    assert np.isfinite(model.evidence(PLANNED, seen).log_density).all()
    assert np.isfinite(model.sample(PLANNED, seen, PLANNED, END)).all()


def test_impossible_losses_are_a_surprise_not_an_error():
    found = models()["domain"].evidence(PLANNED, Points(steps=np.array([100, 200]), loss=np.array([2.8, 900.0])))
    assert found.innovations[-1] > 30
    assert losses(record(), np.array([100]))["domain"][0] < 4
