"""Signals that ask a run to save and end."""

from __future__ import annotations

import signal


class Stopped(Exception):
    """The run was asked to stop and has saved a checkpoint."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


class Requests:
    """The signal to obey after this step: SIGUSR1, SIGINT and SIGTERM save a checkpoint and stop.

    Repeats change nothing: torchrun passes on a Ctrl-C that its workers have had from the terminal already.
    """

    def __init__(self) -> None:
        self.pending = 0
        for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: object) -> None:
        self.pending = self.pending or number
