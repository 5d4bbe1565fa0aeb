"""Which checkpoint to keep: every exported step of one or more runs, and the base itself, under the user's weights.

Nothing is assumed of the last step. Smaller is better:
score = sum over sets of w (loss - loss at step 0) - sum over tasks of v (task score - task score at step 0).
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cptplan.config import Goal, check_weights, parse_weights
from cptplan.errors import ConfigError, CurveError, InfeasiblePlanError, StorageError, suggest
from cptplan.files import storage_error, write_json
from cptplan.select.trained_run import LOSS_PREFIX, TrainedRun, Values, check_same_base, read_trained_run

SELECTION_FILE = "selection.json"
FEWEST_DIFFERENCES = 8  # assumed: a median of fewer says little of a spread


@dataclass(frozen=True, kw_only=True, slots=True)
class Goals:
    """What counts."""

    weights: Values
    """Of a change of loss by validation set; they sum to 1."""
    task_weights: Values
    """Of a task's score, nats per unit of score."""
    max_general_increase: float | None
    """Largest relative rise of general loss over the base."""

    @property
    def sets(self) -> tuple[str, ...]:
        """Validation sets that a candidate must have been evaluated on."""
        return tuple(name for name, weight in self.weights.items() if weight > 0 or name == "general")

    @property
    def tasks(self) -> tuple[str, ...]:
        """Tasks that a candidate must have been scored on."""
        return tuple(name for name, weight in self.task_weights.items() if weight > 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A checkpoint with what was measured at its step; step 0 is the base."""

    run: Path
    step: int
    model: Path | None
    """Model directory; None for a base that is not in a directory here."""
    losses: Values
    """Nats per token."""
    changes: Values
    """Losses less those of its run's step 0."""
    task_scores: Values
    task_changes: Values
    score: float
    """Nats per token; smaller is better."""
    general_increase: float
    """Of general loss, as a share of that at step 0."""
    infeasible: str | None = None
    """Why the constraint forbids it; None when it does not."""

    @property
    def forgetting_ratio(self) -> float:
        """General perplexity over the base's."""
        return math.exp(min(self.changes["general"], 700.0))  # a float ends at exp(709)

    def to_json(self) -> dict[str, Any]:
        """The candidate as JSON values."""
        return {
            "run": str(self.run),
            "step": self.step,
            "model": None if self.model is None else str(self.model),
            "losses": dict(self.losses),
            "changes": dict(self.changes),
            "forgetting_ratio": self.forgetting_ratio,
            "general_increase": self.general_increase,
            "task_scores": dict(self.task_scores),
            "score": self.score,
            "feasible": self.infeasible is None,
            "reason": self.infeasible,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """All candidates and the one to keep."""

    goals: Goals
    candidates: tuple[Candidate, ...]
    """By step, then in the order of the runs given; the base first."""
    chosen: Candidate | None
    """None when no trained checkpoint keeps the constraint."""
    scatter: float | None
    """How far the score of the chosen run strays from one evaluation to the next, nats per token; None if unknown."""
    equals: tuple[Candidate, ...]
    """Candidates that differ from the chosen one by no more than evaluations stray."""
    notes: tuple[str, ...]

    @property
    def chosen_model(self) -> Path | None:
        """Directory of the model to keep."""
        return None if self.chosen is None else self.chosen.model

    @property
    def runs(self) -> tuple[Path, ...]:
        """Run directories that have a candidate."""
        return tuple(dict.fromkeys(candidate.run for candidate in self.candidates))

    def to_json(self) -> dict[str, Any]:
        """The selection as JSON values: selection.json."""
        return {
            "schema_version": 1,
            "weights": dict(self.goals.weights),
            "task_weights": dict(self.goals.task_weights),
            "max_general_increase": self.goals.max_general_increase,
            "chosen": None if self.chosen is None else self.chosen.to_json(),
            "table": [candidate.to_json() for candidate in self.candidates],
            "scatter": self.scatter,
            "equals": [{"run": str(candidate.run), "step": candidate.step} for candidate in self.equals],
            "notes": list(self.notes),
        }


def select_checkpoint(
    directories: Sequence[Path],
    weights: str,
    *,
    task_weights: str | None = None,
    max_general_increase: float | None = None,
) -> Selection:
    """The best checkpoint of runs that began from one base.

    A tie goes to the earlier step. The base is chosen if it beats every checkpoint that keeps the constraint.
    Args:      weights: such as general=0.4; the domains share the rest. task_weights: such as mmlu=0.1, nats per unit
               of score. max_general_increase: largest relative rise of general loss over step 0.
    Raises:    ConfigError or CurveError for what is no run, has no exports, or names a set or task that is not there.
    """
    runs = [read_trained_run(path) for path in {path.resolve(): path for path in directories}.values()]
    goals = Goals(
        weights=_parse_weights(weights, runs[0]),
        task_weights=_parse_task_weights(task_weights, runs),
        max_general_increase=Goal.parse(
            {"max_general_increase": max_general_increase}, "--max-general-increase"
        ).max_general_increase,
    )
    check_same_base(runs)
    trained, notes = _trained_candidates(runs, goals)
    base = _candidate(runs[0], 0, next((run.base_model for run in runs if run.base_model), None), goals)
    feasible = [candidate for candidate in trained if candidate.infeasible is None]
    standing = [base] if base.model is not None else []
    chosen = min([*standing, *feasible], key=lambda candidate: candidate.score) if feasible else None
    if base.model is None and chosen is not None and chosen.score > base.score:
        notes.append(f"the base itself is better: it scores 0, the best checkpoint {chosen.score:+.4f}")
    spread = {run.directory: _run_scatter(run, goals) for run in runs}
    return Selection(
        goals=goals,
        candidates=(base, *trained),
        chosen=chosen,
        scatter=None if chosen is None else spread[chosen.run],
        equals=() if chosen is None else _equals(chosen, [*standing, *feasible], spread),
        notes=tuple(notes),
    )


def _parse_weights(text: str, run: TrainedRun) -> dict[str, float]:
    """Normalised weights of --weights; a set that is neither general nor trained on counts only where it is named."""
    if "general" not in run.set_names:
        raise ConfigError(
            f"validation must hold a set named general; got {', '.join(run.set_names)} in {run.directory}.",
            hint="select compares with the general loss of the base",
        )
    others = [name for name in run.set_names if name != "general"]
    named = [part.partition("=")[0].strip() for part in text.split(",")]
    check_weights(dict.fromkeys(named, 1.0), others, "--weights")
    trained_on = {source.name for source in run.spec.sources if source.role == "domain"}
    domains = [name for name in others if name in trained_on] or others
    return parse_weights(text, [name for name in others if name in domains or name in named])


def _parse_task_weights(text: str | None, runs: Sequence[TrainedRun]) -> dict[str, float]:
    """Weights of --task-weights, such as mmlu=0.1,arc=0.05.

    Raises:    ConfigError for a task that not every run scored at step 0, or a weight that is no number >= 0.
    """
    known = [task for task in runs[0].task_scores.get(0, {}) if all(task in r.task_scores.get(0, {}) for r in runs)]
    weights: dict[str, float] = {}
    for part in text.split(",") if text is not None else ():
        name, _, raw = (piece.strip() for piece in part.partition("="))
        try:
            weight = float(raw)
        except ValueError:
            weight = math.nan
        if not 0.0 <= weight < math.inf:
            raise ConfigError(
                f"--task-weights must be name=number pairs, numbers >= 0; got {part.strip()!r}.", hint="mmlu=0.1"
            )
        if name not in known:
            raise ConfigError(
                f"--task-weights must name a task scored at step 0; got {name!r}.",
                hint=suggest(name, known) or f"known: {', '.join(known) or 'none'}",
            )
        weights[name] = weight
    return weights


def _trained_candidates(runs: Sequence[TrainedRun], goals: Goals) -> tuple[list[Candidate], list[str]]:
    """Every export that was evaluated at its step, by step, and what is to be said of the runs.

    Raises:    CurveError if no export is left.
    """
    found: list[Candidate] = []
    left_out: list[str] = []
    for run in runs:
        left_out += run.left_out if run.exports or run.left_out else [f"{run.directory} has no exports"]
        for step, model in run.exports.items():
            missing = [f"{LOSS_PREFIX}{name}" for name in goals.sets if name not in run.losses.get(step, {})]
            missing += [task for task in goals.tasks if task not in run.task_scores.get(step, {})]
            if missing:
                left_out.append(f"{model} is left out: no {' and '.join(missing)} at step {step}")
            else:
                found.append(_candidate(run, step, model, goals))
    if not found:
        raise CurveError(
            f"runs must hold an export that was evaluated at its step; got none: {left_out[0]}.",
            hint="name the steps in keep_steps and eval_steps of the run spec",
        )
    unfinished = [
        f"{run.directory} is not complete: last evaluated at step {max(run.losses)} of {run.spec.total_steps}"
        for run in runs
        if not run.complete
    ]
    return sorted(found, key=lambda candidate: candidate.step), [*unfinished, *left_out]


def _candidate(run: TrainedRun, step: int, model: Path | None, goals: Goals) -> Candidate:
    """A checkpoint against step 0 of its run: score = sum w (L - L0) - sum v (S - S0)."""
    losses, changes = _with_changes(run.losses, step)
    task_scores, task_changes = _with_changes(run.task_scores, step)
    increase = changes["general"] / run.losses[0]["general"]
    limit = goals.max_general_increase
    over = limit is not None and increase > limit
    return Candidate(
        run=run.directory,
        step=step,
        model=model,
        losses=losses,
        changes=changes,
        task_scores=task_scores,
        task_changes=task_changes,
        score=sum(goals.weights[name] * changes[name] for name in goals.sets)
        - sum(goals.task_weights[name] * task_changes[name] for name in goals.tasks),
        general_increase=increase,
        infeasible=f"loss_general is {increase:.2%} above the base, and {limit:.2%} is allowed" if over else None,
    )


def _with_changes(measured: Mapping[int, Values], step: int) -> tuple[Values, Values]:
    """What was measured at a step, and how far it is from step 0."""
    values, base = measured.get(step, {}), measured.get(0, {})
    return values, {name: value - base[name] for name, value in values.items() if name in base}


def _run_scatter(run: TrainedRun, goals: Goals) -> float | None:
    """Scatter of a run's score; None where task scores count, which are too few to tell."""
    steps = [step for step, found in sorted(run.losses.items()) if step > 0 and set(goals.sets) <= set(found)]
    scores = [sum(goals.weights[name] * run.losses[step][name] for name in goals.sets) for step in steps]
    return None if goals.tasks else evaluation_scatter(steps, scores)


def evaluation_scatter(steps: ArrayLike, values: ArrayLike) -> float | None:
    """How far an evaluation strays from its neighbours, as a standard deviation: 1.4826 median |d|.

    d is the third divided difference of four evaluations in a row, scaled so that independent errors of variance 1
    give variance 1: what a parabola through them does not explain. The trend of a curve adds little to it.
    Args:      steps: rising, shape (n,). values: one for each, shape (n,).
    Returns:   unit of values; None if n < 11. Errors that last over several evaluations are not seen.
    Reference: pseudo-residuals of Gasser, Sroka and Jennen-Steinmetz 1986, Biometrika 73(3), one order higher.
    """
    x, y = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if len(x) < FEWEST_DIFFERENCES + 3:
        return None
    near, found = (np.lib.stride_tricks.sliding_window_view(array, 4) for array in (x, y))
    gaps = near[:, :, None] - near[:, None, :] + np.eye(4)
    share = 1.0 / gaps.prod(axis=2)
    differences = (share * found).sum(axis=1) / np.linalg.norm(share, axis=1)
    return float(1.4826 * np.median(np.abs(differences)))


def _equals(
    chosen: Candidate, feasible: Sequence[Candidate], spread: Mapping[Path, float | None]
) -> tuple[Candidate, ...]:
    """Candidates within one standard deviation of a difference of two evaluations; the base itself does not stray."""

    def variance(candidate: Candidate) -> float:
        return (spread[candidate.run] or 0.0) ** 2 if candidate.step else 0.0

    return tuple(
        candidate
        for candidate in feasible
        if candidate is not chosen
        and candidate.score - chosen.score < math.sqrt(variance(candidate) + variance(chosen))
    )


def check_feasible(selection: Selection) -> None:
    """Raise InfeasiblePlanError, with the smallest limit that would do, if no checkpoint keeps the constraint."""
    if selection.chosen is not None:
        return
    nearest = min(selection.candidates[1:], key=lambda candidate: candidate.general_increase)
    enough = math.ceil(nearest.general_increase * 1e4) / 1e4
    raise InfeasiblePlanError(
        f"a checkpoint must keep loss_general within {selection.goals.max_general_increase:.2%} of the base; got "
        f"{nearest.general_increase:.2%} at the nearest, step {nearest.step} of {nearest.run}.",
        hint=f"--max-general-increase {enough:g} allows that one; or keep the base",
    )


def export_chosen(selection: Selection, chosen_model: Path, out: Path) -> None:
    """Copy the chosen model directory, with selection.json; whole, or what was there stays.

    Raises:    StorageError if the place holds something that no selection wrote, or a candidate, or is in one.
    """
    place = out.resolve()
    models = [candidate.model.resolve() for candidate in selection.candidates if candidate.model is not None]
    for model in models:
        if place == model or place in model.parents or model in place.parents:
            raise StorageError(f"--out must be apart from the models; got {out} and {model}.", hint="choose another")
    if place.exists() and not (place.is_dir() and ((place / SELECTION_FILE).is_file() or not any(place.iterdir()))):
        raise StorageError(
            f"--out must be new, or the place of an earlier selection; got other files in {out}.",
            hint="choose another --out",
        )
    fresh, old = (place.with_name(f".{place.name}.{os.getpid()}.{kind}.tmp") for kind in ("new", "old"))
    try:
        _copy_files(chosen_model, fresh)
        write_json(fresh / SELECTION_FILE, selection.to_json())
        if place.exists():
            place.rename(old)
        fresh.rename(place)
    except OSError as error:
        raise storage_error(error, out) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _copy_files(source: Path, target: Path) -> None:
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as old, copy.open("wb") as new:
            shutil.copyfileobj(old, new, 1 << 20)
            new.flush()
            os.fsync(new.fileno())
