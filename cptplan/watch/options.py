"""What can be done about a run from here on, as the rates and shares that it would have."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from cptplan.laws.history import RunHistory

FloatArray = NDArray[np.float64]

MORE_REPLAY, LOWER_RATE = 0.1, 0.5  # what the executor's monitor does when it is not told how much
DEFAULT_DECAY = 0.2  # published: 10 to 20 % of the steps is the best share (arXiv:2408.11029); for plans without one


def ways_on(actual: RunHistory, done: int, decay_share: float) -> dict[str, RunHistory]:
    """What can be done from a step on: the run's history then, by name.

    Args:      decay_share: of the steps of an annealed run, in (0, 1): it ends after done / (1 - decay_share). Where
               that is no sooner than the run itself, DEFAULT_DECAY is taken.
    """
    total = len(actual.lr)
    found = {"go on": actual}
    rate = float(actual.lr[done - 1]) if done else 0.0
    lengths = [max(round(done * share / (1.0 - share)), 1) for share in (decay_share, DEFAULT_DECAY) if 0 < share < 1]
    decay = next((length for length in lengths if done + length < total), None)
    if rate > 0 and decay is not None:
        lr = np.concatenate([actual.lr[:done], rate * (1.0 - np.arange(1, decay + 1) / decay)])
        found["anneal now"] = _cut(actual, lr)
    if done < total:
        replay, rates = actual.replay_ratio.copy(), actual.lr.copy()
        replay[done:] = np.minimum(replay[done:] + MORE_REPLAY, 1.0)
        rates[done:] *= LOWER_RATE
        found[f"replay + {MORE_REPLAY:.0%}"] = replace(actual, replay_ratio=replay)
        found[f"rate x {LOWER_RATE:g}"] = replace(actual, lr=rates)
    if 0 < done < total:
        found["stop"] = _cut(actual, actual.lr[:done])
    return found


def _cut(history: RunHistory, lr: FloatArray) -> RunHistory:
    """A history that ends with the rates given."""
    passes = history.domain_passes
    return replace(
        history,
        lr=lr,
        replay_ratio=history.replay_ratio[: len(lr)],
        domain_passes=None if passes is None else passes[: len(lr)],
    )
