"""metrics.jsonl of a run: one JSON object a line, of an optimiser step, an evaluation or an event."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cptplan.errors import CurveError


def read_metrics(path: Path, wanted: Callable[[str], bool] = lambda line: True) -> list[dict[str, Any]]:
    """The records in order. A last line that is cut off is left out: the run may be writing it.

    Args:      wanted: by its text, whether a line is looked at; most lines of a long run are steps.
    Raises:    CurveError if the file cannot be read, or another line is no JSON object with a step.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise CurveError(
            f"metrics.jsonl must be readable; got {error.strerror} for {path}.", hint="check that the run has begun"
        ) from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not wanted(line):
            continue
        try:
            record = json.loads(line)
            int(record["step"])
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):
                break
            raise CurveError(
                f"line must be a JSON object with a step; got {line[:40]!r} in {path}:{number}.", hint="mend the line"
            ) from error
        found.append(record)
    return found
