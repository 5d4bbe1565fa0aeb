"""Words, rows and JSON of the dynamics of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from cptplan.dynamics.dynamics import WEIGHTED, Dynamics, Turning
from cptplan.planning.forecast import Interval

Row = tuple[str, ...]
COLUMNS = ("what", "loss", "value", "interval")

STATES = {
    "below": "is not above its first value at the end of any step",
    "returns": "is back at its first value after {:,.0f} steps",
    "beyond": "is not back within this horizon; a longer run can bring it back",
    "never": "is never back at its first value with this mixture, however long the run (post-critical)",
}


def advice(found: Dynamics, start: str) -> tuple[str, ...]:
    """What follows, in sentences: the start, the turning lengths, the weight up to which the run pays."""
    said = []
    for effect in sorted(found.starts, key=lambda one: one.weighted.mean)[:1]:
        changes = ", ".join(_signed(value, name) for name, value in effect.losses.items())
        if effect.weighted.mean < 0.0:
            sure = "" if effect.weighted.high < 0.0 else "; the interval of the weighted loss holds 0"
            said.append(f"start from {_named(effect.start)} instead of {_named(start)}: {changes}{sure}")
        else:
            said.append(f"keep {_named(start)}: {_named(effect.start)} would give {changes}")
    for name, turning in found.turning.items():
        label = f"{WEIGHTED} loss" if name == WEIGHTED else f"loss_{name}"
        said.append(f"{label} {STATES[turning.state].format(turning.steps.mean)}")
    value, span = _cells(found.break_even_weight, ".2f")
    said.append(f"the whole run pays while the weight of general loss is below {value}{f' ({span})' * bool(span)}")
    return tuple(said)


def rows(found: Dynamics) -> list[Row]:
    """The numbers, a row for each."""
    table: list[Row] = []
    for name, band in found.changes.items():
        end = Interval(mean=float(band.mean[-1]), low=float(band.low[-1]), high=float(band.high[-1]))
        table.append(("change at the end", name, *_cells(end, "+.3f")))
    for name, point in found.critical.items():
        table.append(("loss at the start", name, *_cells(point.start, ".3f")))
        table.append(("where it goes for ever", name, *_cells(point.limit, ".3f")))
    general = found.critical["general"]
    table.append(("critical point (no annealing)", "general", *_cells(general.asymptote, ".3f")))
    table.append(("post-critical", "general", f"{general.post_critical:.0%} of the draws", ""))
    for name, turning in found.turning.items():
        table.append(("turning length, steps", name, *_turning_cells(turning)))
    table.append(("general weight up to which it pays", WEIGHTED, *_cells(found.break_even_weight, ".2f")))
    for effect in found.starts:
        for name, value in (*effect.losses.items(), (WEIGHTED, effect.weighted)):
            table.append((f"start {effect.start} instead", name, *_cells(value, "+.3f")))
    for choice in found.replay[1::4]:
        label = f"best replay at general={choice.general_weight:g}"
        table.append((label, WEIGHTED, *_cells(choice.replay_ratio, ".1%")))
    return table


def to_json(found: Dynamics) -> dict[str, Any]:
    """All of it as JSON values; infinite steps are null, and the state says why."""
    return {
        "schema_version": 1,
        "steps": found.steps.tolist(),
        "changes": {
            name: {"mean": band.mean.tolist(), "low": band.low.tolist(), "high": band.high.tolist()}
            for name, band in found.changes.items()
        },
        "critical": {
            name: {
                "asymptote": _json(point.asymptote),
                "limit": _json(point.limit),
                "start": _json(point.start),
                "post_critical": point.post_critical,
            }
            for name, point in found.critical.items()
        },
        "turning": {
            name: {"state": turning.state, "steps": _json(turning.steps), "within_horizon": turning.within_horizon}
            for name, turning in found.turning.items()
        },
        "break_even_weight": _json(found.break_even_weight),
        "starts": [
            {"start": effect.start, "losses": _all(effect.losses), "weighted": _json(effect.weighted)}
            for effect in found.starts
        ],
        "replay": [
            {"general_weight": choice.general_weight, "replay_ratio": _json(choice.replay_ratio)}
            for choice in found.replay
        ],
        "notes": list(found.notes),
    }


def _cells(value: Interval, form: str) -> Row:
    if value.low == value.high:
        return (format(value.mean, form), "")
    return (format(value.mean, form), f"{format(value.low, form)} to {format(value.high, form)}")


def _turning_cells(turning: Turning) -> Row:
    found = (turning.steps.mean, turning.steps.low, turning.steps.high)
    mean, low, high = (f"{steps:,.0f}" if math.isfinite(steps) else "inf" for steps in found)
    return (mean, "" if low == high else f"{low} to {high}")


def _named(start: str) -> str:
    """A checkpoint in words: a number is the loss potential of a published pre-training."""
    return f"loss potential {start}" if start.replace(".", "", 1).isdecimal() else f"the {start} checkpoint"


def _signed(value: Interval, name: str) -> str:
    span = "" if value.low == value.high else f" [{value.low:+.3f}, {value.high:+.3f}]"
    return f"{value.mean:+.3f} nat {name}{span}"


def _json(value: Interval) -> dict[str, float | None]:
    return {
        key: number if math.isfinite(number) else None
        for key, number in (("mean", value.mean), ("low", value.low), ("high", value.high))
    }


def _all(values: Mapping[str, Interval]) -> dict[str, Any]:
    return {name: _json(value) for name, value in values.items()}
