"""The plan's account of itself as the command line shows it: limits, knobs, alternatives, next pilot, front."""

from __future__ import annotations

from cptplan.planning.knobs import Knobs
from cptplan.planning.pareto import Front, by_length, in_words, spread_out
from cptplan.planning.plan import Alternative, Plan, PlannedRun
from cptplan.tables import Row, interval

LIMIT_COLUMNS = ("limit", "used", "allowed", "unit", "binds", "known by")
KNOB_COLUMNS = ("knob", "20 % less", "20 % more")
OTHER_COLUMNS = ("instead", "peak lr", "replay", "steps", "decay", "against the plan")
SHOWN = 5  # runs of each length; all are in the CSV
FRONT_COLUMNS = ("tokens", "usd", "peak lr", "replay", "decay", "start", "general", "domain")


def limit_rows(plan: Plan) -> list[Row]:
    """What limits the run and how much of each limit it uses."""
    return [
        (
            limit.name,
            _amount(limit.used),
            _amount(limit.allowed),
            limit.unit,
            "yes" if limit.binding else "-",
            limit.basis or "-",
        )
        for limit in plan.limits
    ]


def knob_rows(plan: Plan) -> list[Row]:
    """What a fifth less or more of each knob costs, nats of the objective."""

    def words(value: float | None) -> str:
        return "not searched" if value is None else f"{value:+.4f}"

    return [(one.knob, words(one.lower), words(one.higher)) for one in plan.sensitivities]


def other_rows(plan: Plan) -> list[Row]:
    """The plan beside other budgets and the nearest published recipe; a positive difference is worse."""
    return [_other_row(one) for one in (*plan.budgets, plan.nearest_recipe)]


def _other_row(one: Alternative) -> Row:
    run = one.run
    return (
        one.name,
        f"{run.peak_lr:.3g}",
        replay_words(run),
        f"{run.total_steps:,}",
        decay_words(run),
        interval(one.difference, signed=True),
    )


def reason_lines(plan: Plan) -> list[str]:
    """The plan's reasons and warnings, one line each."""
    found = [f"held back by {line}" for line in plan.binding]
    if plan.chance is not None:
        found.append(f"the limits on general loss hold in {plan.chance:.0%} of the draws")
    found.append(f"nearest published recipe: {plan.nearest_recipe.name} ({plan.nearest_recipe.source})")
    found.append(pilot_line(plan))
    found += [f"extrapolation: {line}" for line in plan.extrapolations]
    found += [f"assumed: {line}" for line in plan.assumptions]
    return [*found, *plan.warnings]


def pilot_line(plan: Plan) -> str:
    """Which one more pilot would help the decision most."""
    pilot = plan.next_pilot
    decay = f"decay over the last {pilot.decay_share:.0%}" if pilot.decay_share else "no decay"
    cost = f"{in_words(pilot.tokens)} tokens" + (
        "" if pilot.gpu_hours is None else f", {pilot.gpu_hours:.3g} GPU-hours"
    )
    return (
        f"expected regret {plan.regret:.4f} nats; the best next pilot (peak lr {pilot.peak_lr:.3g}, "
        f"{pilot.replay_ratio:.1%} replay, {decay}, from {pilot.start}; {cost}) would remove {pilot.value:.4f}"
    )


def front_table(front: Front) -> tuple[Row, list[Row]]:
    """Columns and rows of the front of general loss, domain loss and cost."""
    shown = [run for _, runs in by_length(front) for run in spread_out(runs, SHOWN)]
    rows: list[Row] = [
        (
            in_words(run.tokens),
            "-" if run.price_usd is None else f"{run.price_usd:,.3g}",
            f"{run.knobs.peak_lr:.3g}",
            f"{run.knobs.replay_ratio:.1%}",
            decay_words(run.knobs),
            run.knobs.start,
            _loss(run.outlook.losses["general"].mean),
            _loss(run.outlook.losses[front.domain].mean),
        )
        for run in shown
    ]
    return (*FRONT_COLUMNS[:-1], front.domain), rows


def replay_words(run: PlannedRun) -> str:
    """The replay ratio, or where it starts and ends."""
    return f"{run.replay_ratio:.1%}" + ("" if run.end_replay is None else f" to {run.end_replay:.1%}")


def decay_words(run: PlannedRun | Knobs) -> str:
    """How the rate falls."""
    if run.kind in ("cosine", "linear"):
        return run.kind
    return f"last {run.decay_share:.0%}" if run.kind == "wsd" and run.decay_share else "none"


def _loss(value: float) -> str:
    return f"{value:.3f}"


def _amount(value: float) -> str:
    """Four digits of any size, with separators."""
    return f"{value:,.0f}" if 1000 <= value < 1e7 else f"{value:.4g}"
