"""Fitting: known truth comes back, outliers do not move it, draws and selection are reproducible and honest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cptplan.curves import CurveRecord, LossCurve
from cptplan.errors import ConfigError, CurveError
from cptplan.fitting.fitted import HeldOut, draw, held_out_errors
from cptplan.fitting.select import Selection, select_law, settled_step
from cptplan.fitting.separable import predict, solve
from cptplan.fitting.store import read_fit, write_fit
from cptplan.laws.cpt import CptForm, CptLaw
from cptplan.laws.history import history_of, observations
from cptplan.mixture import ConstantMixture
from cptplan.schedule import read_schedule

PEAK = 2e-3
FORM = CptForm(amplitude="logarithmic", clock=False, free_power=False)
TRUTH = np.array([0.5, 0.08, 0.25, 20.0, 0.01])  # alpha, E, beta, forgetting_time, epsilon
COEFFICIENTS = np.array([3.0, 6.0, 0.2, 0.15, 1.5])
PRETRAIN = {"kind": "wsd", "peak_lr": PEAK, "total_steps": 600, "warmup_steps": 20, "decay_steps": 120}
CELLS = [  # peak_lr, replay, decay share, steps, parent step
    (2e-3, 0.0, 0.0, 150, 480),
    (1e-3, 0.3, 0.5, 150, 600),
    (2e-3, 0.03, 0.5, 150, 600),
    (1e-3, 0.03, 0.0, 150, 480),
    (3e-4, 0.15, 0.0, 150, 600),
    (1.5e-3, 0.6, 0.5, 150, 480),
]
LONG = (1.2e-3, 0.1, 0.3, 450, 600)


def campaign(noise: float, seed: int = 0, cells: list[tuple] = CELLS) -> dict[str, LossCurve]:
    """Curves of a known law, with relative noise on every point."""
    law, rng = CptLaw("general", PEAK, FORM), np.random.default_rng(seed)
    steps = np.unique(np.round(np.linspace(0, 1, 24) ** 2 * 600)).astype(int)
    base = LossCurve(
        name="base",
        record=CurveRecord(phase="pretrain", lr=read_schedule(PRETRAIN, "test")),
        steps=steps,
        losses={"general": np.ones(len(steps))},
    )
    curves = {"base": base}
    for number, (peak, replay, share, total, parent_step) in enumerate(cells):
        schedule = {"kind": "wsd", "peak_lr": peak, "total_steps": total, "warmup_steps": 8}
        steps = np.unique(np.round(np.linspace(0, 1, 22) ** 2 * total)).astype(int)
        curves[f"run-{number}"] = LossCurve(
            name=f"run-{number}",
            record=CurveRecord(
                phase="cpt",
                lr=read_schedule({**schedule, "decay_steps": int(share * total)}, "test"),
                replay_ratio=ConstantMixture(replay_ratio=replay),
                parent="base",
                parent_step=parent_step,
            ),
            steps=steps,
            losses={"general": np.ones(len(steps))},
        )
    for name, curve in list(curves.items()):
        loss = law.columns(TRUTH, history_of(curve, curves), curve.steps) @ COEFFICIENTS
        noisy = loss * (1 + noise * rng.standard_normal(len(loss)))
        curves[name] = LossCurve(name=name, record=curve.record, steps=curve.steps, losses={"general": noisy})
    return curves


@pytest.fixture(scope="module")
def selection() -> Selection:
    return select_law(campaign(0.003), "general", "general", num_draws=4)


def end_error(law: CptLaw, solution) -> float:
    """Relative error at the end of a run three times as long as the pilots, of settings that none of them had."""
    curves = campaign(0.0, cells=[*CELLS, LONG])
    unseen = curves[f"run-{len(CELLS)}"]
    end = np.array([unseen.total_steps])
    return float(predict(law, solution, history_of(unseen, curves), end)[0] / unseen.losses["general"][-1] - 1)


@pytest.mark.parametrize(("noise", "tolerance"), [(0.0, 0.002), (0.003, 0.01)])
def test_solve_predicts_an_unseen_long_run_of_a_known_law(noise: float, tolerance: float) -> None:
    # without noise only the weak priors pull; with 0.3 % noise three times the pilots' length stays within 1 %
    law = CptLaw("general", PEAK, FORM)
    solution = solve(law, observations(campaign(noise), "general"))
    assert abs(end_error(law, solution)) < tolerance


def test_solve_is_not_moved_by_corrupted_points() -> None:
    law, curves = CptLaw("general", PEAK, FORM), campaign(0.002)
    rng = np.random.default_rng(1)
    for curve in curves.values():
        spikes = rng.random(len(curve.steps)) < 0.05
        curve.losses["general"][spikes] *= 1.3  # type: ignore[index]
    clean = solve(law, observations(campaign(0.002), "general"))
    corrupted = solve(law, observations(curves, "general"))
    # 5 % of points 30 % too high would move a plain mean by 1.5 %
    assert abs(end_error(law, corrupted) - end_error(law, clean)) < 0.006


def test_solve_keeps_signs_and_bounds() -> None:
    law = CptLaw("domain", PEAK, CptForm())
    solution = solve(law, observations(campaign(0.01), "general"))  # the wrong side on purpose
    assert np.all(solution.coefficients[:4] >= 0)
    assert solution.coefficients[4] <= 0
    for parameter, value in zip(law.parameters, solution.values, strict=True):
        assert parameter.low <= value <= parameter.high


def test_solve_does_not_depend_on_how_often_a_curve_was_logged() -> None:
    law, curves = CptLaw("general", PEAK, FORM), campaign(0.0)
    data = observations(curves, "general")
    doubled = [
        type(d)(name=d.name, history=d.history, steps=np.repeat(d.steps, 3), loss=np.repeat(d.loss, 3)) for d in data
    ]
    assert end_error(law, solve(law, doubled)) == pytest.approx(end_error(law, solve(law, data)), abs=1e-4)


def test_select_keeps_the_form_that_misses_left_out_pilots_least(selection: Selection) -> None:
    # the curves were made with the log form and 0.3 % noise; six pilots pin it down to about 1 %
    assert selection.candidates[0].discrepancy < 0.02
    assert selection.fitted.law.name == selection.candidates[0].form
    errors = [candidate.discrepancy for candidate in selection.candidates]
    assert errors == sorted(errors)


def test_select_refuses_too_few_pilots() -> None:
    with pytest.raises(CurveError, match="at least 3 CPT curves with loss_general; got 2"):
        select_law(campaign(0.0, cells=CELLS[:2]), "general", "general")


def test_settled_step_is_four_warmups_but_not_past_a_third() -> None:
    assert settled_step(campaign(0.0)) == 32
    short = campaign(0.0, cells=[(1e-3, 0.1, 0.0, 60, 600)])
    assert settled_step(short) == 20


def test_draws_are_reproducible_and_intervals_contain_the_mean() -> None:
    curves, law = campaign(0.005), CptLaw("general", PEAK, FORM)
    data = observations(curves, "general", skip_steps=32)
    best = solve(law, data)
    held_out = held_out_errors(law, data, best)
    first, second = (draw(law, "general", data, best, held_out, num_draws=8, seed=7) for _ in range(2))
    history, steps = history_of(curves["run-1"], curves), np.array([0, 50, 150])
    band, again = first.predict(history, steps), second.predict(history, steps)
    np.testing.assert_array_equal(band.low, again.low)
    assert np.all((band.low <= band.mean) & (band.mean <= band.high))


def test_interval_grows_beyond_the_pilots() -> None:
    curves, law = campaign(0.005), CptLaw("general", PEAK, FORM)
    data = observations(curves, "general", skip_steps=32)
    best = solve(law, data)
    fitted = draw(law, "general", data, best, held_out_errors(law, data, best), num_draws=16)
    longer = campaign(0.0, cells=[(2e-3, 0.1, 0.0, total, 600) for total in (150, 600, 2400)])
    widths = []
    for number in range(3):
        curve = longer[f"run-{number}"]
        band = fitted.predict(history_of(curve, longer), np.array([curve.total_steps]))
        widths.append(float((band.high - band.low)[0] / band.mean[0]))
    assert widths[0] < widths[1] < widths[2]


def test_stored_fit_reads_back_the_same_predictions(tmp_path: Path, selection: Selection) -> None:
    curves = campaign(0.003)
    write_fit(tmp_path, "abc", {"general": selection})
    loaded = read_fit(tmp_path)["general"]
    history, steps = history_of(curves["run-0"], curves), np.array([0, 20, 150])
    before, after = selection.fitted.predict(history, steps), loaded.predict(history, steps)
    np.testing.assert_allclose([after.mean, after.low, after.high], [before.mean, before.low, before.high], rtol=1e-12)


def test_stored_fit_without_draws_is_refused(tmp_path: Path, selection: Selection) -> None:
    write_fit(tmp_path, "abc", {"general": selection})
    (tmp_path / "draws.npz").unlink()
    with pytest.raises(ConfigError, match=r"draws\.npz must hold the draws"):
        read_fit(tmp_path)


def test_discrepancy_follows_the_pilots_of_a_like_rate(selection: Selection) -> None:
    errors = {1e-4: 0.01, 1e-3: 0.03}
    held_out = tuple(
        HeldOut(curve=str(rate), peak_lr=rate, late_error=error, end_error=0.0) for rate, error in errors.items()
    )
    fitted = replace(selection.fitted, held_out=held_out)
    assert fitted.discrepancy_near(1e-4) == pytest.approx(0.01, rel=0.01)
    assert fitted.discrepancy_near(1e-3) == pytest.approx(0.03, rel=0.01)
    assert fitted.discrepancy_near(10.0) == pytest.approx(fitted.discrepancy)


def test_interval_hardly_depends_on_the_seed(selection: Selection) -> None:
    curves, steps = campaign(0.003), np.array([150])
    history = history_of(curves["run-3"], curves)
    bands = [selection.fitted.predict(history, steps, seed=seed) for seed in range(5)]
    for ends in ([band.low[0] for band in bands], [band.high[0] for band in bands]):
        # a quarter of the held-out error: with random tails of so few draws it would be about as large as the error
        assert np.ptp(ends) / np.mean(ends) < 0.25 * 1.645 * selection.fitted.discrepancy + 0.002
