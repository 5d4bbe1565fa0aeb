from __future__ import annotations

import struct
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
from report_example import example_report

from cptplan.report.data import ReportData
from cptplan.report.figures import draw_curves, draw_figures, draw_pareto, draw_parity, draw_pilots, draw_surface
from cptplan.report.findings import figure_texts, final_losses

NAMES = {"curves", "parity", "surface", "pareto", "schedules", "pilots", "compute"}


@pytest.fixture(scope="module")
def data() -> ReportData:
    return example_report()


def test_pictures_are_png_of_sane_size(data):
    pictures = draw_figures(data)
    assert set(pictures) == NAMES
    for name, content in pictures.items():
        assert content.startswith(b"\x89PNG\r\n\x1a\n"), name
        width, height = struct.unpack(">II", content[16:24])
        assert width == 1800, name
        assert 300 <= height <= 2400, name
        assert 10_000 < len(content) < 600_000, name


def test_pictures_are_the_same_each_time(data):
    only_compute = replace(data, runs=(), outcomes=(), surface=None, pareto=None)
    assert draw_figures(only_compute) == draw_figures(only_compute)


def test_drawing_leaves_global_settings_alone(data):
    before = dict(mpl.rcParams)
    draw_figures(replace(data, surface=None, pareto=None, runs=(), outcomes=()))
    assert dict(mpl.rcParams) == before


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


def test_surface_draws_the_objective_above_its_best(data):
    figure = draw_surface(data, figure_texts(data)["surface"])
    values = np.array(data.surface.objective, dtype=float).T
    drawn = figure.axes[0].collections[0].get_array()
    np.testing.assert_allclose(drawn.compressed(), values[np.isfinite(values)] - np.nanmin(values), atol=1e-12)


def test_pareto_draws_the_front_in_order(data):
    figure = draw_pareto(data, figure_texts(data)["pareto"])
    front = next(line for line in figure.axes[0].lines if line.get_label() == "plans on the front")
    assert list(front.get_xdata()) == sorted(point.general for point in data.pareto.points)


@pytest.mark.parametrize("pilots", [1, 5, 8])
def test_pilots_share_one_scale(data, pilots):
    some = replace(data, runs=data.runs_of("pilot")[:pilots], outcomes=())
    figure = draw_pilots(some, figure_texts(some)["pilots"])
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert len(shown) == pilots
    assert len({axes.get_ylim() for axes in shown}) == 1
