"""What the curves of a fit span, and where a run to be predicted leaves it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from cptplan.contract import Contract
from cptplan.errors import ConfigError
from cptplan.laws.history import Observations, RunHistory

Range = tuple[float, float]
MARGIN = 1.02  # assumed: a peak rate 2 % above the highest is the same rate
LONGER = 4.0  # measured up to 3 times the pilots' length (experiments/01_predict_longer); from 4 on it is said


class Support(Contract):
    """Ranges over the curves that the law is judged by."""

    peak_lr: Range
    replay_ratio: Range
    """Mean general share of a run's tokens."""
    longest_steps: Annotated[int, Field(ge=0)]
    longest_area: float
    """Forward area of the longest run, in steps at the reference rate."""
    loss_potential: Range
    """Last rate of pre-training over its peak; (0, 0) when it is unknown."""
    most_passes: float
    """Passes over the domain's unique tokens, 1 when every token was fresh."""
    num_params: Range | None = None
    batch_tokens: int | None = None
    """Tokens of one optimiser step of all curves; None when not known."""

    def check_batch(self, history: RunHistory, name: str) -> None:
        """Raise ConfigError if a run has another batch size than the curves: the laws count optimiser steps.

        Nobody has published a conversion that holds (arXiv:2505.07796, appendix F, fits each batch size apart).
        """
        known = self.batch_tokens is not None and history.batch_tokens is not None
        if known and history.batch_tokens != self.batch_tokens:
            raise ConfigError(
                f"batch_tokens must be {self.batch_tokens}, that of the fitted curves; got {history.batch_tokens} in "
                f"{name}.",
                hint="run pilots at the batch size of the run to predict",
            )

    def flags(self, history: RunHistory, reference_lr: float) -> tuple[str, ...]:
        """Where a run lies outside, one sentence each.

        Args:      reference_lr: the unit of longest_area.
        """
        found = []
        peak = float(history.lr.max())
        if not self.peak_lr[0] / MARGIN <= peak <= self.peak_lr[1] * MARGIN:
            found.append(f"peak rate {peak:.3g} is outside the tried {_span(self.peak_lr)}")
        replay = float(history.replay_ratio.mean())
        low, high = max(self.replay_ratio[0] - 0.01, 0.5 * self.replay_ratio[0]), self.replay_ratio[1] + 0.01
        if (
            history.phase == "cpt" and not low <= replay <= high
        ):  # below: a half is far, forgetting is logarithmic there
            found.append(f"replay ratio {replay:.1%} is outside the tried {_span(self.replay_ratio, percent=True)}")
        longer = len(history.lr) / max(self.longest_steps, 1)
        if longer > LONGER:
            found.append(f"{len(history.lr):,} steps are {longer:.1f} times the longest curve")
        area = float(np.sum(history.lr)) / reference_lr
        if area > LONGER * MARGIN * self.longest_area > 0:
            found.append(f"forward area is {area / self.longest_area:.1f} times the largest tried")
        potential = potential_of(history)
        if history.phase == "cpt" and not self.loss_potential[0] - 0.05 <= potential <= self.loss_potential[1] + 0.05:
            found.append(f"start with loss potential {potential:.2f} is outside the tried {_span(self.loss_potential)}")
        passes = passes_of(history)
        if passes > max(1.5 * self.most_passes, 1.01):
            found.append(f"domain tokens are read {passes:.1f} times, tried {self.most_passes:.1f}")
        if self.num_params is not None and history.num_params is not None:
            low, high = self.num_params
            if not low / MARGIN <= history.num_params <= high * MARGIN:
                found.append(f"{history.num_params:.3g} parameters are outside the tried {_span(self.num_params)}")
        zero = np.flatnonzero(history.lr > 0)
        tail = len(history.lr) - 1 - int(zero[-1]) if len(zero) else len(history.lr)
        if tail > 1:
            found.append(f"the last {tail} steps have rate 0: they train nothing")
        return tuple(found)


def support_of(data: Sequence[Observations], reference_lr: float) -> Support:
    """The ranges over the curves given, which are those that judge."""
    histories = [d.history for d in data]
    sizes = [h.num_params for h in histories if h.num_params is not None]
    return Support(
        peak_lr=_range([float(h.lr.max()) for h in histories]),
        replay_ratio=_range([float(h.replay_ratio.mean()) for h in histories]),
        longest_steps=max(int(d.steps[-1]) for d in data),
        longest_area=max(float(np.sum(d.history.lr[: d.steps[-1]])) / reference_lr for d in data),
        loss_potential=_range([potential_of(h) for h in histories]),
        most_passes=max(passes_of(h) for h in histories),
        num_params=_range(sizes) if sizes else None,
        batch_tokens=next((h.batch_tokens for h in histories if h.batch_tokens is not None), None),
    )


def potential_of(history: RunHistory) -> float:
    """Last over peak rate of the pre-training; 0 where there was none or it is unknown."""
    peak = float(history.pretrain_lr.max(initial=0.0))
    return history.previous_lr / peak if peak > 0 else 0.0


def passes_of(history: RunHistory) -> float:
    """Passes over the unique domain tokens at the end of the run, at least 1."""
    return max(float(history.domain_passes[-1]), 1.0) if history.domain_passes is not None else 1.0


def _range(values: Sequence[float]) -> Range:
    return min(values), max(values)


def _span(span: Range, *, percent: bool = False) -> str:
    low, high = (f"{value:.1%}" if percent else f"{value:.3g}" for value in span)
    return low if low == high else f"{low} to {high}"
