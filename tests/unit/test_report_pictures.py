from __future__ import annotations

import struct
from dataclasses import replace

import matplotlib as mpl
import pytest
from report_example import example_report

from cptplan.report.data import ReportData
from cptplan.report.pictures import draw_figures

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
