"""The verb watch. Registered by cli.py; no arithmetic here."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cptplan.console import Screen
from cptplan.errors import CptplanError, RunFailedError

if TYPE_CHECKING:
    from cptplan.watch.run import Place
    from cptplan.watch.view import Watched
    from cptplan.watch.watch import Watcher

PATIENCE = 3  # readings in a row that may fail: a file may be read while it is being replaced


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(watch)


def watch(
    run: Annotated[str, typer.Argument(help="A run directory, a curve DIR/NAME, or a run of the campaign.")],
    plan: Annotated[
        Path | None, typer.Option("--plan", help="plan.json or its directory; default: the campaign's newest.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Look once, and end.")] = False,
    interval: Annotated[float, typer.Option("--interval", min=0.1, help="Seconds between looks.")] = 30.0,
    config: Annotated[Path, typer.Option("--config", "-c", help="Project file.")] = Path("cptplan.yaml"),
    override: Annotated[list[str], typer.Option("--set", help="Override a key of the project. Repeatable.")] = [],  # noqa: B006
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Directory of the campaign; the page goes to watch/RUN in it.")
    ] = Path("campaign"),
    as_json: Annotated[bool, typer.Option("--json", help="Data on stdout as JSON; all else stays on stderr.")] = False,
) -> None:
    """A run against its plan while it goes on: where it will end, whether it left its band, and what to do then.

    Exit code 0 also with alarms; 5 when the run has failed or diverged.
    """
    from cptplan.config import read_project
    from cptplan.watch.report import write_watch
    from cptplan.watch.run import find_run
    from cptplan.watch.watch import open_watcher
    from cptplan.workspace import Workspace

    screen = Screen(as_json=as_json)
    project, workspace = read_project(config, override), Workspace(root=out)
    workspace.check(project)
    place = find_run(run, out)
    watcher = open_watcher(project, workspace, plan)
    last = None
    while True:
        found = _look(watcher, place, screen, interval, patient=not once)
        ended = found.failed or found.state == "complete"
        page = write_watch(found, out / "watch" / place.title, refresh_seconds=None if once or ended else interval)
        told = (found.done, found.state, found.alarms)
        if told != last:
            show(screen, found)
            screen.say(f"page: {page}")
            last = told
        if once or ended:
            break
        time.sleep(interval)
    screen.result({**found.to_json(), "page": str(page)})
    if found.failed:
        worst = found.alarms[0]
        raise RunFailedError(
            f"run must stay near its plan; got {worst.text} in {found.directory}.",
            hint="go back to a checkpoint before it, with a lower rate",
        )
    after = f"cptplan select {place.directory}" if place.is_run else f"cptplan fit {place.directory}"
    screen.next_command(after if found.state == "complete" else f"cptplan watch {run} -c {config} -o {out}")


def _look(watcher: Watcher, place: Place, screen: Screen, interval: float, *, patient: bool) -> Watched:
    """Read the run and compare it; a run that cannot be read is asked again a few times when there is patience."""
    from cptplan.watch.run import read_watched

    failures = 0
    while True:
        try:
            return watcher.look(read_watched(place))
        except CptplanError as error:
            failures += 1
            waiting = patient and place.is_run and not (place.directory / "curve.csv").exists()
            if not waiting and (not patient or failures >= PATIENCE):
                raise
            if failures == 1:
                screen.say(f"waiting: {error.message}")
            time.sleep(interval)


def show(screen: Screen, found: Watched) -> None:
    """The run on the terminal."""
    from cptplan.watch import text as watch_text

    if screen.stderr.is_terminal:
        screen.stderr.clear()
    screen.table(watch_text.status_line(found), watch_text.ENDS, watch_text.end_rows(found, watch_text.brief))
    for name, view in found.views.items():
        for line in watch_text.plot_lines(name, view, found.total, screen.stderr.width):
            screen.say(line)
    screen.say("")
    screen.say(watch_text.test_line(found))
    for line in watch_text.alarm_lines(found.alarms):
        screen.say(line)
    for note in found.notes:
        screen.say(f"note: {note}")
    if found.options:
        rows = watch_text.option_rows(found, watch_text.brief)
        screen.table("What can be done now", watch_text.option_columns(found), rows)
