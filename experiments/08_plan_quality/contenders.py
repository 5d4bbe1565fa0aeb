"""What would have been run: lookups in a grid of trained runs, for rivals that try runs and keep the best.

Each rival's choice is a probability for every cell of the grid: exact for random search, over seeds for the others.
"""

from __future__ import annotations

import logging
import math
import warnings
from dataclasses import dataclass

import numpy as np
import optuna
from numpy.typing import NDArray

from cptplan.planning.recipes import Recipe

FloatArray = NDArray[np.float64]
KEPT = 3  # one run of so many goes on to the next rung, three times as long (Hyperband's eta)
STARTUP = 3  # random trials before TPE has a say: optuna's own ten are more than this compute pays for
REPEATS = 50  # asks for cells that were tried already, which cost nothing, before one that was not is drawn


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One run of the grid under one weight."""

    name: str
    peak_lr: float
    replay_ratio: float
    start: str
    steps: FloatArray
    """Finished steps of every evaluation, shape (points,)."""
    objective: FloatArray
    """Weighted change of loss against the base model after them, nats per token, shape (points,)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """The grid under one weight: what any search of it would have seen."""

    total_steps: int
    cells: tuple[Cell, ...]

    def final(self) -> FloatArray:
        """Objective of every cell at its end, nats per token, shape (cells,)."""
        return np.array([cell.objective[-1] for cell in self.cells])

    def at(self, step: float) -> FloatArray:
        """Objective of every cell so far into its run, linear between evaluations, shape (cells,)."""
        return np.array([np.interp(step, cell.steps, cell.objective) for cell in self.cells])

    @property
    def cost(self) -> int:
        """Optimiser steps of the whole grid."""
        return self.total_steps * len(self.cells)


def random_choice(seen: FloatArray, trials: int) -> FloatArray:
    """Probability that each cell is the best seen of so many different ones drawn at random, shape (cells,).

    The cell of rank k of n (from 0) is the best of t drawn with probability C(n - 1 - k, t - 1) / C(n, t).
    Args:      seen: what the search goes by, smaller is better, shape (cells,).
    """
    size, chance = len(seen), np.zeros(len(seen))
    drawn = min(trials, size)
    for rank, cell in enumerate(np.argsort(seen, kind="stable")):
        chance[cell] = math.comb(size - 1 - rank, drawn - 1) / math.comb(size, drawn)
    return chance


def tpe_choice(table: Table, seen: FloatArray, trials: int, seeds: int) -> FloatArray:
    """Share of the seeds in which each cell is TPE's best after 1, 2, ... trials, shape (trials, cells)."""
    trials = min(trials, len(seen))
    chance = np.zeros((trials, len(seen)))
    for seed in range(seeds):
        order = _tpe_order(table, seen, trials, seed)
        for number in range(trials):
            best = min(order[: number + 1], key=lambda cell: seen[cell])
            chance[number, best] += 1.0 / seeds
    return chance


def _tpe_order(table: Table, seen: FloatArray, trials: int, seed: int) -> list[int]:
    """Different cells in the order in which TPE asks for them."""
    axes = {
        "peak_lr": sorted({cell.peak_lr for cell in table.cells}),
        "replay_ratio": sorted({cell.replay_ratio for cell in table.cells}),
        "start": sorted({cell.start for cell in table.cells}),
    }
    places = {(cell.peak_lr, cell.replay_ratio, cell.start): number for number, cell in enumerate(table.cells)}
    study, rng = _study(optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP)), np.random.default_rng(seed)
    order: list[int] = []
    asks = 0
    while len(order) < trials:
        asks += 1
        trial = study.ask()
        rate, ratio = (axes[key][trial.suggest_int(key, 0, len(axes[key]) - 1)] for key in ("peak_lr", "replay_ratio"))
        place = places.get((rate, ratio, trial.suggest_categorical("start", axes["start"])))
        if place is None or (place in order and asks > REPEATS * trials):
            place = int(rng.choice([number for number in range(len(seen)) if number not in order]))
        study.tell(trial, float(seen[place]))
        order += [place] if place not in order else []
    return order


def halving_choice(table: Table, first: int, spent_steps: float, seeds: int) -> FloatArray:
    """Share of the seeds in which each cell outlives successive halving, shape (cells,).

    Runs go on from rung to rung and are not begun again: n r + (n / 3) 2 r + ... = spent, with n runs at first and r
    steps to the first rung. The last one goes on to its end like any plan.
    Args:      first: runs of the first rung. spent_steps: of all runs together, until one is left.
    Reference: Jamieson & Talwalkar 2016, arXiv:1502.07943.
    """
    alive, rungs = min(first, len(table.cells)), [min(first, len(table.cells))]
    while alive // KEPT > 1:
        alive //= KEPT
        rungs.append(alive)
    shares = [KEPT**number - (KEPT ** (number - 1) if number else 0) for number in range(len(rungs))]
    unit = spent_steps / sum(count * share for count, share in zip(rungs, shares, strict=True))
    seen = [table.at(unit * KEPT**number) for number in range(len(rungs))]
    rng, chance = np.random.default_rng(first), np.zeros(len(table.cells))
    for _ in range(seeds):
        group = rng.choice(len(table.cells), rungs[0], replace=False)
        for number, values in enumerate(seen):
            kept = rungs[number + 1] if number + 1 < len(rungs) else 1
            group = group[np.argsort(values[group], kind="stable")][:kept]
        chance[group[0]] += 1.0 / seeds
    return chance


def nearest_cell(table: Table, recipe: Recipe, pretrain_peak_lr: float, start: str) -> int:
    """The cell that stands for a published recipe: its start, its rate and the nearest replay ratio of the grid."""
    rate = recipe.rate_share * pretrain_peak_lr

    def distance(number: int) -> tuple[bool, float, float]:
        cell = table.cells[number]
        return cell.start != start, abs(math.log(cell.peak_lr / rate)), abs(cell.replay_ratio - recipe.replay_ratio)

    return min(range(len(table.cells)), key=distance)


def _study(sampler: optuna.samplers.BaseSampler) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("optuna").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.create_study(sampler=sampler)
