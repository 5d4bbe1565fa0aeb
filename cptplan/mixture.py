"""Replay ratio over a run: the share of general tokens at every optimiser step, and how it becomes whole sequences.

Which one: constant (the common recipe), ramp (a curriculum, e.g. 50 -> 20 % replay), table (any steps).
Pure functions of the step, shared by planner (what shift to expect) and executor (what to feed).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from cptplan.contract import Contract, parse_as
from cptplan.errors import MixtureError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def check_ratio(name: str, value: float) -> None:
    """Raise MixtureError unless the value is a share of tokens."""
    if not 0.0 <= value <= 1.0:
        raise MixtureError(
            f"{name} must be in [0, 1]; got {value:g}.", hint="give the general share of tokens, such as 0.2"
        )


class ConstantMixture(Contract):
    """The same replay ratio at every step."""

    kind: Literal["constant"] = "constant"
    replay_ratio: float

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_ratio("replay_ratio", self.replay_ratio)
        return self

    def replay_ratios(self, total_steps: int) -> FloatArray:
        """General share of the tokens of every step, in [0, 1], shape (total_steps,)."""
        return np.full(total_steps, self.replay_ratio)


class RampMixture(Contract):
    """start_ratio until begin_step, end_ratio from end_step on, a straight line between."""

    kind: Literal["ramp"]
    start_ratio: float
    end_ratio: float
    begin_step: Annotated[int, Field(ge=0)] = 0
    end_step: Annotated[int, Field(gt=0)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_ratio("start_ratio", self.start_ratio)
        check_ratio("end_ratio", self.end_ratio)
        if self.end_step <= self.begin_step:
            raise MixtureError(
                f"end_step must be greater than begin_step; got {self.end_step} and {self.begin_step}.",
                hint="for a jump use a table",
            )
        return self

    def replay_ratios(self, total_steps: int) -> FloatArray:
        """General share of the tokens of every step, in [0, 1], shape (total_steps,)."""
        return np.interp(np.arange(total_steps), [self.begin_step, self.end_step], [self.start_ratio, self.end_ratio])


class TableMixture(Contract):
    """Ratios that hold from the step they are named with until the next: steps 0, 100 and ratios 0.5, 0.2."""

    kind: Literal["table"]
    steps: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    ratios: Annotated[tuple[float, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        for ratio in self.ratios:
            check_ratio("ratios", ratio)
        rising = all(later > earlier for earlier, later in zip(self.steps, self.steps[1:], strict=False))
        if self.steps[0] != 0 or len(self.steps) != len(self.ratios) or not rising:
            raise MixtureError(
                f"steps must start at 0, rise, and be as many as ratios; got steps {list(self.steps)} and "
                f"ratios {list(self.ratios)}.",
                hint="for example steps: [0, 100], ratios: [0.5, 0.2]",
            )
        return self

    def replay_ratios(self, total_steps: int) -> FloatArray:
        """General share of the tokens of every step, in [0, 1], shape (total_steps,)."""
        index = np.searchsorted(self.steps, np.arange(total_steps), side="right") - 1
        return np.asarray(self.ratios, dtype=np.float64)[index]


Mixture = Annotated[ConstantMixture | RampMixture | TableMixture, Field(discriminator="kind")]


def read_mixture(value: object, where: str) -> Any:
    """A mixture from a number (constant replay ratio) or its JSON or YAML object.

    Raises:    MixtureError or ConfigError with the rule, the value and the place.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = {"kind": "constant", "replay_ratio": value}
    return parse_as(Mixture, value, where)


def cumulative_counts(shares: FloatArray, sequences_per_step: int) -> IntArray:
    """Whole sequences of one source after each sequence of the run: the share's running sum, rounded.

    count(n) = floor(sum_{g < n} share(step of g) + 1/2), so at every prefix the count is within half a sequence of
    the exact share, and all sequences have the same number of tokens: the ratio is exact in tokens.

    Args:      shares: the source's share at every step, in [0, 1], shape (steps,). sequences_per_step: >= 1.
    Returns:   counts for n = 0 .. steps * sequences_per_step, shape (steps * sequences_per_step + 1,).
    Reference: error diffusion in one dimension (Bresenham's line); no deviation.
    """
    running = np.concatenate([[0.0], np.cumsum(shares) * sequences_per_step])
    inside = np.arange(sequences_per_step) / sequences_per_step
    steps = running[:-1, None] + np.diff(running)[:, None] * inside
    # 1e-9: a running sum such as 0.1 * 5 lands just under one half in binary; the nudge keeps prefixes exact
    exact = np.concatenate([steps.reshape(-1), running[-1:]])
    return np.floor(exact + 0.5 + 1e-9).astype(np.int64)


def source_of_sequences(
    replay: FloatArray, domain_weights: FloatArray, sequences_per_step: int
) -> tuple[IntArray, IntArray]:
    """Which source each sequence of a run comes from, and its number within that source.

    Source 0 is general; 1.. are the domains, which share the rest by their weights. The split is nested (general
    against all domains, the first domain against the others, and so on), each level rounded by cumulative_counts. At
    every prefix general is within half a sequence of its exact share, and domain k (1, 2, ..) within (1 + k) / 2.

    Args:      replay: general share at every step, shape (steps,). domain_weights: >= 0, not all zero unless the replay
               ratio is 1 throughout, shape (domains,). sequences_per_step: sequences in one optimiser step.
    Returns:   source of every sequence, and the ordinal of the sequence within its source, both shape
               (steps * sequences_per_step,).
    """
    total = len(replay) * sequences_per_step
    source = np.full(total, len(domain_weights), dtype=np.int64)
    counts = cumulative_counts(replay, sequences_per_step)
    is_general = np.diff(counts) == 1
    source[is_general] = 0
    open_slots = np.flatnonzero(~is_general)
    for number in range(len(domain_weights) - 1):
        rest = domain_weights[number:].sum()
        share = np.full(len(open_slots), domain_weights[number] / rest if rest > 0 else 0.0)
        taken = np.diff(cumulative_counts(share, 1)) == 1
        source[open_slots[taken]] = number + 1
        open_slots = open_slots[~taken]
    ordinal = np.zeros(total, dtype=np.int64)
    for number in range(len(domain_weights) + 1):
        mine = source == number
        ordinal[mine] = np.arange(int(mine.sum()))
    return source, ordinal
