"""Laws whose answers are known by hand, and a forecaster over them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from command_line import PROJECT

from cptplan.config import Project, read_project
from cptplan.fitting.fitted import Prediction
from cptplan.fitting.support import Support
from cptplan.planning.forecast import Forecaster, StartState

SUPPORT = Support(
    peak_lr=(1e-4, 3e-3),
    replay_ratio=(0.0, 0.6),
    longest_steps=8,
    longest_area=24.0,
    loss_potential=(0.0, 1.0),
    most_passes=1.0,
)
BASE_LOSSES = {"general": 3.0, "domain": 4.0}


@dataclass(frozen=True)
class BowlLaw:
    """loss = bottom + (ln(peak_lr / best_lr) / 10)^2 + (replay - best_replay)^2 - steps * per_step.

    Samples lie evenly within spread of it, so every quantile is known.
    """

    bottom: float
    best_lr: float = 1e-3
    best_replay: float = 0.2
    per_step: float = 0.0
    spread: float = 0.1
    discrepancy: float = 0.01
    best: Any = field(default_factory=lambda: SimpleNamespace(converged=True))
    noise: float = 0.0
    held_out: tuple[Any, ...] = ()
    in_sample_error: float = 0.0
    transient_error: float = 0.0
    law: Any = field(default_factory=lambda: SimpleNamespace(reference_lr=1e-3))
    support: Support = SUPPORT
    reach: Any = None

    def mean(self, history, steps):
        rate = (np.log(history.lr.max() / self.best_lr) / 10) ** 2
        replay = (history.replay_ratio.mean() - self.best_replay) ** 2
        return self.bottom + rate + replay - np.asarray(steps, dtype=np.float64) * self.per_step

    def sample(self, history, steps, seed=0):
        return self.mean(history, steps) + np.linspace(-self.spread, self.spread, 101)[:, None]

    def predict(self, history, steps, level=0.9, seed=0):
        mean, half = self.mean(history, steps), self.spread * level
        return Prediction(mean=mean, low=mean - half, high=mean + half, level=level)


LAWS = {"general": BowlLaw(bottom=3.1), "domain": BowlLaw(bottom=3.2, best_lr=2e-3, best_replay=0.1)}


def make_forecaster(**changes) -> Forecaster:
    """Two starts, of which the annealed one is the base."""
    starts = {
        name: StartState(name=name, pretrain_lr=np.full(100, rate), losses=losses)
        for name, rate, losses in (
            ("stable", 3e-3, {"general": 3.2, "domain": 4.2}),
            ("annealed", 1e-5, BASE_LOSSES),
        )
    }
    values = {
        "laws": LAWS,
        "starts": starts,
        "base": "annealed",
        "weights": {"general": 0.4, "domain": 0.6},
        "warmup_steps": 2,
        "batch_tokens": 256,
    }
    return Forecaster(**{**values, **changes})


def make_project(directory: Path, *overrides: str) -> Project:
    """The small project with the two starts of make_forecaster."""
    (directory / "cptplan.yaml").write_text(PROJECT)
    starts = "model.starts=[{name: stable, path: a}, {name: annealed, path: b}]"
    return read_project(directory / "cptplan.yaml", [starts, *overrides])
