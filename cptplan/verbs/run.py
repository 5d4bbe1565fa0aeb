"""Verbs about runs that were trained: select. Registered by cli.py; no arithmetic here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cptplan.console import Screen


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command()(select)


def select(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR", help="Run directories that began from one base.")],
    weights: Annotated[
        str, typer.Option("--weights", help="What counts, such as general=0.4 (the domains share the rest).")
    ] = "general=0.4",
    task_weights: Annotated[
        str | None, typer.Option("--task-weights", help="Nats that a point of a task's score is worth: mmlu=0.1.")
    ] = None,
    max_general_increase: Annotated[
        float | None, typer.Option("--max-general-increase", min=0, help="Largest relative rise of general loss.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Copy the chosen model there, with selection.json.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Data on stdout as JSON; all else stays on stderr.")] = False,
) -> None:
    """Which exported checkpoint to keep: the last is not always the best."""
    import shlex

    from cptplan.select import select as selector
    from cptplan.select import table as select_table

    screen = Screen(as_json=as_json)
    found = selector.select_checkpoint(
        runs, weights, task_weights=task_weights, max_general_increase=max_general_increase
    )
    screen.table(select_table.title(found), select_table.columns(found), select_table.rows(found))
    for line in select_table.lines(found):
        screen.say(line)
    if out is not None and found.chosen_model is not None:
        with screen.stage(f"copy {found.chosen_model} to {out}"):
            selector.export_chosen(found, found.chosen_model, out)
    screen.result(found.to_json())
    selector.check_feasible(found)
    if out is not None:
        tasks = ",".join(found.goals.tasks) or "mmlu"
        screen.next_command(f"lm_eval --model hf --model_args pretrained={shlex.quote(str(out))} --tasks {tasks}")
        return
    asked = [*map(str, runs), "--weights", weights]
    asked += ["--task-weights", task_weights] if task_weights is not None else []
    asked += ["--max-general-increase", f"{max_general_increase:g}"] if max_general_increase is not None else []
    screen.next_command(f"cptplan select {shlex.join(asked)} --out selected")
