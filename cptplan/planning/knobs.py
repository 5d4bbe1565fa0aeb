"""What may be chosen of a run: its knobs, the schedule and mixture they make, and the space that pilots support."""

from __future__ import annotations

from dataclasses import dataclass

from cptplan.config import ScheduleKind
from cptplan.mixture import ConstantMixture, RampMixture
from cptplan.pilots.design import run_schedule
from cptplan.schedule import ConstantSchedule, CosineSchedule, LinearSchedule, WsdSchedule

COSINE_FLOOR = 0.1  # published: the common recipe ends at a tenth of the peak (arXiv:2403.08763)

PlannedSchedule = ConstantSchedule | WsdSchedule | CosineSchedule | LinearSchedule


@dataclass(frozen=True, kw_only=True, slots=True)
class Knobs:
    """One candidate run, in the user's units.

    The lowest rate is no knob: every kind falls to a fixed floor and ends there. A law that credits annealing by steps
    would else plan tails at rate 0, which train nothing.
    """

    peak_lr: float
    replay_ratio: float
    """At the first step, and at all of them without end_replay."""
    total_steps: int
    decay_share: float
    """Share of the run in which wsd decays; 0 is a constant rate. Other kinds do not read it."""
    start: str
    kind: ScheduleKind = "wsd"
    warmup_steps: int | None = None
    """None: as many as the pilots."""
    end_replay: float | None = None
    """At the last step; None: the ratio does not change."""

    @property
    def mean_replay(self) -> float:
        """General share of all tokens of the run."""
        return self.replay_ratio if self.end_replay is None else 0.5 * (self.replay_ratio + self.end_replay)

    def schedule(self, warmup_steps: int) -> PlannedSchedule:
        """The schedule.

        Args:      warmup_steps: where the knobs name none; no more than the run has.
        """
        warmup = min(warmup_steps if self.warmup_steps is None else self.warmup_steps, self.total_steps)
        if self.kind == "cosine":
            return CosineSchedule(
                kind="cosine",
                peak_lr=self.peak_lr,
                total_steps=self.total_steps,
                warmup_steps=warmup,
                min_lr=COSINE_FLOOR * self.peak_lr,
            )
        if self.kind == "linear":
            return LinearSchedule(
                kind="linear", peak_lr=self.peak_lr, total_steps=self.total_steps, warmup_steps=warmup
            )
        return run_schedule(
            peak_lr=self.peak_lr,
            total_steps=self.total_steps,
            warmup_steps=warmup,
            decay_share=self.decay_share if self.kind == "wsd" else 0.0,
        )

    def mixture(self) -> ConstantMixture | RampMixture:
        """The replay ratio of every step."""
        if self.end_replay is None or self.total_steps < 2:
            return ConstantMixture(replay_ratio=self.replay_ratio)
        return RampMixture(
            kind="ramp", start_ratio=self.replay_ratio, end_ratio=self.end_replay, end_step=self.total_steps - 1
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Space:
    """What may be chosen."""

    peak_lr: tuple[float, float]
    replay_ratio: tuple[float, float]
    total_steps: tuple[int, int]
    decay_share: tuple[float, float]
    starts: tuple[str, ...]
    kinds: tuple[ScheduleKind, ...] = ("wsd",)
    warmup_steps: tuple[int, int] | None = None
    """None: always as many as the pilots."""
    curriculum: bool = False
    """end_replay may differ from replay_ratio, inside the same range."""
