"""All figures of a report as PNG, for a README or a paper, from the same data as the HTML page."""

from __future__ import annotations

import io
from collections.abc import Callable

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cptplan.report.data import ReportData
from cptplan.report.figures import DPI, STYLE, draw_curves, draw_parity, draw_pilots, draw_schedules
from cptplan.report.findings import FigureText, figure_texts
from cptplan.report.maps import draw_compute, draw_pareto, draw_surface


def draw_figures(data: ReportData) -> dict[str, bytes]:
    """Every figure that the data can fill, as PNG by name."""
    draw: dict[str, Callable[[ReportData, FigureText], Figure]] = {
        "curves": draw_curves,
        "parity": draw_parity,
        "surface": draw_surface,
        "pareto": draw_pareto,
        "schedules": draw_schedules,
        "pilots": draw_pilots,
        "compute": draw_compute,
    }
    drawn = {}
    data = data.drawable()
    with mpl.rc_context(STYLE):
        for name, text in figure_texts(data).items():
            buffer = io.BytesIO()
            figure = draw[name](data, text)
            FigureCanvasAgg(figure)
            figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
            drawn[name] = buffer.getvalue()
    return drawn
