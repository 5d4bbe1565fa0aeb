"""The CPT law: a plain second implementation as judge, limits in closed form, replay that changes during the run."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from cptplan.laws.cpt import PUBLISHED, CptForm, CptLaw
from cptplan.laws.history import RunHistory

FORMS = [
    CptForm(amplitude=amplitude, clock=clock, free_power=power)
    for amplitude, clock, power in product(("exponential", "logarithmic", "none"), (False, True), (False, True))
]
REFERENCE_LR = 2e-3


def random_history(seed: int, phase: str = "cpt") -> RunHistory:
    rng = np.random.default_rng(seed)
    before = np.concatenate([np.linspace(0, 2e-3, 5)[1:], rng.uniform(1e-4, 2e-3, 20)]) if phase == "cpt" else []
    return RunHistory(
        phase=phase,
        pretrain_lr=np.asarray(before, dtype=float),
        pretrain_known=True,
        lr=rng.uniform(0, 1e-3, 30),
        replay_ratio=rng.uniform(0, 1, 30) if phase == "cpt" else np.ones(30),
    )


def slow_loss(law: CptLaw, p: dict[str, float], c: np.ndarray, run: RunHistory, t: int) -> float:
    """The law step by step in plain Python, from its formula."""
    rates = [r / law.reference_lr for r in (*run.pretrain_lr, *run.lr[:t])]
    n, power, time = len(run.pretrain_lr), p.get("p", 1.0), p["forgetting_time"]
    area = sum(r**power for r in rates)
    peak = int(np.argmax(rates[:n])) if n else int(np.argmax(run.lr))
    s2 = {"pretrain": 0.0, "cpt": 0.0}
    for i in range(1, len(rates)):
        if i <= peak:
            continue
        phase = "pretrain" if i < n or run.phase == "pretrain" else "cpt"
        drop = rates[i - 1] - rates[i]
        s2[phase] += sum(drop * (1 - 1 / time) ** (k - i) for k in range(i, len(rates))) / time
    clock = weight = shared = 0.0
    for i in range(t):
        pace, share = rates[n + i] ** power, 1 - run.replay_ratio[i]
        clock += pace * share ** p.get("gamma", 0.0)
        weight, shared = weight + rates[n + i], shared + rates[n + i] * share
    share = shared / weight if weight else 1 - run.replay_ratio[0]
    amplitude = 1.0
    if "epsilon" in p:
        e = p["epsilon"]
        amplitude = np.log((1 + e) / (1 - share + e)) / np.log((1 + e) / e)
    elif "a" in p and law.side == "general":
        amplitude = (np.exp(p["a"] * share) - 1) / (np.exp(p["a"]) - 1)
    elif "a" in p:
        amplitude = (1 - np.exp(-p["a"] * share)) / (1 - np.exp(-p["a"]))
    shift = 0.0 if run.phase == "pretrain" else amplitude * (1 - (1 + p["E"] * clock) ** -p["beta"])
    l0, a, c1, c2, b = c
    return l0 + a * max(area, 1.0) ** -p["alpha"] - c1 * s2["pretrain"] - c2 * s2["cpt"] + b * shift


@pytest.mark.parametrize("side", ["general", "domain"])
@pytest.mark.parametrize("form", FORMS, ids=lambda f: f"{f.amplitude}-{f.clock}-{f.free_power}")
def test_columns_agree_with_the_formula_step_by_step(form: CptForm, side: str) -> None:
    law = CptLaw(side, REFERENCE_LR, form)
    values = np.array([p.start for p in law.parameters])
    coefficients = np.array([2.5, 3.0, 0.4, 0.3, 1.2 if side == "general" else -1.2])
    named = dict(zip((p.name for p in law.parameters), values.tolist(), strict=True))
    for phase in ("cpt", "pretrain"):
        run = random_history(3, phase)
        steps = np.array([0, 1, 7, 30]) if phase == "cpt" else np.array([1, 7, 30])
        slow = [slow_loss(law, named, coefficients, run, int(t)) for t in steps]
        # some hundred float64 additions in another order
        np.testing.assert_allclose(law.columns(values, run, steps) @ coefficients, slow, rtol=1e-10)


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f"{f.amplitude}-{f.clock}-{f.free_power}")
@pytest.mark.parametrize("side", ["general", "domain"])
def test_shift_is_nothing_before_training_and_at_full_replay(form: CptForm, side: str) -> None:
    if form.amplitude == "none" and not form.clock:
        pytest.skip("without amplitude and clock the form does not know replay")
    law = CptLaw(side, REFERENCE_LR, form)
    values = np.array([p.start for p in law.parameters])
    full = RunHistory(
        phase="cpt",
        pretrain_lr=np.full(10, 1e-3),
        pretrain_known=True,
        lr=np.full(20, 1e-3),
        replay_ratio=np.ones(20),
    )
    shift = law.columns(values, full, np.arange(21))[:, -1]
    np.testing.assert_allclose(shift, 0.0, atol=1e-12)
    assert law.columns(values, random_history(1), np.array([0]))[0, -1] == 0.0


@pytest.mark.parametrize("form", [PUBLISHED, CptForm(), CptForm(amplitude="none")])
@pytest.mark.parametrize("side", ["general", "domain"])
def test_more_replay_never_strengthens_the_shift(form: CptForm, side: str) -> None:
    law = CptLaw(side, REFERENCE_LR, form)
    values = np.array([p.start for p in law.parameters])
    shifts = []
    for ratio in (0.0, 0.005, 0.01, 0.05, 0.3, 0.7, 1.0):
        run = RunHistory(
            phase="cpt",
            pretrain_lr=np.full(10, 1e-3),
            pretrain_known=True,
            lr=np.full(50, 1e-3),
            replay_ratio=np.full(50, ratio),
        )
        shifts.append(law.columns(values, run, np.array([50]))[0, -1])
    assert np.all(np.diff(shifts) < 0)


def test_open_start_adds_the_unknown_area() -> None:
    law = CptLaw("general", REFERENCE_LR, CptForm(open_start=True, free_power=False))
    values = np.array([p.start for p in law.parameters])
    unknown = RunHistory(
        phase="cpt", pretrain_lr=np.zeros(0), pretrain_known=False, lr=np.full(5, 2e-3), replay_ratio=np.zeros(5)
    )
    area_start = dict(zip((p.name for p in law.parameters), values.tolist(), strict=True))["S_pt"]
    base = law.columns(values, unknown, np.array([0, 5]))[:, 1]
    np.testing.assert_allclose(base, [area_start**-0.5, (area_start + 5) ** -0.5])
