"""The plan's account of itself in words and rows."""

from __future__ import annotations

import pytest
from simple_laws import make_forecaster, make_project

from cptplan.planning.knobs import Knobs
from cptplan.planning.pareto import pareto_front
from cptplan.planning.plan import planned_run
from cptplan.planning.planner import affordable, plan_space
from cptplan.planning.tables import (
    KNOB_COLUMNS,
    LIMIT_COLUMNS,
    OTHER_COLUMNS,
    decay_words,
    front_table,
    knob_rows,
    limit_rows,
    other_rows,
    reason_lines,
    replay_words,
)


def test_tables_have_their_columns(example_plan):
    for columns, rows in (
        (LIMIT_COLUMNS, limit_rows(example_plan)),
        (KNOB_COLUMNS, knob_rows(example_plan)),
        (OTHER_COLUMNS, other_rows(example_plan)),
    ):
        assert rows
        assert {len(row) for row in rows} == {len(columns)}


def test_rows_say_what_the_plan_holds(example_plan):
    limits = {row[0]: row for row in limit_rows(example_plan)}
    assert limits["budget.tokens"][2:4] == ("8,192", "tokens")
    knobs = {row[0]: row[1:] for row in knob_rows(example_plan)}
    assert knobs["warmup_steps"][0] == "not searched"  # no pilot had fewer
    assert float(knobs["peak_lr"][0]) >= 0.0
    assert [row[0] for row in other_rows(example_plan)][-1] == example_plan.nearest_recipe.name


def test_reasons_name_limits_pilot_and_chance(example_plan):
    lines = reason_lines(example_plan)
    assert any(line.startswith("nearest published recipe: ") for line in lines)
    assert any("the best next pilot (peak lr" in line and "GPU-hours" not in line for line in lines)
    assert not any("of the draws" in line for line in lines)
    sure = example_plan.model_copy(update={"chance": 0.93, "assumptions": ("x",), "extrapolations": ("y",)})
    said = reason_lines(sure)
    assert "the limits on general loss hold in 93% of the draws" in said
    assert {"assumed: x", "extrapolation: y"} <= set(said)


@pytest.mark.parametrize(
    ("changes", "decay", "replay"),
    [
        ({"decay_share": 0.3}, "last 30%", "20.0%"),
        ({"decay_share": 0.0}, "none", "20.0%"),
        ({"decay_share": 0.3, "kind": "cosine"}, "cosine", "20.0%"),
        ({"decay_share": 0.3, "kind": "constant"}, "none", "20.0%"),
        ({"decay_share": 0.3, "kind": "linear", "end_replay": 0.05}, "linear", "20.0% to 5.0%"),
    ],
)
def test_words(changes, decay, replay):
    run = planned_run(
        Knobs(**{"peak_lr": 1e-3, "replay_ratio": 0.2, "total_steps": 20, "start": "stable", **changes}),
        make_forecaster(),
    )
    assert (decay_words(run), replay_words(run)) == (decay, replay)


def test_front_is_short_on_the_terminal(tmp_path):
    project, forecaster = make_project(tmp_path), make_forecaster()
    front = pareto_front(project, forecaster, plan_space(project, forecaster, affordable(project, forecaster)))
    columns, rows = front_table(front)
    assert columns[-1] == "domain"
    assert 0 < len(rows) <= 20
    assert {len(row) for row in rows} == {len(columns)}
