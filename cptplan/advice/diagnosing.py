"""Diagnosis of the runs of a campaign, with the newest fit's word on every remedy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from cptplan.advice.diagnosis import Finding, diagnose
from cptplan.advice.remedies import Effect, predicted_effect
from cptplan.advice.run_log import METRICS, RunLog, read_logs
from cptplan.config import Project
from cptplan.decide import goal_weights
from cptplan.errors import ConfigError
from cptplan.fitting.fitted import FittedLaw
from cptplan.fitting.store import read_fit
from cptplan.workspace import Workspace

GENERAL_WEIGHT = 0.4  # assumed where no project says otherwise


def read_campaign_logs(directories: Sequence[Path], workspace: Workspace) -> list[RunLog]:
    """The runs named, or those of the campaign; none when there are none."""
    if directories:
        return read_logs(directories)
    return read_logs([workspace.runs]) if any(workspace.runs.glob(f"*/{METRICS}")) else []


def diagnose_runs(
    logs: Iterable[RunLog], workspace: Workspace, project: Project | None
) -> list[tuple[Finding, Effect | None]]:
    """Every finding of every run, with its remedy's predicted effect where the campaign has a fit that can say."""
    laws = _laws(workspace)
    weights = _weights(project, laws)
    found: list[tuple[Finding, Effect | None]] = []
    for log in logs:
        for finding in diagnose(log):
            effect = predicted_effect(finding, log, laws, workspace.curves, weights) if laws else None
            found.append((finding, effect))
    return found


def _laws(workspace: Workspace) -> dict[str, FittedLaw]:
    try:
        return read_fit(workspace.latest("fits"))
    except ConfigError:
        return {}  # no fit yet, or one that is broken: the diagnosis stands without it


def _weights(project: Project | None, laws: dict[str, FittedLaw]) -> dict[str, float]:
    if project is not None:
        return goal_weights(project, None)
    others = [name for name in laws if name != "general"]
    rest = (1.0 - GENERAL_WEIGHT) / max(len(others), 1)
    return {"general": GENERAL_WEIGHT, **dict.fromkeys(others, rest)}
