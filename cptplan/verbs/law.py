"""Verbs about laws and curves: laws, predict, simulate, curves import. Registered by cli.py; no arithmetic here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cptplan.console import Screen
from cptplan.errors import ConfigError, StorageError

curves_app = typer.Typer(help="Curves of runs that you already have.", no_args_is_help=True, rich_markup_mode=None)

AsJson = Annotated[bool, typer.Option("--json", help="Data on stdout as JSON; all else stays on stderr.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of draws and noise.")]
DEFAULT_CAMPAIGN = Path("campaign")


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command()(predict)
    app.command()(simulate)
    app.command()(laws)
    app.add_typer(curves_app, name="curves")


def predict(
    names: Annotated[
        list[str] | None, typer.Argument(help="Runs of --curves, patterns too; default: its CPT runs.")
    ] = None,
    fit: Annotated[
        Path | None, typer.Option("--fit", help="Directory of a fit; default: the campaign's newest.")
    ] = None,
    run_spec: Annotated[Path | None, typer.Option("--run-spec", help="A run that has not been trained.")] = None,
    curves: Annotated[
        Path | None, typer.Option("--curves", help="Curve directory: runs to predict, or the parents of --run-spec.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Directory for <run>.csv with bands.")] = Path("predictions"),
    level: Annotated[float, typer.Option("--level", min=0.01, max=0.999, help="Of the interval.")] = 0.9,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Whole curves of runs with intervals, from a fit."""
    from cptplan.api import predict as predict_all
    from cptplan.api import read_curves
    from cptplan.files import write_text
    from cptplan.fitting import law_tables
    from cptplan.fitting.predictions import band_text, run_of_spec
    from cptplan.run_spec import read_run_spec
    from cptplan.workspace import Workspace

    screen = Screen(as_json=as_json)
    if run_spec is None and curves is None:
        raise ConfigError("runs must be given; got neither --run-spec nor --curves.", hint="give one of them")
    if run_spec is not None and names:
        raise ConfigError(f"names must come with --curves alone; got {names[0]} with --run-spec.", hint="leave it out")
    fit_dir = fit or Workspace(root=DEFAULT_CAMPAIGN).latest("fits")
    if run_spec is None:
        runs, wanted = read_curves(curves or Path(), names or None), names or None
    else:
        spec = read_run_spec(run_spec)
        parents = [spec.parent] if spec.parent is not None else []
        runs = read_curves(curves or fit_dir.resolve().parent.parent / "curves", parents) if parents else {}
        runs, wanted = {**runs, spec.name: run_of_spec(spec)}, [spec.name]
    predicted = predict_all(fit_dir, runs, wanted, level=level, seed=seed)
    for name, run in predicted.items():
        write_text(out / f"{name}.csv", band_text(run))
    screen.table("Predicted", law_tables.predict_columns(level), law_tables.predict_rows(predicted.values()))
    for note in law_tables.run_notes(predicted.values()):
        screen.say(f"note: {note}")
    screen.say(f"whole curves: {out}")
    files = {name: str(out / f"{name}.csv") for name in predicted}
    screen.result({"fit": str(fit_dir), "runs": law_tables.predict_json(predicted.values(), files)})
    screen.next_command("cptplan optimize --weights general=0.4")


def simulate(
    law: Annotated[str, typer.Option("--law", help="A published set (see cptplan laws), or a fit directory.")] = (
        "knowledge-pile"
    ),
    lr: Annotated[list[str] | None, typer.Option("--lr", help="Schedule as JSON. Repeatable.")] = None,
    replay: Annotated[
        list[str] | None, typer.Option("--replay", help="Replay ratio, or a mixture as JSON. Repeatable.")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option("--start", help="Loss potential 0 (annealed) to 1, or a run: DIR/NAME or DIR/NAME@STEP."),
    ] = None,
    replay_form: Annotated[
        str,
        typer.Option("--replay-form", help="Of a published set: exponential (paper) or logarithmic (small replay)."),
    ] = "exponential",
    num_params: Annotated[
        int | None, typer.Option("--num-params", min=1, help="Model size, for knowledge-pile-sizes.")
    ] = None,
    noise: Annotated[float, typer.Option("--noise", min=0, help="Of an evaluation, nats per token.")] = 0.0,
    autocorrelation: Annotated[
        float, typer.Option("--autocorrelation", min=0, max=0.999, help="Of the noise of neighbouring evaluations.")
    ] = 0.5,
    seed: Seed = 0,
    out: Annotated[Path, typer.Option("--out", "-o", help="Curve directory to write, with figure.png.")] = Path(
        "simulated"
    ),
    as_json: AsJson = False,
) -> None:
    """What-if curves: every --lr with every --replay, from a published law or your own fit."""
    from cptplan.api import simulate as simulate_all
    from cptplan.curves import write_curve
    from cptplan.files import write_bytes
    from cptplan.fitting import law_tables
    from cptplan.fitting.predictions import predict_runs
    from cptplan.simulation.what_if import plan_what_if, read_replay_form
    from cptplan.simulation.what_if_figure import draw_what_if

    screen = Screen(as_json=as_json)
    plan = plan_what_if(
        law,
        lrs=[_json("--lr", text) for text in lr or []],
        replays=[_json("--replay", text) for text in replay or []],
        start=start,
        replay_form=read_replay_form(replay_form),
        num_params=num_params,
    )
    others = sorted({path.stem for path in out.glob("*.csv")} - set(plan.records))
    if others:
        raise StorageError(
            f"directory must hold no other curves; got {others[0]} in {out}.", hint="choose another --out"
        )
    with screen.stage("simulate"):
        curves = simulate_all(plan.source, plan.records, noise_nats=noise, autocorrelation=autocorrelation, seed=seed)
        chosen = {name: curves[name] for name in plan.chosen}
        predicted = predict_runs(plan.fitted, curves, plan.chosen, seed=seed) if plan.fitted else None
        for curve in curves.values():
            write_curve(out, curve)
        found = law_tables.ends(chosen, predicted)
        write_bytes(out / "figure.png", draw_what_if(chosen, found, plan.title, predicted))
    screen.table(plan.title, law_tables.end_columns(found), law_tables.end_rows(found))
    for note in (*plan.notes, *law_tables.run_notes(predicted.values() if predicted else ())):
        screen.say(f"note: {note}")
    screen.say(f"curves: {out}, figure: {out / 'figure.png'}")
    screen.result(
        {"law": law, "directory": str(out), "figure": str(out / "figure.png"), "runs": law_tables.ends_json(found)}
    )
    screen.next_command(f"cptplan fit {out}" if len(chosen) > 2 else f"cptplan simulate --law {law} --replay 0.1")


def laws(as_json: AsJson = False) -> None:
    """The laws: what each needs, when to choose it, what it does not see; and the published sets."""
    from cptplan.fitting import law_tables

    screen = Screen(as_json=as_json)
    for line in ("Laws for cptplan fit --law", *law_tables.law_lines()):
        screen.say(line)
    screen.table("Published sets for cptplan simulate --law", law_tables.PUBLISHED_COLUMNS, law_tables.published_rows())
    screen.result(law_tables.laws_json())
    screen.next_command("cptplan fit DIR --law auto")


@curves_app.command("import")
def import_curves(
    sources: Annotated[list[Path], typer.Argument(help="trainer_state.json, event files, or CSV files of one run.")],
    name: Annotated[str, typer.Option("--name", help="Of the curve.")],
    record: Annotated[
        list[str], typer.Option("--set", help="What the log does not say: phase=cpt, replay_ratio=0.3, parent=base ..")
    ] = [],  # noqa: B006
    kind: Annotated[
        str | None, typer.Option("--format", help="csv, trainer_state, tensorboard or wandb; told from the files.")
    ] = None,
    loss: Annotated[
        list[str], typer.Option("--loss", help="Validation set and its column: general=eval_loss. Repeatable.")
    ] = [],  # noqa: B006
    unit: Annotated[str, typer.Option("--unit", help="Of the losses: nats, bits or perplexity.")] = "nats",
    step_column: Annotated[str | None, typer.Option("--step-column", help="Column of optimiser steps.")] = None,
    run: Annotated[str | None, typer.Option("--run", help="Run of a W&B export that holds several.")] = None,
    lr: Annotated[str | None, typer.Option("--lr", help="Schedule as JSON, checked against the logged rates.")] = None,
    lr_column: Annotated[str | None, typer.Option("--lr-column", help="Column of the learning rate.")] = None,
    lr_at: Annotated[
        str | None, typer.Option("--lr-at", help="Whether a logged rate is of the step just done (used) or the next.")
    ] = None,
    total_steps: Annotated[int | None, typer.Option("--total-steps", min=1, help="Length of the schedule.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Curve directory.")] = Path("curves"),
    force: Annotated[bool, typer.Option("--force", help="Replace a curve that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Turn a log of another tool into a curve, with the learning rate of every step."""
    from cptplan.fitting.law_tables import imported_json, imported_rows
    from cptplan.importers import ImportOptions, import_into, parse_lr, parse_pairs, parse_record

    screen = Screen(as_json=as_json)
    options: dict[str, Any] = {"format": kind, "unit": unit, "lr_at": lr_at}  # checked by the import
    found = import_into(
        out,
        sources,
        ImportOptions(
            name=name,
            record=parse_record(record),
            losses=parse_pairs(loss, "--loss"),
            step_column=step_column,
            run=run,
            lr=parse_lr(lr),
            lr_column=lr_column,
            total_steps=total_steps,
            **options,
        ),
        replace_existing=force,
    )
    screen.table(f"{name} in {out}", ("what", "value"), imported_rows(found))
    for warning in found.warnings:
        screen.say(f"note: {warning.message}")
    screen.result(imported_json(found, out))
    screen.next_command(f"cptplan fit {out}")


def _json(option: str, text: str) -> Any:
    """A number or object of an option.

    Raises:    ConfigError if it is no JSON.
    """
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(
            f"{option} must be JSON; got {error} in {text!r}.",
            hint="such as 0.3" if option == "--replay" else """such as '{"kind": "wsd", "peak_lr": 2e-4, ...}'""",
        ) from error
