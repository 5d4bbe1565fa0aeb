"""What the command line shows while it works: progress with a time estimate, tables, errors. Only cli.py uses it.

Data goes to stdout, all else to stderr. On a terminal a live bar; elsewhere (Slurm logs, CI) a plain line now and then.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from cptplan.errors import CptplanError

PLAIN_SECONDS = 10.0  # between plain progress lines

Note = Callable[[int, int, str], None]
"""Told how far a stage is: done, total, message."""


class Screen:
    """Where messages of one command go."""

    def __init__(self, *, quiet: bool = False, as_json: bool = False) -> None:
        self.stderr = Console(stderr=True, highlight=False, quiet=quiet, soft_wrap=True)
        self.as_json = as_json

    def say(self, text: str) -> None:
        """One line for people, in plain words."""
        self.stderr.print(escape(text))

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A short table for people."""
        table = Table(title=escape(title), title_justify="left", title_style="bold", show_edge=False, pad_edge=False)
        for number, column in enumerate(columns):
            numeric = number > 0 and all(row[number][:1] in "+-0123456789" for row in rows)
            table.add_column(escape(column), justify="right" if numeric else "left", overflow="fold")
        for row in rows:
            table.add_row(*(escape(cell) for cell in row))
        self.stderr.print()
        self.stderr.print(table)
        self.stderr.print()

    def result(self, value: Mapping[str, Any]) -> None:
        """The command's data, on stdout, when --json was asked for."""
        if self.as_json:
            sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")

    def next_command(self, command: str) -> None:
        """What to type next."""
        self.stderr.print(f"next: [bold]{escape(command)}[/bold]")

    def error(self, error: CptplanError) -> None:
        """An error as one line, and its hint."""
        line = " ".join(error.message.split())
        Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]error:[/bold red] {escape(line)}")
        if error.hint:
            Console(stderr=True, highlight=False, soft_wrap=True).print(f"hint: {escape(' '.join(error.hint.split()))}")

    @contextmanager
    def stage(self, title: str) -> Iterator[Note]:
        """A stage of work: its name, progress with the time left, and how long it took."""
        began = time.monotonic()
        if self.stderr.is_terminal:
            with self._live(title) as note:
                yield note
        else:
            self.say(f"start {title}")
            yield _PlainNote(title, self)
        self.stderr.print(f"[green]done[/green]  {escape(title)} in {duration(time.monotonic() - began)}")

    @contextmanager
    def _live(self, title: str) -> Iterator[Note]:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("[dim]{task.fields[message]}[/dim]"),
        )
        with Progress(*columns, console=self.stderr, transient=True) as progress:
            task = progress.add_task(escape(title), total=None, message="")

            def note(done: int, total: int, message: str) -> None:
                progress.update(task, completed=done, total=max(total, 1), message=escape(message))

            yield note


class _PlainNote:
    """A progress line every ten seconds, with the time left from the pace so far."""

    def __init__(self, title: str, screen: Screen) -> None:
        self.title, self.screen = title, screen
        self.spoke = time.monotonic()
        self.first: tuple[float, int] | None = None

    def __call__(self, done: int, total: int, message: str) -> None:
        now = time.monotonic()
        if self.first is None and done > 0:
            self.first = (now, done)  # the pace counts from the first thing done, not from start-up
        if now - self.spoke < PLAIN_SECONDS:
            return
        self.spoke = now
        began, already = self.first or (now, done)
        rate = (done - already) / max(now - began, 1e-9)
        left = f", about {duration((total - done) / rate)} left" if rate > 0 else ""
        self.screen.say(f"  {self.title}: {done}/{total}{left}{f' ({message})' if message else ''}")


def duration(seconds: float) -> str:
    """Seconds in words: 0.4 s, 12 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
