"""What a run may do besides training on its mixture: adapters, a pull back to the start, watching, reweighting, tasks.

All of it is optional in a RunSpec. What moves the loss is a pure function of the spec, the step and what the run has
measured before that step, so that a run which was stopped and resumed decides the same again.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from cptplan.contract import Contract
from cptplan.errors import ConfigError

Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]


class Anchor(Contract):
    """A pull back to the weights that the run started from; its gradient is added before clipping.

    The penalty is strength / 2 x sum of F (theta - theta_0)^2, in nats per token: F is 1 for l2, and for ewc the
    diagonal Fisher information of the general source at the start (Kirkpatrick et al. 2017, arXiv:1612.00796).
    """

    kind: Literal["l2", "ewc"]
    strength: PositiveFloat
    fisher_sequences: Positive = 128
    """Sequences of the general source that the Fisher information is measured on."""


class Lora(Contract):
    """Low-rank adapters in place of full weights (arXiv:2106.09685); exports have them merged."""

    rank: Positive
    alpha: PositiveFloat
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = ("all-linear",)
    """Ends of module names, such as q_proj; "all-linear" takes every linear layer but the output layer."""


class Reweight(Contract):
    """Learn the weights of the domain sources while training, as a DoReMi proxy does (arXiv:2305.10429)."""

    reference: str
    """Model directory of the reference, trained with the weights of the sources."""
    step_size: PositiveFloat = 1.0
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 1e-3
    """Share of the uniform weights that is mixed in after every update."""


class Spikes(Contract):
    """What to do about a step whose loss or gradient is not finite, or whose loss stands out of the recent past."""

    policy: Literal["skip", "rollback", "stop"]
    """skip: do not apply the step; rollback: go to the last checkpoint and leave the step out; stop: end the run."""
    z: PositiveFloat = 8.0
    """Robust z-score (from the median and the median absolute deviation of the recent losses) that counts as one."""
    window: Annotated[int, Field(ge=8)] = 64
    """Steps of the recent past; none is judged before as many were seen."""
    most: Positive = 10
    """Spikes after which the run is stopped whatever the policy."""


class Rule(Contract):
    """One thing that the monitor looks at after every evaluation, and what it does about it."""

    when: Literal[
        "general_increase",
        "general_increase_relative",
        "forgetting_ratio",
        "domain_plateau",
        "mixing_error",
        "task_drop",
    ]
    """general_increase: nats above step 0; general_increase_relative: as a share of the loss at step 0;
    forgetting_ratio: perplexity over that at step 0; domain_plateau: the set's loss fell by less than the threshold
    (nats) over the last `patience` evaluations; mixing_error: measured against planned share of a source's tokens;
    task_drop: score of a task below that at step 0."""
    threshold: Annotated[float, Field(ge=0)]
    of: str | None = None
    """Validation set (default: general, or the first other one for domain_plateau) or task that is meant."""
    patience: Positive = 1
    """Evaluations in a row that must say so."""
    action: Literal["warn", "stop", "raise_replay", "lower_lr", "ewc"] = "warn"
    amount: PositiveFloat | None = None
    """raise_replay: share added (0.1); lower_lr: factor of all later rates (0.5); ewc: strength of the pull."""
    times: Positive = 1
    """How often the action may be taken; warnings are always said."""

    @model_validator(mode="after")
    def _check_amount(self) -> Self:
        if self.action == "ewc" and self.amount is None:
            raise ConfigError("amount must be given for action ewc; it is missing.", hint="say the strength")
        if self.action in ("raise_replay", "lower_lr") and self.amount is not None and self.amount >= 1:
            raise ConfigError(f"amount must be below 1 for {self.action}; got {self.amount:g}.", hint="such as 0.1")
        if self.when == "task_drop" and self.of is None:
            raise ConfigError("of must name a task for task_drop; it is missing.", hint="add of")
        return self


class Monitor(Contract):
    """Rules that are looked at after every evaluation, in this order."""

    rules: Annotated[tuple[Rule, ...], Field(min_length=1)]


class Tasks(Contract):
    """Benchmarks of lm-eval, run at milestones."""

    names: Annotated[tuple[str, ...], Field(min_length=1)]
    steps: tuple[NonNegative, ...] | None = None
    """Steps after which they run; None: 0, keep_steps and the last."""
    num_fewshot: NonNegative | None = None
    limit: Positive | None = None
    """Examples of each task; all when absent."""
    include_path: str | None = None
    """Directory of task files of one's own."""


class Accounting(Contract):
    """What the log needs to say how well the devices are used and what the run has cost so far."""

    peak_flops: PositiveFloat | None = None
    """Of one device in the run's precision, FLOP/s; without it no MFU is logged."""
    flops_per_token: PositiveFloat | None = None
    """Forward and backward; None takes 6 x num_params (all parameters of a pass but the token embedding)."""
    usd_per_device_hour: Annotated[float, Field(ge=0)] | None = None
