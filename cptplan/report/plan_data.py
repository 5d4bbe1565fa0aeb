"""What a report says of the plan: its choices, its account of itself, and the maps over other plans. Plain numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict

from cptplan.errors import ConfigError

Numbers = tuple[float, ...]

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class SurfacePoint:
    """A run on the response surface."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    label: str
    peak_lr: float
    replay_ratio: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Surface:
    """Predicted objective over peak learning rate and replay ratio, all else as in the chosen plan."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    peak_lrs: Numbers
    replay_ratios: Numbers
    objective: tuple[tuple[float | None, ...], ...]
    """Shape (peak_lrs, replay_ratios); None where no plan is allowed or predicted."""
    chosen: SurfacePoint | None = None
    rule_of_thumb: SurfacePoint | None = None
    pilots: tuple[SurfacePoint, ...] = ()
    note: str = ""
    """What is held fixed."""
    supported: tuple[float, float, float, float] | None = None
    """Lowest and highest rate and replay ratio that the pilots span; None where the surface goes no further."""

    def __post_init__(self) -> None:
        shape = (len(self.peak_lrs), len(self.replay_ratios))
        if shape[0] < 2 or shape[1] < 2 or min(self.peak_lrs) <= 0:
            raise ConfigError(f"surface must have at least 2 x 2 cells and rates > 0; got {shape} in the report data.")
        if len(self.objective) != shape[0] or any(len(row) != shape[1] for row in self.objective):
            raise ConfigError(f"objective must have the shape {shape} of the surface; got another in the report data.")


@dataclass(frozen=True, kw_only=True, slots=True)
class ParetoPoint:
    """One plan by its final losses, nats per token, with intervals."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    peak_lr: float
    replay_ratio: str
    """In words, because it may change over the run."""
    total_steps: int
    decay: str = ""
    start: str = ""
    cost: str = ""
    """Tokens, and the price where it is known."""
    general: float
    general_low: float
    general_high: float
    domain: float
    domain_low: float
    domain_high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ParetoLine:
    """Plans of one cost, or within one, of which none is better than another on both losses."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    label: str
    points: tuple[ParetoPoint, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ParetoFront:
    """The front of general loss, domain loss and cost, and the two plans of the report."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    lines: tuple[ParetoLine, ...]
    """Cheapest first."""
    chosen: ParetoPoint | None = None
    rule_of_thumb: ParetoPoint | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanRow:
    """One choice of the plan beside the same choice of the rule of thumb, in words."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    label: str
    chosen: str
    rule_of_thumb: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class LimitRow:
    """One limit on the chosen run and how much of it the run uses."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: str
    used: str
    allowed: str
    unit: str
    share: float
    """Used over allowed."""
    binding: bool
    known_by: str = ""
    """How the price behind it is known; empty where there is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KnobRow:
    """What a fifth less or more of one knob costs, nats of the objective; None outside the searched range."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    knob: str
    value: str
    lower: float | None = None
    higher: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class InsteadRow:
    """Another run, and its objective less that of the chosen one: positive is worse."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: str
    peak_lr: float
    replay_ratio: str
    steps: int
    decay: str
    start: str
    difference: float
    low: float
    high: float
    source: str = ""

    @property
    def verdict(self) -> str:
        """Whether it is better, worse, or not to be told apart."""
        return "worse" if self.low > 0 else "better" if self.high < 0 else "cannot tell"


@dataclass(frozen=True, kw_only=True, slots=True)
class NextPilot:
    """The one more pilot that would help the decision most."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    choices: tuple[PlanRow, ...]
    value: float
    """Expected reduction of the regret, nats of the objective."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """What the plan says of itself."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    binding: tuple[str, ...] = ()
    """What holds it back."""
    limits: tuple[LimitRow, ...] = ()
    chance: float | None = None
    """Probability that the limits on general loss hold; None without one."""
    knobs: tuple[KnobRow, ...] = ()
    instead: tuple[InsteadRow, ...] = ()
    regret: float | None = None
    """Expected loss against the best plan, were the law known perfectly; nats of the objective."""
    next_pilot: NextPilot | None = None
    extrapolations: tuple[str, ...] = ()
    """Where it lies outside what the pilots span."""
    assumptions: tuple[str, ...] = ()
    """What no pilot showed."""
