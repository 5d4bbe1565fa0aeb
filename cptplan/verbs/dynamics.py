"""The verb dynamics. Registered by cli.py; no arithmetic here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cptplan.console import Screen


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(dynamics)


def dynamics(
    config: Annotated[Path, typer.Option("--config", "-c", help="Project file.")] = Path("cptplan.yaml"),
    override: Annotated[list[str], typer.Option("--set", help="Override a key of the project. Repeatable.")] = [],  # noqa: B006
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Campaign; with --law where the figure goes (dynamics).")
    ] = None,
    weights: Annotated[str | None, typer.Option("--weights", help="What counts, such as general=0.4.")] = None,
    law: Annotated[
        str | None, typer.Option("--law", help="A published set or a fit directory, in place of the campaign's fit.")
    ] = None,
    peak_lr: Annotated[float | None, typer.Option("--peak-lr", help="Default: the plan's.")] = None,
    replay: Annotated[float | None, typer.Option("--replay", help="Replay ratio; default: the plan's.")] = None,
    decay_share: Annotated[
        float | None, typer.Option("--decay-share", help="Share of the steps in which the rate falls to 0.")
    ] = None,
    start: Annotated[
        str | None, typer.Option("--start", help="Checkpoint; with --law a loss potential or DIR/NAME@STEP.")
    ] = None,
    horizon_tokens: Annotated[
        str | None, typer.Option("--horizon-tokens", help="Length to look at, such as 5B; default: the plan's.")
    ] = None,
    level: Annotated[float, typer.Option("--level", min=0.01, max=0.999, help="Of the intervals.")] = 0.9,
    as_json: Annotated[bool, typer.Option("--json", help="Data on stdout as JSON; all else stays on stderr.")] = False,
) -> None:
    """Critical point, turning length, what another start gives, and the best replay for each weight."""
    from cptplan.dynamics import dynamics as judge
    from cptplan.dynamics import table as dynamics_table
    from cptplan.dynamics.figure import draw_dynamics
    from cptplan.dynamics.setting import Asked, campaign_question, law_question
    from cptplan.files import write_bytes, write_json
    from cptplan.price.pricing import parse_tokens

    screen = Screen(as_json=as_json)
    asked = Asked(
        peak_lr=peak_lr,
        replay_ratio=replay,
        decay_share=decay_share,
        start=start,
        horizon_tokens=None if horizon_tokens is None else parse_tokens(horizon_tokens, "--horizon-tokens"),
    )
    if law is not None:
        question = law_question(law, weights, asked, out or Path("dynamics"), level)
    else:
        from cptplan.config import read_project
        from cptplan.workspace import Workspace

        project, workspace = read_project(config, override), Workspace(root=out or Path("campaign"))
        workspace.check(project)
        question = campaign_question(project, workspace, weights, asked, level)
    with screen.stage("dynamics"):
        found = judge.study(question.setting)
        figure = question.directory / "dynamics.png"
        write_bytes(figure, draw_dynamics(found, question.title))
        told = {"title": question.title, "horizon_steps": question.horizon_steps, "horizon_tokens": question.tokens}
        result = {**dynamics_table.to_json(found), **told, "figure": str(figure)}
        write_json(question.directory / "dynamics.json", result)
    screen.table(question.title, dynamics_table.COLUMNS, dynamics_table.rows(found))
    for line in dynamics_table.advice(found, question.setting.start):
        screen.say(line)
    for note in found.notes:
        screen.say(f"note: {note}")
    screen.say(f"figure: {figure}")
    screen.result(result)
    screen.next_command("cptplan optimize --weights general=0.4" if law is None else "cptplan laws")
