"""The narrower questions: which lambda, which replay form, which repetition form; another batch; the noise floor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from contenders import CHOSEN, Task, WithoutHarm, fitted_value, pinned
from numpy.typing import NDArray
from scipy.stats import chi2

from cptplan.curves import LossCurve
from cptplan.errors import ConfigError
from cptplan.fitting.fitted import FittedLaw, in_sample_error, rms
from cptplan.fitting.select import FORMS, REPEATED
from cptplan.fitting.separable import Solution, predict, solve
from cptplan.fitting.support import passes_of
from cptplan.laws.cpt import CptForm, CptLaw
from cptplan.laws.final.repetition import HALF_LIFE
from cptplan.laws.history import RunHistory, history_of
from cptplan.laws.protocol import Law
from cptplan.planning.repetition import with_assumed_repetition

FloatArray = NDArray[np.float64]

WORTHS = np.geomspace(0.3, 300.0, 61).tolist()  # passes: the bounds of the law's R
TIMES = (5.0, 20.0, 50.0, 100.0, 300.0, 1000.0)  # steps; 1,000 is the published lambda = 0.999
# What differs is how replay acts; all else is as in the trusted form of the side.
REPLAY: Mapping[str, Mapping[str, CptForm]] = {
    "general": {
        "size: logarithm": CptForm(clock=False, free_power=False, transient=True),
        "size: exponential": CptForm(amplitude="exponential", clock=False, free_power=False, transient=True),
        "pace": CptForm(amplitude="none", free_power=False, transient=True),
        "size: logarithm, and pace": CptForm(free_power=False, transient=True),
        "size: exponential, and pace": CptForm(amplitude="exponential", free_power=False, transient=True),
        "none: replay does nothing": CptForm(amplitude="none", clock=False, free_power=False, transient=True),
    },
    "domain": {
        "size: exponential": CptForm(amplitude="exponential", clock=False),
        "pace": CptForm(amplitude="none"),
        "size: exponential, and pace": CptForm(amplitude="exponential"),
        "none: replay does nothing": CptForm(amplitude="none", clock=False),
    },
}


def lambda_rows(task: Task, runs: Sequence[LossCurve], times: Iterable[float]) -> list[dict[str, Any]]:
    """End errors of the trusted form with its annealing memory fitted, and held at several values."""
    form = FORMS[task.side][0]
    laws = {"fitted": task.law(form)} | {f"{t:g}": pinned(task.law(form), forgetting_time=t) for t in times}
    return [{"memory": name, **_row(task, law, runs)[0]} for name, law in laws.items()]


def replay_rows(task: Task, runs: Sequence[LossCurve]) -> list[dict[str, Any]]:
    """End errors by how replay acts, of runs with less than 5 % replay and of the rest."""
    found = []
    for name, form in REPLAY[task.side].items():
        row, errors = _row(task, task.law(form), runs)
        little = [float(run.replay_ratios().mean()) < 0.05 for run in runs]
        parts = {"little": errors[np.array(little)], "more": errors[~np.array(little)]}
        found.append({"replay": name, **row, **{f"rms_{key}": rms(e) if len(e) else None for key, e in parts.items()}})
    return found


def _row(task: Task, law: Law, runs: Sequence[LossCurve]) -> tuple[dict[str, Any], FloatArray]:
    """The row of one law, and its error at the end of every run."""
    data = task.data()
    best = solve(law, data)
    errors = np.array([end_error(task, law, best, run) for run in runs])
    return {
        "lab": task.lab,
        "set": task.set_name,
        "form": law.name,
        "steps": fitted_value(law, best, "forgetting_time"),
        "in_sample": in_sample_error(law, best, data),
        "rms": rms(errors),
        "mean": float(np.mean(errors)),
    }, errors


def end_error(task: Task, law: Law, best: Solution, run: LossCurve) -> float:
    """Relative error at the last point of a run."""
    mean = predict(law, best, history_of(run, task.curves), run.steps[-1:])[0]
    return float(mean / run.losses[task.set_name][-1] - 1.0)


def repetition_rows(task: Task, chosen: FittedLaw, runs: Sequence[LossCurve]) -> list[dict[str, Any]]:
    """Error at the end of every run that reads a cut of the domain several times, by how the law takes repetition.

    Fitted to the pilots, which repeat nothing; and to the pilots and all of these runs but the one to be predicted.
    """
    assumed = with_assumed_repetition(chosen)
    found = [
        _repeated(task, f"{CHOSEN}: {label}", "pilots", [_fitted_error(task, law, run) for run in runs], runs)
        for label, law in (("repeats count as fresh", chosen), (f"worth e^(-passes / {HALF_LIFE:.2f})", assumed))
    ]
    fresh = FORMS[task.side][0]
    form = replace(fresh, repetition=True)
    like = task.law(form)
    laws: dict[str, CptLaw] = {
        "repeats count as fresh": task.law(fresh),
        f"worth e^(-passes / {HALF_LIFE:.2f}), no harm": pinned(_without_harm(like), R=HALF_LIFE),
        "worth fitted, no harm": _without_harm(like),
        "worth and harm fitted: the CPT law's term": like,
    }
    for label, law in laws.items():
        errors = []
        for run in runs:
            best = solve(law, task.data([other for other in runs if other is not run]))
            errors.append(end_error(task, law, best, run))
        best = solve(law, task.data(runs))
        row = _repeated(task, label, "pilots and the other runs", errors, runs)
        harm = float(best.coefficients[-1]) if law.repeats else float("nan")
        found.append(row | {"R": fitted_value(law, best, "R"), "harm": harm})
    return found


def change_rows(task: Task, runs: Sequence[LossCurve]) -> list[dict[str, Any]]:
    """Change of the final loss from the longest cut that repeats to the shorter ones, measured and by the law.

    A cut may be other text than the whole domain, which moves the loss of all of them alike; the change is free of it.
    The law's other parameters are those of the pilots; worth and harm are given, or those that fit the changes best.
    """
    cuts = [run for run in runs if passes_of(history_of(run, task.curves)) > REPEATED]
    if len(cuts) < 2:
        return []
    fresh, law = task.law(FORMS[task.side][0]), task.law(replace(FORMS[task.side][0], repetition=True))
    best = solve(fresh, task.data())
    measured = np.array([run.losses[task.set_name][-1] for run in cuts])
    measured = measured[1:] - measured[0]

    def changes(worth: float, harm: float) -> FloatArray:
        """Predicted changes, nats per token."""
        at = [p.name for p in law.parameters].index("R")
        solution = replace(
            best, values=np.insert(best.values, at, worth), coefficients=np.append(best.coefficients, harm)
        )
        ends = np.array([predict(law, solution, history_of(run, task.curves), run.steps[-1:])[0] for run in cuts])
        return np.asarray(ends[1:] - ends[0])

    def harm_for(worth: float) -> float:
        column = changes(worth, 1.0) - changes(worth, 0.0)
        return max(float(column @ (measured - changes(worth, 0.0)) / (column @ column)), 0.0)

    def misfit(worth: float, harm: float) -> float:
        return float(np.sum((changes(worth, harm) - measured) ** 2))

    alone = min(WORTHS, key=lambda worth: misfit(worth, 0.0))
    both = min(WORTHS, key=lambda worth: misfit(worth, harm_for(worth)))
    choices = {
        "repeats count as fresh": (1e9, 0.0),
        f"worth e^(-passes / {HALF_LIFE:.2f}), no harm": (HALF_LIFE, 0.0),
        "worth fitted, no harm": (alone, 0.0),
        f"worth e^(-passes / {HALF_LIFE:.2f}), harm fitted": (HALF_LIFE, harm_for(HALF_LIFE)),
        "worth and harm fitted": (both, harm_for(both)),
    }
    passes = [round(passes_of(history_of(run, task.curves)), 1) for run in cuts]
    return [
        {
            "lab": task.lab,
            "set": task.set_name,
            "repetition": label,
            "R": worth,
            "harm": harm,
            "passes": passes,
            "measured": measured.tolist(),
            "predicted": changes(worth, harm).tolist(),
        }
        for label, (worth, harm) in choices.items()
    ]


def _without_harm(law: CptLaw) -> CptLaw:
    return WithoutHarm(law.side, law.reference_lr, law.form, law.memory_steps)


def _fitted_error(task: Task, law: FittedLaw, run: LossCurve) -> float:
    mean = law.mean(history_of(run, task.curves), run.steps[-1:])[0]
    return float(mean / run.losses[task.set_name][-1] - 1.0)


def _repeated(task: Task, label: str, seen: str, errors: Sequence[float], runs: Sequence[LossCurve]) -> dict[str, Any]:
    return {
        "lab": task.lab,
        "set": task.set_name,
        "repetition": label,
        "fitted_to": seen,
        "passes": [round(passes_of(history_of(run, task.curves)), 1) for run in runs],
        "measured": [float(run.losses[task.set_name][-1]) for run in runs],
        "errors": list(errors),
        "rms": rms(errors),
    }


def batch_rows(task: Task, chosen: FittedLaw, run: LossCurve, twin: LossCurve | None) -> list[dict[str, Any]]:
    """A run of another batch, which the tool refuses: what areas per step and per token would have said.

    Args:      twin: the run of the same tokens, rate and replay at the pilots' batch.
    """
    history = history_of(run, task.curves)
    known = chosen.support.batch_tokens or 1
    times = round((history.batch_tokens or known) / known)
    try:
        chosen.support.check_batch(history, run.name)
        refused = False
    except ConfigError:
        refused = True
    readings = {
        "per step": history,
        "per token": _stretched(history, times, 1.0),
        "per token, rate / sqrt(batch)": _stretched(history, times, float(np.sqrt(times))),
    }
    measured = float(run.losses[task.set_name][-1])
    rows = []
    for name, reading in readings.items():
        predicted = float(chosen.mean(reading, np.array([len(reading.lr)]))[0])
        rows.append(
            {
                "lab": task.lab,
                "set": task.set_name,
                "run": run.name,
                "areas": name,
                "refused": refused,
                "predicted": predicted,
                "measured": measured,
                "error": predicted / measured - 1.0,
                "twin_measured": None if twin is None else float(twin.losses[task.set_name][-1]),
                "twin_error": None if twin is None else _fitted_error(task, chosen, twin),
            }
        )
    return rows


def _stretched(history: RunHistory, times: int, slower: float) -> RunHistory:
    """Every step as several of the pilots' batch."""
    return replace(
        history,
        lr=np.repeat(history.lr / slower, times),
        replay_ratio=np.repeat(history.replay_ratio, times),
        domain_passes=None if history.domain_passes is None else np.repeat(history.domain_passes, times),
        batch_tokens=None,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseFloor:
    """Spread of the final loss over seeds: no law can predict one run better."""

    sd: float
    """Relative standard deviation, pooled over cells."""
    low: float
    high: float
    """90 % interval from chi-square."""
    cells: int
    runs: int


def noise_floor(set_name: str, cells: Sequence[Sequence[LossCurve]]) -> NoiseFloor | None:
    """The floor from cells that were run with several seeds; None without any."""
    ends = [np.array([run.losses[set_name][-1] for run in cell]) for cell in cells if len(cell) > 1]
    freedom = sum(len(e) - 1 for e in ends)
    if not freedom:
        return None
    squares = sum(float(np.sum((e / e.mean() - 1.0) ** 2)) for e in ends)
    low, high = np.sqrt(squares / chi2.ppf([0.95, 0.05], freedom))
    return NoiseFloor(
        sd=float(np.sqrt(squares / freedom)),
        low=float(low),
        high=float(high),
        cells=len(ends),
        runs=sum(len(e) for e in ends),
    )
