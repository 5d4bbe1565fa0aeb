"""What the fitted laws say of a run that has not been trained: losses, forgetting and the weighted objective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cptplan.errors import ConfigError, suggest
from cptplan.fitting.fitted import OWN_SHARE, FittedLaw, Prediction
from cptplan.laws.history import RunHistory
from cptplan.planning.knobs import Knobs, PlannedSchedule
from cptplan.planning.search import Score

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
    max_forgetting_ratio: float | None = None
    max_general_loss: float | None = None
    confidence: float = 0.9
    cvar: float | None = None
    """The objective is the mean of its worst draws beyond this share; None: the best fit's."""
    batch_tokens: int = 1
    general_tokens: float = np.inf
    """Training tokens of general text that are there."""
    domain_tokens: float = np.inf
    """Training tokens that the domains can give in their proportion."""
    max_epochs: float = 1.0
    """Times that a run may read them."""

    def schedule(self, knobs: Knobs) -> PlannedSchedule:
        """The schedule of a candidate, with the pilots' warm-up where it names none."""
        return knobs.schedule(self.warmup_steps)

    def history(self, knobs: Knobs) -> RunHistory:
        """The rates, shares and passes of a candidate."""
        start = self.starts.get(knobs.start)
        if start is None:
            raise ConfigError(
                f"start must be one of the project's; got {knobs.start!r}.",
                hint=suggest(knobs.start, self.starts) or f"known: {', '.join(self.starts)}",
            )
        replay = knobs.mixture().replay_ratios(knobs.total_steps)
        return RunHistory(
            phase="cpt",
            pretrain_lr=start.pretrain_lr,
            pretrain_known=bool(len(start.pretrain_lr)),
            lr=self.schedule(knobs).lr(),
            replay_ratio=replay,
            domain_passes=self._passes(replay),
            batch_tokens=self.batch_tokens,
            last_lr=start.last_lr,
            known_area=start.known_area,
        )

    def _passes(self, replay: FloatArray) -> FloatArray | None:
        """Passes over the domain's tokens before each step; None when every token is fresh."""
        if not np.isfinite(self.domain_tokens):
            return None
        tokens = (1.0 - replay) * self.batch_tokens
        return (np.cumsum(tokens) - tokens) / self.domain_tokens

    def score(self, knobs: Knobs) -> Score:
        """A candidate's objective, and by how much it breaks each constraint.

        Limits on general loss must hold in the asked share of the draws.
        """
        history, end = self.history(knobs), np.array([knobs.total_steps])
        means = self._means(history, end)
        sampled = {}
        if self.general_caps():
            sampled["general"] = self.laws["general"].sample(history, end, self._seed("general"))[:, 0]
        objective = self.weigh(means)
        if self.cvar is not None:
            rest = {name: self._sample(name, history, end) for name in self._counted() if name not in sampled}
            draws = np.sort(self._weigh_draws({**sampled, **rest}))
            objective = float(draws[int(self.cvar * len(draws)) :].mean())
        general = float(np.quantile(sampled["general"], self.confidence)) if sampled else means["general"]
        return Score(objective=objective, losses=means, violations=self._violations(knobs, general))

    def rough(self, knobs: Knobs) -> Score:
        """The score of the best fit alone, without draws: limits at its mean."""
        history, end = self.history(knobs), np.array([knobs.total_steps])
        means = self._means(history, end)
        violations = self._violations(knobs, means["general"])
        return Score(objective=self.weigh(means), losses=means, violations=violations)

    @property
    def needs_draws(self) -> bool:
        """Whether score says more than rough."""
        return self.cvar is not None or bool(self.general_caps())

    def general_caps(self) -> dict[str, float]:
        """Largest general loss that each limit allows, nats per token, by the key of goal that sets it."""
        base = self.starts[self.base].losses["general"]
        found = {}
        if self.max_general_increase is not None:
            found["max_general_increase"] = base * (1.0 + self.max_general_increase)
        if self.max_forgetting_ratio is not None:
            found["max_forgetting_ratio"] = base + float(np.log(self.max_forgetting_ratio))
        if self.max_general_loss is not None:
            found["max_general_loss"] = self.max_general_loss
        return found

    def token_excess(self, knobs: Knobs) -> dict[str, float]:
        """Tokens that a run would read beyond what it may, as a share of those, by source; <= 0 when it may."""
        tokens, replay = knobs.total_steps * self.batch_tokens, knobs.mean_replay
        return {
            "general_tokens": replay * tokens / (self.general_tokens * self.max_epochs) - 1.0,
            "domain_tokens": (1.0 - replay) * tokens / (self.domain_tokens * self.max_epochs) - 1.0,
        }

    def chance(self, knobs: Knobs) -> float | None:
        """Share of the draws in which all limits on general loss hold; None without a limit."""
        caps = self.general_caps()
        if not caps:
            return None
        sampled = self._sample("general", self.history(knobs), np.array([knobs.total_steps]))
        return float(np.mean(sampled <= min(caps.values())))

    def weigh(self, losses: Mapping[str, float]) -> float:
        """Weighted change of loss against the base model, nats per token."""
        base = self.starts[self.base].losses
        return sum(weight * (losses[name] - base[name]) for name, weight in self.weights.items())

    def outlook(self, knobs: Knobs) -> Outlook:
        """Final losses, objective and forgetting of a candidate with intervals at the forecaster's level."""
        history, end = self.history(knobs), np.array([knobs.total_steps])
        sampled = {name: self._sample(name, history, end) for name in self.laws}
        mean = self._means(history, end)
        base = self.starts[self.base].losses
        return Outlook(
            losses={name: self._interval(mean[name], values) for name, values in sampled.items()},
            objective=self._interval(self.weigh(mean), self._weigh_draws(sampled)),
            forgetting_ratio=self._interval(
                float(np.exp(mean["general"] - base["general"])), np.exp(sampled["general"] - base["general"])
            ),
        )

    def difference(self, one: Knobs, other: Knobs) -> Interval:
        """Objective of one candidate less that of another, from the same draws of the same fits.

        What the fits do not know moves both alike and mostly cancels; what each run has of its own does not.
        """
        centre = self.weigh(self.mean(one)) - self.weigh(self.mean(other))
        shared = self.fit_draws(one) - self.fit_draws(other)
        own = np.random.default_rng([7, len(shared)]).standard_normal(len(shared))
        return self._interval(centre, shared + np.hypot(self.own_error(one), self.own_error(other)) * own)

    def mean(self, knobs: Knobs) -> dict[str, float]:
        """Final losses of the best fit by validation set, nats per token."""
        return self._means(self.history(knobs), np.array([knobs.total_steps]))

    def fit_draws(self, knobs: Knobs) -> FloatArray:
        """Objectives that the fits think possible, without what a run has of its own; the same draws for all runs."""
        draws = self.loss_draws(self.history(knobs), np.array([knobs.total_steps]))
        return self._weigh_draws({name: values[:, 0] for name, values in draws.items()})

    def loss_draws(self, history: RunHistory, steps: NDArray[np.int64]) -> dict[str, FloatArray]:
        """Losses of the sets that count that the fits think possible, by set, shape (draws, points)."""
        return {name: _bare(self.laws[name]).sample(history, steps, self._seed(name)) for name in self._counted()}

    def own_error(self, knobs: Knobs) -> float:
        """Standard deviation of the objective of one run where all fits agree, nats per token."""
        means = self.mean(knobs)
        parts = [
            self.weights[name] * means[name] * OWN_SHARE * np.hypot(law.noise, law.discrepancy)
            for name, law in self.laws.items()
            if name in self._counted()
        ]
        return float(np.sqrt(np.sum(np.square(parts))))

    def reading_error(self, set_name: str) -> float:
        """Relative standard deviation of a pilot's loss where all fits agree: what it has of its own, and noise."""
        law = self.laws[set_name]
        return float(np.hypot(law.noise, OWN_SHARE * np.hypot(law.noise, law.discrepancy)))

    def curve(self, set_name: str, history: RunHistory, steps: NDArray[np.int64]) -> Prediction:
        """The whole predicted curve of a run on one validation set; its end is the outlook's interval."""
        return self.laws[set_name].predict(history, steps, self.level, self._seed(set_name))

    def support_flags(self, knobs: Knobs) -> tuple[str, ...]:
        """Where a candidate lies outside what the curves of the fit span, one sentence each."""
        history = self.history(knobs)
        found = [flag for law in self.laws.values() for flag in law.support.flags(history, law.law.reference_lr)]
        return tuple(dict.fromkeys(found))

    def _means(self, history: RunHistory, end: NDArray[np.int64]) -> dict[str, float]:
        return {name: float(law.mean(history, end)[0]) for name, law in self.laws.items()}

    def _sample(self, name: str, history: RunHistory, end: NDArray[np.int64]) -> FloatArray:
        return self.laws[name].sample(history, end, self._seed(name))[:, 0]

    def _violations(self, knobs: Knobs, general: float) -> dict[str, float]:
        return {**self.token_excess(knobs), **{name: general - cap for name, cap in self.general_caps().items()}}

    def _counted(self) -> list[str]:
        """Sets that have a weight."""
        return [name for name in self.laws if self.weights.get(name, 0.0) > 0.0]

    def _weigh_draws(self, sampled: Mapping[str, FloatArray]) -> FloatArray:
        base = self.starts[self.base].losses
        return np.asarray(sum(self.weights[name] * (sampled[name] - base[name]) for name in self._counted()))

    def _seed(self, set_name: str) -> int:
        """Draws of different sets are independent; those of one set are the same wherever they are asked for."""
        return list(self.laws).index(set_name)

    def _interval(self, mean: float, sampled: FloatArray) -> Interval:
        tail = 50.0 * (1.0 - self.level)
        low, high = np.percentile(sampled, [tail, 100.0 - tail])
        return Interval(mean=mean, low=min(float(low), mean), high=max(float(high), mean))


def _bare(law: FittedLaw) -> FittedLaw:
    """The law with the uncertainty of its fit alone."""
    return replace(law, noise=0.0, held_out=(), in_sample_error=0.0, transient_error=0.0)
