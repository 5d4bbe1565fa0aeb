"""What a team without a law would do with the compute of the pilots: try short runs and take the best at full length.

Every trial is a whole run with its own schedule, measured once at its end, and costs its tokens. What is true of a
short run is taken to be true of the long one: that is the rivals' bet, and why they have to be compared with.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import optuna

from cptplan.planning.knobs import Knobs, Space
from cptplan.planning.search import Score

Measure = Callable[[Knobs], Score]

RANDOM, TPE, HALVING = "random search", "TPE", "successive halving"
FIRST_RUNG, KEPT = 9, 3  # trials of the first rung; a third goes on to a run three times as long, twice (Hyperband)


def rival_plans(measure: Measure, space: Space, total_steps: int, trial_steps: int, seed: int) -> Mapping[str, Knobs]:
    """The plan that each rival takes at the full length.

    Args:      measure: what a run of these knobs shows at its end. total_steps: optimiser steps that each rival may
               spend. trial_steps: length of a trial of random search and TPE.
    Reference: successive halving: Jamieson & Talwalkar 2016, arXiv:1502.07943, of whole runs, three times as long each.
    """
    trials = max(total_steps // trial_steps, 1)
    startup = max(trials // 3, 2)  # optuna's own ten would leave a campaign of eight pilots nothing but random search
    found = {
        RANDOM: _sampled(measure, space, optuna.samplers.RandomSampler(seed=3 * seed), trials, trial_steps),
        TPE: _sampled(
            measure, space, optuna.samplers.TPESampler(seed=3 * seed + 1, n_startup_trials=startup), trials, trial_steps
        ),
        HALVING: _halved(measure, space, total_steps, seed),
    }
    return {name: replace(knobs, total_steps=space.total_steps[1]) for name, knobs in found.items()}


def _sampled(
    measure: Measure, space: Space, sampler: optuna.samplers.BaseSampler, trials: int, trial_steps: int
) -> Knobs:
    """The best of so many trials that a sampler asks for."""
    study, best = _study(sampler), []
    for _ in range(trials):
        trial = study.ask()
        knobs = _ask(trial, space, trial_steps)
        score = measure(knobs)
        for name, value in score.violations.items():
            trial.set_constraint(name, value)
        study.tell(trial, score.objective)
        best.append((_order(score), knobs))
    return min(best, key=lambda one: one[0])[1]


def _halved(measure: Measure, space: Space, total_steps: int, seed: int) -> Knobs:
    """The last of nine: the best three are trained again three times as long, the best of them nine times."""
    study = _study(optuna.samplers.RandomSampler(seed=3 * seed + 2))
    rungs = int(np.round(np.log(FIRST_RUNG) / np.log(KEPT))) + 1
    steps = max(total_steps // (rungs * FIRST_RUNG), 2)
    alive = [_ask(study.ask(), space, steps) for _ in range(FIRST_RUNG)]
    while len(alive) > 1:
        ranked = sorted(alive, key=lambda knobs: _order(measure(knobs)))
        alive = [replace(knobs, total_steps=knobs.total_steps * KEPT) for knobs in ranked[: len(alive) // KEPT]]
    return alive[0]


def _order(score: Score) -> tuple[float, float]:
    return max(score.violation, 0.0), score.objective


def _study(sampler: optuna.samplers.BaseSampler) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("optuna").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.create_study(sampler=sampler)


def _ask(trial: optuna.Trial, space: Space, steps: int) -> Knobs:
    kind = space.kinds[trial.suggest_int("schedule", 0, len(space.kinds) - 1)]
    return Knobs(
        peak_lr=trial.suggest_float("peak_lr", *space.peak_lr, log=True),
        replay_ratio=trial.suggest_float("replay_ratio", *space.replay_ratio),
        total_steps=steps,
        decay_share=trial.suggest_float("decay_share", *space.decay_share),
        start=trial.suggest_categorical("start", space.starts),
        kind=kind,
        end_replay=trial.suggest_float("end_replay", *space.replay_ratio) if space.curriculum else None,
    )
