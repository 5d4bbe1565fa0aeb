"""A watched run as one HTML file that needs nothing else, with its figure inside, and watch.json beside it."""

from __future__ import annotations

import base64
import io
from importlib.resources import files
from pathlib import Path

import matplotlib as mpl
import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from cptplan.files import write_json, write_text
from cptplan.report.figures import COLOURS, DPI, SET_COLOURS, SOFT, STYLE
from cptplan.watch import text as watch_text
from cptplan.watch.alarm import FALSE_ALARMS
from cptplan.watch.view import SetView, Watched

ALARM = "#a8281a"


def write_watch(found: Watched, out: Path, *, refresh_seconds: float | None) -> Path:
    """Write out/index.html and out/watch.json.

    Args:      refresh_seconds: after which the page loads itself again; None for never.
    Returns:   the page.
    """
    write_json(out / "watch.json", found.to_json())
    write_text(out / "index.html", render_watch(found, refresh_seconds))
    return out / "index.html"


def render_watch(found: Watched, refresh_seconds: float | None = None) -> str:
    """The page as text."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("cptplan.watch").joinpath("watch.html.j2").read_text(encoding="utf-8"))
    figure = base64.b64encode(draw_watch(found)).decode("ascii")
    return template.render(
        found=found,
        css=Markup(files("cptplan.report").joinpath("page.css").read_text(encoding="utf-8")),
        figure=f"data:image/png;base64,{figure}",
        refresh=None if refresh_seconds is None else max(round(refresh_seconds), 1),
        status=watch_text.status_line(found),
        headline=headline(found),
        test=watch_text.test_line(found).removeprefix("test: "),
        end_columns=watch_text.ENDS,
        ends=watch_text.end_rows(found, watch_text.full),
        option_columns=watch_text.option_columns(found),
        options=watch_text.option_rows(found, watch_text.full),
    )


def headline(found: Watched) -> str:
    """What a reader must know first, in a sentence."""
    if found.failed:
        return f"The run has failed: {found.alarms[0].text}."
    if found.alarms:
        return f"Not as planned: {found.alarms[0].text}."
    if found.state == "complete":
        return "The run ended inside the band of its plan."
    return "So far the run keeps to its plan."


def draw_watch(found: Watched) -> bytes:
    """PNG: planned band, measured points and what is expected of the rest, one panel for each set; evidence below."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.0, 5.4), layout="constrained")
        grid = figure.add_gridspec(2, len(found.views), height_ratios=[3, 1])
        for column, (name, view) in enumerate(found.views.items()):
            axes = figure.add_subplot(grid[0, column])
            _draw_set(axes, name, view, found.total)
            if column == 0:
                axes.set_ylabel("validation loss, nats per token")
        _draw_evidence(figure.add_subplot(grid[1, :]), found)
        pairs = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in figure.axes[: len(found.views)]]
        known = {label: handle for pair in reversed(pairs) for handle, label in pair}
        figure.legend(known.values(), known.keys(), loc="outside upper left", ncols=5, columnspacing=1.6)
        FigureCanvasAgg(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def _draw_set(axes: Axes, name: str, view: SetView, total: int) -> None:
    colour = SET_COLOURS.get(name, COLOURS["chosen"])
    axes.set_title(f"{name.capitalize()} text", loc="left", fontsize=10)
    axes.fill_between(view.steps, view.low, view.high, color=SOFT, alpha=0.18, linewidth=0, label="planned, 90 % band")
    axes.plot(view.steps, view.mean, color=SOFT, linestyle="--", linewidth=1.2, label="planned")
    if len(view.ahead) > 1:
        axes.fill_between(view.ahead, view.ahead_low, view.ahead_high, color=colour, alpha=0.25, linewidth=0)
        axes.plot(view.ahead, view.ahead_mean, color=colour, linewidth=1.4, label="expected now")
    shown = view.measured.steps >= view.steps[0]
    steps, loss = view.measured.steps[shown], view.measured.loss[shown]
    outside = (loss < np.interp(steps, view.steps, view.low)) | (loss > np.interp(steps, view.steps, view.high))
    axes.plot(steps[~outside], loss[~outside], "o", color=colour, markersize=4, label="measured")
    if outside.any():
        axes.plot(steps[outside], loss[outside], "X", color=ALARM, markersize=6, label="outside the band")
    axes.set_xlim(0, total * 1.01)
    axes.set_xlabel("optimiser step")


def _draw_evidence(axes: Axes, found: Watched) -> None:
    axes.set_title("Evidence against the plan", loc="left", fontsize=10)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.axhline(1.0 / FALSE_ALARMS, color=ALARM, linewidth=1.0, linestyle="--")
    log_evidence = np.clip(found.verdict.log_evidence, np.log(1e-2), np.log(1e6))
    if len(log_evidence):
        axes.plot(found.verdict.steps, np.exp(log_evidence), color=COLOURS["base"], marker=".", linewidth=1.2)
    top = max(float(np.exp(log_evidence.max(initial=0.0))), 1.0 / FALSE_ALARMS)
    axes.set(xlim=(0, found.total * 1.01), ylim=(0.1, 3.0 * top))
    axes.text(0, 1.1 / FALSE_ALARMS, " alarm", color=ALARM, fontsize=8.5, va="bottom")
