"""The monitor: rules that are looked at after every evaluation, and what they change in the rest of the run.

What a rule did is an Intervention. Rates, replay ratios and the strength of ewc follow from the list of interventions
alone, so a run that is resumed with the list of its checkpoint goes on as it would have.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cptplan.errors import ConfigError
from cptplan.run_options import Rule
from cptplan.run_spec import RunSpec

FloatArray = NDArray[np.float64]

DEFAULT_AMOUNTS = {"raise_replay": 0.1, "lower_lr": 0.5}
DEEDS = {
    "warn": "warning only",
    "stop": "the run stops",
    "raise_replay": "replay_ratio + {:g} from here on",
    "lower_lr": "lr x {:g} from here on",
    "ewc": "ewc of strength {:g} from here on",
}
LEAST_BASE = 1e-6
"""Nats at step 0 below which a share of them says nothing, and would be divided by 0."""
LARGEST_EXPONENT = 700.0
"""Nats above step 0 that still have a perplexity in float64."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Intervention:
    """What one rule did after one evaluation, and why."""

    step: int
    """Optimiser steps done; it holds from the next step, which has this number (steps are numbered from 0)."""
    rule: str
    """What was measured of which set, source or task, such as "forgetting_ratio of general"."""
    action: str
    amount: float | None
    """As in Rule; None for warn and stop."""
    measured: float
    threshold: float
    patience: int
    """Evaluations in a row that said so."""


Interventions: TypeAlias = Sequence[Intervention]
"""What the monitor has done so far, in order."""


def describe(intervention: Intervention) -> str:
    """One line for people."""
    sign = "<" if intervention.measured < intervention.threshold else ">"
    evaluations = "1 evaluation" if intervention.patience == 1 else f"{intervention.patience} evaluations"
    return (
        f"step {intervention.step}: {intervention.rule} is {intervention.measured:.4g} "
        f"({sign} {intervention.threshold:g}, {evaluations}): {DEEDS[intervention.action].format(intervention.amount)}"
    )


def lr_factors(interventions: Interventions, total_steps: int) -> FloatArray:
    """Factor of the planned rate at every step: the product of the lower_lr amounts so far, shape (total_steps,)."""
    factors = np.ones(total_steps)
    for step, amount in _amounts(interventions, "lower_lr"):
        factors[step:] *= amount
    return factors


def replay_ratios(planned: ArrayLike, interventions: Interventions) -> FloatArray:
    """Replay ratio of every step: the planned one and the raise_replay amounts so far, at most 1.

    Args:      planned: general share of the tokens of every step, in [0, 1], shape (total_steps,).
    Returns:   the same before the first intervention, shape (total_steps,).
    """
    ratios = np.array(planned, dtype=np.float64)
    for step, amount in _amounts(interventions, "raise_replay"):
        ratios[step:] = np.minimum(ratios[step:] + amount, 1.0)
    return ratios


def ewc_strength(interventions: Interventions, step: int) -> float:
    """Strength of ewc at a step (numbered from 0) by the last intervention before it; 0 without one."""
    strengths = [amount for begun, amount in _amounts(interventions, "ewc") if begun <= step]
    return strengths[-1] if strengths else 0.0


def _amounts(interventions: Interventions, action: str) -> list[tuple[int, float]]:
    return [(done.step, done.amount) for done in interventions if done.action == action and done.amount is not None]


class Watch:
    """Looks at the rules of a run after every evaluation. state() goes into the checkpoint.

    Restored from its state, it decides what it would have decided without the interruption.
    """

    def __init__(self, spec: RunSpec, state: Mapping[str, Any] | None = None) -> None:
        """Start, or go on from a state.

        Raises:    ConfigError if a domain_plateau rule names no set and there is none but general.
        """
        state = state or {}
        self._spec = spec
        self._rules = spec.monitor.rules if spec.monitor is not None else ()
        self._chosen = [_choose(rule, spec) for rule in self._rules]
        self.interventions = [Intervention(**values) for values in state.get("interventions", ())]
        self._base_losses: dict[str, float] = dict(state.get("base_losses", {}))
        self._base_scores: dict[str, float] = dict(state.get("base_scores", {}))
        self._recent: list[list[float]] = [list(values) for values in state.get("recent", [[]] * len(self._rules))]
        self._taken: list[int] = list(state.get("taken", [0] * len(self._rules)))

    def state(self) -> dict[str, Any]:
        """All that later decisions depend on, as JSON values."""
        return {
            "interventions": [asdict(done) for done in self.interventions],
            "base_losses": dict(self._base_losses),
            "base_scores": dict(self._base_scores),
            "recent": [list(values) for values in self._recent],
            "taken": list(self._taken),
        }

    @property
    def stopped(self) -> bool:
        """Whether a rule has ended the run."""
        return any(done.action == "stop" for done in self.interventions)

    def evaluated(
        self,
        step: int,
        losses: Mapping[str, float],
        tokens_by_source: Mapping[str, int],
        task_scores: Mapping[str, float] | None = None,
    ) -> list[Intervention]:
        """Look at all rules in order; the first losses and scores that come are remembered as the base.

        A set or task that was not measured this time neither adds to the patience of its rules nor takes from it.

        Args:      step: optimiser steps done. losses: by validation set, nats per token. tokens_by_source: trained on
                   so far. task_scores: by task, where they were run.
        Returns:   what the rules did now, warnings included.
        """
        scores = task_scores or {}
        self._base_losses = {name: float(loss) for name, loss in losses.items()} | self._base_losses
        self._base_scores = {name: float(score) for name, score in scores.items()} | self._base_scores
        new = []
        for number, rule in enumerate(self._rules):
            of, value = self._measure(rule, self._chosen[number], step, losses, tokens_by_source, scores)
            measured = self._weigh(number, value) if value is not None else None
            if measured is None or (rule.action != "warn" and self._taken[number] >= rule.times):
                continue
            self._taken[number] += 1
            # patience starts again; a fall is counted from here
            self._recent[number] = self._recent[number][-1:] if rule.when == "domain_plateau" else []
            new.append(_intervene(step, rule, of, measured))
        self.interventions += new
        return new

    def _measure(
        self,
        rule: Rule,
        of: str | None,
        step: int,
        losses: Mapping[str, float],
        tokens_by_source: Mapping[str, int],
        scores: Mapping[str, float],
    ) -> tuple[str, float | None]:
        """What the rule looks at and its value now; None if it was not measured."""
        if of is None or rule.when == "mixing_error":
            errors = self._mixing_errors(step, tokens_by_source)
            worst = of or max(errors, key=lambda name: errors[name], default="")
            return worst, errors.get(worst)
        if rule.when == "task_drop":
            return of, self._base_scores[of] - float(scores[of]) if of in scores else None
        if of not in losses:
            return of, None
        loss, base = float(losses[of]), self._base_losses[of]
        if rule.when == "domain_plateau":
            return of, loss
        if rule.when == "forgetting_ratio":
            return of, math.exp(min(loss - base, LARGEST_EXPONENT))
        return of, loss - base if rule.when == "general_increase" else (loss - base) / max(base, LEAST_BASE)

    def _weigh(self, number: int, value: float) -> float | None:
        """Remember the value; what the rule says of the last ones, if it is true of `patience` in a row."""
        rule, recent = self._rules[number], self._recent[number]
        plateau = rule.when == "domain_plateau"
        wanted = rule.patience + plateau  # a fall over n evaluations has n + 1 ends
        recent.append(value)
        del recent[:-wanted]
        if len(recent) < wanted:
            return None
        if plateau:
            fall = recent[0] - recent[-1]
            return fall if fall < rule.threshold else None
        return recent[-1] if min(recent) > rule.threshold else None

    def _mixing_errors(self, step: int, tokens_by_source: Mapping[str, int]) -> dict[str, float]:
        """|measured - planned share| of every source, less what rounding to whole sequences explains.

        That is (1 + k) / 2 sequences for domain k = 1, 2, .., and k = 0 for general: see
        cptplan.mixture.source_of_sequences. With reweight the spec's weights are the plan: what is measured then is
        how far the learnt ones went.
        """
        spec, total = self._spec, sum(tokens_by_source.values())
        if not step or not total:
            return {}
        replay = float(replay_ratios(spec.replay_ratios(), self.interventions)[:step].mean())
        domains = [source for source in spec.sources if source.role == "domain"]
        weights = sum(source.weight for source in domains)
        planned = {source.name: (replay, 0) for source in spec.sources if source.role == "general"}
        for number, source in enumerate(domains, start=1):
            planned[source.name] = ((1.0 - replay) * source.weight / weights, number)
        return {
            name: max(abs(tokens_by_source.get(name, 0) / total - share) - (1 + k) / 2 * spec.seq_len / total, 0.0)
            for name, (share, k) in planned.items()
        }


def _choose(rule: Rule, spec: RunSpec) -> str | None:
    """The set, task or source that a rule means; None for the worst of all sources."""
    if rule.of is not None or rule.when == "mixing_error":
        return rule.of
    if rule.when != "domain_plateau":
        return "general"
    others = [chosen.name for chosen in spec.validation if chosen.name != "general"]
    if not others:
        raise ConfigError(
            "validation must hold a set besides general for domain_plateau; got only general in the run spec.",
            hint="add a set of the domain, or name one in of",
        )
    return others[0]


def _intervene(step: int, rule: Rule, of: str, measured: float) -> Intervention:
    amount = rule.amount if rule.amount is not None else DEFAULT_AMOUNTS.get(rule.action)
    return Intervention(
        step=step,
        rule=f"{rule.when} of {of}",
        action=rule.action,
        amount=amount if rule.action in ("raise_replay", "lower_lr", "ewc") else None,
        measured=measured,
        threshold=rule.threshold,
        patience=rule.patience,
    )
