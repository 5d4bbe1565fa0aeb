"""The verb that rehearses a campaign: rehearse. Registered by cli.py; no arithmetic here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cptplan.console import Screen

if TYPE_CHECKING:
    from cptplan.rehearsal.rehearse import Setting

DEFAULT_CONFIG = Path("cptplan.yaml")
DEFAULT_LAW = "knowledge-pile"
DEFAULT_SHARE = 0.05


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(rehearse)


def rehearse(
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="Project file; default: cptplan.yaml if there, else one like the demo's."),
    ] = None,
    override: Annotated[
        list[str], typer.Option("--set", help="Override a key, such as pilot.num_runs=10. Repeatable.")
    ] = [],  # noqa: B006
    law: Annotated[
        str | None, typer.Option("--law", help=f"Truth: a published set (see cptplan laws); default: {DEFAULT_LAW}.")
    ] = None,
    fit: Annotated[Path | None, typer.Option("--fit", help="Truth: a fit of this project, instead of --law.")] = None,
    replay_form: Annotated[
        str, typer.Option("--replay-form", help="Of --law: exponential (paper) or logarithmic (small replay).")
    ] = "exponential",
    num_params: Annotated[
        int | None, typer.Option("--num-params", min=1, help="Model size, for knowledge-pile-sizes.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", help="What counts, such as general=0.4; default: the goal's.")
    ] = None,
    campaigns: Annotated[int, typer.Option("--campaigns", min=1, help="Virtual campaigns.")] = 20,
    pilot_share: Annotated[
        float | None,
        typer.Option(
            "--pilot-share",
            help=f"Tokens of all pilots over the budget's; default: the project's pilots, {DEFAULT_SHARE} without one.",
        ),
    ] = None,
    num_next: Annotated[int, typer.Option("--next", min=0, help="Pilots of cptplan pilot --next on top.")] = 0,
    noise: Annotated[
        float | None, typer.Option("--noise", min=0, help="Of an evaluation, nats; default: 0.004, or the fit's own.")
    ] = None,
    processes: Annotated[int | None, typer.Option("--processes", min=1, help="At a time; default: the cores.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of designs, noise and rivals.")] = 0,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Directory for rehearsal.json, regrets.csv, regrets.png.")
    ] = (Path("rehearsal")),
    as_json: Annotated[bool, typer.Option("--json", help="Data on stdout as JSON; all else stays on stderr.")] = False,
) -> None:
    """Virtual campaigns with a known truth: how good a plan this pilot budget buys, before any GPU is paid for."""
    from cptplan.files import write_bytes, write_json, write_text
    from cptplan.rehearsal import tables
    from cptplan.rehearsal.rehearse import rehearse as rehearse_all
    from cptplan.rehearsal.setting import Asked, setting_of

    screen = Screen(as_json=as_json)
    asked = Asked(
        config=config or (DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None),
        overrides=tuple(override),
        law=law,
        fit=fit,
        replay_form=replay_form,
        num_params=num_params,
        weights=weights,
        pilot_share=pilot_share,
        num_next=num_next,
        noise_nats=noise,
    )
    setting = setting_of(asked)
    _show_setting(screen, setting)
    with screen.stage("campaigns") as note:
        found = rehearse_all(setting, campaigns, seed, note, processes)
    written = tables.to_json(setting, found, seed)
    write_json(out / "rehearsal.json", written)
    write_text(out / "regrets.csv", tables.csv_text(setting, found))
    write_bytes(out / "regrets.png", tables.draw_regrets(setting, found))
    screen.table(f"Regret of {campaigns} virtual campaigns", tables.columns(setting), tables.rows(setting, found))
    for line in tables.lines(setting, found):
        screen.say(line)
    for line in setting.notes:
        screen.say(f"note: {line}")
    screen.say(f"written: {out / 'rehearsal.json'}, {out / 'regrets.csv'}, {out / 'regrets.png'}")
    screen.result(written)
    screen.next_command("cptplan pilot --dry-run")


def _show_setting(screen: Screen, setting: Setting) -> None:
    pilot = setting.project.pilot
    screen.say(f"truth: {setting.title}")
    screen.say(
        f"pilots: {pilot.num_runs} of {pilot.total_steps:,} steps"
        + (f" and {setting.num_next} advised" if setting.num_next else "")
        + f", noise {setting.noise_nats:.2g} nats"
    )
