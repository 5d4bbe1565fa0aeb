"""What the report takes from a plan and its fit."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import t as student_t
from simple_laws import LAWS, make_forecaster, make_project

from cptplan.planning.knobs import Knobs
from cptplan.planning.pareto import front_csv, pareto_front
from cptplan.planning.plan import planned_run
from cptplan.planning.planner import affordable, plan_space
from cptplan.report.explain import (
    PARETO_CSV,
    account_of,
    decay_sentence,
    fit_row,
    pareto_of,
    replay_sentence,
    surface_of,
)
from cptplan.workspace import Workspace


def with_ramp(plan):
    """The plan with a run whose replay falls from 40 to 20 %."""
    knobs = Knobs(peak_lr=1e-3, replay_ratio=0.4, end_replay=0.2, total_steps=32, decay_share=0.5, start="stable")
    return plan.model_copy(update={"chosen": planned_run(knobs, make_forecaster())})


def test_account_repeats_the_plan(example_plan):
    account = account_of(example_plan)
    assert account.binding == example_plan.binding
    assert account.regret == example_plan.regret
    assert account.next_pilot.value == example_plan.next_pilot.value
    assert [row.binding for row in account.limits] == [limit.binding for limit in example_plan.limits]
    budget = next(row for row in account.limits if row.name == "budget.tokens")
    assert budget.share == pytest.approx(example_plan.chosen.total_steps * 256 / 8192)
    knobs = {row.knob: row for row in account.knobs}
    felt = {one.knob: one for one in example_plan.sensitivities}
    assert knobs["peak learning rate"].lower == felt["peak_lr"].lower
    assert knobs["steps"].value == str(example_plan.chosen.total_steps)


def test_other_runs_end_with_the_recipes(example_plan):
    rows = account_of(example_plan).instead
    assert [row.name for row in rows[: len(example_plan.budgets)]] == [one.name for one in example_plan.budgets]
    assert rows[-1].name == "rule of thumb"
    assert (rows[-1].difference, rows[-1].low) == (example_plan.gain.mean, example_plan.gain.low)
    nearest = rows[-2]
    assert nearest.name == f"{example_plan.nearest_recipe.name} (nearest recipe)"
    assert nearest.source == example_plan.nearest_recipe.source


def test_rule_of_thumb_is_told_once_where_it_is_the_nearest_recipe(example_plan):
    same = example_plan.nearest_recipe.model_copy(update={"run": example_plan.rule_of_thumb})
    rows = account_of(example_plan.model_copy(update={"nearest_recipe": same})).instead
    assert len(rows) == len(example_plan.budgets) + 1


def test_ramp_stands_at_its_mean_on_the_surface(example_plan, tmp_path):
    plan = with_ramp(example_plan)
    surface = surface_of(plan, Workspace(root=tmp_path), LAWS)
    assert surface.chosen.replay_ratio == pytest.approx(0.3)
    assert "from 40% to 20% and stands at its mean" in surface.note
    assert surface_of(example_plan, Workspace(root=tmp_path), LAWS).note.endswith(".")


def test_surface_marks_the_pilots_span_only_where_it_goes_beyond(example_plan, tmp_path):
    workspace = Workspace(root=tmp_path)
    assert surface_of(example_plan, workspace, LAWS).supported is None
    wider = example_plan.surface.model_copy(
        update={"peak_lrs": tuple(rate * 1.5 for rate in example_plan.surface.peak_lrs)}
    )
    surface = surface_of(example_plan.model_copy(update={"surface": wider}), workspace, LAWS)
    assert surface.supported == (1e-4, 3e-3, 0.0, 0.6)


def test_sentences_of_a_run(example_plan):
    ramp = with_ramp(example_plan).chosen
    assert replay_sentence(ramp) == "replay falling from 40% to 20%"
    assert replay_sentence(ramp.model_copy(update={"end_replay": None})) == "40% replay"
    assert decay_sentence(ramp) == "decaying over the last 50%"
    assert decay_sentence(ramp.model_copy(update={"kind": "cosine"})) == "with a cosine schedule"
    assert decay_sentence(ramp.model_copy(update={"decay_share": 0.0})) == "without decay"


def test_front_is_the_plans_own_without_a_csv(example_plan, tmp_path):
    front = pareto_of(example_plan, tmp_path, make_project(tmp_path), Workspace(root=tmp_path))
    (line,) = front.lines
    assert line.label == "Up to 8.19 K tokens"
    assert [p.general for p in line.points] == [p.general.mean for p in example_plan.pareto]
    assert front.chosen.domain == example_plan.chosen.losses["domain"].mean


def test_front_has_a_line_for_each_length_of_the_csv(example_plan, tmp_path):
    project, forecaster = make_project(tmp_path), make_forecaster()
    written = pareto_front(project, forecaster, plan_space(project, forecaster, affordable(project, forecaster)))
    (tmp_path / PARETO_CSV).write_text(front_csv(written))
    front = pareto_of(example_plan, tmp_path, project, Workspace(root=tmp_path))
    points = [point for line in front.lines for point in line.points]
    assert len(front.lines) == len({run.tokens for run in written.runs})
    assert [p.total_steps for p in points] == [run.knobs.total_steps for run in written.runs]
    # the CSV has six significant digits
    assert [p.general for p in points] == pytest.approx([r.outlook.losses["general"].mean for r in written.runs], 1e-5)


def test_forms_have_the_weights_of_the_law_and_the_errors_of_the_report():
    forms = [
        SimpleNamespace(law=SimpleNamespace(name=name), weight=weight) for name, weight in (("b", 0.8), ("a", 0.2))
    ]
    law = SimpleNamespace(
        law=SimpleNamespace(name="b", parameters=[SimpleNamespace(name="e")], terms=[SimpleNamespace(name="L0")]),
        best=SimpleNamespace(values=np.array([0.1]), coefficients=np.array([3.0])),
        freedom=5,
        forms=forms,
        parameter_spread=lambda: (np.array([0.01]), np.array([0.2])),
    )
    tried = [{"form": name, "in_sample_error": 0.01, "discrepancy": 0.02} for name in ("b", "a", "c")]
    row = fit_row("general", law, tried, typical_loss=4.0)
    assert [(form.form, form.weight) for form in row.forms] == [("b", 0.8), ("a", 0.2), ("c", 0.0)]
    assert (row.forms[0].in_sample_error, row.forms[0].held_out_error) == (0.04, 0.08)
    half = student_t.ppf(0.95, 5) * 0.2
    assert (row.parameters[1].low, row.parameters[1].high) == pytest.approx((3.0 - half, 3.0 + half))
