"""Virtual campaigns: pilots and final runs whose truth is known, to rehearse a plan and to measure how good a fit is.

The truth is a published set (cptplan.simulation.published); the pilots are the ones that cptplan.pilots.design would
run. One seed draws one campaign: which set, how replay acts, how noisy, how many pilots, how short, and which runs come
after.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from cptplan.config import Project
from cptplan.curves import CurveRecord, LossCurve
from cptplan.mixture import ConstantMixture
from cptplan.pilots.design import design_pilots, run_schedule
from cptplan.schedule import CosineSchedule
from cptplan.simulation.known_law import FloatArray, KnownLaw
from cptplan.simulation.published import PublishedSet, ReplayForm, find_published
from cptplan.simulation.simulation import Noise, add_noise, simulate_curves

TRUTHS = ("knowledge-pile", "pile-of-law", "knowledge-pile-594m", "knowledge-pile-1720m", "knowledge-pile-sizes")
SIZES = (106e6, 1720e6)  # published: sizes that the fit of several sizes was made on
BASE, STABLE_SHARE = "base", 0.8  # the stable start is the last step before pre-training decays


@dataclass(frozen=True, kw_only=True, slots=True)
class Lab:
    """All that a virtual campaign is made from."""

    law: str
    """Name of a published set with a known pre-training, for any replay ratio."""
    num_params: int | None = None
    """Size, for a set of several."""
    replay: ReplayForm = "exponential"
    num_pilots: int = 8
    final_steps: int = 20_000
    pilot_share: float = 0.2
    """Length of a pilot over that of a final run."""
    num_finals: int = 3
    replay_range: tuple[float, float] = (0.0, 0.6)
    noise: Noise = field(default_factory=lambda: Noise(sd_nats=0.004, autocorrelation=0.5))
    seed: int = 0
    """Of the final runs and of what the pilots' design leaves open."""

    @property
    def pilot_steps(self) -> int:
        """Optimiser steps of a pilot."""
        return max(round(self.pilot_share * self.final_steps), 50)


@dataclass(frozen=True, kw_only=True, slots=True)
class VirtualCampaign:
    """Curves of a lab. A fit may see the seen ones; the final runs are there to judge it."""

    lab: Lab
    truth: Mapping[str, KnownLaw]
    seen: Mapping[str, LossCurve]
    """The pre-training run and the pilots, with noise."""
    finals: Mapping[str, LossCurve]
    """The final runs, with noise."""
    exact: Mapping[str, Mapping[str, FloatArray]]
    """Losses of the final runs without noise, by run and validation set, at the steps of finals."""


def draw_lab(seed: int, *, replay: ReplayForm | None = None) -> Lab:
    """A lab drawn at random: 6 to 12 pilots of 10 to 25 % of the final length, noise of 0.002 to 0.01 nats.

    Args:      replay: how replay acts; either with equal chance when None.
    """
    rng = np.random.default_rng([seed, 1])
    law = TRUTHS[rng.integers(len(TRUTHS))]
    size = float(np.exp(rng.uniform(*np.log(SIZES))))
    forms: tuple[ReplayForm, ReplayForm] = ("exponential", "logarithmic")
    return Lab(
        law=law,
        num_params=round(size) if law == "knowledge-pile-sizes" else None,
        replay=replay or forms[rng.integers(2)],
        num_pilots=int(rng.integers(6, 13)),
        final_steps=int(np.exp(rng.uniform(*np.log((8000, 40_000))))),
        pilot_share=float(rng.uniform(0.1, 0.25)),
        noise=Noise(
            sd_nats=float(np.exp(rng.uniform(*np.log((0.002, 0.01))))),
            autocorrelation=float(rng.uniform(0.0, 0.8)),
            seed=seed,
        ),
        seed=seed,
    )


def run_lab(lab: Lab) -> VirtualCampaign:
    """The curves of a virtual campaign; the same for the same lab.

    Raises:    ConfigError if the set is unknown, is an open checkpoint, or holds for one replay ratio only.
    """
    published = find_published(lab.law)
    truth = published.laws(replay=lab.replay, num_params=lab.num_params)
    base = {BASE: published.pretrain_record()}
    pilots = _pilots(lab, published, base[BASE])
    finals = _finals(lab, published, base[BASE])
    exact = simulate_curves(truth, {**base, **pilots, **finals})
    curves = add_noise(exact, lab.noise)
    return VirtualCampaign(
        lab=lab,
        truth=truth,
        seen={name: curve for name, curve in curves.items() if name not in finals},
        finals={name: curves[name] for name in finals},
        exact={name: exact[name].losses for name in finals},
    )


def _pilots(lab: Lab, published: PublishedSet, base: CurveRecord) -> dict[str, CurveRecord]:
    """The pilots that a project with this lab's budget would run."""
    return {
        f"pilot-{number:02d}": _record(
            base,
            run_schedule(
                peak_lr=cell.peak_lr,
                total_steps=lab.pilot_steps,
                warmup_steps=_warmup(lab),
                decay_share=cell.decay_share,
            ),
            cell.replay_ratio,
            cell.start.parent_step,
        )
        for number, cell in enumerate(design_pilots(_project(lab, published, base)), start=1)
    }


def _finals(lab: Lab, published: PublishedSet, base: CurveRecord) -> dict[str, CurveRecord]:
    """Long runs anywhere inside what the pilots span: WSD or cosine, either start, little replay as often as much."""
    rng = np.random.default_rng([lab.seed, 2])
    low, high = np.log(published.peak_lr / 30.0), np.log(published.peak_lr)
    least, most = lab.replay_range
    found = {}
    for number in range(1, lab.num_finals + 1):
        peak_lr, steps, warmup = float(np.exp(rng.uniform(low, high))), lab.final_steps, _warmup(lab)
        wsd = run_schedule(
            peak_lr=peak_lr, total_steps=steps, warmup_steps=warmup, decay_share=float(rng.uniform(0.1, 1.0))
        )
        cosine = CosineSchedule(
            kind="cosine", peak_lr=peak_lr, total_steps=steps, warmup_steps=warmup, min_lr=0.1 * peak_lr
        )
        replay_ratio = least + (most - least) * float(rng.uniform()) ** 2
        step = _starts(base)[("stable", "annealed")[rng.integers(2)]]
        found[f"final-{number:02d}"] = _record(base, (cosine, wsd)[rng.integers(2)], round(replay_ratio, 4), step)
    return found


def _record(base: CurveRecord, schedule: object, replay_ratio: float, parent_step: int | None) -> CurveRecord:
    changes = {"lr": schedule, "replay_ratio": ConstantMixture(replay_ratio=replay_ratio), "parent_step": parent_step}
    return base.model_copy(update={"phase": "cpt", "parent": BASE, **changes})


def _warmup(lab: Lab) -> int:
    """Warm-up of all runs, assumed: a twentieth of a pilot."""
    return max(lab.pilot_steps // 20, 1)


def _starts(base: CurveRecord) -> dict[str, int]:
    """Step of pre-training that each start was taken after."""
    total = int(base.lr.total_steps)
    return {"stable": round(STABLE_SHARE * total), "annealed": total}


def _project(lab: Lab, published: PublishedSet, base: CurveRecord) -> Project:
    """The project that a team in this lab would write; its paths are never opened."""
    starts = [{"name": name, "path": name, "parent": BASE, "parent_step": step} for name, step in _starts(base).items()]
    batch_tokens = base.batch_tokens or 1
    return Project.parse(
        {
            "name": f"virtual-{lab.seed}",
            "model": {"starts": starts, "pretrain_peak_lr": published.peak_lr},
            "data": {
                "general": {"name": "general", "path": "general"},
                "domains": [{"name": "domain", "path": "domain"}],
                "seq_len": base.seq_len,
            },
            "budget": {"tokens": lab.final_steps * batch_tokens},
            "pilot": {
                "total_steps": lab.pilot_steps,
                "batch_tokens": batch_tokens,
                "num_runs": lab.num_pilots,
                "replay_range": lab.replay_range,
                "warmup_steps": _warmup(lab),
            },
            "seed": lab.seed,
        },
        "the virtual lab",
    )
