"""What cptplan select shows: the table of candidates, and what to know of the choice."""

from __future__ import annotations

from cptplan.select.select import Candidate, Selection
from cptplan.select.trained_run import LOSS_PREFIX


def title(selection: Selection) -> str:
    """Whose checkpoints the table shows."""
    runs = selection.runs
    return f"Checkpoints of {runs[0] if len(runs) == 1 else f'{len(runs)} runs'}"


def columns(selection: Selection) -> tuple[str, ...]:
    """Head of the table."""
    run = ("run",) if len(selection.runs) > 1 else ()
    sets = tuple(f"{LOSS_PREFIX}{name}" for name in selection.goals.sets)
    return ("step", *run, *sets, *selection.goals.tasks, "forgetting", "score", "verdict")


def rows(selection: Selection) -> list[tuple[str, ...]]:
    """A row for each candidate: what was measured and its change, the score, and what became of it."""
    runs, goals = selection.runs, selection.goals
    names = {run: run.name if len({path.name for path in runs}) == len(runs) else str(run) for run in runs}
    return [
        (
            str(candidate.step),
            *((names[candidate.run] if candidate.step else "",) if len(runs) > 1 else ()),
            *(f"{candidate.losses[name]:.3f} ({candidate.changes[name]:+.3f})" for name in goals.sets),
            *(f"{candidate.task_scores[name]:.3f} ({candidate.task_changes[name]:+.3f})" for name in goals.tasks),
            f"{candidate.forgetting_ratio:.3f}",
            f"{candidate.score:+.4f}",
            _verdict(selection, candidate),
        )
        for candidate in selection.candidates
    ]


def _verdict(selection: Selection, candidate: Candidate) -> str:
    if candidate is selection.chosen:
        return "chosen" if candidate.step else "chosen: keep the base"
    if candidate.infeasible is not None:
        return f"general {candidate.general_increase:+.2%}"
    return "" if candidate.step else "the base"


def lines(selection: Selection) -> list[str]:
    """What the score is and what to know of the choice."""
    goals = selection.goals
    parts = [f"{goals.weights[name]:g} x change of {LOSS_PREFIX}{name}" for name in goals.sets]
    tasks = [f" - {goals.task_weights[name]:g} x change of {name}" for name in goals.tasks]
    found = [f"score: {' + '.join(parts)}{''.join(tasks)}, against step 0; smaller is better"]
    found += [f"note: {note}" for note in selection.notes]
    limit = goals.max_general_increase
    if limit is not None and any(candidate.infeasible for candidate in selection.candidates):
        found.append(f"note: loss_general may rise by {limit:.2%} at most; verdicts that name it are above that")
    if selection.equals:
        several = len(selection.runs) > 1
        alike = ", ".join(f"{c.step} of {c.run}" if several and c.step else str(c.step) for c in selection.equals)
        scatter = selection.scatter or 0.0
        found.append(f"note: as good within the scatter of neighbouring evaluations, {scatter:.4f}: step {alike}")
    return found
