"""The best run under a budget: an Optuna study over rate, replay, length, decay and start, on disk.

A coarse grid (which is also the picture of the response surface), then TPE from the grid's best, then a polish of the
continuous knobs. Only what the pilots span is searched; the law is not asked about what it has not seen.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from scipy.optimize import minimize

from cptplan.errors import InfeasiblePlanError

FloatArray = NDArray[np.float64]

CONSTRAINT = "violation"  # its name in the study; a trial without it would pass for one that keeps all constraints
GRID_RATES, GRID_REPLAYS, GRID_DECAYS = 9, 9, (0.0, 0.2, 0.5, 0.8)


@dataclass(frozen=True, kw_only=True, slots=True)
class Knobs:
    """One candidate run, in the user's units."""

    peak_lr: float
    replay_ratio: float
    total_steps: int
    decay_share: float
    start: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Space:
    """What may be chosen."""

    peak_lr: tuple[float, float]
    replay_ratio: tuple[float, float]
    total_steps: tuple[int, int]
    decay_share: tuple[float, float]
    starts: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """What the law says of a candidate."""

    objective: float
    """Weighted change of loss against the base model, nats per token; smaller is better."""
    losses: Mapping[str, float]
    """Predicted final loss by validation set, nats per token."""
    violation: float
    """How far the constraints are broken; <= 0 when they hold."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluated:
    """A candidate with its score."""

    knobs: Knobs
    score: Score


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult:
    """The best candidate and all that were looked at."""

    best: Evaluated
    evaluated: tuple[Evaluated, ...]

    def pareto(self, first: str, second: str) -> tuple[Evaluated, ...]:
        """Candidates that keep the constraints and that no other beats on both losses, by rising loss of the first."""
        allowed = [e for e in self.evaluated if e.score.violation <= 0]
        ordered = sorted(allowed, key=lambda e: (e.score.losses[first], e.score.losses[second]))
        front: list[Evaluated] = []
        for candidate in ordered:
            if not front or candidate.score.losses[second] < front[-1].score.losses[second]:
                front.append(candidate)
        return tuple(front)


def search(
    score: Callable[[Knobs], Score], space: Space, *, storage: Path, trials: int = 120, seed: int = 0
) -> SearchResult:
    """The best knobs of a space.

    Args:      score: the law's word on a candidate; deterministic. storage: journal file of the Optuna study, written
               anew. trials: TPE trials after the grid. seed: of the sampler.
    Raises:    InfeasiblePlanError if no candidate keeps the constraints, with the least broken one.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("optuna").setLevel(logging.ERROR)
    storage.parent.mkdir(parents=True, exist_ok=True)
    storage.unlink(missing_ok=True)
    study = optuna.create_study(
        study_name="plan",
        storage=JournalStorage(JournalFileBackend(str(storage))),
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=0),
    )
    evaluated = [Evaluated(knobs=knobs, score=score(knobs)) for knobs in grid(space)]
    distributions = _distributions(space)
    for candidate in sorted(evaluated, key=_rank)[:20]:
        study.add_trial(_as_trial(candidate, distributions))
    for _ in range(trials):
        trial = study.ask(distributions)
        knobs = _knobs(trial.params)
        found = Evaluated(knobs=knobs, score=score(knobs))
        trial.set_constraint(CONSTRAINT, found.score.violation)
        study.tell(trial, found.score.objective)
        evaluated.append(found)
    evaluated += [polish(score, space, candidate) for candidate in sorted(evaluated, key=_rank)[:3]]
    best = min(evaluated, key=_rank)
    study.add_trial(_as_trial(best, distributions))
    if best.score.violation > 0:
        raise InfeasiblePlanError(
            f"a plan must keep the constraints; got none among {len(evaluated)} candidates, the nearest breaks them by "
            f"{best.score.violation:.3g} (nats per token, or share of the tokens there).",
            hint="loosen max_general_increase, add text, or widen pilot.replay_range",
        )
    return SearchResult(best=best, evaluated=tuple(evaluated))


def _rank(candidate: Evaluated) -> tuple[float, float]:
    return max(candidate.score.violation, 0.0), candidate.score.objective


def grid(space: Space) -> list[Knobs]:
    """A coarse grid over everything, at the full length and at half of it."""
    rates = np.geomspace(*space.peak_lr, GRID_RATES)
    replays = (
        np.linspace(0.0, 1.0, GRID_REPLAYS) ** 2 * (space.replay_ratio[1] - space.replay_ratio[0])
        + space.replay_ratio[0]
    )
    decays = [d for d in GRID_DECAYS if space.decay_share[0] <= d <= space.decay_share[1]] or [space.decay_share[0]]
    lengths = sorted({space.total_steps[1], max(space.total_steps[1] // 2, space.total_steps[0])})
    return [
        Knobs(peak_lr=float(rate), replay_ratio=float(replay), total_steps=length, decay_share=decay, start=start)
        for length in lengths
        for start in space.starts
        for decay in decays
        for rate in rates
        for replay in replays
    ]


def polish(score: Callable[[Knobs], Score], space: Space, start: Evaluated) -> Evaluated:
    """Nelder-Mead over rate, replay and decay share, the other knobs held."""
    low = np.array([np.log(space.peak_lr[0]), space.replay_ratio[0], space.decay_share[0]])
    high = np.array([np.log(space.peak_lr[1]), space.replay_ratio[1], space.decay_share[1]])

    def knobs_at(x: FloatArray) -> Knobs:
        rate, replay, decay = np.clip(x, low, high)
        return Knobs(
            peak_lr=float(np.exp(rate)),
            replay_ratio=float(replay),
            total_steps=start.knobs.total_steps,
            decay_share=float(decay),
            start=start.knobs.start,
        )

    def cost(x: FloatArray) -> float:
        found = score(knobs_at(x))
        return found.objective + 100.0 * max(found.violation, 0.0)

    begin = np.array([np.log(start.knobs.peak_lr), start.knobs.replay_ratio, start.knobs.decay_share])
    found = minimize(
        cost,
        begin,
        method="Nelder-Mead",
        bounds=list(zip(low, high, strict=True)),
        options={"maxfev": 60, "xatol": 1e-3, "fatol": 1e-5},
    )
    knobs = knobs_at(np.asarray(found.x))
    polished = Evaluated(knobs=knobs, score=score(knobs))
    return min(polished, start, key=_rank)


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    return {
        "peak_lr": FloatDistribution(*space.peak_lr, log=True),
        "replay_ratio": FloatDistribution(*space.replay_ratio),
        "length": FloatDistribution(float(space.total_steps[0]), float(space.total_steps[1])),
        "decay_share": FloatDistribution(*space.decay_share),
        "start": CategoricalDistribution(space.starts),
    }


def _knobs(params: Mapping[str, Any]) -> Knobs:
    return Knobs(
        peak_lr=params["peak_lr"],
        replay_ratio=params["replay_ratio"],
        total_steps=round(params["length"]),
        decay_share=params["decay_share"],
        start=params["start"],
    )


def _as_trial(candidate: Evaluated, distributions: Mapping[str, BaseDistribution]) -> optuna.trial.FrozenTrial:
    knobs = candidate.knobs
    return optuna.trial.create_trial(
        params={
            "peak_lr": knobs.peak_lr,
            "replay_ratio": knobs.replay_ratio,
            "length": float(knobs.total_steps),
            "decay_share": knobs.decay_share,
            "start": knobs.start,
        },
        distributions=dict(distributions),
        value=candidate.score.objective,
        constraints={CONSTRAINT: candidate.score.violation},
    )
