"""A watched run on a terminal: rows of its tables, lines, and the curve drawn with characters."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from cptplan.planning.forecast import Interval
from cptplan.watch.alarm import FALSE_ALARMS
from cptplan.watch.facts import Alarm
from cptplan.watch.view import Option, SetView, Watched

FloatArray = NDArray[np.float64]
Words = Callable[[Interval], str]

PLOT_ROWS, LEAST_COLUMNS, MOST_COLUMNS = 9, 30, 100
LABEL = 7  # characters of a number beside a plot
MARGIN = 0.1  # of the range of what is drawn, above and below it

ENDS = ("", "now", "plan for now", "planned end", "expected end")


def status_line(found: Watched) -> str:
    """How far the run is."""
    words = {"silent": "not heard of for a while", "running": "running"}.get(found.state, found.state)
    return f"{found.title}: step {found.done:,} of {found.total:,}, {words}"


def end_rows(found: Watched, words: Words) -> list[tuple[str, ...]]:
    """Measured, planned and expected losses by set, and the objective.

    Args:      words: how an interval is said: brief on a terminal, in full on a page.
    """
    rows = [
        (
            f"loss_{name}",
            f"{view.measured.loss[-1]:.3f}" if len(view.measured.loss) else "-",
            _planned_now(view, words),
            words(view.planned_end),
            words(view.now_end),
        )
        for name, view in found.views.items()
    ]
    return [*rows, ("weighted change", "", "", words(found.planned_objective), words(found.now_objective))]


def _planned_now(view: SetView, words: Words) -> str:
    if not len(view.measured.steps) or view.measured.steps[-1] < view.steps[0]:
        return "-"
    at = int(view.measured.steps[-1])
    mean, low, high = (float(np.interp(at, view.steps, line)) for line in (view.mean, view.low, view.high))
    return words(Interval(mean=mean, low=low, high=high))


def brief(interval: Interval) -> str:
    """3.818 ± 0.181, half the interval's width; a measured number alone."""
    if interval.low == interval.high:
        return f"{interval.mean:.3f}"
    return f"{interval.mean:.3f} ± {0.5 * (interval.high - interval.low):.3f}"


def full(interval: Interval) -> str:
    """3.818 [3.623, 3.985]; a measured number alone."""
    if interval.low == interval.high:
        return f"{interval.mean:.3f}"
    return f"{interval.mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def test_line(found: Watched) -> str:
    """Where the sequential test stands."""
    if not len(found.verdict.log_evidence):
        return "test: nothing to judge yet: the law speaks from the end of the first jump on"
    evidence = float(np.exp(min(found.verdict.log_evidence.max(), 700.0)))
    threshold = 1.0 / FALSE_ALARMS
    left = found.verdict.alarm_step is not None
    return (
        f"test: {'left' if left else 'inside'} its band; highest evidence against the plan {evidence:.3g}, alarm at "
        f"{threshold:.0f} "
        f"(at most {FALSE_ALARMS:.0%} of healthy runs, over their whole length)"
    )


def alarm_lines(alarms: Iterable[Alarm]) -> list[str]:
    """Each alarm, then its likely causes."""
    found = []
    for alarm in alarms:
        found.append(f"ALARM at step {alarm.step:,}: {alarm.text}")
        found += [f"  likely cause, {share:.0%}: {text}" for text, share in alarm.causes]
    return found


def option_columns(found: Watched) -> tuple[str, ...]:
    """Of the table of options."""
    return ("from here", "steps", *found.views, "weighted", "to pay")


def option_rows(found: Watched, words: Words) -> list[tuple[str, ...]]:
    """One row for each option; words as in end_rows."""
    return [
        (
            option.name,
            f"{option.total_steps:,}",
            *(words(loss) for loss in option.losses.values()),
            words(option.objective),
            cost_text(option),
        )
        for option in found.options
    ]


def cost_text(option: Option) -> str:
    """What is left to pay: money, else device hours, else tokens."""
    if not option.tokens_left:
        return "nothing"
    if option.usd_left is not None:
        return "< $0.01" if option.usd_left < 0.01 else f"${option.usd_left:,.{2 if option.usd_left < 1000 else 0}f}"
    if option.gpu_hours_left is not None:
        return f"{option.gpu_hours_left:.3g} h"
    return f"{_short(option.tokens_left)} tokens"


def _short(number: float) -> str:
    for suffix, unit in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= unit:
            return f"{number / unit:.3g}{suffix}"
    return f"{number:.0f}"


def plot_lines(name: str, view: SetView, total: int, columns: int) -> list[str]:
    """The band and the points of one set, drawn with characters.

    Args:      columns: of the terminal.
    """
    width = min(max(columns - LABEL - 2, LEAST_COLUMNS), MOST_COLUMNS)
    at = np.linspace(view.steps[0], max(total, int(view.steps[-1])), width)
    low, high, mean = (np.interp(at, view.steps, line, right=np.nan) for line in (view.low, view.high, view.mean))
    shown = view.measured.steps >= view.steps[0]
    steps, loss = view.measured.steps[shown], view.measured.loss[shown]
    bottom, top = _range(view)
    rows = [[" "] * width for _ in range(PLOT_ROWS)]

    def row(value: float) -> int:
        return int(np.clip(round((top - value) / (top - bottom) * (PLOT_ROWS - 1)), 0, PLOT_ROWS - 1))

    for column in range(width):
        if np.isnan(mean[column]):
            continue
        for line in range(row(high[column]), row(low[column]) + 1):
            rows[line][column] = "."
        rows[row(mean[column])][column] = "-"
    for step, value in zip(view.ahead[1:].tolist(), view.ahead_mean[1:].tolist(), strict=True):
        rows[row(value)][_column(step, at)] = "+"
    for step, value in zip(steps.tolist(), loss.tolist(), strict=True):
        inside = np.interp(step, view.steps, view.low) <= value <= np.interp(step, view.steps, view.high)
        rows[row(value)][_column(step, at)] = "o" if inside else "X"
    labels = {0: f"{top:.3f}", PLOT_ROWS - 1: f"{bottom:.3f}"}
    lines = [f"{labels.get(number, ''):>{LABEL}} |{''.join(cells).rstrip()}" for number, cells in enumerate(rows)]
    ends = f"{int(at[0]):,}", f"{int(at[-1]):,}"
    axis = f"{'':>{LABEL}}  {ends[0]}{ends[1]:>{width - len(ends[0])}}"
    return [f"loss_{name}: o measured, X outside, - planned, . band, + expected", *lines, axis]


def _range(view: SetView) -> tuple[float, float]:
    """Lowest and highest loss to draw: what is planned and measured after a quarter of the run, and a margin."""
    late = view.steps[-1] // 4
    drawn = view.low[view.steps >= late], view.high[view.steps >= late], view.measured.loss[view.measured.steps > late]
    values = np.concatenate(drawn)
    bottom, top = float(values.min()), float(values.max())
    margin = MARGIN * max(top - bottom, 1e-6)
    return bottom - margin, top + margin


def _column(step: float, at: FloatArray) -> int:
    return int(np.clip(np.searchsorted(at, step), 0, len(at) - 1))
