"""Dynamics of a run: against closed forms, and against slow searches written out again."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
from known_fits import SUPPORT
from scipy.optimize import brentq, minimize_scalar
from simple_laws import LAWS as BOWLS

from cptplan.dynamics import dynamics
from cptplan.dynamics import table as dynamics_table
from cptplan.dynamics.dynamics import (
    Setting,
    critical_point,
    replay_by_weight,
    start_effect,
    step_grid,
    study,
    turning_lengths,
)
from cptplan.dynamics.figure import draw_dynamics
from cptplan.errors import ConfigError
from cptplan.fitting.fitted import FittedLaw, Form
from cptplan.fitting.separable import Solution
from cptplan.laws.cpt import CptForm, CptLaw
from cptplan.laws.history import RunHistory
from cptplan.planning.limit import at_limit
from cptplan.simulation.known_law import KnownLaw

ETA = 1e-3
GENERAL = {"L0": 3.0, "A": 3.0, "C1": 0.2, "C2": 0.2, "B": 0.05}
DOMAIN = {"L0": 2.5, "A": 2.0, "C1": 0.2, "C2": 0.2, "B": -0.6}
PARAMETERS = {"alpha": 0.5, "E": 0.02, "beta": 0.4, "forgetting_time": 20.0, "a": 3.0}


def known(side: str, **changes: float) -> KnownLaw:
    law = CptLaw(side, ETA, CptForm(amplitude="exponential", clock=False, free_power=False))
    numbers = {**PARAMETERS, **(GENERAL if side == "general" else DOMAIN), **changes}
    return KnownLaw(
        law=law,
        values=np.array([numbers[p.name] for p in law.parameters]),
        coefficients=np.array([numbers[t.name] for t in law.terms]),
    )


def constant(start: str, replay: float, steps: int = 4000) -> RunHistory:
    """A constant rate after a constant pre-training: no annealing anywhere. "far" has ten times the pre-training."""
    return RunHistory(
        phase="cpt",
        pretrain_lr=np.full({"base": 400, "far": 4000}[start], ETA),
        pretrain_known=True,
        lr=np.full(steps, ETA),
        replay_ratio=np.full(steps, replay),
    )


def setting(**changes) -> Setting:
    values = {
        "laws": {"general": known("general"), "domain": known("domain")},
        "weights": {"general": 0.4, "domain": 0.6},
        "history": constant,
        "start": "base",
        "others": ("far",),
        "replay_ratio": 0.0,
        "replay_range": (0.0, 1.0),
    }
    return Setting(**{**values, **changes})


@dataclass(frozen=True, kw_only=True)
class Wavering(KnownLaw):
    """A known law whose draws lie evenly around it; all begin at one loss."""

    spread: float

    def sample(self, history, steps, seed=0):
        return self.mean(history, steps) + np.linspace(-1, 1, 101)[:, None] * self.spread * (steps > 0)


def wavering(side: str, spread: float) -> Wavering:
    exact = known(side)
    return Wavering(law=exact.law, values=exact.values, coefficients=exact.coefficients, spread=spread)


def test_turning_length_of_a_constant_rate_is_the_root_of_the_closed_form():
    # A (S^-alpha - (S + x)^-alpha) = B (1 - (1 + E x)^-beta), x in steps at the reference rate
    def gap(x):
        base = GENERAL["A"] * (400.0**-0.5 - (400.0 + x) ** -0.5)
        return base - GENERAL["B"] * (1.0 - (1.0 + 0.02 * x) ** -0.4)

    expected = brentq(gap, 10.0, 4000.0)
    turning = study(setting()).turning["general"]
    assert turning.state == "returns"
    # straight lines between grid points of a slowly bending curve
    assert turning.steps.mean == pytest.approx(expected, rel=2e-3)
    assert turning.steps.low == turning.steps.high == turning.steps.mean


def test_turning_length_is_that_of_a_search_over_every_step():
    found = study(setting(replay_ratio=0.2)).turning["general"].steps.mean
    curve = known("general").mean(constant("base", 0.2), np.arange(4001))
    rise = int(np.flatnonzero(curve > curve[0])[0])
    slow = next(step for step in range(rise, 4001) if curve[step] <= curve[0])
    assert slow - 1 <= found * (1 + 2e-3)
    assert found * (1 - 2e-3) <= slow


@pytest.mark.parametrize(
    ("shift", "start", "state"), [(0.05, "base", "returns"), (0.4, "base", "never"), (0.14, "base", "beyond")]
)
def test_state_of_general_loss(shift, start, state):
    laws = {"general": known("general", B=shift), "domain": known("domain")}
    found = study(setting(laws=laws))
    # base term at the start: 3 / sqrt(400) = 0.15: a stronger shift is never made up for
    assert found.critical["general"].post_critical == float(shift > 0.15)
    assert found.turning["general"].state == state
    assert found.turning["domain"].state == "below"
    assert found.turning["domain"].steps.mean == 0.0


@pytest.mark.parametrize(
    ("curve", "expected"),
    [
        ([0, 1, 2, 1, -1], 35.0),
        ([0, -1, -2, -1, -1], 0.0),
        ([0, 1, 2, 2, 1], np.inf),
        ([0, -1, 1, 0, 1], 30.0),  # a dip before the rise is no return
        ([0, -1, -1, -1, 1], np.inf),
        ([0, 0, 0, 0, 0], 0.0),
    ],
)
def test_turning_length_of_a_curve(curve, expected):
    assert turning_lengths(np.array([0, 10, 20, 30, 40]), curve)[0] == expected


def test_critical_point_is_the_loss_of_an_endless_run():
    # beta 3: the power laws have run out after 10^6 steps, S^-alpha being 1e-3 of A by then
    laws = {"general": known("general", beta=3.0, alpha=1.0), "domain": known("domain")}
    for replay in (0.0, 0.3):
        history = constant("base", replay, 1_000_000)
        history = replace(history, lr=np.concatenate([np.full(999_000, ETA), np.full(1000, 0.25 * ETA)]))
        history = replace(history, pretrain_lr=np.concatenate([np.full(300, ETA), np.full(300, 0.5 * ETA)]))
        point = critical_point(setting(laws=laws), "general", history)
        end = laws["general"].mean(history, np.array([len(history.lr)]))[0]
        assert point.limit.mean == pytest.approx(end, abs=1e-4)
        above = (np.exp(3.0 * (1.0 - replay)) - 1.0) / (np.exp(3.0) - 1.0)
        assert point.asymptote.mean == pytest.approx(3.0 + 0.05 * above, abs=1e-9)
        # both falls paid in full: half the rate in pre-training, a quarter from 0.5 in CPT
        assert point.asymptote.mean - point.limit.mean == pytest.approx(0.2 * 0.5 + 0.2 * 0.25, abs=1e-9)


@pytest.mark.parametrize("form", [CptForm(), CptForm(transient=True, repetition=True), CptForm(undo=True)])
def test_limit_holds_for_every_form(form):
    law = CptLaw("general", ETA, form)
    model = KnownLaw(
        law=law,
        values=np.array([{"epsilon": 1e-2, "beta": 3.0, "alpha": 1.0}.get(p.name, p.start) for p in law.parameters]),
        coefficients=np.array([{"L0": 3.0, "B": 0.1, "C2": 0.3}.get(t.name, 0.2) for t in law.terms]),
    )
    history = constant("base", 0.1, 400_000)
    history = replace(history, pretrain_lr=np.concatenate([np.full(300, ETA), np.full(300, 0.5 * ETA)]))
    end = model.mean(history, np.array([400_000]))[0]
    point = critical_point(setting(laws={"general": model}), "general", history)
    assert point.limit.mean == pytest.approx(end, abs=2e-3)


def test_limit_of_an_average_is_the_average_of_its_forms_limits():
    history = constant("base", 0.1, 1000)
    solutions = [
        Solution(values=m.values, coefficients=m.coefficients, scale=1.0, objective=0.0, converged=True)
        for m in (known("general"), known("general", B=0.5))
    ]
    law = known("general").law
    rival = Form(law=law, best=solutions[1], left_out=(solutions[1],) * 3, weight=0.25)
    settled = {"in_sample_error": 0.0, "transient_error": 0.0, "settled_step": 1, "support": SUPPORT, "noise": 0.0}
    both = FittedLaw(
        set_name="general",
        law=law,
        best=solutions[0],
        left_out=(solutions[0],) * 3,
        held_out=(),
        rivals=(rival,),
        **settled,
    )
    alone = [
        at_limit(m, annealed=True).mean(history, np.array([1000]))[0]
        for m in (known("general"), known("general", B=0.5))
    ]
    found = at_limit(both, annealed=True).mean(history, np.array([1000]))[0]
    assert alone[0] != alone[1]
    assert found == pytest.approx(0.75 * alone[0] + 0.25 * alone[1], rel=1e-12)


def test_best_replay_is_the_closed_form_of_two_exponentials():
    # w G a e^{a s} / (e^a - 1) = (1 - w) D a e^{-a s} / (1 - e^{-a}) in the domain share s, at equal a
    growth = 1.0 - (1.0 + 0.02 * 4000) ** -0.4
    general, domain, a = 0.05 * growth / np.expm1(3.0), 0.6 * growth / -np.expm1(-3.0), 3.0
    for choice in replay_by_weight(setting(), weights=(0.6, 0.9, 0.95, 0.99)):
        w = choice.general_weight
        share = np.clip(np.log((1.0 - w) * domain / (w * general)) / (2.0 * a), 0.0, 1.0)
        # a parabola between ratios that are 0.06 apart at most
        assert choice.replay_ratio.mean == pytest.approx(1.0 - share, abs=2e-3)


def test_best_replay_is_that_of_a_slow_search():
    laws, end = setting().laws, np.array([4000])

    def objective(replay, weight):
        history = constant("base", float(replay))
        general, domain = (laws[name].mean(history, end)[0] for name in ("general", "domain"))
        return weight * general + (1.0 - weight) * domain

    for choice in replay_by_weight(setting(), weights=(0.5, 0.95)):
        slow = minimize_scalar(lambda r, w=choice.general_weight: objective(r, w), bounds=(0, 1), method="bounded")
        assert choice.replay_ratio.mean == pytest.approx(slow.x, abs=3e-3)


def test_best_replay_rises_with_the_weight_and_stays_in_the_range():
    found = replay_by_weight(setting(replay_range=(0.1, 0.4)))
    ratios = [choice.replay_ratio.mean for choice in found]
    assert ratios == sorted(ratios)
    assert ratios[0] >= 0.1
    assert ratios[-1] == pytest.approx(0.4)
    assert replay_by_weight(setting(replay_range=(0.33, 0.33))) == ()


def test_another_start_differs_by_its_base_term_alone():
    effect = start_effect(setting(), "far")
    for name, size in (("general", 3.0), ("domain", 2.0)):
        assert effect.losses[name].mean == pytest.approx(size * (8000.0**-0.5 - 4400.0**-0.5), abs=1e-9)
    expected = 0.4 * effect.losses["general"].mean + 0.6 * effect.losses["domain"].mean
    assert effect.weighted.mean == pytest.approx(expected)


def test_break_even_weight_makes_the_run_worth_nothing():
    found = study(setting(replay_ratio=0.1, laws={"general": known("general", B=0.4), "domain": known("domain")}))
    general, domain = (float(found.changes[name].mean[-1]) for name in ("general", "domain"))
    weight = found.break_even_weight.mean
    assert weight * general + (1.0 - weight) * domain == pytest.approx(0.0, abs=1e-12)
    assert 0.0 < weight < 1.0
    gains = study(setting(laws={"general": known("general", B=0.0), "domain": known("domain")}))
    assert gains.break_even_weight.mean == 1.0
    loses = study(setting(laws={"general": known("general", B=0.4), "domain": known("domain", A=0.0, B=0.0)}))
    assert loses.break_even_weight.mean == 0.0


def test_intervals_are_the_quantiles_of_the_draws():
    laws = {"general": wavering("general", 0.01), "domain": wavering("domain", 0.02)}
    found = study(setting(laws=laws, others=()))
    band = found.changes["general"]
    assert band.high[-1] - band.mean[-1] == pytest.approx(0.009)
    weighted = found.changes["weighted"]
    assert weighted.mean[-1] == pytest.approx(0.4 * band.mean[-1] + 0.6 * found.changes["domain"].mean[-1])
    turning = found.turning["general"]
    lengths = turning_lengths(found.steps, [band.mean + found_shift(found.steps, side) for side in (-0.009, 0.009)])
    assert (turning.steps.low, turning.steps.high) == pytest.approx(tuple(lengths))
    assert turning.within_horizon == 1.0
    laws["general"] = wavering("general", 0.2)
    far = study(setting(laws=laws, others=())).turning["general"]
    ends = far.steps.mean, far.steps.low, far.steps.high
    assert ends == (pytest.approx(turning.steps.mean), 0.0, np.inf)
    # those lifted by more than the fall since the start, 0.06 of 0.2, are not back
    fall = -found.changes["general"].mean[-1]
    assert far.within_horizon == pytest.approx(0.5 + 0.5 * fall / 0.2, abs=0.02)


def found_shift(steps, size):
    return size * (steps > 0)


def test_steps_begin_at_nothing_and_end_with_the_run():
    for total in (1, 7, 384, 100_000):
        steps = step_grid(total)
        assert (steps[0], steps[-1]) == (0, total)
        assert np.all(np.diff(steps) > 0)
        assert len(steps) <= dynamics.POINTS + 1


def test_law_of_another_kind_is_refused():
    bowl = replace(BOWLS["general"])
    object.__setattr__(bowl, "law", type("Power", (), {"name": "power"})())
    with pytest.raises(ConfigError, match="law must be one of CPT; got power for loss_general"):
        study(setting(laws={"general": bowl}))
    with pytest.raises(ConfigError, match="laws must hold one of loss_general; got domain"):
        study(setting(laws={"domain": known("domain")}))


def test_words_rows_and_json_say_the_same():
    found = study(setting(laws={"general": known("general", B=0.4), "domain": known("domain")}))
    said = "\n".join(dynamics_table.advice(found, "base"))
    assert "loss_general is never back" in said
    assert "the far checkpoint" in said
    value = json.loads(json.dumps(dynamics_table.to_json(found), allow_nan=False))
    assert value["turning"]["general"] == {
        "state": "never",
        "steps": {"mean": None, "low": None, "high": None},
        "within_horizon": 0.0,
    }
    table = {(row[0], row[1]): row[2] for row in dynamics_table.rows(found)}
    assert table["turning length, steps", "general"] == "inf"
    assert table["critical point (no annealing)", "general"] == "3.400"


def test_figure_is_drawn_with_and_without_replay():
    for limits in ((0.0, 1.0), (0.3, 0.3)):
        assert draw_dynamics(study(setting(replay_range=limits)), "title").startswith(b"\x89PNG")
