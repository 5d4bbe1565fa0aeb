from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from report_example import example_report

from cptplan.errors import ConfigError, StorageError
from cptplan.files import read_json
from cptplan.report.data import ComputeShare, ReportData, SetCurve
from cptplan.report.html import render_page, write_report
from cptplan.report.plan_data import Account, Surface, SurfacePoint

SIZE_LIMIT = 600_000  # bytes; the target for ten runs


def payload(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="report-data">(.*?)</script>', page, re.DOTALL)
    return json.loads(found[1])["data"]


def test_numbers_reach_the_page_to_six_digits():
    data = example_report()
    embedded = payload(render_page(data))
    for run, shown in zip(data.runs, embedded["runs"], strict=True):
        assert shown["name"] == run.name
        for curve, drawn in zip(run.curves, shown["curves"], strict=True):
            # six significant digits: relative 5e-6
            assert drawn["measured_losses"] == pytest.approx(curve.measured_losses, rel=5e-6)
            assert drawn["predicted_high"] == pytest.approx(curve.predicted_high, rel=5e-6)
    assert len(embedded["outcomes"]) == len(data.outcomes)
    assert embedded["surface"]["objective"][0][0] == pytest.approx(data.surface.objective[0][0], rel=5e-6)


def test_outcomes_are_in_the_table():
    data = example_report()
    page = render_page(data)
    for row in data.outcomes:
        if row.run in ("plan", "rule"):
            assert f'data-label="Predicted">{row.predicted:.3f}</td>' in page
            assert f'data-label="Measured">{row.measured:.3f}</td>' in page


def test_account_is_on_the_page():
    data = example_report()
    page = re.sub(r"</?span[^>]*>", "", render_page(data))
    account = data.account
    assert all(line in page for line in (*account.binding, *account.extrapolations, *account.assumptions))
    for limit in account.limits:
        assert f"<code>{limit.name}</code>" in page
        assert f"{limit.allowed} {limit.unit}" in page
    for row in account.instead:
        assert row.name in page
        assert row.source in page
    assert "+0.0123" in page  # a knob that costs
    assert "−0.0002" in page  # one that gains
    assert "not searched" in page
    for choice in account.next_pilot.choices:
        assert f"<dt>{choice.label}</dt><dd>{choice.chosen}</dd>" in page


def test_forms_are_on_the_page_with_their_weights():
    data = example_report()
    page = re.sub(r"</?span[^>]*>", "", render_page(data))
    for form in data.fits[0].forms:
        weight = f"{form.weight:.0%}" if form.weight else "not used"
        assert re.search(rf'{form.form}</td><td class="cost" data-label="Weight">{weight}</td>', page)
    assert all(note in page for note in data.fit_notes)


def test_empty_account_leaves_its_parts_out():
    page = render_page(ReportData(title="t", verdict=(), account=Account()))
    assert "What holds it back" in page
    assert "<table" not in page


def test_page_is_self_contained_and_light():
    page = render_page(example_report())
    assert len(page.encode()) < SIZE_LIMIT
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert "url(" not in page
    assert "@import" not in page


def test_text_cannot_break_out():
    hostile = """</script><script>alert(1)</script><img src=x onerror=alert(1)>&'\u2028"""
    data = example_report()
    run = replace(data.runs[0], label=hostile)
    page = render_page(
        replace(
            data,
            title=hostile,
            verdict=(hostile,),
            warnings=(hostile,),
            next_commands=(hostile,),
            runs=(run, *data.runs[1:]),
        )
    )
    assert page.count("</script>") == 2
    assert "<img" not in page
    assert payload(page)["runs"][0]["label"] == hostile


@pytest.mark.parametrize(
    ("held", "words"),
    [(True, "The prediction held"), (False, "The prediction missed"), (None, "Predicted, not yet measured")],
)
def test_verdict_is_said_in_words(held, words):
    badge = re.search(r'class="badge.*?</div>', render_page(replace(example_report(), held=held)), re.DOTALL)
    assert words in badge[0]


def test_outcome_outside_the_interval_is_said():
    data = example_report()
    row = replace(data.outcomes[0], measured=data.outcomes[0].high + 1)
    page = render_page(replace(data, outcomes=(row, *data.outcomes[1:])))
    assert page.count("✗ outside") == 1


def test_report_before_the_proof_says_not_measured():
    page = render_page(example_report(measured=False))
    assert "not measured" in page
    assert "✓ inside" not in page


def test_empty_report_has_no_empty_parts():
    page = render_page(ReportData(title="nothing yet", verdict=()))
    assert "<h1>nothing yet</h1>" in page
    assert "<section" not in page
    assert "data-figure" not in page.split("<script>")[0]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_report(example_report(), tmp_path_factory.mktemp("out") / "deep" / "report")


def test_write_report_leaves_page_data_and_figures(written):
    assert written.page.name == "index.html"
    assert ReportData.from_json(read_json(written.data)) == example_report()
    assert {path.stem for path in written.figures} >= {"curves", "surface", "pareto"}
    found = {path for path in written.page.parent.rglob("*") if path.is_file()}
    assert found == {written.page, written.data, *written.figures}


def test_redrawn_report_is_the_same_page(written):
    assert render_page(ReportData.from_json(read_json(written.data))) == written.page.read_text()


def test_number_that_is_not_finite_is_refused_before_anything_is_written(tmp_path):
    data = replace(example_report(), compute=(ComputeShare(stage="a", seconds=float("nan"), tokens=1.0, flops=1.0),))
    with pytest.raises(ConfigError, match="seconds"):
        write_report(data, tmp_path)
    assert not list(tmp_path.iterdir())


def test_place_that_cannot_be_written_is_an_error_of_storage(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        write_report(ReportData(title="t", verdict=()), tmp_path / "file" / "report")


def test_what_has_no_number_is_not_drawn(tmp_path):
    surface = Surface(
        peak_lrs=(1e-4, 1e-3),
        replay_ratios=(0.0, 0.5),
        objective=((None, None), (None, None)),
        chosen=SurfacePoint(label="chosen plan", peak_lr=1e-3, replay_ratio=0.1),
    )
    run = replace(example_report().runs[0], curves=(SetCurve(set_name="general"),), lr_steps=(), lr=())
    written = write_report(ReportData(title="t", verdict=(), surface=surface, runs=(run,)), tmp_path)
    assert written.figures == ()
    assert "<figure" not in written.page.read_text()
