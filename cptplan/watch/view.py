"""What is said about a run that is watched: bands, ends, alarms, options; as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cptplan.planning.forecast import Interval
from cptplan.watch.alarm import FALSE_ALARMS, Verdict
from cptplan.watch.facts import Alarm
from cptplan.watch.model import Points

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class SetView:
    """One validation set: planned band, measured points, and where it goes from here."""

    steps: IntArray
    """Of the planned band, shape (grid,)."""
    mean: FloatArray
    low: FloatArray
    high: FloatArray
    """Of a measured loss, shape (grid,)."""
    measured: Points
    ahead: IntArray
    """Steps from the last measured one on, shape (rest,)."""
    ahead_mean: FloatArray
    ahead_low: FloatArray
    ahead_high: FloatArray
    """Of the loss without an evaluation's noise, shape (rest,)."""
    planned_end: Interval
    now_end: Interval
    """Of the last step; the measured loss once it is there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """What could be done from here on, priced by the law."""

    name: str
    total_steps: int
    """Of the whole run then."""
    losses: Mapping[str, Interval]
    objective: Interval
    tokens_left: int
    tokens_saved: int
    """Against going on as planned."""
    gpu_hours_left: float | None
    usd_left: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Watched:
    """Everything that is said about a run."""

    title: str
    directory: str
    plan: str
    fit: str
    state: str
    done: int
    total: int
    level: float
    views: Mapping[str, SetView]
    planned_objective: Interval
    now_objective: Interval
    verdict: Verdict
    alarms: tuple[Alarm, ...]
    options: tuple[Option, ...]
    failed: bool
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """What --json shows."""
        evidence = float(np.exp(min(self.verdict.log_evidence.max(initial=0.0), 700.0)))
        return {
            "schema_version": 1,
            "run": self.title,
            "directory": self.directory,
            "plan": self.plan,
            "fit": self.fit,
            "state": self.state,
            "done": self.done,
            "total": self.total,
            "level": self.level,
            "sets": {
                name: {
                    "planned_end": asdict(view.planned_end),
                    "now_end": asdict(view.now_end),
                    "measured": [
                        [int(step), float(loss)]
                        for step, loss in zip(view.measured.steps, view.measured.loss, strict=True)
                    ],
                }
                for name, view in self.views.items()
            },
            "planned_objective": asdict(self.planned_objective),
            "now_objective": asdict(self.now_objective),
            "test": {
                "evidence": evidence,
                "threshold": 1.0 / FALSE_ALARMS,
                "false_alarm_rate": FALSE_ALARMS,
                "alarm_step": self.verdict.alarm_step,
            },
            "alarms": [
                {**asdict(alarm), "causes": [{"text": text, "share": share} for text, share in alarm.causes]}
                for alarm in self.alarms
            ],
            "options": [asdict(option) for option in self.options],
            "failed": self.failed,
            "notes": list(self.notes),
        }
