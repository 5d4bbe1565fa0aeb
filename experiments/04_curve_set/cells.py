"""The runs of the curve set beyond the pilots, by lab and group, in the order in which they are trained."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cptplan.pilots.design import run_schedule
from cptplan.schedule import CosineSchedule, InfiniteSchedule, LinearSchedule, Schedule, TwoStageSchedule

Start = Literal["stable", "annealed"]
WARMUP = 10
LONG = 640  # four times a pilot
RATES = (3e-4, 1e-3, 3e-3)
RATIOS = (0.0, 0.01, 0.05, 0.2, 0.5)
DECAY_SHARE = 0.3  # no pilot has it: theirs are 0 and 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One run."""

    group: str
    schedule: Schedule
    replay_ratio: float
    start: Start
    seed: int = 0
    batch: int = 1
    """Times the batch of the pilots."""
    passes: float = 1.0
    """Times that a cut of the domain is read."""

    @property
    def name(self) -> str:
        """Unique within the lab; the setting, spelt out."""
        rate = f"{self.schedule.peak_lr:.0e}".replace("e-0", "e-")
        parts = [self.group, self.schedule.kind, f"lr{rate}", f"r{self.replay_ratio:g}", self.start]
        parts += [f"x{self.passes:g}"] if self.passes > 1 else []
        parts += [f"seed{self.seed}"] if self.seed else []
        return "-".join(parts)


def wsd(peak_lr: float, total_steps: int = LONG, decay_share: float = DECAY_SHARE) -> Schedule:
    """Warm-up, constant rate, linear decay to 0; constant with a decay share of 0."""
    return run_schedule(peak_lr=peak_lr, total_steps=total_steps, warmup_steps=WARMUP, decay_share=decay_share)


def cosine(peak_lr: float) -> Schedule:
    """To a tenth of the peak: no pilot has it."""
    return CosineSchedule(kind="cosine", peak_lr=peak_lr, min_lr=peak_lr / 10, total_steps=LONG, warmup_steps=WARMUP)


def linear(peak_lr: float) -> Schedule:
    """To 0 over the whole run."""
    return LinearSchedule(kind="linear", peak_lr=peak_lr, total_steps=LONG, warmup_steps=WARMUP)


def infinite(peak_lr: float) -> Schedule:
    """Cosine cool-down to half the peak, constant, decay over the last fifth (arXiv:2403.08763)."""
    return InfiniteSchedule(
        kind="infinite",
        peak_lr=peak_lr,
        const_lr=peak_lr / 2,
        total_steps=LONG,
        warmup_steps=WARMUP,
        cooldown_steps=LONG // 4,
        decay_steps=LONG // 5,
    )


def two_stage(peak_lr: float) -> Schedule:
    """The peak, then a tenth of it at once: the sharpest annealing."""
    return TwoStageSchedule(
        kind="two_stage",
        peak_lr=peak_lr,
        min_lr=peak_lr / 10,
        switch_step=LONG // 2,
        total_steps=LONG,
        warmup_steps=WARMUP,
    )


def grid(starts: Sequence[Start], total_steps: int, group: str) -> list[Cell]:
    """Every peak rate with every replay ratio from every start."""
    return [
        Cell(group=group, schedule=wsd(rate, total_steps), replay_ratio=ratio, start=start)
        for start, ratio, rate in itertools.product(starts, RATIOS, RATES)
    ]


def _cell(group: str, schedule: Schedule, replay_ratio: float, start: Start) -> Cell:
    return Cell(group=group, schedule=schedule, replay_ratio=replay_ratio, start=start)


PROSE_CODE = (
    *grid(("annealed", "stable"), LONG, "grid"),
    _cell("schedules", cosine(2e-3), 0.1, "annealed"),
    _cell("schedules", cosine(6e-4), 0.02, "stable"),
    _cell("schedules", cosine(3e-3), 0.005, "annealed"),
    _cell("schedules", wsd(1e-3, decay_share=0.0), 0.1, "stable"),
    _cell("schedules", wsd(3e-3, decay_share=0.0), 0.0, "annealed"),
    _cell("schedules", linear(3e-3), 0.3, "stable"),
    _cell("schedules", infinite(2e-3), 0.05, "annealed"),
    _cell("schedules", infinite(1e-3), 0.0, "stable"),
    _cell("schedules", two_stage(2e-3), 0.2, "annealed"),
    *(
        Cell(group="seeds", schedule=wsd(rate), replay_ratio=ratio, start=start, seed=seed)
        for rate, ratio, start in ((1e-3, 0.05, "annealed"), (3e-3, 0.2, "stable"))
        for seed in (1, 2)
    ),
    Cell(group="batch", schedule=wsd(1e-3, LONG // 2), replay_ratio=0.05, start="annealed", batch=2),
    _cell("beyond", wsd(6e-3), 0.05, "annealed"),
    _cell("beyond", wsd(6e-3), 0.2, "stable"),
    _cell("beyond", wsd(1e-3), 0.8, "annealed"),
    _cell("beyond", wsd(1e-4), 0.05, "stable"),
    _cell("longer", wsd(1e-3, 2 * LONG), 0.1, "stable"),
    _cell("longer", wsd(3e-3, 2 * LONG), 0.3, "annealed"),
    *grid(("annealed",), LONG // 2, "half"),
)
WIKI_MEDICINE = (
    _cell("long", wsd(1e-3), 0.1, "stable"),
    _cell("long", wsd(3e-3), 0.0, "annealed"),
    _cell("long", wsd(3e-3), 0.4, "stable"),
    _cell("long", wsd(3e-4), 0.01, "annealed"),
    _cell("long", cosine(2e-3), 0.2, "annealed"),
    _cell("long", cosine(6e-4), 0.05, "stable"),
    _cell("long", infinite(2e-3), 0.05, "annealed"),
    _cell("long", wsd(1e-3, decay_share=0.0), 0.005, "annealed"),
    *(
        Cell(group="repeat", schedule=wsd(1e-3, LONG // 2), replay_ratio=0.2, start="annealed", passes=passes)
        for passes in (1.0, 2.0, 4.0, 8.0, 16.0)
    ),
    *(Cell(group="seeds", schedule=wsd(1e-3), replay_ratio=0.1, start="stable", seed=seed) for seed in (1, 2)),
)
LABS = {"prose_code": PROSE_CODE, "wiki_medicine": WIKI_MEDICINE}
