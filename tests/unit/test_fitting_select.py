"""What each law counts: as much as it predicts left-out curves; of few curves the one that has held counts alone."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from fit_examples import CELLS, DOMAIN, GENERAL, PEAK, blank_campaign, blank_pretraining, measured

from cptplan.curves import LossCurve
from cptplan.errors import ConfigError, CurveError
from cptplan.fitting import select
from cptplan.fitting.select import FORMS, candidate_laws, select_law, sets_of, settled_step, side_of
from cptplan.laws.cpt import PUBLISHED
from cptplan.laws.history import observations
from cptplan.laws.pretraining import AnnealingLaw, MultiPowerLaw
from cptplan.laws.registry import LAWS

NOISE = 0.002
FIVE = ("constant", "cosine", "two-stage", "late", "unseen")


def campaign(cells=CELLS, noise: float = NOISE, law=GENERAL) -> dict[str, LossCurve]:
    return measured(blank_campaign(cells), law, noise)


def candidates(curves: dict[str, LossCurve], side="general", law: str = "auto"):
    return candidate_laws(observations(curves, "general"), side, law, "general", "here")


# ---- which laws are tried


@pytest.mark.parametrize("side", ["general", "domain"])
def test_forms_of_a_side_are_tried_the_trusted_one_first(side) -> None:
    for law in ("auto", "cpt"):
        assert [c.form for c in candidates(campaign(), side, law)] == list(FORMS[side])
    assert [c.form for c in candidates(campaign(), side, "cpt-published")] == [PUBLISHED]
    assert {c.side for c in candidates(campaign(), side)} == {side}


def test_laws_of_schedules_are_tried_on_pretraining_alone() -> None:
    curves = measured(blank_pretraining(), AnnealingLaw(PEAK, 100.0))
    assert [c.name for c in candidates(curves)] == ["multi_power_late", "multi_power", "annealing", "fsl"]


@pytest.mark.parametrize("name", [name for name in LAWS if "cpt" not in name])
def test_law_that_is_asked_for_is_the_only_one(name: str) -> None:
    for curves in (measured(blank_pretraining(["constant"]), GENERAL), campaign()):
        (law,) = candidates(curves, law=name)
        assert law.name == name


def test_areas_are_counted_at_the_highest_rate_and_memory_at_a_fortieth() -> None:
    (law, *_) = candidates(campaign())
    assert law.reference_lr == PEAK
    assert law.spec()["memory_steps"] == pytest.approx((600 + 150) / 40)
    fast = [*CELLS, replace(CELLS[0], peak_lr=5e-3)]
    assert candidates(campaign(fast))[0].reference_lr == 5e-3
    # the rate of a pre-training that has no points of its own counts too
    alone = campaign([replace(c, peak_lr=1e-4) for c in CELLS])
    alone["base"] = replace(alone["base"], losses={"other": alone["base"].losses["general"]})
    assert candidates(alone)[0].reference_lr == PEAK


@pytest.mark.parametrize(
    ("changes", "extra"),
    [
        ({}, set()),
        ({"parent_step": None}, {"open_start"}),
        ({"unique_tokens": 30_000}, {"repetition"}),  # 150 steps of 1,000 tokens: up to five passes
        ({"unique_tokens": 126_000}, set()),  # 1.19 passes
        ({"unique_tokens": 120_000}, {"repetition"}),  # 1.24 passes
        ({"num_params": 120_000_000}, {"sizes"}),
        ({"num_params": 40_000_000}, set()),  # that of the others
    ],
)
def test_what_curves_call_for_is_switched_on_and_nothing_else(changes: dict, extra: set) -> None:
    cells = [replace(CELLS[0], **changes), *CELLS[1:]]  # one pilot is enough
    for side in ("general", "domain"):
        for law in candidates(campaign(cells), side):
            assert {name for name in ("open_start", "repetition", "sizes") if getattr(law.form, name)} == extra


def test_start_whose_area_is_told_is_not_open() -> None:
    curves = campaign([replace(CELLS[0], parent_step=None), *CELLS[1:]])
    data = [
        replace(d, history=replace(d.history, known_area=0.5)) if d.name == "run-0" else d
        for d in observations(curves, "general")
    ]
    assert not candidate_laws(data, "general", "auto", "general", "here")[0].form.open_start


@pytest.mark.parametrize(
    ("law", "message", "hint"),
    [
        ("anealing", "law must be auto or one of cpt, .*; got 'anealing'", "annealing"),
        ("cpt_published", "law must be auto or one of .*; got 'cpt_published'", "cpt-published"),
    ],
)
def test_unknown_law_is_named_with_the_closest(law, message, hint) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        candidates(campaign(), law=law)
    assert hint in error.value.hint


def test_cpt_law_needs_three_pilots() -> None:
    with pytest.raises(CurveError, match="at least 3 CPT curves with loss_general; got 2 in here") as error:
        candidates(campaign(CELLS[:2]))
    assert error.value.hint == "run more pilots"
    assert len(candidates(campaign(CELLS[:3]))) == len(FORMS["general"])
    # a pilot without the set does not count
    curves = campaign(CELLS[:3])
    curves["run-2"] = replace(curves["run-2"], losses={"books": curves["run-2"].losses["general"]})
    with pytest.raises(CurveError, match="got 2 in here"):
        candidates(curves)


def test_cpt_law_of_pretraining_curves_is_refused_with_a_law_that_fits() -> None:
    with pytest.raises(CurveError, match="at least 3 CPT curves with loss_general; got 0") as error:
        candidates(measured(blank_pretraining(), GENERAL), law="cpt")
    assert error.value.hint == "choose --law multi_power_late or annealing for pre-training curves"


@pytest.mark.parametrize(("points", "enough"), [(8, False), (9, True)])
def test_points_must_be_two_more_than_parameters(points: int, enough: bool) -> None:
    curve = measured(blank_pretraining(["cosine"]), MultiPowerLaw(PEAK), NOISE)["cosine"]
    late = curve.steps > 100
    few = replace(curve, steps=curve.steps[late][:points], losses={"general": curve.losses["general"][late][:points]})
    # multi_power: alpha, C, beta, gamma and L0, A, B: seven
    if enough:
        assert select_law({"cosine": few}, "general", "general", law="multi_power").fitted
    else:
        with pytest.raises(CurveError, match="the multi_power law must have at least 9 points of loss_general; got 8"):
            select_law({"cosine": few}, "general", "general", law="multi_power", where="here")


def test_set_without_a_curve_is_refused() -> None:
    with pytest.raises(CurveError, match="loss_books"):
        select_law(campaign(), "books", "general")


# ---- what each law counts


def test_forms_that_tie_are_averaged() -> None:
    """The truth has no transient: with one, and its size next to 0, the form predicts much the same."""
    found = select_law(campaign(), "general", "general")
    by_form = {c.form: c for c in found.candidates}
    assert by_form["log+undo+transient"].discrepancy == pytest.approx(by_form["log+undo"].discrepancy, rel=0.1)
    assert by_form["log+undo+transient"].weight == pytest.approx(by_form["log+undo"].weight, rel=0.3)
    assert found.reason == "forms that predict left-out curves about as well are averaged"
    weights = [c.weight for c in found.candidates]
    assert weights == sorted(weights, reverse=True)
    assert sum(weights) == pytest.approx(1.0)
    assert [f.law.name for f in found.fitted.forms] == [c.form for c in found.candidates if c.weight > 0]
    assert [f.weight for f in found.fitted.forms] == pytest.approx([w for w in weights if w > 0])
    assert found.fitted.discrepancy == pytest.approx(found.candidates[0].discrepancy)
    assert {h.curve for h in found.fitted.held_out} == {f"run-{number}" for number in range(6)}


def test_same_law_twice_counts_half_each(monkeypatch) -> None:
    alone = select_law(campaign(CELLS[:4]), "general", "general", law="cpt-published").fitted
    monkeypatch.setitem(select.FORMS, "general", (PUBLISHED, PUBLISHED))
    found = select_law(campaign(CELLS[:4]), "general", "general")
    assert [c.weight for c in found.candidates] == pytest.approx([0.5, 0.5])
    points = observations(campaign(), "general")[-1]
    one, two = (fit.predict(points.history, points.steps) for fit in (alone, found.fitted))
    np.testing.assert_allclose(two.mean, one.mean, rtol=1e-12)
    # the same covariance, from other draws: 256 samples know the width of a 90 % interval to a fifth
    assert np.median((two.high - two.low) / (one.high - one.low)) == pytest.approx(1.0, rel=0.2)


@pytest.mark.parametrize(("noise", "alone"), [(0.0003, True), (0.03, False)])
def test_law_counts_alone_when_it_predicts_far_better(noise: float, alone: bool) -> None:
    """Five curves that the annealing law made; with 3 % noise nobody can tell."""
    curves = measured(blank_pretraining(FIVE), AnnealingLaw(PEAK, 100.0), noise)
    found = select_law(curves, "general", "general")
    by_form = {c.form: c for c in found.candidates}
    if alone:
        assert by_form["annealing"].discrepancy < 0.5 * by_form["multi_power_late"].discrepancy
        assert found.candidates[0] == by_form["annealing"]
        assert by_form["annealing"].weight > 0.7
    else:
        assert len(found.fitted.rivals) >= 2
        assert found.candidates[0].weight < 0.5


def test_weights_follow_the_errors_and_no_single_curve_decides() -> None:
    """Errors twice as large on all of n curves weigh 2^(-n/2); on one curve of 8 alone they weigh next to nothing."""

    def tried(errors: list[float]) -> SimpleNamespace:
        return SimpleNamespace(held_out=[SimpleNamespace(late_error=e) for e in errors])

    same, twice, once = [0.01] * 8, [0.02] * 8, [0.01] * 7 + [0.02]
    weights, reason = select._weigh([tried(same), tried(twice)])
    assert weights == pytest.approx([16 / 17, 1 / 17])  # 2^-(TEMPER n), n = 8
    assert reason.endswith("are averaged")
    weights, reason = select._weigh([tried([*same, 0.01]), tried([*twice, 0.02])])
    assert weights == [1.0, 0.0]  # 1 / 24 is below LEAST_WEIGHT
    assert "far better" in reason
    weights, _ = select._weigh([tried(same), tried(once)])
    assert 0.3 < weights[1] < 0.5


def test_three_curves_are_too_few_to_choose_by() -> None:
    curves = measured(blank_pretraining(FIVE[:3]), AnnealingLaw(PEAK, 100.0), 0.0003)
    found = select_law(curves, "general", "general")
    assert found.fitted.law.name == "multi_power_late"
    assert found.reason == "the law that has held elsewhere: 3 curves are too few to choose by"
    single = select_law({"cosine": curves["cosine"]}, "general", "general")
    assert single.fitted.held_out == ()
    assert single.fitted.discrepancy == single.fitted.in_sample_error
    assert "too few to choose by" in single.reason


def test_law_that_was_asked_for_is_kept_whatever_it_is_worth() -> None:
    curves = measured(blank_pretraining(FIVE), AnnealingLaw(PEAK, 100.0), 0.0003)
    found = select_law(curves, "general", "general", law="power")
    assert (found.fitted.law.name, found.reason) == ("power", "the only law asked for")
    assert found.fitted.discrepancy > 0.005
    assert found.verdict.residual_correlation > 0.5


def test_baselines_can_be_fitted_to_cpt_curves() -> None:
    found = select_law(campaign(), "general", "general", law="annealing")
    trusted = select_law(campaign(), "general", "general", law="cpt-published")
    assert found.fitted.discrepancy > 1.5 * trusted.fitted.discrepancy


def test_selection_is_reproducible() -> None:
    one, again = (select_law(campaign(law=DOMAIN), "general", "domain", law="cpt-published", seed=5) for _ in range(2))
    assert one.candidates == again.candidates
    for a, b in zip(one.fitted.left_out, again.fitted.left_out, strict=True):
        np.testing.assert_array_equal(a.values, b.values)


def test_what_is_odd_about_the_curves_is_in_the_verdict() -> None:
    curves = campaign()
    curves["copy"] = replace(curves["run-1"], name="copy")
    found = select_law(curves, "general", "general", law="cpt-published")
    assert any("run-1 and copy have the same losses" in line for line in found.verdict.warnings)
    assert found.verdict.lines()[-1] in found.verdict.warnings


# ---- what comes before


def test_settled_step_is_two_warmups_but_not_past_a_third() -> None:
    assert settled_step(blank_campaign()) == 16
    assert settled_step(blank_campaign([replace(CELLS[0], steps=36)])) == 12
    assert settled_step(blank_pretraining(["cosine"])) == 1
    found = select_law(campaign(), "general", "general", law="cpt-published").fitted
    assert found.settled_step == 16


def test_sets_are_those_of_the_pilots() -> None:
    curves = measured(blank_campaign(), {"general": GENERAL, "domain": DOMAIN})
    curves["base"] = replace(curves["base"], losses={"books": curves["base"].losses["general"]})
    assert sets_of(curves) == ["general", "domain"]
    assert sets_of({"base": curves["base"]}) == ["books"]


@pytest.mark.parametrize(
    ("slopes", "side"), [((-1, -1, -1), "domain"), ((1, 1, -1), "general"), ((1, -1), "domain"), ((), "domain")]
)
def test_side_of_a_set_is_what_cpt_mostly_did_to_it(slopes, side) -> None:
    blank = blank_campaign(CELLS[: len(slopes)])
    curves = {"base": replace(blank["base"], losses={"law": np.ones(len(blank["base"].steps))})}
    for number, slope in enumerate(slopes):
        curve = blank[f"run-{number}"]
        loss = 3.0 + 0.01 * slope * curve.steps
        loss[-1] = np.nan if number == 0 else loss[-1]  # the last point may be missing
        curves[curve.name] = replace(curve, losses={"law": loss})
    assert side_of("law", curves) == side
    assert (side_of("general", curves), side_of("domain", curves)) == ("general", "domain")
