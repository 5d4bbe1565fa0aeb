"""The best run under a budget: an Optuna study over rate, replay, length, schedule, warm-up and start, on disk.

A coarse grid (which is also the picture of the response surface), then a sampler of Optuna from the grid's best, then a
polish of the continuous knobs. Only what the pilots support is searched; the law is not asked about what it has not
seen.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from scipy.optimize import minimize

from cptplan.planning.knobs import Knobs, Space
from cptplan.planning.study import write_study

FloatArray = NDArray[np.float64]
SamplerName = Literal["tpe", "random", "qmc"]

GRID_RATES, GRID_REPLAYS, GRID_DECAYS = 7, 7, (0.0, 0.2, 0.5, 0.8)
QUICK_CELLS = 5  # rates and ratios of a quick search, at the full length alone
TOP = 20  # of the grid, that the study begins with
POLISHED, POLISH_CALLS = 3, 60
PENALTY = 100.0  # of a broken constraint in a polish, in nats for its unit


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """What the law says of a candidate."""

    objective: float
    """Weighted change of loss against the base model, nats per token; smaller is better."""
    losses: Mapping[str, float]
    """Predicted final loss by validation set, nats per token."""
    violations: Mapping[str, float]
    """By how much each constraint is broken, in its own unit; <= 0 when it holds."""

    @property
    def violation(self) -> float:
        """The largest of violations; <= 0 when all constraints hold."""
        return max(self.violations.values(), default=-np.inf)


ScoreOf = Callable[[Knobs], Score]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluated:
    """A candidate with its score."""

    knobs: Knobs
    score: Score


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult:
    """The best candidate and all that were looked at."""

    best: Evaluated
    """Where nothing keeps the constraints: the one that breaks them least."""
    evaluated: tuple[Evaluated, ...]

    @property
    def feasible(self) -> bool:
        """Whether the best candidate keeps all constraints."""
        return self.best.score.violation <= 0


def pareto(evaluated: Mapping[Knobs, tuple[float, ...]]) -> tuple[Knobs, ...]:
    """Candidates that no other beats on all numbers, by rising first number.

    Args:      evaluated: numbers by candidate, smaller is better, all of one length.
    """
    if not evaluated:
        return ()
    candidates, table = list(evaluated), np.array(list(evaluated.values()))
    order = np.lexsort(table.T[::-1])
    kept: list[int] = []
    for number in order:
        if not any(np.all(table[other] <= table[number]) for other in kept):
            kept.append(int(number))
    return tuple(candidates[number] for number in kept)


def search(
    score: ScoreOf,
    space: Space,
    *,
    storage: str,
    rough: ScoreOf | None = None,
    trials: int = 120,
    sampler: SamplerName = "tpe",
    seed: int = 0,
    study_name: str = "plan",
) -> SearchResult:
    """The best knobs of a space, or those that break the constraints least.

    Args:      score: the law's word on a candidate; deterministic. rough: the same without draws, to screen the grid
               with; score when None. storage: journal file or RDB url of the Optuna study, which is written anew.
               trials: of the sampler, after the grid. seed: of the sampler.
    Raises:    StorageError if the study cannot be written.
    """
    evaluated = screened(score, rough or score, grid(space))
    begin = sorted(evaluated, key=rank)[:TOP]
    tried = _sampled(score, space, begin, trials, sampler, seed)
    evaluated += tried
    evaluated += at_the_ends(score, space, sorted(evaluated, key=rank)[:POLISHED])
    evaluated += [polish(score, space, candidate) for candidate in sorted(evaluated, key=rank)[:POLISHED]]
    if min(rank(candidate) for candidate in evaluated)[0] > 0:
        evaluated += _least_broken(score, rough or score, space, min(evaluated, key=rank))
    best = min(evaluated, key=rank)
    distributions = _distributions(space)
    write_study(storage, study_name, [_as_trial(found, distributions) for found in (*begin, *tried, best)])
    return SearchResult(best=best, evaluated=tuple(evaluated))


def _least_broken(score: ScoreOf, rough: ScoreOf, space: Space, nearest: Evaluated) -> list[Evaluated]:
    """A second look where nothing keeps the constraints: the shortest runs, and what breaks the constraints least."""
    found = screened(score, rough, grid(space, QUICK_CELLS, QUICK_CELLS, shares=(0.0,)))
    return [*found, polish(score, space, min([nearest, *found], key=rank), cost=lambda one: one.violation)]


def quick_search(score: ScoreOf, space: Space, rough: ScoreOf | None = None) -> SearchResult:
    """The grid and one polish, without a study: for what-if questions about the search itself."""
    evaluated = screened(score, rough or score, grid(space, QUICK_CELLS, QUICK_CELLS, shares=(1.0,)))
    evaluated.append(polish(score, space, min(evaluated, key=rank)))
    return SearchResult(best=min(evaluated, key=rank), evaluated=tuple(evaluated))


def screened(score: ScoreOf, rough: ScoreOf, candidates: list[Knobs]) -> list[Evaluated]:
    """Full scores of the candidates that a rough one puts first, and of those that it calls safest.

    The others are left out: without its draws nobody knows whether a candidate keeps a chance constraint.
    """
    if score is rough:
        return [Evaluated(knobs=knobs, score=score(knobs)) for knobs in candidates]
    guesses = [Evaluated(knobs=knobs, score=rough(knobs)) for knobs in candidates]
    first = sorted(guesses, key=rank)[: 2 * TOP]
    safest = sorted(guesses, key=lambda guess: guess.score.violation)[:TOP]
    chosen = dict.fromkeys(guess.knobs for guess in (*first, *safest))
    return [Evaluated(knobs=knobs, score=score(knobs)) for knobs in chosen]


def _sampled(
    score: ScoreOf, space: Space, begin: list[Evaluated], trials: int, sampler: SamplerName, seed: int
) -> list[Evaluated]:
    """Candidates that a sampler asks for, each told to it; in memory, where a trial costs no file lock."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("optuna").setLevel(logging.ERROR)
    study = optuna.create_study(sampler=_sampler(sampler, seed))
    distributions = _distributions(space)
    study.add_trials([_as_trial(candidate, distributions) for candidate in begin])
    found = []
    for _ in range(trials):
        trial = study.ask(distributions)
        knobs = _knobs(trial.params)
        result = Evaluated(knobs=knobs, score=score(knobs))
        for name, value in result.score.violations.items():
            trial.set_constraint(name, value)
        study.tell(trial, result.score.objective)
        found.append(result)
    return found


def _sampler(name: SamplerName, seed: int) -> optuna.samplers.BaseSampler:
    if name == "tpe":
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=0)
    if name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False)


def rank(candidate: Evaluated) -> tuple[float, float]:
    """Order of candidates: what keeps the constraints first, then the objective."""
    return max(candidate.score.violation, 0.0), candidate.score.objective


def grid(
    space: Space, num_rates: int = GRID_RATES, num_replays: int = GRID_REPLAYS, shares: tuple[float, ...] = (0.5, 1.0)
) -> list[Knobs]:
    """A coarse grid over everything; the warm-up at its shortest.

    Args:      shares: lengths over the longest one.
    """
    rates = np.geomspace(*space.peak_lr, num_rates)
    low, high = space.replay_ratio
    replays = np.linspace(0.0, 1.0, num_replays) ** 2 * (high - low) + low
    lengths = sorted({max(int(share * space.total_steps[1]), space.total_steps[0]) for share in shares})
    found = [
        Knobs(
            peak_lr=float(rate),
            replay_ratio=float(replay),
            total_steps=length,
            decay_share=decay,
            start=start,
            kind=kind,
            warmup_steps=space.warmup_steps[0] if space.warmup_steps else None,
        )
        for length in lengths
        for start in space.starts
        for kind, decay in _shapes(space)
        for rate in rates
        for replay in replays
    ]
    return list(dict.fromkeys(found))


def _shapes(space: Space) -> list[tuple[Any, float]]:
    """Kinds of schedule with the decay shares of the grid."""
    found: list[tuple[Any, float]] = []
    for kind in space.kinds:
        if kind == "wsd":
            low, high = space.decay_share
            found += [("wsd", d) for d in ([d for d in GRID_DECAYS if low <= d <= high] or [low])]
        else:
            found.append((kind, 0.0))
    return found


def at_the_ends(score: ScoreOf, space: Space, candidates: list[Evaluated]) -> list[Evaluated]:
    """The candidates at their full length and at the ends of the warm-up, which a polish does not move."""
    warmups = space.warmup_steps or (None,)
    variants = {
        replace(candidate.knobs, total_steps=space.total_steps[1], warmup_steps=warmup)
        for candidate in candidates
        for warmup in (*warmups, candidate.knobs.warmup_steps)
    }
    ordered = sorted(variants, key=repr)  # a set has no order that two runs share
    return [Evaluated(knobs=knobs, score=score(knobs)) for knobs in ordered]


def polish(
    score: ScoreOf, space: Space, start: Evaluated, *, cost: Callable[[Score], float] | None = None
) -> Evaluated:
    """Nelder-Mead over rate, replay, decay share and end of the replay, the other knobs held.

    Args:      cost: what to make small; the objective under the constraints when None, and then the result is never
               worse than the start.
    """
    begin = start.knobs
    ends = space.curriculum and begin.end_replay is not None
    low = np.array([np.log(space.peak_lr[0]), space.replay_ratio[0], space.decay_share[0], space.replay_ratio[0]])
    high = np.array([np.log(space.peak_lr[1]), space.replay_ratio[1], space.decay_share[1], space.replay_ratio[1]])
    use = np.array([True, True, begin.kind == "wsd", ends])

    first = np.array([np.log(begin.peak_lr), begin.replay_ratio, begin.decay_share, begin.end_replay or 0.0])

    def knobs_at(x: FloatArray) -> Knobs:
        full = first.copy()
        full[use] = np.clip(x, low[use], high[use])
        changed = replace(
            begin, peak_lr=float(np.exp(full[0])), replay_ratio=float(full[1]), decay_share=float(full[2])
        )
        return replace(changed, end_replay=float(full[3])) if ends else changed

    def under_constraints(found: Score) -> float:
        return found.objective + PENALTY * max(found.violation, 0.0)

    value = cost or under_constraints

    def cost_at(x: FloatArray) -> float:
        return value(score(knobs_at(x)))

    found = minimize(
        cost_at,
        first[use],
        method="Nelder-Mead",
        bounds=list(zip(low[use].tolist(), high[use].tolist(), strict=True)),
        options={"maxfev": POLISH_CALLS, "xatol": 1e-3, "fatol": 1e-5},
    )
    knobs = knobs_at(np.asarray(found.x))
    polished = Evaluated(knobs=knobs, score=score(knobs))
    if cost is not None:
        return min(polished, start, key=lambda candidate: cost(candidate.score))
    return min(polished, start, key=rank)


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    found: dict[str, BaseDistribution] = {
        "peak_lr": FloatDistribution(*space.peak_lr, log=True),
        "replay_ratio": FloatDistribution(*space.replay_ratio),
        "total_steps": FloatDistribution(float(space.total_steps[0]), float(space.total_steps[1])),
        "decay_share": FloatDistribution(*space.decay_share),
        "start": CategoricalDistribution(space.starts),
        "schedule": CategoricalDistribution(space.kinds),
    }
    if space.warmup_steps is not None:
        found["warmup_steps"] = FloatDistribution(float(space.warmup_steps[0]), float(space.warmup_steps[1]))
    if space.curriculum:
        found["end_replay"] = FloatDistribution(*space.replay_ratio)
    return found


def _knobs(params: Mapping[str, Any]) -> Knobs:
    return Knobs(
        peak_lr=params["peak_lr"],
        replay_ratio=params["replay_ratio"],
        total_steps=round(params["total_steps"]),
        decay_share=params["decay_share"],
        start=params["start"],
        kind=params["schedule"],
        warmup_steps=round(params["warmup_steps"]) if "warmup_steps" in params else None,
        end_replay=params.get("end_replay"),
    )


def _as_trial(candidate: Evaluated, distributions: Mapping[str, BaseDistribution]) -> optuna.trial.FrozenTrial:
    """The candidate as a finished trial, its values held inside the distributions against rounding."""
    knobs = candidate.knobs
    values: dict[str, Any] = {
        "peak_lr": knobs.peak_lr,
        "replay_ratio": knobs.replay_ratio,
        "total_steps": float(knobs.total_steps),
        "decay_share": knobs.decay_share,
        "start": knobs.start,
        "schedule": knobs.kind,
        "warmup_steps": float(knobs.warmup_steps or 0),
        "end_replay": knobs.mean_replay if knobs.end_replay is None else knobs.end_replay,
    }
    params = {}
    for name, distribution in distributions.items():
        if isinstance(distribution, FloatDistribution):
            params[name] = min(max(values[name], distribution.low), distribution.high)
        else:
            params[name] = values[name]
    return optuna.trial.create_trial(
        params=params,
        distributions=dict(distributions),
        value=candidate.score.objective,
        constraints=dict(candidate.score.violations),
    )
