"""What the command line shows: the numbers of the files, rounded."""

from __future__ import annotations

import pytest
from simple_laws import make_project

from cptplan.files import write_json
from cptplan.planning.plan import Expected
from cptplan.report.data import OutcomeRow
from cptplan.tables import (
    CORPORA_COLUMNS,
    FIT_COLUMNS,
    PILOT_COLUMNS,
    SCORE_COLUMNS,
    corpora_rows,
    expectations_in_words,
    fit_rows,
    interval,
    knobs_in_words,
    outcome_rows,
    pilot_rows,
    plan_rows,
    score_rows,
    verdict_lines,
)


def test_corpora():
    split = {"num_tokens": 1234567, "num_documents": 10, "num_bytes": 3000000}
    corpora = {"sources": [{"name": "code", "train": split, "validation": {**split, "num_tokens": 89}}]}
    assert corpora_rows(corpora) == [("code", "1,234,567", "89", "20", "2.43")]
    assert len(CORPORA_COLUMNS) == 5


def test_pilots(tmp_path):
    rows = pilot_rows(make_project(tmp_path))
    assert len(rows) == 6
    assert rows[0] == ("pilot-01", "0.003", "0.0%", "none", "stable", "the shift alone at the highest rate")
    assert rows[2][:5] == ("pilot-03", "0.003", "3.0%", "last 50%", "annealed")
    assert {len(row) for row in rows} == {len(PILOT_COLUMNS)}


def test_fits_show_the_kept_form_first(tmp_path):
    forms = [
        {"form": "b", "discrepancy": 0.0123, "in_sample_error": 0.004, "weight": 1.0},
        {"form": "a", "discrepancy": 0.2, "in_sample_error": 0.1, "weight": 0.0},
    ]
    write_json(tmp_path / "report.json", {"schema_version": 1, "sets": {"general": forms}})
    assert fit_rows(tmp_path) == [
        ("loss_general", "b", "1.23%", "0.40%", "100%"),
        ("", "a", "20.00%", "10.00%", "-"),
    ]
    assert len(FIT_COLUMNS) == 5
    old = [{key: value for key, value in form.items() if key != "weight"} for form in forms]
    write_json(tmp_path / "report.json", {"schema_version": 1, "sets": {"general": old}})
    assert [row[-1] for row in fit_rows(tmp_path)] == ["100%", "-"]  # a fit that kept one form


def write_laws(directory, laws, third=None):
    verdict = {
        "converged": True,
        "at_bound": [],
        "prior_decides": [],
        "residual_correlation": 0.0,
        "unidentified": ["only one peak rate was tried"],
    }
    made = {
        name: {"form": form, "reason": reason, "verdict": {**verdict, "at_bound": bounds}}
        for name, (form, reason, bounds) in laws.items()
    }
    write_json(directory / "law.json", {"laws": made})
    write_json(directory / "report.json", {"out_of_domain": third or {}})


def test_notes_on_a_fit_say_why_and_what_is_said_of_all_sets_once(tmp_path):
    write_laws(tmp_path, {"general": ("log", "it has held", ["C2 = 0"]), "domain": ("clock", "it has held", [])})
    assert verdict_lines(tmp_path) == [
        "loss_general: log: it has held",
        "all: only one peak rate was tried",
        "loss_general: at a bound: C2 = 0",
        "loss_domain: clock: it has held",
    ]


def test_notes_tell_what_third_sets_are(tmp_path):
    third = {"books": {"valid": True, "reason": "0.2 % off"}, "law": {"valid": False, "reason": "9 % off"}}
    write_laws(tmp_path, {"general": ("log", "it has held", [])}, third)
    assert verdict_lines(tmp_path)[-2:] == [
        "loss_books is a combination of general and domain loss: 0.2 % off",
        "loss_law is not to be combined of the two: 9 % off",
    ]


def test_scores_show_the_mean_first_and_no_r2_where_there_is_none():
    row = {"mape": 0.00123, "rmse": 0.00456, "worst": 0.0321, "r2": 0.98765, "coverage90": 0.925, "end_error": 0.0005}
    rows = score_rows({"general": {"mean": row, "long": {**row, "r2": None}}, "domain": {"mean": row}})
    cells = ("0.123%", "0.0046", "3.21%", "0.9877", "92%", "0.050%")
    assert rows[0] == ("general: mean", *cells)
    assert rows[1] == ("  long", *cells[:3], "-", *cells[4:])
    assert [r[0] for r in rows] == ["general: mean", "  long", "domain: mean"]
    assert {len(r) for r in rows} == {len(SCORE_COLUMNS)}


@pytest.mark.parametrize(("signed", "words"), [(False, "-0.123 [-0.200, 0.046]"), (True, "-0.123 [-0.200, +0.046]")])
def test_interval(signed, words):
    assert interval(Expected(mean=-0.12345, low=-0.2, high=0.0456), signed=signed) == words


def test_plan_shows_choice_beside_rule_of_thumb(example_plan):
    rows = {label: cells for label, *cells in plan_rows(example_plan)}
    assert rows["replay ratio"][1] == "30.0%"
    assert rows["peak learning rate"] == [f"{example_plan.chosen.peak_lr:.3g}", "0.0003"]
    assert rows["decay"][1] == "last 90%, linear"
    tokens = example_plan.chosen.total_steps * example_plan.batch_tokens
    assert rows["tokens"][0] == f"{tokens / 1e6:,.2f} M"
    assert rows["loss_domain"][0].startswith(f"{example_plan.chosen.losses['domain'].mean:.3f} [")
    assert rows["weighted change of loss"][0][0] in "+-"
    assert set(rows) == {*knobs_in_words(example_plan), *expectations_in_words(example_plan)}


def test_outcomes_say_whether_the_interval_held() -> None:
    rows = [
        OutcomeRow(run="final", quantity="loss_general", predicted=3.0, low=2.9, high=3.1, measured=3.05),
        OutcomeRow(run="final", quantity="loss_domain", predicted=2.0, low=1.9, high=2.1, measured=2.2),
        OutcomeRow(run="final", quantity="objective", predicted=-1.0, low=-1.1, high=-0.9),
    ]
    assert [row[-2:] for row in outcome_rows(rows)] == [("3.050", "yes"), ("2.200", "NO"), ("-", "-")]
    assert outcome_rows(rows)[0][:4] == ("final", "general loss", "3.000", "2.900 to 3.100")
