"""The verb that decides: optimize. Registered by cli.py; no arithmetic here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cptplan.console import Screen
from cptplan.errors import ConfigError

if TYPE_CHECKING:
    from cptplan.planning.plan import Plan

DEFAULT_CONFIG, DEFAULT_OUT = Path("cptplan.yaml"), Path("campaign")


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command()(optimize)


def optimize(
    config: Annotated[Path, typer.Option("--config", "-c", help="Project file.")] = DEFAULT_CONFIG,
    override: Annotated[
        list[str],
        typer.Option("--set", help="Override a key, such as budget.usd=1000. Repeatable."),
    ] = [],  # noqa: B006
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory of the campaign.")] = DEFAULT_OUT,
    fit: Annotated[Path | None, typer.Option("--fit", help="Directory of a fit; default: the campaign's newest.")] = (
        None
    ),
    weights: Annotated[
        str | None, typer.Option("--weights", help="What counts, such as general=0.4 (the domains share the rest).")
    ] = None,
    max_general_increase: Annotated[
        str | None, typer.Option("--max-general-increase", help="Largest relative rise of general loss: 3% or 0.03.")
    ] = None,
    confidence: Annotated[
        str | None, typer.Option("--confidence", help="Share of the draws in which it holds: 90% or 0.9.")
    ] = None,
    risk: Annotated[
        str | None, typer.Option("--risk", help="mean, or cvar:0.8: plan for the worst 20 % of the draws.")
    ] = None,
    extrapolate: Annotated[
        bool, typer.Option("--extrapolate", help="Search somewhat beyond what the pilots support; the plan is marked.")
    ] = False,
    pareto: Annotated[
        bool, typer.Option("--pareto", help="Also write the front of general loss, domain loss and cost.")
    ] = False,
    trials: Annotated[int, typer.Option("--trials", min=1, help="Of the sampler, after the grid.")] = 120,
    sampler: Annotated[Literal["tpe", "random", "qmc"], typer.Option("--sampler", help="Of Optuna.")] = "tpe",
    storage: Annotated[
        str | None,
        typer.Option("--storage", help="Of the Optuna study: a journal file, or a database url (sqlite:///plans.db)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Data on stdout as JSON; all else stays on stderr.")] = False,
) -> None:
    """Search for the best run under the weights, the budget and the limits, and say why it is that one."""
    from cptplan import decide
    from cptplan.config import read_project
    from cptplan.planning import tables as plan_tables
    from cptplan.workspace import Workspace

    screen = Screen(as_json=as_json)
    given = {
        "goal.max_general_increase": max_general_increase,
        "goal.confidence": confidence,
        "goal.risk": risk,
        "search.extrapolate": "true" if extrapolate else None,
    }
    override = [*override, *(f"{key}={value}" for key, value in given.items() if value is not None)]
    project, workspace = read_project(config, override), Workspace(root=out)
    workspace.check(project)
    try:
        fit_dir = fit or workspace.latest("fits")
    except ConfigError:
        decide.goal_weights(project, weights)  # what is wrong with the weights can be said without a fit
        raise
    shares = decide.goal_weights(project, weights, decide.fitted_sets(fit_dir))
    with screen.stage("optimize"):
        directory, plan = decide.optimize(
            project, workspace, shares, fit_dir, trials=trials, sampler=sampler, storage=storage
        )
    show_plan(screen, plan)
    if pareto:
        with screen.stage("pareto"):
            front = decide.pareto(project, workspace, directory, plan)
        screen.table(f"Nothing beats these: loss_general, loss_{front.domain}, cost", *plan_tables.front_table(front))
        screen.say(f"front: {directory / 'pareto.csv'}, {directory / 'pareto.png'}")
    screen.say(f"plan: {directory / 'plan.json'}, study: {storage or directory / 'study.journal'}")
    screen.result(plan.to_json())
    screen.next_command(f"cptplan cost -c {config} -o {out}")


def show_plan(screen: Screen, plan: Plan) -> None:
    """The plan beside the rule of thumb, and its reasons."""
    from cptplan.planning import tables as plan_tables
    from cptplan.tables import interval, plan_rows

    screen.table("Plan", ("", "chosen", "rule of thumb"), plan_rows(plan))
    screen.say(f"Against the rule of thumb: {interval(plan.gain, signed=True)} nats of the objective to gain.")
    screen.table("What limits it", plan_tables.LIMIT_COLUMNS, plan_tables.limit_rows(plan))
    screen.table("What each knob costs, nats of the objective", plan_tables.KNOB_COLUMNS, plan_tables.knob_rows(plan))
    screen.table("Instead (objective, nats: + is worse)", plan_tables.OTHER_COLUMNS, plan_tables.other_rows(plan))
    for line in plan_tables.reason_lines(plan):
        screen.say(f"note: {line}")
