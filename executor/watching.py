"""What a run remembers of its own past and does about it: spikes, the monitor's rules, learnt domain weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cptplan.run_spec import RunSpec
from executor.monitor import Intervention, Watch, ewc_strength, lr_factors, replay_ratios
from executor.reweight import DomainWeights, row_weights
from executor.spikes import Spike, SpikeDetector

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

JUMP = 0.05  # assumed: change of the replay ratio from one step to the next that moves the level of the loss


class Watchers:
    """All that decides from what was measured; its state goes into the checkpoint."""

    def __init__(self, spec: RunSpec, state: Mapping[str, Any]) -> None:
        """Start (an empty state), or go on from a state."""
        self._spec = spec
        self._spikes = SpikeDetector(spec.spikes, state.get("spikes"))
        self._watch = Watch(spec, state.get("monitor"))
        self._ratios = self.replay_ratios()
        self._domains = [source.name for source in spec.sources if source.role == "domain"]
        self.weights: DomainWeights | None = None
        """Of the domain sources, when they are learnt."""
        if spec.reweight is not None:
            self.weights = DomainWeights(spec.reweight, self._domains, state.get("weights"))

    def state(self) -> dict[str, Any]:
        """All that later decisions depend on, as JSON values."""
        learnt = {"weights": self.weights.state()} if self.weights is not None else {}
        return {"spikes": self._spikes.state(), "monitor": self._watch.state(), **learnt}

    def judge(self, step: int, loss: float, grad_norm: float) -> Spike | None:
        """What is wrong with a step that is about to be applied; None if nothing.

        Where the mixture jumps, so does the level of the loss, and what came before says nothing of it.
        """
        if step and abs(self._ratios[step] - self._ratios[step - 1]) > JUMP:
            self._spikes.forget_losses()
        return self._spikes.judge(step, loss, grad_norm)

    def is_left_out(self, step: int) -> bool:
        """Whether a rollback has taken this step out of the run."""
        return self._spikes.is_left_out(step)

    def rolled_back(self, spike: Spike, state: Mapping[str, Any]) -> Watchers:
        """The watchers of a checkpoint that the run went back to, which know why."""
        back = Watchers(self._spec, state)
        self._spikes.after_rollback(spike, state.get("spikes"))
        back._spikes = self._spikes
        return back

    def evaluated(
        self, step: int, losses: Mapping[str, float], tokens: Mapping[str, int], scores: Mapping[str, float] | None
    ) -> list[Intervention]:
        """What the monitor's rules do after an evaluation."""
        new = self._watch.evaluated(step, losses, tokens, scores)
        self._ratios = self.replay_ratios()
        return new

    @property
    def interventions(self) -> list[Intervention]:
        """What the rules have done so far."""
        return self._watch.interventions

    @property
    def stopped(self) -> bool:
        """Whether a rule has ended the run."""
        return self._watch.stopped

    def rates(self) -> FloatArray:
        """Learning rate of every step as things are now, shape (total_steps,)."""
        return self._spec.lr() * lr_factors(self.interventions, self._spec.total_steps)

    def replay_ratios(self) -> FloatArray:
        """Replay ratio of every step as things are now, shape (total_steps,)."""
        return replay_ratios(self._spec.replay_ratios(), self.interventions)

    def anchor_strength(self, step: int) -> float:
        """Of the pull back to the start: the last that a rule has set, or the spec's."""
        own = self._spec.anchor.strength if self._spec.anchor is not None else 0.0
        return ewc_strength(self.interventions, step) or own

    def row_weights(self, sources: IntArray) -> FloatArray:
        """Weights of the sequences of a step by the learnt weights of their sources, shape (sequences,)."""
        assert self.weights is not None
        return row_weights(sources, domain_names=self._domains, weights=self.weights.weights)

    def reweight(self, sources: IntArray, excess: FloatArray) -> None:
        """Learn from a step that was applied.

        Args:      sources: of its sequences, by number (0 is general), shape (n,). excess: summed excess losses (nats)
                   and tokens of each sequence, shape (n, 2).
        """
        assert self.weights is not None
        found = {}
        for number, name in enumerate(self._domains, start=1):
            losses, tokens = excess[sources == number].sum(axis=0)
            if tokens:
                found[name] = float(losses / tokens)
        self.weights.update(found)
