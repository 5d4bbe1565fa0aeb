"""The plan over laws that are known by hand: the choice, its price in loss, what holds it back, its file."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from simple_laws import LAWS, BowlLaw, make_forecaster, make_project

from cptplan.errors import ConfigError, InfeasiblePlanError
from cptplan.files import read_json, write_json
from cptplan.plan import make_plan, plan_space, read_plan, write_plan

# with weights 0.4 and 0.6 two bowls make one, whose bottom is at the weighted mean
BEST_RATE = float(np.exp(0.4 * np.log(1e-3) + 0.6 * np.log(2e-3)))
BEST_REPLAY = 0.4 * 0.2 + 0.6 * 0.1


def plan_with(tmp_path, *overrides, trials=3, **changes):
    project = make_project(tmp_path, *overrides)
    return make_plan(project, make_forecaster(**changes), "abc", tmp_path / "study.journal", trials=trials)


def test_known_best_run_is_chosen(example_plan):
    chosen = example_plan.chosen
    assert chosen.peak_lr == pytest.approx(BEST_RATE, rel=0.05)
    assert chosen.replay_ratio == pytest.approx(BEST_REPLAY, abs=0.02)
    assert (example_plan.base, example_plan.base_losses) == ("annealed", {"general": 3.0, "domain": 4.0})
    assert chosen.losses["general"].mean == pytest.approx(3.1, abs=0.02)
    assert chosen.forgetting_ratio.mean == pytest.approx(np.exp(chosen.losses["general"].mean - 3.0))
    changes = {name: chosen.losses[name].mean - example_plan.base_losses[name] for name in ("general", "domain")}
    assert chosen.objective.mean == pytest.approx(0.4 * changes["general"] + 0.6 * changes["domain"])


def test_chosen_run_has_digits_that_one_types(example_plan):
    chosen = example_plan.chosen
    assert chosen.peak_lr == float(f"{chosen.peak_lr:.3g}")
    assert chosen.replay_ratio == round(chosen.replay_ratio, 3)
    assert chosen.decay_share == round(chosen.decay_share, 2)
    assert chosen.schedule.total_steps == chosen.total_steps
    assert float(chosen.schedule.lr().max()) == chosen.peak_lr


def test_rule_of_thumb_is_the_common_recipe(example_plan):
    rule = example_plan.rule_of_thumb
    assert (rule.peak_lr, rule.replay_ratio, rule.start) == (pytest.approx(3e-4), 0.3, "annealed")
    assert rule.total_steps == example_plan.chosen.total_steps


def test_gain_is_the_difference_and_its_halfwidths_add_in_squares(example_plan):
    chosen, rule, gain = example_plan.chosen.objective, example_plan.rule_of_thumb.objective, example_plan.gain
    assert gain.mean == pytest.approx(rule.mean - chosen.mean)
    assert gain.mean > 0
    assert gain.low == pytest.approx(gain.mean - np.hypot(rule.mean - rule.low, chosen.high - chosen.mean))
    assert gain.high == pytest.approx(gain.mean + np.hypot(rule.high - rule.mean, chosen.mean - chosen.low))


def test_space_is_what_the_pilots_span(tmp_path):
    space = plan_space(make_project(tmp_path, "budget.tokens=25700", "pilot.replay_range=[0.1, 0.5]"))
    assert space.peak_lr == pytest.approx((1e-4, 3e-3))
    assert space.replay_ratio == (0.1, 0.5)
    assert space.total_steps == (25, 100)
    assert space.starts == ("stable", "annealed")


def test_longer_is_chosen_when_longer_is_better(tmp_path):
    laws = {name: BowlLaw(bottom=law.bottom, per_step=1e-3) for name, law in LAWS.items()}
    plan = plan_with(tmp_path, laws=laws)
    assert plan.chosen.total_steps == 32
    assert "budget.tokens: a longer run would be better" in plan.binding
    (steps,) = (s for s in plan.sensitivities if s.knob == "total_steps")
    assert steps.higher is None
    assert steps.lower == pytest.approx(6 * 1e-3)  # a fifth of 32 steps, whole ones


def test_edge_of_the_pilots_is_named(tmp_path):
    laws = {name: BowlLaw(bottom=3.0, best_lr=1.0, best_replay=0.2) for name in LAWS}
    plan = plan_with(tmp_path, laws=laws)
    assert plan.chosen.peak_lr == pytest.approx(3e-3)
    assert any(line.startswith("peak_lr: at the edge") for line in plan.binding)
    assert not any(line.startswith("replay_ratio") for line in plan.binding)


def test_zero_replay_is_no_edge_to_run_beyond(tmp_path):
    laws = {name: BowlLaw(bottom=3.0, best_replay=-1.0) for name in LAWS}
    plan = plan_with(tmp_path, laws=laws)
    assert plan.chosen.replay_ratio == 0.0
    assert not any(line.startswith("replay_ratio") for line in plan.binding)


def test_limit_on_forgetting_holds_the_plan_back(tmp_path):
    """The domain wants a rate ten times the general one; the limit lets it go only part of the way."""
    laws = {"general": BowlLaw(bottom=2.9, best_lr=3e-4), "domain": BowlLaw(bottom=3.2, best_lr=3e-3)}
    free = plan_with(tmp_path, laws=laws, weights={"general": 0.0, "domain": 1.0})
    assert free.chosen.peak_lr == pytest.approx(3e-3, rel=0.05)
    bound = plan_with(
        tmp_path, laws=laws, weights={"general": 0.0, "domain": 1.0}, max_general_increase=0.0, confidence=0.9
    )
    # the 0.9 quantile lies 0.08 above the mean, so 0.02 nats of the bowl may be climbed
    assert bound.chosen.peak_lr == pytest.approx(3e-4 * np.exp(10 * np.sqrt(0.02)), rel=0.05)
    assert "max_general_increase: more forgetting would be better for the weights" in bound.binding
    assert not any(line.startswith("max_general_increase") for line in free.binding)


def test_tokens_that_are_there_hold_the_plan_back(tmp_path):
    """All wants full length and half replay; general text is there for a fifth."""
    laws = {name: BowlLaw(bottom=3.0, best_replay=0.5, per_step=0.1) for name in LAWS}
    plan = plan_with(tmp_path, laws=laws, general_tokens=0.2 * 8192)
    assert plan.chosen.replay_ratio * plan.chosen.total_steps * 256 <= 0.2 * 8192
    assert plan.chosen.replay_ratio == pytest.approx(0.2, abs=0.01)
    assert any(line.startswith("corpora: ") for line in plan.binding)


@pytest.mark.parametrize("tokens", np.linspace(1500.0, 1700.0, 5))
def test_rounding_does_not_break_a_constraint(tmp_path, tokens):
    laws = {name: BowlLaw(bottom=3.0, best_replay=0.6, per_step=0.1) for name in LAWS}
    forecaster = make_forecaster(laws=laws, general_tokens=tokens)
    plan = make_plan(make_project(tmp_path), forecaster, "abc", tmp_path / "study.journal", trials=2)
    assert forecaster.score(plan.chosen.knobs()).violation <= 0


def test_infeasible_goal(tmp_path):
    with pytest.raises(InfeasiblePlanError, match="got none among"):
        plan_with(tmp_path, max_general_increase=0.0)  # the best general loss is 0.1 above the base's


def test_sensitivities_say_what_a_fifth_costs(example_plan):
    forecaster = make_forecaster()
    knobs = example_plan.chosen.knobs()
    centre = forecaster.score(knobs).objective
    (rate,) = (s for s in example_plan.sensitivities if s.knob == "peak_lr")
    more = forecaster.score(replace(knobs, peak_lr=1.2 * knobs.peak_lr)).objective
    assert rate.higher == pytest.approx(more - centre)
    assert {s.knob for s in example_plan.sensitivities} == {"peak_lr", "replay_ratio", "total_steps", "decay_share"}


def test_front_gives_up_one_for_the_other(example_plan):
    general, domain = ([getattr(p, name).mean for p in example_plan.pareto] for name in ("general", "domain"))
    assert len(general) > 3
    assert (np.diff(general) > 0).all()
    assert (np.diff(domain) < 0).all()


def test_surface_has_its_bottom_at_the_best_run(example_plan):
    table = example_plan.surface
    objective = np.array(table.objective)
    assert objective.shape == (len(table.peak_lrs), len(table.replay_ratios))
    row, column = np.unravel_index(objective.argmin(), objective.shape)
    # half a cell of the table: 25 rates over a factor of 30, 21 ratios over 0.6
    assert table.peak_lrs[row] == pytest.approx(BEST_RATE, rel=0.08)
    assert table.replay_ratios[column] == pytest.approx(BEST_REPLAY, abs=0.016)
    assert objective.min() >= example_plan.chosen.objective.mean - 1e-6


def test_warnings(tmp_path):
    laws = {
        "general": BowlLaw(bottom=3.1, per_step=1e-3, discrepancy=0.2),
        "domain": BowlLaw(bottom=3.2, per_step=1e-3, best=SimpleNamespace(converged=False)),
    }
    plan = plan_with(tmp_path, "pilot.peak_lr_range=[1e-3, 3e-3]", laws=laws)
    text = " ".join(plan.warnings)
    assert "4.0 times as long as the pilots" in text
    assert "rule of thumb's rate lies outside what the pilots span" in text
    assert "loss_general misses left-out pilots by 20%" in text
    assert "fit of loss_domain stopped before it converged" in text


def test_same_seed_same_plan(tmp_path, example_plan):
    again = make_plan(make_project(tmp_path), make_forecaster(), "abc", tmp_path / "study.journal", trials=5)
    assert again == example_plan


def test_plan_reads_back_as_it_was_written(tmp_path, example_plan):
    write_plan(tmp_path / "plan.json", example_plan)
    assert read_plan(tmp_path / "plan.json") == example_plan
    assert read_json(tmp_path / "plan.json")["schema_version"] == 1


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda plan: plan.pop("chosen"), "chosen must be given; it is missing in .*plan.json"),
        (lambda plan: plan.update(choice=1), "keys must be known; got choice in .*plan.json"),
        (lambda plan: plan["chosen"].update(peak_lr="x"), "chosen.peak_lr must be a number; got 'x' in .*plan.json"),
        (lambda plan: plan.update(schema_version=2), "schema_version must be 1; got 2 in .*plan.json"),
    ],
)
def test_broken_plan(tmp_path, example_plan, break_it, message):
    plan = example_plan.to_json()
    break_it(plan)
    write_json(tmp_path / "plan.json", plan)
    with pytest.raises(ConfigError, match=message):
        read_plan(tmp_path / "plan.json")
