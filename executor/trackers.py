"""Trackers such as TensorBoard or W&B, through accelerate; what they show is in metrics.jsonl, too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from cptplan.errors import ConfigError, suggest


def check_trackers(names: tuple[str, ...]) -> None:
    """Refuse a tracker that would be left out with a warning.

    Raises:    ConfigError if accelerate does not know it, or it is not installed.
    """
    known = sorted(str(name) for name in LOGGER_TYPE_TO_CLASS)
    installed = {str(name) for name in get_available_trackers()}
    for name in names:
        if name not in known:
            hint = suggest(name, known) or f"known: {', '.join(known)}"
            raise ConfigError(f"report_to must name trackers; got {name}.", hint=hint)
        if name not in installed:
            raise ConfigError(f"report_to must name installed trackers; got {name}.", hint=f"pip install {name}")


class Trackers:
    """The trackers of one run, on its main process; none when the spec names none."""

    def __init__(self, accelerator: Accelerator, name: str, about: Mapping[str, Any]) -> None:
        """Begin with what the run is.

        Args:      name: of the run. about: settings to show with it.
        """
        self._accelerator = accelerator
        if accelerator.trackers or accelerator.log_with:
            accelerator.init_trackers(name, config=dict(about))

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Show the numbers of a step; nested ones as name/part."""
        if not self._accelerator.trackers:
            return
        flat: dict[str, float] = {}
        for key, value in values.items():
            parts = (
                {f"{key}/{part}": number for part, number in value.items()}
                if isinstance(value, Mapping)
                else {key: value}
            )
            flat |= {name: number for name, number in parts.items() if isinstance(number, int | float)}
        self._accelerator.log(flat, step=step)
