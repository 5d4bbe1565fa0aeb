"""From a fitted law to a plan: what may be chosen, the search, and the plan's account of itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cptplan.config import Project
from cptplan.errors import InfeasiblePlanError
from cptplan.pilots.next_pilot import candidate_pilots, decision_draws, decision_regret, next_pilot, plan_pool
from cptplan.planning.budget import BudgetLimit, Rates, budget_limits, check_memory, known_rates, price
from cptplan.planning.forecast import Forecaster
from cptplan.planning.infeasible import explain
from cptplan.planning.knobs import Knobs, Space
from cptplan.planning.plan import Plan, expected, planned_run
from cptplan.planning.reasons import (
    Affordable,
    binding_lines,
    front_of,
    limits_of,
    other_budgets,
    pilot_advice,
    recipe_beside,
    sensitivities,
    surface_of,
)
from cptplan.planning.recipes import COMMON
from cptplan.planning.search import SamplerName, search

# What eight pilots of 5 % of the budget leave; what the law errs so far out is in the intervals (fitted.Reach).
SUPPORTED_LENGTH = 160.0
CHECKED_LENGTH = 8.0  # measured: intervals were checked on real runs up to here (experiments/07_interval_honesty)
LONGEST_DECAY, SHORTEST_DECAY = 0.8, 0.05  # assumed: between a step down and a fall over nearly all of the run
EXTRAPOLATED_RATE = 1.5  # beyond the pilots' lowest and highest peak rate, when that is allowed
EXTRAPOLATED_REPLAY = 0.2  # beyond the pilots' smallest and largest ratio
SHORTEST_SHARE = 4  # of the longest run: shorter ones are not worth planning for


def affordable(project: Project, forecaster: Forecaster, runs_dir: Path | None = None) -> Affordable:
    """What the budget pays for, and how long a run the pilots support.

    Raises:    InfeasiblePlanError if it does not pay for a run as long as a pilot.
    """
    limits = budget_limits(project, runs_dir)
    _check_length(project, limits)
    longest = min(law.support.longest_steps for law in forecaster.laws.values())
    return Affordable(
        limits=limits,
        batch_tokens=project.pilot.batch_tokens,
        supported_steps=None if project.search.extrapolate else round(SUPPORTED_LENGTH * longest),
    )


def _check_length(project: Project, limits: Sequence[BudgetLimit]) -> None:
    least = project.pilot.total_steps * project.pilot.batch_tokens
    short = [limit for limit in limits if limit.tokens < least]
    if short:
        needs = " and ".join(f"{one.name}={one.amount * least / one.tokens:.3g}" for one in short)
        raise InfeasiblePlanError(
            f"{short[0].name} must pay for a run as long as a pilot, {least:,} tokens; got {short[0].amount:g}, which "
            f"pays for {int(short[0].tokens):,}.",
            hint=f"the least is {needs}",
        )


def plan_space(project: Project, forecaster: Forecaster, afford: Affordable) -> Space:
    """What may be chosen: no further than the pilots support in rate, replay, warm-up and length.

    The warm-up lies between the pilots' own in steps and the same share of the longest run: both are what they did.
    """
    supports = [law.support for law in forecaster.laws.values()]
    rates = max(s.peak_lr[0] for s in supports), min(s.peak_lr[1] for s in supports)
    replays = max(s.replay_ratio[0] for s in supports), min(s.replay_ratio[1] for s in supports)
    if project.search.extrapolate:
        rates = rates[0] / EXTRAPOLATED_RATE, rates[1] * EXTRAPOLATED_RATE
        replays = max(replays[0] - EXTRAPOLATED_REPLAY, 0.0), min(replays[1] + EXTRAPOLATED_REPLAY, 1.0)
    longest, kinds = afford.longest(), project.search.schedules
    warmup = forecaster.warmup_steps
    most = round(warmup * longest / project.pilot.total_steps)
    constant, wsd = "constant" in kinds, "wsd" in kinds
    return Space(
        peak_lr=rates,
        replay_ratio=replays,
        total_steps=(max(longest // SHORTEST_SHARE, min(project.pilot.total_steps, longest)), longest),
        decay_share=(0.0 if constant or not wsd else SHORTEST_DECAY, LONGEST_DECAY),
        starts=tuple(start.name for start in project.model.starts),
        kinds=tuple(kind for kind in dict.fromkeys(kinds) if kind != "constant" or not wsd),
        warmup_steps=(warmup, most) if 0 < warmup < most else None,
        curriculum=project.search.curriculum,
    )


def make_plan(
    project: Project,
    forecaster: Forecaster,
    fit_name: str,
    storage: str,
    *,
    trials: int = 120,
    sampler: SamplerName = "tpe",
    study_name: str = "plan",
    runs_dir: Path | None = None,
    assumptions: Sequence[str] = (),
) -> Plan:
    """Search for the best run and say what is expected of it.

    Args:      fit_name: hash of the fit that the forecaster holds. storage: journal file or url of the Optuna study.
               trials: of the sampler, after the grid. runs_dir: training runs, of which pilots tell the speed.
               assumptions: what the laws take from elsewhere.
    Raises:    InfeasiblePlanError if no run keeps the constraints, with the smallest change that would let one.
    """
    rates = known_rates(project, runs_dir)
    fits = tuple(check_memory(project, rates)) if rates is not None else ()
    afford = affordable(project, forecaster, runs_dir)
    space = plan_space(project, forecaster, afford)
    rough = forecaster.rough if forecaster.needs_draws else None
    found = search(
        forecaster.score,
        space,
        storage=storage,
        rough=rough,
        trials=trials,
        sampler=sampler,
        seed=project.seed,
        study_name=study_name,
    )
    if not found.feasible:
        raise explain(found, space, forecaster)
    knobs = rounded(found.best.knobs)
    if forecaster.score(knobs).violation > 0:
        knobs = found.best.knobs  # a run on the very edge of a constraint must not be rounded over it
    rule = COMMON.knobs(project.model.pretrain_peak_lr, knobs.total_steps, forecaster.base)
    draws = decision_draws(forecaster, plan_pool(found))
    pilots = candidate_pilots(space, project.pilot.total_steps, forecaster.warmup_steps)
    limits = limits_of(knobs, space, forecaster, afford)
    felt = sensitivities(knobs, space, forecaster)
    shorter = next(s.lower for s in felt if s.knob == "total_steps")
    return Plan(
        project=project.name,
        fit=fit_name,
        weights=dict(forecaster.weights),
        risk=project.goal.risk,
        base=forecaster.base,
        base_losses=dict(forecaster.starts[forecaster.base].losses),
        level=forecaster.level,
        budget_tokens=afford.tokens,
        batch_tokens=project.pilot.batch_tokens,
        chosen=planned_run(knobs, forecaster),
        rule_of_thumb=planned_run(rule, forecaster),
        gain=expected(forecaster.difference(rule, knobs)),
        nearest_recipe=recipe_beside(knobs, project.model.pretrain_peak_lr, forecaster),
        limits=limits,
        chance=forecaster.chance(knobs),
        binding=binding_lines(knobs, space, limits, curved=shorter is None or shorter > 0),
        sensitivities=felt,
        budgets=other_budgets(knobs, space, forecaster, afford),
        regret=decision_regret(draws),
        next_pilot=pilot_advice(
            next_pilot(forecaster, draws, pilots, gpu_hours_per_token=hours_per_token(project, rates))[0]
        ),
        pareto=front_of(found, forecaster),
        surface=surface_of(knobs, space, forecaster),
        extrapolations=forecaster.support_flags(knobs),
        assumptions=_assumptions(knobs, forecaster, assumptions),
        warnings=(*fits, *_warnings(knobs, rule, space, project, forecaster)),
    )


def hours_per_token(project: Project, rates: Rates | None) -> float | None:
    """GPU-hours of one training token of a pilot with its evaluation; None when the model is not known here."""
    if rates is None:
        return None
    tokens = float(project.pilot.total_steps * project.pilot.batch_tokens)
    return price(project, rates, tokens).gpu_hours / tokens


def rounded(knobs: Knobs) -> Knobs:
    """Knobs with as many digits as anyone would type."""
    return replace(
        knobs,
        peak_lr=float(f"{knobs.peak_lr:.3g}"),
        replay_ratio=round(knobs.replay_ratio, 3),
        decay_share=round(knobs.decay_share, 2),
        end_replay=None if knobs.end_replay is None else round(knobs.end_replay, 3),
    )


def _assumptions(knobs: Knobs, forecaster: Forecaster, given: Sequence[str]) -> tuple[str, ...]:
    """What no pilot showed, of what this run needs."""
    excess = forecaster.token_excess(knobs)
    repeats = {name: forecaster.max_epochs * (1.0 + excess[f"{name}_tokens"]) for name in ("general", "domain")}
    found = list(given) if repeats["domain"] > 1.0 else []
    if repeats["general"] > 1.0:
        found.append(f"General tokens are read {repeats['general']:.1f} times: assumed to do no harm.")
    if knobs.kind in ("cosine", "linear"):
        found.append(f"No pilot had a {knobs.kind} schedule: its areas lie inside the pilots', the form is the law's.")
    if knobs.end_replay is not None:
        found.append("No pilot changed its replay ratio: the law judges a ramp by its mean, weighted by the rate.")
    return tuple(found)


def _warnings(knobs: Knobs, rule: Knobs, space: Space, project: Project, forecaster: Forecaster) -> tuple[str, ...]:
    found = []
    ratio = knobs.total_steps / project.pilot.total_steps
    if ratio > 1.5:
        errors = {name: law.reach.doubling_error for name, law in forecaster.laws.items() if law.reach is not None}
        said = ", ".join(f"{error:.1%} of loss_{name}" for name, error in errors.items())
        found.append(
            f"The run is {ratio:.1f} times as long as the pilots; intervals are widened for it"
            + (f": for every doubling by {said} (one standard deviation)." if said else ".")
        )
    if ratio > CHECKED_LENGTH:
        found.append(
            f"Intervals were checked on runs up to {CHECKED_LENGTH:g} times as long as their pilots: what is said of "
            "one so much longer is extrapolated, its rank among runs of its length less so than its loss."
        )
    if not space.peak_lr[0] <= rule.peak_lr <= space.peak_lr[1]:
        found.append("The rule of thumb's rate lies outside what the pilots span; its prediction is an extrapolation.")
    for name, law in forecaster.laws.items():
        if law.discrepancy > 0.05:
            found.append(f"The law of loss_{name} misses left-out pilots by {law.discrepancy:.0%}: treat it with care.")
        if not law.best.converged:
            found.append(f"The fit of loss_{name} stopped before it converged.")
    return tuple(found)
