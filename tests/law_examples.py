"""Every law of the registry in every form, runs to evaluate it on, and parameters to evaluate it with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cptplan.fitting.select import candidate_laws
from cptplan.laws.history import Observations, RunHistory
from cptplan.laws.protocol import Law
from cptplan.laws.registry import LAWS

REFERENCE_LR = 2e-3


def wsd(steps: int, peak: float = REFERENCE_LR, warmup: int = 0, decay: int = 0, low: float = 0.0) -> np.ndarray:
    """Rates that warm up, stay and fall in a straight line."""
    lr = np.full(steps, peak)
    lr[:warmup] = peak * (np.arange(warmup) + 1) / (warmup + 1)
    if decay:
        lr[-decay:] = peak + (low - peak) * (np.arange(decay) + 1) / decay
    return lr


def pretrain_run(lr: np.ndarray, before: np.ndarray | None = None, num_params: float | None = 4e7) -> RunHistory:
    """Pre-training, perhaps in two pieces."""
    return RunHistory(
        phase="pretrain",
        pretrain_lr=np.zeros(0) if before is None else before,
        pretrain_known=True,
        lr=lr,
        replay_ratio=np.ones(len(lr)),
        num_params=num_params,
    )


def cpt_run(
    lr: np.ndarray,
    replay: float | np.ndarray = 0.0,
    before: np.ndarray | None = None,
    passes: np.ndarray | None = None,
    num_params: float | None = 1.6e8,
) -> RunHistory:
    """CPT after a known pre-training, or an unknown one when before is None."""
    return RunHistory(
        phase="cpt",
        pretrain_lr=np.zeros(0) if before is None else before,
        pretrain_known=before is not None,
        lr=lr,
        replay_ratio=np.broadcast_to(replay, len(lr)).astype(np.float64),
        domain_passes=passes,
        num_params=num_params,
    )


def _uneven_run() -> RunHistory:
    """CPT whose rate goes up and down, stops, and whose replay changes from step to step; its domain is read twice."""
    rng = np.random.default_rng(11)
    lr = rng.uniform(2e-4, 1.8e-3, 60)
    lr[:4] = [0.0, 5e-4, 1e-3, 1.5e-3]
    lr[50:] = 0.0
    replay = rng.uniform(0.0, 1.0, 60)
    replay[20:24] = 1.0
    passes = np.concatenate([[0.0], np.cumsum((1.0 - replay[:-1]) / 15.0)])
    return cpt_run(lr, replay, wsd(50, warmup=5, decay=15, low=3e-4), passes)


RUNS: dict[str, RunHistory] = {
    "pretrain": pretrain_run(np.concatenate([wsd(60, warmup=6, decay=20), [4e-4, 4e-4, 1.2e-3, 0.0, 0.0]])),
    "continued": pretrain_run(np.linspace(1e-3, 1e-4, 30), wsd(40, warmup=4)),
    "cpt": cpt_run(wsd(50, peak=1e-3, warmup=5, decay=15), 0.1, wsd(80, warmup=8, decay=20)),
    "uneven": _uneven_run(),
    "open": cpt_run(wsd(40, peak=8e-4, warmup=4, decay=10), 0.3),
    "told": replace(cpt_run(np.linspace(7e-4, 1e-4, 40), 0.2), last_lr=3e-4, known_area=0.12),
}


def observed(history: RunHistory, name: str = "run") -> Observations:
    """A run that was measured at its end."""
    return Observations(name=name, history=history, steps=np.array([len(history.lr)]), loss=np.array([3.0]))


def _registered() -> dict[str, Law]:
    """Every law that a person can ask for by name, on both sides, without and with all that curves may call for."""
    plain = [observed(cpt_run(wsd(50), 0.1, wsd(80), num_params=None))] * 3
    rich = [observed(RUNS["uneven"]), observed(RUNS["open"]), observed(replace(RUNS["cpt"], num_params=4e7))]
    found: dict[str, Law] = {}
    for name in LAWS:
        for kind, data in (("", plain), ("+extras", rich)):
            for side in ("general", "domain"):
                for law in candidate_laws(data, side, name, side, "a test"):
                    found[f"{name}{kind}: {side}, {law.name}" if "cpt" in name else name] = law
    return found


EVERY_LAW = _registered()
SCHEDULE_LAWS = {name: law for name, law in EVERY_LAW.items() if not hasattr(law, "form")}


def values_of(law: Law, seed: int | None = None) -> np.ndarray:
    """Nonlinear parameters: the centre of the prior, or drawn within one width of it and well inside the bounds."""
    z = np.array([p.to_z(p.start) for p in law.parameters])
    if seed is not None:
        z = z + np.random.default_rng(seed).uniform(-1, 1, len(z)) * [p.prior_sd for p in law.parameters]
    return np.array([np.clip(p.to_value(v), p.low * 1.1, p.high / 1.1) for p, v in zip(law.parameters, z, strict=True)])


def coefficients_of(law: Law) -> np.ndarray:
    """Linear parameters of their signs, such that losses look like losses."""
    sizes = {
        "L0": 2.0,
        "A": 3.0,
        "C1": 0.3,
        "C2": 0.2,
        "B": 0.8,
        "D": 0.3,
        "O": 0.1,
        "F": 1.5,
        "C": 0.3,
        "c2": 0.2,
        "c3": 0.4,
    }
    return np.array([sizes[term.name] * (term.sign or 1) for term in law.terms])


def steps_of(run: RunHistory) -> np.ndarray:
    """Every step of a run, from before the first to after the last."""
    return np.arange(len(run.lr) + 1)
