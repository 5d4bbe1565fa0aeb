from __future__ import annotations

import json

import numpy as np
import pytest
from report_example import example_report

from cptplan.errors import ConfigError
from cptplan.report.data import (
    MAX_DRAWN_POINTS,
    FitParameter,
    FitRow,
    FormRow,
    OutcomeRow,
    ReportData,
    RunView,
    SetCurve,
    as_cells,
    thin_lr,
)
from cptplan.report.plan_data import InsteadRow, Surface


@pytest.mark.parametrize("measured", [True, False])
def test_report_survives_json(measured):
    data = example_report(measured=measured)
    assert ReportData.from_json(json.loads(json.dumps(data.to_json(), allow_nan=False))) == data


def test_empty_report_survives_json():
    data = ReportData(title="empty", verdict=())
    assert ReportData.from_json(data.to_json()) == data


def test_none_fields_survive_json():
    form = FormRow(form="a", weight=1.0, in_sample_error=0.1, held_out_error=0.2)
    fit = FitRow(set_name="general", law="a", parameters=(FitParameter(name="B", value=1.0),), forms=(form,))
    read = ReportData.from_json(ReportData(title="t", verdict=("v",), fits=(fit,)).to_json())
    assert read.account is None
    assert read.fits[0].parameters[0].high is None


@pytest.mark.parametrize(
    ("low", "high", "said"), [(0.1, 0.2, "worse"), (-0.2, -0.1, "better"), (-0.1, 0.1, "cannot tell")]
)
def test_other_run_is_judged_by_its_interval(low, high, said):
    row = InsteadRow(
        name="a", peak_lr=1e-3, replay_ratio="1%", steps=1, decay="none", start="s", difference=0.0, low=low, high=high
    )
    assert row.verdict == said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"titel": "x"}, "titel"),
        ({"title": 3}, "title"),
        ({"schema_version": 1}, "schema_version"),
        ({"compute": [{"stage": "a", "seconds": float("nan"), "tokens": 1, "flops": 1}]}, "seconds"),
        ({"costs": [{"what": "a", "value": "1", "unit": "", "provenance": "guessed"}]}, "provenance"),
        ({"outcomes": [{"run": "gone", "quantity": "q", "predicted": 1, "low": 1, "high": 1}]}, "gone"),
    ],
)
def test_from_json_refuses_what_breaks_a_rule(change, message):
    values = ReportData(title="t", verdict=()).to_json()
    with pytest.raises(ConfigError, match=message):
        ReportData.from_json({**values, **change})


def test_set_curve_leaves_out_what_was_not_evaluated():
    curve = SetCurve.of("general", measured=([0, 5, 10], [3.0, np.nan, 2.5]))
    assert curve.measured_steps == (0.0, 10.0)
    assert curve.measured_losses == (3.0, 2.5)


def test_set_curve_thins_a_long_prediction_but_keeps_the_measured_steps():
    steps = np.arange(10_001)
    mean = 3.0 - steps / 1e4
    measured = np.array([0, 7777, 9999])
    curve = SetCurve.of("domain", measured=(measured, mean[measured]), predicted=(steps, mean, mean - 0.1, mean + 0.1))
    assert len(curve.predicted_steps) <= MAX_DRAWN_POINTS
    assert curve.predicted_steps[0] == 0
    assert curve.predicted_steps[-1] == 10_000
    at, low, high = curve.predicted_at(measured)
    np.testing.assert_allclose(at, mean[measured], rtol=0, atol=1e-12)  # kept points: rounding only
    np.testing.assert_allclose(high - low, 0.2, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "columns",
    [
        {"measured": ([0, 1], [3.0])},
        {"predicted": ([0, 1], [3.0, 2.0], [2.0, 1.0], [4.0])},
    ],
)
def test_set_curve_refuses_columns_of_different_length(columns):
    with pytest.raises(ConfigError, match="one length"):
        SetCurve.of("general", **columns)


@pytest.mark.parametrize(
    ("measured", "inside"), [(None, None), (3.0, True), (2.9, True), (3.1, True), (2.89, False), (3.11, False)]
)
def test_outcome_knows_whether_it_came_out_inside(measured, inside):
    row = OutcomeRow(run="a", quantity="loss_general", predicted=3.0, low=2.9, high=3.1, measured=measured)
    assert row.inside is inside


def test_thin_lr_keeps_short_schedules_whole():
    steps, lr = thin_lr([0.1, 0.2, 0.3])
    assert steps == (1.0, 2.0, 3.0)
    assert lr == (0.1, 0.2, 0.3)


def test_thin_lr_keeps_ends_peak_and_kinks_of_long_ones():
    lr = np.concatenate([np.linspace(1e-5, 1e-3, 137), np.full(9000, 1e-3), np.linspace(1e-3, 0, 863)])
    steps, rates = thin_lr(lr)
    assert len(steps) <= MAX_DRAWN_POINTS
    assert (steps[0], steps[-1]) == (1.0, len(lr))
    drawn = np.interp(np.arange(1, len(lr) + 1), steps, rates)
    # piecewise linear with its kinks kept: the drawn line is the schedule but for one cut corner of a step
    np.testing.assert_allclose(drawn, lr, rtol=0, atol=2e-5)


def test_thin_lr_of_nothing_is_nothing():
    assert thin_lr([]) == ((), ())


def test_surface_cells_without_a_plan_are_none():
    cells = as_cells([[1.0, np.nan], [np.inf, 2.0]])
    assert cells == ((1.0, None), (None, 2.0))


@pytest.mark.parametrize(
    "change", [{"peak_lrs": (1e-3,)}, {"peak_lrs": (0.0, 1e-3)}, {"objective": ((1.0,), (2.0,))}, {"objective": ()}]
)
def test_surface_refuses_a_wrong_shape(change):
    good = {"peak_lrs": (1e-4, 1e-3), "replay_ratios": (0.0, 0.5), "objective": ((1.0, 2.0), (3.0, 4.0))}
    Surface(**good)
    with pytest.raises(ConfigError):
        Surface(**{**good, **change})


def test_report_refuses_two_runs_of_one_name():
    run = RunView(name="a", label="a", role="pilot", peak_lr=1e-3, total_steps=1, batch_tokens=1, replay_ratio="0%")
    with pytest.raises(ConfigError, match="different names"):
        ReportData(title="t", verdict=(), runs=(run, run))


def test_runs_of_follows_the_order_of_the_roles():
    data = example_report()
    assert [run.name for run in data.runs_of("rule_of_thumb", "chosen")] == ["rule", "plan"]
    assert data.set_names() == ("general", "domain")
