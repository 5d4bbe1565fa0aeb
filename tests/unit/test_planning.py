"""The plan over laws that are known by hand: the choice, what it may not do, and its account of itself."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from simple_laws import LAWS, BowlLaw, make_forecaster, make_project

from cptplan.errors import InfeasiblePlanError
from cptplan.fitting.fitted import Reach
from cptplan.planning.planner import affordable, make_plan, plan_space

# with weights 0.4 and 0.6 two bowls make one, whose bottom is at the weighted mean
BEST_RATE = float(np.exp(0.4 * np.log(1e-3) + 0.6 * np.log(2e-3)))
BEST_REPLAY = 0.4 * 0.2 + 0.6 * 0.1


def plan_with(tmp_path, *overrides, trials=3, **changes):
    project = make_project(tmp_path, *overrides)
    storage = str(tmp_path / "study.journal")
    return make_plan(project, make_forecaster(**changes), "abc", storage, trials=trials)


def space_with(tmp_path, *overrides, **changes):
    project, forecaster = make_project(tmp_path, *overrides), make_forecaster(**changes)
    return plan_space(project, forecaster, affordable(project, forecaster))


def supported(**changes):
    """The two laws with another span of the pilots."""
    support = LAWS["general"].support.model_copy(update=changes)
    return {name: replace(law, support=support) for name, law in LAWS.items()}


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


def test_gain_is_the_difference_from_the_same_draws(example_plan):
    forecaster = make_forecaster()
    gain = forecaster.difference(example_plan.rule_of_thumb.knobs(), example_plan.chosen.knobs())
    assert (example_plan.gain.low, example_plan.gain.high) == (gain.low, gain.high)
    chosen, rule = example_plan.chosen.objective, example_plan.rule_of_thumb.objective
    assert example_plan.gain.mean == pytest.approx(rule.mean - chosen.mean)
    assert example_plan.gain.high - example_plan.gain.low < 0.5 * (chosen.high - chosen.low)


def test_space_is_what_the_pilots_span(tmp_path):
    laws = supported(peak_lr=(2e-4, 2e-3), replay_ratio=(0.1, 0.5))
    space = space_with(tmp_path, "budget.tokens=15000", laws=laws)
    assert space.peak_lr == (2e-4, 2e-3)
    assert space.replay_ratio == (0.1, 0.5)
    assert space.total_steps == (14, 58)
    assert space.starts == ("stable", "annealed")
    assert space.kinds == ("wsd",)
    assert space.decay_share == (0.0, 0.8)
    assert space.warmup_steps == (2, 14)  # the pilots' 2 steps, and their quarter of 8 steps
    assert not space.curriculum


def test_space_of_laws_that_differ_is_what_both_support(tmp_path):
    laws = supported()
    narrow = laws["domain"].support.model_copy(update={"peak_lr": (3e-4, 1e-2)})
    laws = {**laws, "domain": replace(laws["domain"], support=narrow)}
    assert space_with(tmp_path, laws=laws).peak_lr == (3e-4, 3e-3)


@pytest.mark.parametrize(
    ("schedules", "kinds", "decay"),
    [
        ("[wsd]", ("wsd",), (0.05, 0.8)),
        ("[constant]", ("constant",), (0.05, 0.8)),
        ("[constant, cosine]", ("constant", "cosine"), (0.0, 0.8)),
        ("[cosine, wsd, linear, constant]", ("cosine", "wsd", "linear"), (0.0, 0.8)),
    ],
)
def test_kinds_of_schedule(tmp_path, schedules, kinds, decay):
    space = space_with(tmp_path, f"search.schedules={schedules}")
    assert space.kinds == kinds
    assert "wsd" not in kinds or space.decay_share == decay


def test_run_is_no_longer_than_the_pilots_support_unless_allowed(tmp_path):
    """The fixture's longest pilot has 8 steps; the budget pays for 2000."""
    budget = "budget.tokens=512000"
    laws = {name: replace(law, per_step=1e-4) for name, law in LAWS.items()}
    plan = plan_with(tmp_path, budget, laws=laws)
    assert plan.chosen.total_steps == 1280
    assert any(line.startswith("length: ") for line in plan.binding)
    assert [one.name for one in plan.budgets] == ["half the budget"]  # double the budget changes nothing
    assert any("160.0 times the longest" in line for line in plan.extrapolations)
    far = plan_with(tmp_path, budget, "search.extrapolate=true", laws=laws)
    assert far.chosen.total_steps == 2000
    assert any("250.0 times the longest" in line for line in far.extrapolations)


def test_extrapolation_is_bounded_and_marked(tmp_path):
    laws = {name: BowlLaw(bottom=3.0, best_lr=1.0, best_replay=1.0) for name in LAWS}
    inside = plan_with(tmp_path, laws=laws)
    assert (inside.chosen.peak_lr, inside.chosen.replay_ratio) == pytest.approx((3e-3, 0.6))
    assert not any("outside" in line for line in inside.extrapolations)
    beyond = plan_with(tmp_path, "search.extrapolate=true", laws=laws)
    assert (beyond.chosen.peak_lr, beyond.chosen.replay_ratio) == pytest.approx((4.5e-3, 0.8))
    assert {line.split()[0] for line in beyond.extrapolations} >= {"peak", "replay"}


class TailLaw(BowlLaw):
    """Annealing credited by steps: every step at less than a hundredth of the peak is a gain."""

    def mean(self, history, steps):
        return self.bottom - 0.01 * np.sum(history.lr < 0.01 * history.lr.max()) - 0.0 * steps


class AreaLaw(BowlLaw):
    """No optimum of the rate: the larger the area under the schedule, the better, without end."""

    def mean(self, history, steps):
        return self.bottom - np.sum(history.lr) - 0.0 * steps


EVERY_KIND = "search.schedules=[constant, wsd, cosine, linear]"


@pytest.mark.parametrize("extra", [(), ("search.extrapolate=true",), ("search.curriculum=true",)])
def test_tail_at_rate_zero_cannot_be_planned(tmp_path, extra):
    """However much a law rewards steps that train nothing: fewer than 3 of 40, warm-up included, run below 1 %."""
    laws = {name: TailLaw(bottom=3.0) for name in LAWS}
    plan = plan_with(tmp_path, "budget.tokens=10240", EVERY_KIND, *extra, laws=laws, trials=40)
    lr = plan.chosen.schedule.lr()
    assert np.sum(lr < 0.01 * lr.max()) <= 2
    assert np.sum(lr == 0.0) <= 1  # only where the decay ends
    assert not any("train nothing" in line for line in plan.extrapolations)


@pytest.mark.parametrize("kind", ["constant", "wsd", "cosine", "linear"])
def test_schedule_cannot_be_scaled_up(tmp_path, kind):
    laws = {name: AreaLaw(bottom=3.0) for name in LAWS}
    plan = plan_with(tmp_path, f"search.schedules=[{kind}]", laws=laws)
    assert plan.chosen.schedule.lr().max() <= 3e-3 * (1 + 1e-9)
    far = plan_with(tmp_path, f"search.schedules=[{kind}]", "search.extrapolate=true", laws=laws)
    assert far.chosen.schedule.lr().max() <= 4.5e-3 * (1 + 1e-9)


def test_schedule_cannot_be_scaled_down(tmp_path):
    """A law that likes rates without end towards 0 gets the lowest rate of the pilots, and a floor that is fixed."""
    laws = {name: BowlLaw(bottom=3.0, best_lr=1e-12) for name in LAWS}
    plan = plan_with(tmp_path, "search.schedules=[cosine]", laws=laws)
    lr = plan.chosen.schedule.lr()
    assert lr.max() == pytest.approx(1e-4)
    assert lr[-1] == pytest.approx(1e-5)


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
    assert "goal.max_general_increase: more forgetting would be better for the weights" in bound.binding
    assert not any(line.startswith("goal.") for line in free.binding)
    assert free.chance is None
    assert bound.chance == pytest.approx(0.9, abs=0.02)


def test_tokens_that_are_there_hold_the_plan_back(tmp_path):
    """All wants full length and half replay; general text is there for a fifth."""
    laws = {name: BowlLaw(bottom=3.0, best_replay=0.5, per_step=0.1) for name in LAWS}
    plan = plan_with(tmp_path, laws=laws, general_tokens=0.2 * 8192)
    assert plan.chosen.replay_ratio * plan.chosen.total_steps * 256 <= 0.2 * 8192
    assert plan.chosen.replay_ratio == pytest.approx(0.2, abs=0.01)
    assert any(line.startswith("general tokens: ") for line in plan.binding)


@pytest.mark.parametrize("tokens", np.linspace(1500.0, 1700.0, 5))
def test_rounding_does_not_break_a_constraint(tmp_path, tokens):
    laws = {name: BowlLaw(bottom=3.0, best_replay=0.6, per_step=0.1) for name in LAWS}
    forecaster = make_forecaster(laws=laws, general_tokens=tokens)
    plan = make_plan(make_project(tmp_path), forecaster, "abc", str(tmp_path / "study.journal"), trials=2)
    assert forecaster.score(plan.chosen.knobs()).violation <= 0


def test_infeasible_goal(tmp_path):
    # the best general loss is 0.1 above the base's 3.0, and its 0.9 quantile 0.08 above that
    with pytest.raises(InfeasiblePlanError, match=r"must keep max_general_increase; got none among \d+ runs") as caught:
        plan_with(tmp_path, max_general_increase=0.0)
    assert "general loss 3.18" in caught.value.message
    assert "goal.max_general_increase=0.06" in caught.value.hint
    assert caught.value.exit_code == 3


def test_smallest_change_makes_it_feasible_and_less_does_not(tmp_path):
    with pytest.raises(InfeasiblePlanError) as caught:
        plan_with(tmp_path, max_general_increase=0.03)
    needed = float(caught.value.hint.split("max_general_increase=")[1].split(" ")[0])
    confidence = float(caught.value.hint.split("confidence=")[1])
    plan_with(tmp_path, max_general_increase=needed)
    with pytest.raises(InfeasiblePlanError):
        plan_with(tmp_path, max_general_increase=0.99 * needed)
    # 3.09 is allowed: 45 % of draws that lie evenly in 3.0 to 3.2
    assert confidence == pytest.approx(0.45, abs=0.011)
    plan_with(tmp_path, max_general_increase=0.03, confidence=confidence)


def test_too_few_tokens_of_both_say_how_many_are_missing(tmp_path):
    """The shortest run is 8 steps of 256 tokens; 900 and 900 tokens are there."""
    with pytest.raises(InfeasiblePlanError) as caught:
        plan_with(tmp_path, general_tokens=900.0, domain_tokens=900.0)
    assert "tokens" in caught.value.message
    # 2048 tokens at least, 900 of each: some run keeps the general ones and is 248 domain tokens short
    assert re.search(r"add 250 domain tokens, or set budget.max_epochs=1\.28", caught.value.hint)


def test_epochs_make_a_small_corpus_enough(tmp_path):
    laws = {name: BowlLaw(bottom=3.0, best_replay=0.0, per_step=0.1) for name in LAWS}
    plan = plan_with(tmp_path, laws=laws, domain_tokens=4096.0, max_epochs=2.0, weights={"general": 0.0, "domain": 1.0})
    assert plan.chosen.total_steps == 32
    (limit,) = (one for one in plan.limits if one.name == "domain tokens")
    assert (limit.allowed, limit.binding) == (8192.0, True)


def test_risk_prefers_the_surer_run(tmp_path):
    """Two rates of equal mean, one of them uncertain: only the careful goal takes the sure one."""

    class Unsure(BowlLaw):
        def sample(self, history, steps, seed=0):
            wide = 0.5 if history.lr.max() > 1e-3 else 0.01
            return self.mean(history, steps) + np.linspace(-wide, wide, 101)[:, None]

    laws = {name: Unsure(bottom=3.0, best_lr=2e-3) for name in LAWS}
    assert plan_with(tmp_path, laws=laws).chosen.peak_lr == pytest.approx(2e-3, rel=0.05)
    careful = plan_with(tmp_path, "goal.risk=cvar:0.8", laws=laws, cvar=0.8)
    assert careful.chosen.peak_lr == pytest.approx(1e-3, rel=0.05)
    assert careful.risk == "cvar:0.8"


def test_curriculum_is_planned_only_when_allowed(tmp_path):
    class Ramp(BowlLaw):
        def mean(self, history, steps):
            first, last = history.replay_ratio[0], history.replay_ratio[-1]
            return self.bottom + (first - 0.5) ** 2 + (last - 0.1) ** 2 - 0.0 * steps

    laws = {name: Ramp(bottom=3.0) for name in LAWS}
    assert plan_with(tmp_path, laws=laws).chosen.end_replay is None
    plan = plan_with(tmp_path, "search.curriculum=true", laws=laws, trials=30)
    assert (plan.chosen.replay_ratio, plan.chosen.end_replay) == pytest.approx((0.5, 0.1), abs=0.06)
    assert plan.chosen.mixture.kind == "ramp"
    assert any("No pilot changed its replay ratio" in line for line in plan.assumptions)


def test_sensitivities_say_what_a_fifth_costs(example_plan):
    forecaster = make_forecaster()
    knobs = example_plan.chosen.knobs()
    centre = forecaster.score(knobs).objective
    (rate,) = (s for s in example_plan.sensitivities if s.knob == "peak_lr")
    more = forecaster.score(replace(knobs, peak_lr=1.2 * knobs.peak_lr)).objective
    assert rate.higher == pytest.approx(more - centre)
    knobs = {s.knob for s in example_plan.sensitivities}
    assert knobs == {"peak_lr", "replay_ratio", "total_steps", "decay_share", "warmup_steps"}


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
    # half a cell of the table: 21 rates over a factor of 30, 17 ratios over 0.6
    assert table.peak_lrs[row] == pytest.approx(BEST_RATE, rel=0.095)
    assert table.replay_ratios[column] == pytest.approx(BEST_REPLAY, abs=0.02)
    assert objective.min() >= example_plan.chosen.objective.mean - 1e-6


def test_warnings(tmp_path):
    laws = {
        "general": BowlLaw(bottom=3.1, per_step=1e-3, discrepancy=0.2),
        "domain": BowlLaw(bottom=3.2, per_step=1e-3, best=SimpleNamespace(converged=False)),
    }
    support = LAWS["general"].support.model_copy(update={"peak_lr": (1e-3, 3e-3)})
    laws = {name: replace(law, support=support) for name, law in laws.items()}
    plan = plan_with(tmp_path, laws=laws)
    text = " ".join(plan.warnings)
    assert "4.0 times as long as the pilots; intervals are widened for it." in text
    assert "Intervals were checked" not in text
    assert "rule of thumb's rate lies outside what the pilots span" in text
    assert "loss_general misses left-out pilots by 20%" in text
    assert "fit of loss_domain stopped before it converged" in text


def test_run_far_longer_than_the_pilots_is_marked(tmp_path):
    reach = Reach(phase="cpt", steps=100, doubling_error=0.012)
    laws = {name: replace(law, reach=reach) for name, law in LAWS.items()}
    longer = {name: replace(law, per_step=1e-5) for name, law in laws.items()}
    project = make_project(tmp_path)
    steps = 20 * project.pilot.total_steps
    plan = plan_with(tmp_path, f"budget.tokens={steps * project.pilot.batch_tokens}", laws=longer)
    assert plan.chosen.total_steps > 8 * project.pilot.total_steps
    text = " ".join(plan.warnings)
    assert "for every doubling by 1.2% of loss_general, 1.2% of loss_domain (one standard deviation)" in text
    assert "Intervals were checked on runs up to 8 times" in text


def test_same_seed_same_plan(tmp_path, example_plan):
    again = make_plan(make_project(tmp_path), make_forecaster(), "abc", str(tmp_path / "study.journal"), trials=5)
    assert again == example_plan


def test_budgets_and_recipe_stand_beside_the_plan(tmp_path):
    laws = {name: replace(law, per_step=1e-3) for name, law in LAWS.items()}
    plan = plan_with(tmp_path, laws=laws)
    half, double = plan.budgets
    assert (half.name, half.run.total_steps) == ("half the budget", 16)
    assert (double.name, double.run.total_steps) == ("double the budget", 64)
    assert half.difference.mean == pytest.approx(16e-3, abs=3e-3)
    assert double.difference.mean == pytest.approx(-32e-3, abs=3e-3)
    recipe = plan.nearest_recipe
    assert recipe.difference.mean == pytest.approx(recipe.run.objective.mean - plan.chosen.objective.mean)
    assert recipe.difference.mean > 0


def test_limits_say_what_is_used(example_plan):
    limits = {limit.name: limit for limit in example_plan.limits}
    tokens = limits["budget.tokens"]
    assert (tokens.allowed, tokens.unit) == (8192.0, "tokens")
    assert tokens.used == example_plan.chosen.total_steps * 256
    assert limits["length"].allowed == 160 * 8
