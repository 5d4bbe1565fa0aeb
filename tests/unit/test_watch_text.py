"""A watched run in characters: widths, marks, words."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cptplan.planning.forecast import Interval
from cptplan.watch import text as watch_text
from cptplan.watch.facts import Alarm
from cptplan.watch.model import Points
from cptplan.watch.view import Option, SetView

GRID = np.arange(20, 1001, 10)
MEAN = 3.0 - 0.0005 * GRID
VIEW = SetView(
    steps=GRID,
    mean=MEAN,
    low=MEAN - 0.05,
    high=MEAN + 0.05,
    measured=Points(steps=np.array([0, 1, 50, 200, 400]), loss=np.array([5.0, 5.0, 2.98, 2.9, 3.0])),
    ahead=np.arange(400, 1001, 20),
    ahead_mean=np.linspace(2.9, 2.6, 31),
    ahead_low=np.linspace(2.9, 2.5, 31),
    ahead_high=np.linspace(2.9, 2.7, 31),
    planned_end=Interval(mean=2.5, low=2.45, high=2.55),
    now_end=Interval(mean=2.6, low=2.5, high=2.7),
)


@pytest.mark.parametrize("columns", [40, 80, 120, 400])
def test_plot_is_no_wider_than_the_terminal(columns):
    lines = watch_text.plot_lines("domain", VIEW, 1000, columns)
    assert len(lines) == watch_text.PLOT_ROWS + 2
    assert max(len(line) for line in lines[1:]) <= columns
    assert lines[-1].split() == ["20", "1,000"]


def test_plot_tells_inside_from_outside():
    lines = watch_text.plot_lines("domain", VIEW, 1000, 80)[1:-1]
    text = "".join(lines)
    assert text.count("o") == 2  # the first two points are where no band is
    assert text.count("X") == 1
    assert "+" in text
    row = next(number for number, line in enumerate(lines) if "X" in line)
    assert row < next(number for number, line in reversed(list(enumerate(lines))) if "o" in line)


def test_plot_of_a_run_that_has_not_begun_to_be_judged():
    early = replace(VIEW, measured=Points(steps=np.array([0]), loss=np.array([5.0])))
    assert "o" not in "".join(watch_text.plot_lines("domain", early, 1000, 80)[1:])


@pytest.mark.parametrize("total", [600, 1500])
def test_plot_of_a_run_of_another_length(total):
    lines = watch_text.plot_lines("domain", replace(VIEW, ahead=np.linspace(400, total, 31).astype(int)), total, 80)
    assert lines[-1].split()[-1] == f"{max(total, 1000):,}"


def test_intervals_in_words():
    known = Interval(mean=3.0, low=3.0, high=3.0)
    assert watch_text.brief(VIEW.planned_end) == "2.500 ± 0.050"
    assert watch_text.full(VIEW.planned_end) == "2.500 [2.450, 2.550]"
    assert watch_text.brief(known) == watch_text.full(known) == "3.000"


@pytest.mark.parametrize(
    ("tokens", "hours", "usd", "said"),
    [
        (0, 0.0, 0.0, "nothing"),
        (10**9, 3.0, 0.001, "< $0.01"),
        (10**9, 3.0, 12.5, "$12.50"),
        (10**9, 3.0, 12345.6, "$12,346"),
        (10**9, 3.25, None, "3.25 h"),
        (15 * 10**8, None, None, "1.5B tokens"),
        (700, None, None, "700 tokens"),
    ],
)
def test_what_is_left_to_pay(tokens, hours, usd, said):
    option = Option(
        name="go on",
        total_steps=10,
        losses={},
        objective=VIEW.now_end,
        tokens_left=tokens,
        tokens_saved=0,
        gpu_hours_left=hours,
        usd_left=usd,
    )
    assert watch_text.cost_text(option) == said


def test_alarms_name_their_causes():
    alarm = Alarm(kind="losses", step=1200, text="they left", causes=(("the rate", 0.91), ("the data", 0.05)))
    assert watch_text.alarm_lines([alarm]) == [
        "ALARM at step 1,200: they left",
        "  likely cause, 91%: the rate",
        "  likely cause, 5%: the data",
    ]
