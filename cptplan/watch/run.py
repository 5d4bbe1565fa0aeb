"""A run that may be going on: its curve so far and what its log tells, from files that are perhaps half written."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cptplan.campaign import is_fresh, last_words
from cptplan.curves import LossCurve, curve_names, read_curve
from cptplan.errors import CptplanError, CurveError, suggest
from cptplan.files import read_json
from cptplan.metrics import read_metrics

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
State = Literal["running", "silent", "complete", "failed"]

LOG_TAIL_BYTES = 20_000
TOGETHER_SECONDS = 10.0  # assumed: a run that ends with an error writes its last progress not much later


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a run's curve lies: directory/name.csv."""

    directory: Path
    name: str
    title: str
    """The name that people know the run by."""

    @property
    def is_run(self) -> bool:
        """Whether it is the run directory of an executor, which tells more than a curve."""
        return self.name == "curve" and any((self.directory / f).exists() for f in ("spec.json", "metrics.jsonl"))


@dataclass(frozen=True, kw_only=True, slots=True)
class WatchedRun:
    """What a run has left so far."""

    place: Place
    curve: LossCurve
    done: int
    """Optimiser steps done."""
    state: State
    failure: str | None
    """Why it ended without a result, in its own words."""
    lr_steps: IntArray
    """Finished steps with a logged rate, rising, shape (logged,)."""
    lr: FloatArray
    """The rates that were logged, shape (logged,)."""
    tokens_step: int
    """Steps done when the tokens were counted; 0 when they were not."""
    general_share: float | None
    """General share of all tokens trained on by then."""
    events: tuple[tuple[int, str, str], ...]
    """Step, kind and words of everything that was done about the run."""
    not_finite_step: int | None
    """First step whose training loss was not finite; None when there is none."""
    notes: tuple[str, ...]


def find_run(text: str, campaign: Path) -> Place:
    """The run that a name means: a run directory, a curve DIR/NAME, or a run, launch target or curve of the campaign.

    Raises:    CurveError if it is none of these.
    """
    given = Path(text)
    beside = campaign / "runs" / text, campaign / "launch" / text / "run"
    for directory in (given, *beside):
        if (directory / "spec.json").exists() or (directory / "curve.csv").exists():
            return Place(directory=directory, name="curve", title=_title(directory))
    if given.is_dir() and any(given.glob("*.csv")):
        names = curve_names(given)
        if len(names) > 1:
            raise CurveError(
                f"RUN must name one curve; got {len(names)} in {given}.", hint=f"such as {given / names[-1]}"
            )
        return Place(directory=given, name=names[0], title=names[0])
    stem = given.with_suffix("") if given.suffix in (".csv", ".json") else given
    for path in (stem, campaign / "curves" / stem):
        if path.with_name(f"{path.name}.csv").exists():
            return Place(directory=path.parent, name=path.name, title=path.name)
    there = sorted(path.parent.name for path in (campaign / "runs").glob("*/spec.json"))
    raise CurveError(
        f"RUN must be a run directory or a curve; got {text!r}.",
        hint=suggest(text, there) or "such as campaign/launch/local/run, or curves/NAME of a curve directory",
    )


def _title(directory: Path) -> str:
    """The name in spec.json, else that of the directory."""
    try:
        return str(read_json(directory / "spec.json")["name"])
    except (CptplanError, KeyError, TypeError):
        return directory.resolve().name


def read_watched(place: Place) -> WatchedRun:
    """Read all that is there.

    Raises:    CurveError if nothing was evaluated yet, or the curve or a line in the middle of the log is broken;
               ConfigError if the curve's record is.
    """
    curve, notes = _growing_curve(place)
    log = place.directory / "metrics.jsonl"
    records = read_metrics(log) if place.is_run and log.exists() else []
    stepped = [record for record in records if "train_loss" in record]
    rated = [record for record in stepped if _is_number(record.get("lr"))]
    counted = [record for record in stepped if isinstance(record.get("tokens_by_source"), dict)]
    broken = [int(record["step"]) for record in stepped if not _is_number(record["train_loss"])]
    done = max([int(curve.steps[-1]), *(int(record["step"]) for record in stepped)])
    state, failure = _state(place, done, curve.total_steps)
    return WatchedRun(
        place=place,
        curve=curve,
        done=done,
        state=state,
        failure=failure,
        lr_steps=np.array([record["step"] for record in rated], dtype=np.int64),
        lr=np.array([record["lr"] for record in rated], dtype=np.float64),
        tokens_step=int(counted[-1]["step"]) if counted else 0,
        general_share=_general_share(place, counted[-1]["tokens_by_source"]) if counted else None,
        events=tuple(
            (int(record["step"]), str(record["event"]), str(record.get("text", "")))
            for record in records
            if "event" in record
        ),
        not_finite_step=broken[0] if broken else None,
        notes=notes,
    )


def _growing_curve(place: Place) -> tuple[LossCurve, tuple[str, ...]]:
    """The curve; a last row without its end of line is left out, because it may be half a row."""
    path = place.directory / f"{place.name}.csv"
    if place.is_run and not path.exists():
        raise CurveError(f"run must have been evaluated; got no {path}.", hint="wait for its first evaluation")
    raw = path.read_bytes() if path.exists() else b"\n"
    if raw.endswith(b"\n"):
        return read_curve(place.directory, place.name), ()
    whole = raw[: raw.rfind(b"\n") + 1]
    if whole.count(b"\n") < 2:
        raise CurveError(f"curve must have a whole row; got none yet in {path}.", hint="wait for its next row")
    with TemporaryDirectory() as temporary:
        copy = Path(temporary)
        (copy / path.name).write_bytes(whole)
        for suffix in (".json", ".lr.npy"):
            if (place.directory / f"{place.name}{suffix}").exists():
                shutil.copy(place.directory / f"{place.name}{suffix}", copy)
        try:
            curve = read_curve(copy, place.name)
        except CptplanError as error:
            # the place that the user knows, not the copy's
            raise type(error)(error.message.replace(temporary, str(place.directory)), hint=error.hint) from error
    return curve, (f"the last row of {path} has no end yet: left out",)


def _general_share(place: Place, tokens: Mapping[str, Any]) -> float | None:
    """Share of the tokens of sources with the role general, which spec.json tells; else of the source of that name."""
    try:
        sources = read_json(place.directory / "spec.json")["sources"]
        general = {source["name"] for source in sources if source["role"] == "general"}
    except (CptplanError, KeyError, TypeError):
        general = {"general"}
    whole = sum(float(count) for count in tokens.values())
    return sum(float(count) for name, count in tokens.items() if name in general) / whole if whole > 0 else None


def _state(place: Place, done: int, total: int) -> tuple[State, str | None]:
    """How the run is, and why it failed.

    A run directory is complete with result.json; a curve from elsewhere when it has its last step.
    """
    if not place.is_run:
        return ("complete" if done >= total else "running"), None
    if (place.directory / "result.json").exists():
        return "complete", None
    progress = place.directory / "progress.json"
    if is_fresh(progress):
        return "running", None
    said = _last_error(place.directory / "log.txt", progress)
    return ("failed", said) if said is not None else ("silent", None)


def _last_error(log: Path, progress: Path) -> str | None:
    """The error that a run's log ends with; None if it ends otherwise, or the run has gone on since."""
    if not log.exists():
        return None
    if progress.exists() and progress.stat().st_mtime > log.stat().st_mtime + TOGETHER_SECONDS:
        return None
    tail = log.read_bytes()[-LOG_TAIL_BYTES:].decode("utf-8", errors="replace")
    ended = re.search(r"^error: |^(?:\[rank\d+\]: )?[\w.]*(?:Error|Exception): |traceback : Signal", tail, re.MULTILINE)
    return last_words(tail) if ended else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
