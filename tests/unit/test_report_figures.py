from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from report_example import example_report

from cptplan.report.data import ReportData
from cptplan.report.figures import draw_curves, draw_parity, draw_pilots
from cptplan.report.findings import figure_texts, final_losses


@pytest.fixture(scope="module")
def data() -> ReportData:
    return example_report()


def test_curves_draw_the_measured_losses(data):
    figure = draw_curves(data, figure_texts(data)["curves"])
    drawn = [np.asarray(line.get_ydata()) for axes in figure.axes for line in axes.lines]
    for run in data.runs_of("chosen", "rule_of_thumb"):
        for curve in run.curves:
            assert any(np.array_equal(values, curve.measured_losses) for values in drawn)


def test_curves_before_the_proof_have_no_strip_of_differences():
    before = example_report(measured=False)
    assert len(draw_curves(before, figure_texts(before)["curves"]).axes) == 2
    after = example_report()
    assert len(draw_curves(after, figure_texts(after)["curves"]).axes) == 4


def test_parity_draws_every_final_loss(data):
    figure = draw_parity(data, figure_texts(data)["parity"])
    points = {
        (round(float(x), 9), round(float(y), 9))
        for axes in figure.axes
        for line in axes.lines
        if line.get_marker() not in ("None", "", None)
        for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    }
    assert points == {(round(row.predicted, 9), round(row.measured, 9)) for row in final_losses(data)}


@pytest.mark.parametrize("pilots", [1, 5, 8])
def test_pilots_share_one_scale(data, pilots):
    some = replace(data, runs=data.runs_of("pilot")[:pilots], outcomes=())
    figure = draw_pilots(some, figure_texts(some)["pilots"])
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert len(shown) == pilots
    assert len({axes.get_ylim() for axes in shown}) == 1
