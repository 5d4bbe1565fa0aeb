from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from report_example import example_report

from cptplan.report.data import ReportData
from cptplan.report.findings import figure_texts
from cptplan.report.maps import draw_pareto, draw_surface


@pytest.fixture(scope="module")
def data() -> ReportData:
    return example_report()


def test_surface_draws_the_objective_above_its_best(data):
    figure = draw_surface(data, figure_texts(data)["surface"])
    values = np.array(data.surface.objective, dtype=float).T
    drawn = figure.axes[0].collections[0].get_array()
    np.testing.assert_allclose(drawn.compressed(), values[np.isfinite(values)] - np.nanmin(values), atol=1e-12)


def test_pareto_draws_the_front_in_order(data):
    figure = draw_pareto(data, figure_texts(data)["pareto"])
    for line in data.pareto.lines:
        drawn = next(found for found in figure.axes[0].lines if found.get_label() == line.label)
        assert list(drawn.get_xdata()) == sorted(point.general for point in line.points)


def test_pareto_draws_dearer_lines_darker(data):
    figure = draw_pareto(data, figure_texts(data)["pareto"])
    brightness = [
        sum(to_rgb(next(found for found in figure.axes[0].lines if found.get_label() == line.label).get_color()))
        for line in data.pareto.lines
    ]
    assert brightness == sorted(brightness, reverse=True)


@pytest.mark.parametrize("supported", [(3e-4, 3e-3, 0.0, 0.5), None])
def test_surface_boxes_what_the_pilots_span_where_it_goes_beyond(data, supported):
    some = replace(data, surface=replace(data.surface, supported=supported))
    figure = draw_surface(some, figure_texts(some)["surface"])
    boxes = [line for line in figure.axes[0].lines if line.get_label() == "what the pilots span"]
    assert [set(box.get_xdata()) for box in boxes] == ([] if supported is None else [set(supported[:2])])
