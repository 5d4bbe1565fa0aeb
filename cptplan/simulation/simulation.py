"""Curves of runs that nobody trained: any schedule, replay and start, from a published law or a fitted one.

Noise, when asked for, is like that of a log: an AR(1) process over a curve's evaluations, which are dense early. A run
that continues another begins with its parent's noise, because both measured one checkpoint.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cptplan.curves import CurveRecord, LossCurve, check_curve
from cptplan.errors import ConfigError, CurveError, suggest
from cptplan.laws.history import history_of
from cptplan.run_spec import default_eval_steps
from cptplan.simulation.known_law import LossModel, check_start

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

EVAL_POINTS = 40
PRETRAIN_SHARE = (
    0.01  # assumed: a base term that is a power of the area has no meaning before this share of pre-training
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Noise:
    """What evaluations scatter by."""

    sd_nats: float
    """Standard deviation of one evaluation, nats per token."""
    autocorrelation: float = 0.0
    """Of neighbouring evaluations of a curve, in [0, 1)."""
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.sd_nats < np.inf or not 0.0 <= self.autocorrelation < 1.0:
            raise ConfigError(
                f"noise must be >= 0 nats and its autocorrelation in [0, 1); got {self.sd_nats:g} and "
                f"{self.autocorrelation:g}.",
                hint="such as 0.003 and 0.5",
            )


def simulate_curves(
    source: Mapping[str, LossModel],
    records: Mapping[str, CurveRecord],
    *,
    steps: Mapping[str, IntArray] | None = None,
    noise: Noise | None = None,
) -> dict[str, LossCurve]:
    """The curves of runs on every validation set of the source.

    Args:      source: a law for each validation set. records: the runs and all runs that they continue, by name.
               steps: finished steps to evaluate after, rising, by run; eval_steps where none are given.
    Raises:    CurveError for a parent that is missing, and as history_of; ConfigError for a law that does not hold for
               a run.
    """
    _check_parents(records)
    grids = {name: (steps or {}).get(name, eval_steps(name, records)) for name in records}
    bare = {name: LossCurve(name=name, record=record, steps=grids[name], losses={}) for name, record in records.items()}
    found = {}
    for name, curve in bare.items():
        history = history_of(curve, bare)
        for model in source.values():
            check_start(model.law, history, name)
        losses = {set_name: model.mean(history, curve.steps) for set_name, model in source.items()}
        found[name] = check_curve(replace(curve, losses=losses), f"the simulated {name}")
    return found if noise is None else add_noise(found, noise)


def add_noise(curves: Mapping[str, LossCurve], noise: Noise) -> dict[str, LossCurve]:
    """The curves with noise: e_k = rho e_{k-1} + sqrt(1 - rho^2) sd z_k, z standard normal, along each curve.

    Args:      curves: without noise, with the runs that they continue. A run's noise depends on the seed, its name and
               its parent's, so other runs may come and go.
    """
    drawn: dict[str, dict[str, FloatArray]] = {}
    for name in _parents_first({name: curve.record for name, curve in curves.items()}):
        curve, record = curves[name], curves[name].record
        drawn[name] = {}
        for set_name in curve.losses:
            rng = np.random.default_rng([noise.seed, zlib.crc32(f"{name}/{set_name}".encode())])
            values = noise.sd_nats * rng.standard_normal(len(curve.steps))
            if record.parent is not None and curve.steps[0] == 0:
                parent = curves[record.parent]
                same = parent.steps == (parent.total_steps if record.parent_step is None else record.parent_step)
                values[0] = drawn[parent.name][set_name][same][0] if same.any() else values[0]
            for k in range(1, len(values)):
                fresh = np.sqrt(1.0 - noise.autocorrelation**2) * values[k]
                values[k] = noise.autocorrelation * values[k - 1] + fresh
            drawn[name][set_name] = values
    return {
        name: check_curve(
            replace(curve, losses={s: loss + drawn[name][s] for s, loss in curve.losses.items()}),
            f"the simulated {name}",
        )
        for name, curve in curves.items()
    }


def eval_steps(name: str, records: Mapping[str, CurveRecord], points: int = EVAL_POINTS) -> IntArray:
    """Steps that a simulated run is evaluated after: dense early, and where other runs begin, shape (points,).

    A pre-training run that starts from scratch is not evaluated before a hundredth of its steps and twice its warm-up.
    """
    record = records[name]
    total = int(record.lr.total_steps)
    children = (child.parent_step for child in records.values() if child.parent == name)
    wanted = {*default_eval_steps(total, points), *(total if step is None else step for step in children)}
    first = 0
    if record.phase == "pretrain" and record.parent is None:
        warm = int(np.argmax(record.lr.lr())) + 1
        first = max(2 * warm, round(PRETRAIN_SHARE * total))
    return np.array(sorted(step for step in wanted if first <= step or step == total), dtype=np.int64)


def _check_parents(records: Mapping[str, CurveRecord]) -> None:
    for name, record in records.items():
        if record.parent is not None and record.parent not in records:
            raise CurveError(
                f"parent must be one of the simulated runs; got {record.parent!r} for {name}.",
                hint=suggest(record.parent, records) or "simulate it too",
            )


def _parents_first(records: Mapping[str, CurveRecord]) -> list[str]:
    """The names, each after the run that it continues."""
    order: dict[str, None] = {}
    for name in records:
        line, ancestor = [name], records[name].parent
        while ancestor is not None and ancestor not in order and ancestor not in line:
            line.append(ancestor)
            ancestor = records[ancestor].parent
        order.update(dict.fromkeys(reversed(line)))
    return list(order)
