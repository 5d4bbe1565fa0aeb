"""Small campaigns and pre-training runs of laws that are known, to be fitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cptplan.curves import CurveRecord, LossCurve
from cptplan.laws.cpt import CptForm, CptLaw
from cptplan.laws.history import history_of
from cptplan.laws.protocol import Law
from cptplan.mixture import ConstantMixture
from cptplan.schedule import read_schedule

PEAK = 2e-3
PRETRAIN = {"kind": "wsd", "peak_lr": PEAK, "total_steps": 600, "warmup_steps": 20, "decay_steps": 120}
STABLE, ANNEALED = 480, 600  # checkpoints of it that CPT begins from


@dataclass(frozen=True)
class Cell:
    """One CPT run."""

    peak_lr: float
    replay: float
    decay_share: float
    parent_step: int | None = ANNEALED
    """None: an unknown pre-training."""
    steps: int = 150
    unique_tokens: int | None = None
    num_params: int | None = None


CELLS = (
    Cell(2e-3, 0.0, 0.0, STABLE),
    Cell(1e-3, 0.3, 0.5),
    Cell(2e-3, 0.03, 0.5),
    Cell(1e-3, 0.03, 0.0, STABLE),
    Cell(3e-4, 0.15, 0.0),
    Cell(1.5e-3, 0.6, 0.5, STABLE),
)
LONG = Cell(1.2e-3, 0.1, 0.3, steps=450)
"""Three times as long as the others, of a rate, a replay and a decay that none of them has."""

GENERAL = CptLaw("general", PEAK, CptForm(clock=False, free_power=False))
DOMAIN = CptLaw("domain", PEAK, CptForm(amplitude="none"))
SIZES = {"L0": 2.2, "A": 6.0, "C1": 0.2, "C2": 0.15, "B": 1.2, "D": 0.3, "O": 0.1, "F": 2.0, "C": 0.2}
SIZES |= {"c2": 0.1, "c3": 0.6}


def coefficients(law: Law) -> np.ndarray:
    """Linear parameters such as small runs have."""
    gain = 0.25 if law.name.startswith("multi_power") else -SIZES["B"] if getattr(law, "side", "") == "domain" else 1.5
    return np.array([gain if term.name == "B" else SIZES[term.name] for term in law.terms])


def truth(law: Law) -> np.ndarray:
    """Nonlinear parameters half a prior's width from its centre, up and down in turn."""
    z = [p.to_z(p.start) + (0.5 if n % 2 else -0.5) * p.prior_sd for n, p in enumerate(law.parameters)]
    return np.array([p.to_value(v) for p, v in zip(law.parameters, z, strict=True)])


def blank(name: str, points: int, **record: object) -> LossCurve:
    """A curve that is evaluated densely at first, without losses."""
    made = CurveRecord(**record)  # type: ignore[arg-type]
    steps = np.unique(np.round(np.linspace(0, 1, points) ** 2 * made.lr.total_steps)).astype(int)
    return LossCurve(name=name, record=made, steps=steps, losses={})


def blank_campaign(cells: Sequence[Cell] = CELLS, points: int = 22) -> dict[str, LossCurve]:
    """The pre-training run "base" and run-0, run-1 and so on."""
    found = [blank("base", points, phase="pretrain", lr=read_schedule(PRETRAIN, "test"), num_params=40_000_000)]
    for number, cell in enumerate(cells):
        lr = {"kind": "wsd", "peak_lr": cell.peak_lr, "total_steps": cell.steps, "warmup_steps": 8}
        found.append(
            blank(
                f"run-{number}",
                points,
                phase="cpt",
                lr=read_schedule({**lr, "decay_steps": int(cell.decay_share * cell.steps)}, "test"),
                replay_ratio=ConstantMixture(replay_ratio=cell.replay),
                parent=None if cell.parent_step is None else "base",
                parent_step=cell.parent_step,
                batch_tokens=1000,
                unique_tokens=None if cell.unique_tokens is None else {"domain": cell.unique_tokens},
                num_params=cell.num_params or 40_000_000,
            )
        )
    return {curve.name: curve for curve in found}


SCHEDULES = {
    "constant": {"kind": "constant", "peak_lr": PEAK, "total_steps": 2000, "warmup_steps": 40},
    "cosine": {"kind": "cosine", "peak_lr": PEAK, "total_steps": 2000, "warmup_steps": 40, "min_lr": PEAK / 10},
    "two-stage": {
        "kind": "two_stage",
        "peak_lr": PEAK,
        "min_lr": 0.3 * PEAK,
        "switch_step": 700,
        "total_steps": 1300,
        "warmup_steps": 40,
    },
    "late": {"kind": "wsd", "peak_lr": PEAK, "total_steps": 2000, "warmup_steps": 40, "decay_steps": 300},
    "unseen": {"kind": "wsd", "peak_lr": PEAK, "total_steps": 6000, "warmup_steps": 40, "decay_steps": 1000},
}


def blank_pretraining(names: Sequence[str] = ("constant", "cosine", "two-stage", "late"), points: int = 40):
    """Pre-training runs of one data set under several schedules."""
    found = [blank(name, points, phase="pretrain", lr=read_schedule(SCHEDULES[name], "test")) for name in names]
    return {curve.name: curve for curve in found}


def measured(
    curves: dict[str, LossCurve],
    laws: Law | dict[str, Law],
    noise: float = 0.0,
    seed: int = 0,
    values: np.ndarray | None = None,
) -> dict[str, LossCurve]:
    """The curves with the losses that a law of each set gives them, and relative noise on every point.

    Args:      values: nonlinear parameters; truth(law) when None.
    """
    laws = laws if isinstance(laws, dict) else {"general": laws}
    rng, found = np.random.default_rng(seed), {}
    for name, curve in curves.items():
        losses = {}
        for set_name, law in laws.items():
            at = truth(law) if values is None else values
            loss = law.columns(at, history_of(curve, curves), curve.steps) @ coefficients(law)
            losses[set_name] = loss * (1 + noise * rng.standard_normal(len(loss)))
        found[name] = replace(curve, losses=losses)
    return found
