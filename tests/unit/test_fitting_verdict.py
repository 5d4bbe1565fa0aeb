"""The verdict: every line fires where it should, and a good fit of good curves has none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fit_examples import CELLS, GENERAL, PEAK, blank_campaign, blank_pretraining, coefficients, measured, truth

from cptplan.fitting.fitted import targets
from cptplan.fitting.separable import Solution
from cptplan.fitting.support import support_of
from cptplan.fitting.verdict import Verdict, judge, neighbour_correlation
from cptplan.laws.cpt import CptForm, CptLaw
from cptplan.laws.history import Observations, observations
from cptplan.laws.pretraining import AnnealingLaw
from cptplan.laws.protocol import Law

NOISE = 0.002


def known(law: Law, **values: float) -> Solution:
    """The truth as if it had been found; some parameters moved."""
    at = [values.get(p.name, v) for p, v in zip(law.parameters, truth(law), strict=True)]
    linear = [values.get(t.name, c) for t, c in zip(law.terms, coefficients(law), strict=True)]
    return Solution(values=np.array(at), coefficients=np.array(linear), scale=NOISE, objective=0.0, converged=True)


def campaign(cells=CELLS, law: Law = GENERAL, noise: float = NOISE) -> tuple[Observations, ...]:
    return observations(measured(blank_campaign(cells), law, noise), "general")


def verdict(data=None, law: Law = GENERAL, solution: Solution | None = None, warnings=()) -> Verdict:
    data = campaign() if data is None else data
    return judge(law, solution or known(law), data, support_of(targets(data), law.reference_lr), warnings)


def lines(*arguments, **options) -> str:
    return "\n".join(verdict(*arguments, **options).lines())


def cells(**changes) -> list:
    return [replace(cell, **changes) for cell in CELLS]


@pytest.mark.parametrize("noise", [0.0, NOISE])
def test_good_fit_of_good_curves_has_nothing_to_say(noise: float) -> None:
    found = verdict(campaign(noise=noise))
    assert found.lines() == ()
    assert found.converged
    assert abs(found.residual_correlation) < 0.2  # 160 points: 0.08 is one standard error
    assert Verdict.parse(found.to_json(), "test") == found


def test_search_that_did_not_converge_is_said_first() -> None:
    found = verdict(campaign(cells(peak_lr=1e-3)), solution=replace(known(GENERAL), converged=False))
    assert found.lines()[0] == "the search did not converge"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"peak_lr": 1e-3}, "only one peak rate was tried (0.001): what the rate does is not known"),
        ({"replay": 0.0}, "only one replay ratio was tried (0%): what replay does is not known"),
        ({"replay": 0.3}, "only one replay ratio was tried (30%): what replay does is not known"),
    ],
)
def test_what_all_pilots_share_is_named(changes: dict, says: str) -> None:
    found = verdict(campaign(cells(**changes)))
    assert says in found.unidentified
    assert says in found.lines()


@pytest.mark.parametrize(
    ("ratios", "says"),
    [
        ((0.2, 0.3, 0.4, 0.5, 0.6, 0.3), "replay below 20% was never tried"),
        ((0.0, 0.3, 0.4, 0.5, 0.6, 0.3), "replay between 0 and 10 % was never tried, where forgetting changes most"),
        ((0.05, 0.3, 0.4, 0.5, 0.6, 0.3), None),
        ((0.0, 0.01, 0.4, 0.5, 0.6, 0.3), None),
    ],
)
def test_small_replay_that_was_never_tried_is_named(ratios, says) -> None:
    tried = [replace(cell, replay=ratio) for cell, ratio in zip(CELLS, ratios, strict=True)]
    found = [line for line in verdict(campaign(tried)).unidentified if "replay" in line]
    assert found == ([] if says is None else [says])


def test_rate_that_never_falls_is_named() -> None:
    law = AnnealingLaw(PEAK, 100.0)
    says = "no curve's rate falls: what annealing gains is not known"
    for names, expected in ((["constant"], True), (["constant", "cosine"], False), (["two-stage"], False)):
        data = observations(measured(blank_pretraining(names), law, NOISE), "general")
        assert (says in verdict(data, law).unidentified) == expected
    # a fall that comes after the last logged point teaches nothing
    late = observations(measured(blank_pretraining(["late"]), law, NOISE), "general")[0]
    cut = replace(late, steps=late.steps[late.steps < 1700], loss=late.loss[late.steps < 1700])
    assert says in verdict([cut], law).unidentified
    # pre-training of one peak rate is no fault of replay: there is none
    assert not any("replay" in line or "S_pt" in line for line in verdict([cut], law).unidentified)


@pytest.mark.parametrize(
    ("last_lr", "known_area", "named"),
    [(None, None, {"S_pt", "annealed"}), (3e-4, None, {"S_pt"}), (None, 0.5, {"annealed"}), (3e-4, 0.5, set())],
)
def test_what_is_unknown_of_the_start_is_named(last_lr, known_area, named) -> None:
    law = CptLaw("general", PEAK, CptForm(clock=False, free_power=False, open_start=True))
    blank = blank_campaign(cells(parent_step=None))
    del blank["base"]
    data = [
        replace(d, history=replace(d.history, last_lr=last_lr, known_area=known_area))
        for d in observations(measured(blank, law, NOISE), "general")
    ]
    unidentified = " ".join(verdict(data, law).unidentified)
    assert {word for word in ("S_pt", "annealed") if word in unidentified} == named


def test_structure_in_the_residuals_is_named() -> None:
    wrong = known(GENERAL, B=2.2, L0=2.0)
    found = verdict(solution=wrong)
    assert found.residual_correlation > 0.5
    assert f"residuals are structured (correlation {found.residual_correlation:.2f}): the law misses a shape" in (
        found.lines()
    )


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"beta": 0.02}, "at a bound: beta = 0.02"),
        ({"beta": 2.0, "E": 100.0}, "at a bound: E = 100, beta = 2"),
        ({"C2": 0.0}, "at a bound: C2 = 0"),
    ],
)
def test_parameters_at_a_bound_are_named(values, says) -> None:
    assert says in lines(solution=known(GENERAL, **values)).splitlines()


def test_coefficient_of_a_column_that_is_not_there_is_at_no_bound() -> None:
    law = AnnealingLaw(PEAK, 100.0)
    data = observations(measured(blank_pretraining(["constant"]), law, NOISE), "general")
    assert verdict(data, law, known(law, C=0.0)).at_bound == ()


def test_parameters_that_the_priors_decide_are_named() -> None:
    law = AnnealingLaw(PEAK, 100.0)
    blind = observations(measured(blank_pretraining(["constant"]), law, NOISE), "general")
    assert "decided by priors, not by these curves: forgetting_time" in lines(blind, law).splitlines()
    seeing = observations(measured(blank_pretraining(), law, NOISE), "general")
    assert verdict(seeing, law).prior_decides == ()


def test_warnings_about_the_curves_come_last() -> None:
    found = verdict(campaign(cells(replay=0.3)), warnings=["run-1 and run-2 have the same losses"])
    assert found.lines()[-1] == "run-1 and run-2 have the same losses"
    assert found.lines()[0].startswith("only one replay ratio")


def test_correlation_of_neighbours() -> None:
    rng = np.random.default_rng(0)
    noise = [rng.standard_normal(200) for _ in range(5)]
    assert abs(neighbour_correlation(noise)) < 0.1
    assert neighbour_correlation([np.cumsum(n) for n in noise]) > 0.9
    assert neighbour_correlation([np.tile([1.0, -1.0], 50)]) == pytest.approx(-1.0, abs=0.02)
    # the level of a curve is no structure, and too short curves do not count
    assert neighbour_correlation([n + 10 * k for k, n in enumerate(noise)]) == pytest.approx(
        neighbour_correlation(noise), abs=1e-9
    )
    assert neighbour_correlation([np.array([0.1, 0.2])]) == 0.0
    assert neighbour_correlation([np.zeros(9)]) == 0.0
