"""What the fitted laws say of a run that has not been trained: losses, forgetting and the weighted objective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cptplan.design import run_schedule
from cptplan.errors import ConfigError, suggest
from cptplan.fitting.fitted import FittedLaw, Prediction
from cptplan.laws.history import RunHistory
from cptplan.search import Knobs, Score

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class StartState:
    """A checkpoint that CPT may begin from, as the laws see it."""

    name: str
    pretrain_lr: FloatArray
    """Rates of all steps before it, empty when unknown, shape (steps,)."""
    losses: Mapping[str, float]
    """Measured loss before CPT by validation set, nats per token."""
    last_lr: float | None = None
    """Rate of the last pre-training step where pretrain_lr is unknown."""
    known_area: float | None = None
    """Forward area of pre-training where pretrain_lr is unknown, lr x steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """A predicted number."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Outlook:
    """What is expected at the end of a run."""

    losses: Mapping[str, Interval]
    objective: Interval
    """Weighted change of loss against the base model, nats per token."""
    forgetting_ratio: Interval
    """General perplexity over the base model's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Forecaster:
    """The laws, the starts and the goal of a campaign, ready to judge candidates.

    Changes of loss are against `base`, the start that the team would ship today, whatever start a candidate uses.
    """

    laws: Mapping[str, FittedLaw]
    starts: Mapping[str, StartState]
    base: str
    weights: Mapping[str, float]
    warmup_steps: int
    level: float = 0.9
    max_general_increase: float | None = None
    confidence: float = 0.9
    batch_tokens: int = 1
    general_tokens: float = np.inf
    """Training tokens of general text that are there: a run may read each of them once."""
    domain_tokens: float = np.inf
    """Training tokens that the domains can give in their proportion."""

    def history(self, knobs: Knobs) -> RunHistory:
        """The rates and shares of a candidate."""
        schedule = run_schedule(
            peak_lr=knobs.peak_lr,
            total_steps=knobs.total_steps,
            warmup_steps=min(self.warmup_steps, knobs.total_steps),
            decay_share=knobs.decay_share,
        )
        start = self.starts.get(knobs.start)
        if start is None:
            raise ConfigError(
                f"start must be one of the project's; got {knobs.start!r}.",
                hint=suggest(knobs.start, self.starts) or f"known: {', '.join(self.starts)}",
            )
        return RunHistory(
            phase="cpt",
            pretrain_lr=start.pretrain_lr,
            pretrain_known=bool(len(start.pretrain_lr)),
            lr=schedule.lr(),
            replay_ratio=np.full(knobs.total_steps, knobs.replay_ratio),
            last_lr=start.last_lr,
            known_area=start.known_area,
        )

    def score(self, knobs: Knobs) -> Score:
        """Point prediction of a candidate's objective, and by how much it breaks the constraints: the larger excess."""
        history, end = self.history(knobs), np.array([knobs.total_steps])
        losses = {name: float(law.mean(history, end)[0]) for name, law in self.laws.items()}
        violation = max(self.token_excess(knobs), self.general_excess(knobs))
        return Score(objective=self.weigh(losses), losses=losses, violation=violation)

    def token_excess(self, knobs: Knobs) -> float:
        """Tokens that a run would read beyond those there, as a share of those there; <= 0 when there are enough."""
        tokens = knobs.total_steps * self.batch_tokens
        return max(
            knobs.replay_ratio * tokens / self.general_tokens - 1.0,
            (1.0 - knobs.replay_ratio) * tokens / self.domain_tokens - 1.0,
        )

    def general_excess(self, knobs: Knobs) -> float:
        """General loss above what is allowed, at the asked confidence, nats per token; -inf without a limit."""
        if self.max_general_increase is None:
            return -np.inf
        allowed = self.starts[self.base].losses["general"] * (1.0 + self.max_general_increase)
        sampled = self.laws["general"].sample(self.history(knobs), np.array([knobs.total_steps]))[:, 0]
        return float(np.quantile(sampled, self.confidence)) - allowed

    def weigh(self, losses: Mapping[str, float]) -> float:
        """Weighted change of loss against the base model, nats per token."""
        base = self.starts[self.base].losses
        return sum(weight * (losses[name] - base[name]) for name, weight in self.weights.items())

    def outlook(self, knobs: Knobs) -> Outlook:
        """Final losses, objective and forgetting of a candidate with intervals at the forecaster's level."""
        history, end = self.history(knobs), np.array([knobs.total_steps])
        sampled = {name: law.sample(history, end, self._seed(name))[:, 0] for name, law in self.laws.items()}
        mean = {name: float(law.mean(history, end)[0]) for name, law in self.laws.items()}
        base = self.starts[self.base].losses
        objective = sum(weight * (sampled[name] - base[name]) for name, weight in self.weights.items())
        return Outlook(
            losses={name: self._interval(mean[name], values) for name, values in sampled.items()},
            objective=self._interval(self.weigh(mean), np.asarray(objective)),
            forgetting_ratio=self._interval(
                float(np.exp(mean["general"] - base["general"])), np.exp(sampled["general"] - base["general"])
            ),
        )

    def curve(self, set_name: str, history: RunHistory, steps: NDArray[np.int64]) -> Prediction:
        """The whole predicted curve of a run on one validation set; its end is the outlook's interval."""
        return self.laws[set_name].predict(history, steps, self.level, self._seed(set_name))

    def _seed(self, set_name: str) -> int:
        """Draws of different sets are independent; those of one set are the same wherever they are asked for."""
        return list(self.laws).index(set_name)

    def _interval(self, mean: float, sampled: FloatArray) -> Interval:
        tail = 50.0 * (1.0 - self.level)
        low, high = np.percentile(sampled, [tail, 100.0 - tail])
        return Interval(mean=mean, low=min(float(low), mean), high=max(float(high), mean))
