"""Watch every run as if it was going on: python measure.py [--curves DIR] [--out DIR]. Writes rows.jsonl.

Each row is one run under one plan: when the alarm came and what it named, and the end that was expected before the run
and at shares of it. judge_run and look_ahead are what cptplan watch asks after every point; what a run's record and log
tell without statistics is left out, so faults are what only the losses can show.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
from cases import HEALTHY, Case, Lab, cases, real_lab, virtual_lab
from numpy.typing import NDArray

from cptplan.files import write_text
from cptplan.fitting.fitted import FittedLaw
from cptplan.laws.history import RunHistory
from cptplan.planning.plan import Plan
from cptplan.watch.ahead import look_ahead
from cptplan.watch.alarm import Cause, Verdict, judge_run, rivals_of
from cptplan.watch.model import CurveModel, Points
from cptplan.watch.watch import thinned

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

HERE = Path(__file__).resolve().parent
CURVES = HERE.parent / "04_curve_set" / "curves"
KEPT = (
    HERE.parent / "01_predict_longer" / "curves",
    *(HERE.parent / "03_forms_of_the_law" / "campaigns" / name for name in ("first", "third", "fourth")),
)
VIRTUAL_SEEDS = range(1100, 1110)
SHARES = (0.1, 0.25, 0.5, 0.75)
SICK_SHARES = (0.5,)
LEVEL = 0.9
ENDS_ONLY = Plan.model_construct(level=LEVEL)  # ends hang on no other part of a plan


def labs(curves: Path) -> Iterator[Lab]:
    """The labs of the curve set that are there, the kept campaigns, virtual campaigns."""
    for directory in sorted(curves.glob("*")):
        if any(directory.glob("*.csv")):
            yield real_lab("curve set", directory)
    for directory in KEPT:
        yield real_lab("kept", directory)
    for seed in VIRTUAL_SEEDS:
        yield virtual_lab(seed)


@dataclass(frozen=True, kw_only=True, slots=True)
class Remembered(FittedLaw):
    """A fitted law that is asked about one run's steps again and again: nothing but time is saved."""

    at: IntArray
    """All steps that it is asked about, shape (steps,)."""
    known: dict[tuple[bytes, ...], tuple[FloatArray, FloatArray]] = field(default_factory=dict)
    """Mean and directions at those, by history."""

    def directions(self, history: RunHistory, steps: IntArray) -> tuple[FloatArray, FloatArray]:
        """As FittedLaw.directions."""
        passes = history.domain_passes if history.domain_passes is not None else np.zeros(0)
        arrays = history.lr, history.replay_ratio, history.pretrain_lr, passes
        key = tuple(array.tobytes() for array in arrays)
        if key not in self.known:
            self.known[key] = FittedLaw.directions(self, history, self.at)
        mean, spread = self.known[key]
        where = np.searchsorted(self.at, steps)
        return mean[where], spread[:, where]


def watch_lab(lab: Lab, found: Iterable[Case]) -> Iterator[dict[str, Any]]:
    """The rows of a lab's runs."""
    for _, some in groupby(found, lambda case: case.run):
        mine = list(some)
        models = {name: _remembering(lab.models[name], points, mine[0]) for name, points in mine[0].points.items()}
        yield from (watch_case(lab, models, case) for case in mine)


def _remembering(model: CurveModel, points: Points, case: Case) -> CurveModel:
    law, at = model.law, np.unique([*points.steps, len(case.fault.told.lr)])
    return CurveModel(law=Remembered(**{one.name: getattr(law, one.name) for one in fields(law)}, at=at))


def watch_case(lab: Lab, models: Mapping[str, CurveModel], case: Case) -> dict[str, Any]:
    """One run under one plan, followed to its end."""
    told, total = case.fault.told, len(case.fault.told.lr)
    points = {name: models[name].usable(thinned(one)) for name, one in case.points.items()}
    rivals = rivals_of(told, case.starts, tuple(models))

    def judge(step: int) -> Verdict:
        return judge_run(models, told, {name: one.until(step) for name, one in points.items()}, rivals)

    whole = judge(total)
    alarm = whole.alarm_step
    at_alarm = judge(alarm) if alarm is not None else None
    ends = {name: [_before(models[name], told, seed)] for seed, name in enumerate(points)}
    for share in SHARES if case.fault.name == HEALTHY else SICK_SHARES:
        step = int(share * total)
        quiet = alarm is None or alarm > step
        verdict = _until(whole, step) if quiet else judge(step)
        for name, found in _ends(models, told, points, verdict, step).items():
            ends[name].append([share, *found])
    return {
        "source": lab.source,
        "lab": lab.name,
        "run": case.run,
        "fault": case.fault.name,
        "kind": case.fault.kind,
        "value": round(case.fault.value, 4),
        "beyond": any(m.law.support.flags(told, m.law.law.reference_lr) for m in models.values()),
        "steps": total,
        "peak_evidence": round(float(whole.log_evidence.max()), 3),
        "alarm_step": alarm,
        "at_alarm": None if at_alarm is None else _cause(at_alarm.causes[0]),
        "at_end": _cause(whole.causes[0]),
        "measured_ends": {name: round(value, 5) for name, value in case.ends.items()},
        "ends": ends,
    }


def _until(verdict: Verdict, step: int) -> Verdict:
    """What the test had said by a step; its causes are those of the end, which nobody asks for before an alarm."""
    keep = verdict.steps <= step
    return replace(verdict, steps=verdict.steps[keep], log_evidence=verdict.log_evidence[keep])


def _before(model: CurveModel, told: RunHistory, seed: int) -> list[float]:
    """Share 0, mean, low and high of the end before the run: as a plan has it."""
    band = model.law.predict(told, np.array([len(told.lr)]), LEVEL, seed)
    return [0.0, *(round(float(one[0]), 5) for one in (band.mean, band.low, band.high))]


def _ends(
    models: Mapping[str, CurveModel], told: RunHistory, points: Mapping[str, Points], verdict: Verdict, step: int
) -> dict[str, list[float]]:
    """Mean, low and high of the end as watch shows it at a step."""
    seen = {name: one.until(step) for name, one in points.items()}
    ahead = look_ahead(ENDS_ONLY, models, told, seen, verdict, lambda tokens: (None, None))
    draws = {name: ahead.draws(name, ahead.history) for name in points}
    tails = [50.0 * (1.0 - LEVEL), 50.0 * (1.0 + LEVEL)]
    return {
        name: [round(float(value), 5) for value in (one.mean(), *np.percentile(one, tails))]
        for name, one in draws.items()
    }


def _cause(cause: Cause) -> dict[str, Any]:
    value = None if cause.rival is None else cause.rival.value
    return {"kind": cause.kind, "value": value, "share": round(cause.share, 3)}


def measure_fast() -> list[dict[str, Any]]:
    """One run of a kept campaign under its plan and two wrong ones: what CI measures."""
    lab = real_lab("kept", KEPT[-1])
    return list(watch_lab(lab, islice(cases(lab, ["final"]), 3)))


def main() -> None:
    """Measure all labs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--curves", type=Path, default=CURVES, help="curve directories, one for each lab")
    parser.add_argument("--out", type=Path, default=HERE)
    given = parser.parse_args()
    rows = [row for lab in labs(given.curves) for row in watch_lab(lab, cases(lab))]
    write_text(given.out / "rows.jsonl", "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


if __name__ == "__main__":
    main()
