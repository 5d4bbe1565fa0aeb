from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from report_example import example_report

from cptplan.report.data import OutcomeRow, ReportData, RunView, SetCurve
from cptplan.report.findings import account_texts, coverage, decimal, figure_texts, format_lr, longest_pilot
from cptplan.report.plan_data import Surface, SurfacePoint


def view(curve: SetCurve, role="chosen", name="plan") -> RunView:
    return RunView(
        name=name,
        label=name,
        role=role,
        peak_lr=1e-3,
        total_steps=10,
        batch_tokens=1,
        replay_ratio="0%",
        curves=(curve,),
    )


def test_coverage_counts_by_hand():
    curve = SetCurve.of(
        "general",
        measured=([0, 2, 4, 6, 8, 12], [9.0, 3.0, 3.05, 3.2, 2.7, 9.0]),
        predicted=([0, 10], [3.0, 3.0], [2.9, 2.9], [3.1, 3.1]),
    )
    found = coverage([view(curve)])
    # step 0 is known beforehand and step 12 is not predicted: four count, of which 3.2 and 2.7 are outside
    assert (found.inside, found.measured) == (2, 4)
    np.testing.assert_allclose(found.mean_error, (0 + 0.05 + 0.2 + 0.3) / 4, rtol=1e-12)


def test_coverage_of_runs_without_prediction_is_empty():
    assert coverage([view(SetCurve.of("general", measured=([0, 1], [3.0, 2.0])))]).measured == 0


def test_every_figure_has_words_in_a_full_report():
    texts = figure_texts(example_report())
    assert set(texts) == {"curves", "parity", "surface", "pareto", "schedules", "pilots", "compute"}
    assert all(text.title and text.caption for text in texts.values())


def test_empty_report_has_no_figures():
    assert figure_texts(ReportData(title="t", verdict=())) == {}


def test_words_before_the_proof_do_not_claim_a_measurement():
    title = figure_texts(example_report(measured=False))["curves"].title
    assert "neither run is measured" in title


def test_finals_are_judged_on_runs_the_law_never_saw():
    pilot = view(SetCurve(set_name="general"), role="pilot", name="pilot")
    rows = [
        OutcomeRow(run=name, quantity="loss_general", predicted=3.0, low=2.9, high=3.1, measured=measured)
        for name, measured in (("plan", 3.2), ("pilot", 3.0))
    ]
    data = ReportData(title="t", verdict=(), runs=(view(SetCurve(set_name="general")), pilot), outcomes=tuple(rows))
    title = figure_texts(data)["parity"].title
    assert "never saw" in title
    assert "0.200 nats" in title
    assert "0 of 1" in title
    only_pilots = figure_texts(replace(data, outcomes=(rows[1],)))["parity"].title
    assert "fitted pilots" in only_pilots


@pytest.mark.parametrize(
    ("replay_ratio", "words"), [(0.5, "the chosen plan is there"), (0.0, "the chosen plan is 0.100 above that")]
)
def test_surface_says_how_far_the_chosen_plan_is_from_the_best(replay_ratio, words):
    surface = Surface(
        peak_lrs=(1e-4, 1e-3),
        replay_ratios=(0.0, 0.5),
        objective=((None, 3.4), (3.3, 3.2)),
        chosen=SurfacePoint(label="chosen plan", peak_lr=9e-4, replay_ratio=replay_ratio),
    )
    title = figure_texts(ReportData(title="t", verdict=(), surface=surface))["surface"].title
    assert title.startswith("The objective is lowest, 3.200, near a peak learning rate of 1e-3 and 50% replay")
    assert words in title


def test_account_titles_say_what_the_rows_hold():
    data = example_report()
    texts = account_texts(data)
    assert texts.limits == "The plan is bound by budget.usd"
    assert texts.knobs == "A choice that is off by a fifth costs at most 0.031 nats (steps), within what was searched"
    assert texts.worst == 0.0312
    assert texts.instead == "1 of 3 other runs are worse beyond the interval; double the budget gains 0.085 nats"
    assert texts.next_pilot == "One more pilot would remove 0.0061 of 0.0084 nats of regret"
    assert "averaged" in texts.forms


def test_account_without_rows_has_titles():
    texts = account_texts(ReportData(title="t", verdict=()))
    assert texts.limits == "No limit binds"
    assert texts.worst > 0  # bars are shares of it
    assert texts.next_pilot == ""


def test_curves_say_from_where_the_law_speaks_and_where_the_pilots_end():
    caption = figure_texts(example_report())["curves"].caption
    assert "from step 12 on" in caption
    assert "no pilot is longer than 200 steps" in caption


def test_longest_pilot_is_none_where_no_final_run_is_longer():
    data = example_report()
    short = tuple(replace(run, total_steps=100) for run in data.runs_of("chosen", "rule_of_thumb"))
    assert longest_pilot(replace(data, runs=(*short, *data.runs_of("pilot")))) is None
    assert longest_pilot(data) == 200


@pytest.mark.parametrize(
    ("value", "sign", "text"), [(1.23456, "-", "1.235"), (-2.1, "-", "−2.100"), (0.5, "+", "+0.500")]
)
def test_decimal(value, sign, text):
    assert decimal(value, sign) == text


@pytest.mark.parametrize(
    ("value", "text"), [(1e-3, "1e-3"), (1.2e-3, "1.2e-3"), (3e-5, "3e-5"), (0.0123, "1.23e-2"), (1.0, "1e0")]
)
def test_format_lr(value, text):
    assert format_lr(value) == text


def test_title_names_the_only_run_that_was_measured():
    data = example_report()
    chosen, *others = data.runs
    bare = replace(
        chosen, curves=tuple(replace(curve, measured_steps=(), measured_losses=()) for curve in chosen.curves)
    )
    title = figure_texts(replace(data, runs=(bare, *others)))["curves"].title
    assert "measured losses of the rule of thumb lie inside" in title
    assert "of the rule of thumb" not in figure_texts(data)["curves"].title
