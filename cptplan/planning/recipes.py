"""Rules of thumb that people follow today, to compare a plan with."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from cptplan.config import ScheduleKind
from cptplan.planning.knobs import Knobs


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A rule of thumb in words of pre-training's peak rate."""

    name: str
    source: str
    rate_share: float
    """Peak rate over that of pre-training."""
    replay_ratio: float
    kind: ScheduleKind
    decay_share: float = 0.0

    def knobs(self, pretrain_peak_lr: float, total_steps: int, start: str) -> Knobs:
        """The recipe as a run."""
        return Knobs(
            peak_lr=self.rate_share * pretrain_peak_lr,
            replay_ratio=self.replay_ratio,
            total_steps=total_steps,
            decay_share=self.decay_share,
            start=start,
            kind=self.kind,
        )


# A linear decay over nine tenths of the run stands for the common cosine: it is what pilots can judge.
COMMON = Recipe(
    name="rule of thumb",
    source="30 % replay, a tenth of the pre-training rate: the common recipe",
    rate_share=0.1,
    replay_ratio=0.3,
    kind="wsd",
    decay_share=0.9,
)

RECIPES = (
    COMMON,
    Recipe(
        name="re-warm, weak shift",
        source="arXiv:2403.08763: re-warm to the pre-training peak, cosine to a tenth, 5 % replay",
        rate_share=1.0,
        replay_ratio=0.05,
        kind="cosine",
    ),
    Recipe(
        name="re-warm, strong shift",
        source="arXiv:2403.08763: re-warm to the pre-training peak, cosine to a tenth, 25 % replay (new language)",
        rate_share=1.0,
        replay_ratio=0.25,
        kind="cosine",
    ),
)


def nearest_recipe(knobs: Knobs, pretrain_peak_lr: float, recipes: Iterable[Recipe] = RECIPES) -> Recipe:
    """The recipe nearest to a run: a factor e of the rate counts like 0.3 of the replay ratio (assumed)."""

    def distance(recipe: Recipe) -> float:
        rate = math.log(recipe.rate_share * pretrain_peak_lr / knobs.peak_lr)
        return math.hypot(rate, (recipe.replay_ratio - knobs.mean_replay) / 0.3)

    return min(recipes, key=distance)
