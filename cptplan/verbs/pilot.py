"""The verb that designs and trains pilots: pilot. Registered by cli.py; no arithmetic here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cptplan.console import Screen

if TYPE_CHECKING:
    from cptplan.config import Project
    from cptplan.workspace import Workspace

DEFAULT_CONFIG, DEFAULT_OUT = Path("cptplan.yaml"), Path("campaign")


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(pilot)


def pilot(
    config: Annotated[Path, typer.Option("--config", "-c", help="Project file.")] = DEFAULT_CONFIG,
    override: Annotated[
        list[str], typer.Option("--set", help="Override a key, such as pilot.num_runs=10. Repeatable.")
    ] = [],  # noqa: B006
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory of the campaign.")] = DEFAULT_OUT,
    one_more: Annotated[
        bool, typer.Option("--next", help="One more pilot: the one that helps the decision most, if it is worth it.")
    ] = False,
    weights: Annotated[
        str | None,
        typer.Option("--weights", help="With --next: what counts, such as general=0.4; default: the goal's."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Data on stdout as JSON; all else stays on stderr.")] = False,
) -> None:
    """Design the short runs, price them and train them; stop at any time, the same command goes on."""
    from cptplan.checks import check_project
    from cptplan.config import read_project
    from cptplan.errors import ConfigError
    from cptplan.workspace import Workspace

    screen = Screen(as_json=as_json)
    project, workspace = read_project(config, override), Workspace(root=out)
    workspace.check(project)
    again = f"cptplan pilot -c {config} -o {out}"
    if one_more:
        _next(screen, project, workspace, weights, dry_run=dry_run, again=f"{again} --next")
        return
    if weights is not None:
        raise ConfigError(f"--weights must come with --next; got {weights!r} alone.", hint="leave it out")
    if not dry_run:
        check_project(project)
    designed = _show_design(screen, project, workspace)
    if dry_run:
        screen.result(designed)
        screen.next_command(again)
        return
    _train(screen, project, workspace)
    screen.next_command(f"cptplan fit -o {out}")


def _show_design(screen: Screen, project: Project, workspace: Workspace) -> dict[str, Any]:
    """The designed pilots with what each is for and costs, and what to change when they cost too much."""
    from cptplan import stages
    from cptplan.pilots import cost as pilot_cost
    from cptplan.pilots import tables as pilot_tables
    from cptplan.pilots.design import design_pilots, final_passes
    from cptplan.planning.budget import budget_tokens

    packed = (workspace.data / "corpora.json").exists()
    tokens = budget_tokens(project, workspace.runs)
    passes = final_passes(project, tokens, stages.read_corpora(workspace)) if packed else {}
    cells, bill = design_pilots(project, passes), pilot_cost.pilot_bill(project, workspace.runs)
    screen.table("Pilots", pilot_tables.PILOT_COLUMNS, pilot_tables.pilot_rows(cells, bill))
    screen.say(bill.line())
    for line in pilot_cost.bill_lines(project, bill, workspace.runs):
        screen.say(f"note: {line}")
    if not packed and project.budget.max_epochs > 1.0:
        screen.say("note: which pilots repeat their text is known when the corpora are packed: cptplan data pack")
    return pilot_tables.pilots_json(project, cells, bill)


def _train(screen: Screen, project: Project, workspace: Workspace) -> None:
    from cptplan import stages

    with screen.stage("corpora") as note:
        corpora = stages.pack_data(project, workspace, note)
    workspace.claim(project)  # not before the corpora are packed: until then every mistake can be mended in place
    with screen.stage("pilots") as note:
        results = stages.run_pilots(project, workspace, corpora, note)
    screen.result({"runs": results})


def _next(
    screen: Screen, project: Project, workspace: Workspace, weights: str | None, *, dry_run: bool, again: str
) -> None:
    """Finish an advised pilot that was stopped, or judge candidates and train the best one if it is worth its price."""
    from cptplan import stages
    from cptplan.pilots import next_stage
    from cptplan.pilots import tables as pilot_tables

    started = next_stage.unfinished(workspace, project)
    if started and not dry_run:
        with screen.stage(f"{started[0].spec.name}, which was started before") as note:
            results = next_stage.run_next(project, workspace, stages.read_corpora(workspace), started, note)
        screen.result({"runs": results})
        screen.next_command(again)
        return
    with screen.stage("fit and candidates") as note:
        advice = next_stage.advise_next(project, workspace, weights, note)
    screen.table("One more pilot", pilot_tables.candidate_columns(advice), pilot_tables.candidate_rows(advice))
    screen.say(f"Regret that the plan is left with, by the fit: {advice.regret:.4f} nats of the weighted loss.")
    screen.say(advice.line())
    if advice.worth:
        screen.say("note: the value knows the uncertainty of the chosen law, not that of its form.")
    told = pilot_tables.advice_json(advice)
    if not advice.worth or dry_run:
        screen.result(told)
        optimize = f"cptplan optimize -o {workspace.root}"
        screen.next_command(again if advice.worth else optimize)
        return
    job = next_stage.next_job(project, workspace, advice)
    with screen.stage(job.spec.name) as note:
        results = next_stage.run_next(project, workspace, stages.read_corpora(workspace), [job], note)
    with screen.stage("fit and what is left") as note:
        after = next_stage.advise_next(project, workspace, weights, note)
    screen.say(f"Regret that is left: {after.regret:.4f} nats, {advice.regret:.4f} before.")
    screen.say(after.line())
    screen.result({**told, "runs": results, "after": pilot_tables.advice_json(after)})
    screen.next_command(again if after.worth else f"cptplan optimize -o {workspace.root}")
