"""Tokens that each amount of the budget pays for (FLOPs, device hours, money, wall clock), and whether a step fits.

Speed is measured when a pilot ran on the budget's hardware, else published or assumed utilisation (cptplan.price.cost).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cptplan.config import Project
from cptplan.errors import InfeasiblePlanError
from cptplan.files import read_json
from cptplan.pilots.design import default_eval_tokens
from cptplan.price.cost import TrainingCost, price_run, tokens_within
from cptplan.price.hardware import Basis, Hardware, find_hardware
from cptplan.price.memory import USABLE_SHARE, estimate_memory, smallest_num_devices
from cptplan.price.model_shape import ModelShape, read_model_shape

COST_KEYS = {
    "flops": "flops_exact",
    "gpu_hours": "gpu_hours",
    "usd": "price_usd",
    "deadline_hours": "wall_seconds",
}
"""Amounts of the budget that take a price, by the figure of TrainingCost that they limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetLimit:
    """One amount of the budget and the tokens that it pays for."""

    name: str
    """Key in the project file, such as budget.usd."""
    amount: float
    tokens: float
    basis: Basis
    source: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """What a training token costs on the budget's hardware."""

    shape: ModelShape
    hardware: Hardware
    num_devices: int
    tokens_per_second: float | None
    """Measured, of all devices together; None: from the hardware's utilisation."""


def budget_rates(project: Project, runs_dir: Path | None = None) -> Rates:
    """Model, hardware and speed of the final run.

    Args:      runs_dir: training runs, of which pilots on the same hardware tell the speed.
    Raises:    ModelError when the base model is not on this machine; ConfigError for unknown hardware.
    """
    hardware, devices = find_hardware(project.budget.hardware), project.budget.num_devices
    speed = device_speed(hardware, runs_dir) if runs_dir is not None else None
    return Rates(
        shape=read_model_shape(Path(project.model.starts[-1].path)),
        hardware=hardware,
        num_devices=devices,
        tokens_per_second=None if speed is None else speed * devices,
    )


def known_rates(project: Project, runs_dir: Path | None = None) -> Rates | None:
    """As budget_rates; None when the base model is not on this machine."""
    known = (Path(project.model.starts[-1].path) / "config.json").exists()
    return budget_rates(project, runs_dir) if known else None


def device_speed(hardware: Hardware, runs_dir: Path) -> float | None:
    """Training tokens per second of one device, from the pilots that ran on such devices; None when none did."""
    results = [read_json(path) for path in sorted(runs_dir.glob("pilot-*/result.json"))]
    ran = [r for r in results if _same_device(str(r.get("device", "")), hardware)]
    seconds = sum(r["train_seconds"] * r.get("num_processes", 1) for r in ran)
    return sum(r["tokens"] for r in ran) / seconds if seconds > 0 else None


def _same_device(name: str, hardware: Hardware) -> bool:
    """Whether a device as its driver names it (NVIDIA A100-SXM4-80GB) is of this kind (a100-80gb)."""
    if hardware.kind == "cpu":
        return name == "cpu"
    words = re.findall(r"[a-z0-9]+", name.lower())
    family, *details = hardware.name.lower().split("-")
    memory = [part for part in details if part.endswith("gb")]
    variants = [part for part in ("pcie", "nvl") if (part in words) != (part in details)]
    return family in words and all(part in words for part in memory) and not variants


def budget_limits(project: Project, runs_dir: Path | None = None) -> tuple[BudgetLimit, ...]:
    """Tokens that each amount given pays for, the tightest first.

    Raises:    ConfigError when an amount needs a price that is not known; ModelError when it needs the base model and
               that is not on this machine.
    """
    amounts = project.budget.amounts
    found = []
    if "tokens" in amounts:
        tokens = amounts["tokens"]
        found.append(
            BudgetLimit(name="budget.tokens", amount=tokens, tokens=tokens, basis="assumed", source="as given")
        )
    priced = {key: amounts[key] for key in COST_KEYS if key in amounts}
    if priced:
        rates = budget_rates(project, runs_dir)
        found += [_limit(project, rates, key, amount) for key, amount in priced.items()]
    return tuple(sorted(found, key=lambda limit: limit.tokens))


def _limit(project: Project, rates: Rates, key: str, amount: float) -> BudgetLimit:
    tokens, eval_share = 0.0, 0.0
    for _ in range(3):  # evaluation has a fixed number of points, so its share falls with the length
        tokens = tokens_within(
            rates.shape,
            project.data.seq_len,
            rates.hardware,
            rates.num_devices,
            measured_tokens_per_second=rates.tokens_per_second,
            eval_share=eval_share,
            flops=amount if key == "flops" else None,
            gpu_hours=amount if key == "gpu_hours" else None,
            usd=amount if key == "usd" else None,
            hours=amount if key == "deadline_hours" else None,
        )
        steps = max(int(tokens // project.pilot.batch_tokens), 1)
        eval_share = default_eval_tokens(project, steps) / max(tokens, 1.0)
    known = price(project, rates, tokens).provenance[COST_KEYS[key]]
    return BudgetLimit(name=f"budget.{key}", amount=amount, tokens=tokens, basis=known.basis, source=known.source)


def price(project: Project, rates: Rates, tokens: float) -> TrainingCost:
    """The cost of a final run of so many training tokens, its evaluation included."""
    steps = max(int(tokens // project.pilot.batch_tokens), 1)
    return price_run(
        rates.shape,
        max(tokens, 1.0),
        project.data.seq_len,
        rates.hardware,
        rates.num_devices,
        measured_tokens_per_second=rates.tokens_per_second,
        eval_tokens=default_eval_tokens(project, steps),
    )


def budget_tokens(project: Project, runs_dir: Path | None = None) -> int:
    """Tokens that the whole budget pays for: those of its tightest amount."""
    return int(budget_limits(project, runs_dir)[0].tokens)


def check_memory(project: Project, rates: Rates) -> Iterable[str]:
    """Raise InfeasiblePlanError unless a training step fits the devices; what has to be switched on for it.

    Raises:    InfeasiblePlanError with the fewest devices on which it fits.
    """
    room = USABLE_SHARE * rates.hardware.memory_bytes.value
    batch, precision = project.pilot.micro_batch_tokens, project.pilot.precision

    def needed(*, checkpointing: bool) -> float:
        return estimate_memory(
            rates.shape,
            seq_len=project.data.seq_len,
            micro_batch_tokens=batch,
            num_devices=rates.num_devices,
            precision=precision,
            activation_checkpointing=checkpointing,
        ).total_bytes

    if needed(checkpointing=False) <= room:
        return ()
    if needed(checkpointing=True) <= room:
        return ("A training step fits the devices only with activation checkpointing: about a third more FLOPs.",)
    fewest = smallest_num_devices(
        rates.shape,
        rates.hardware,
        seq_len=project.data.seq_len,
        micro_batch_tokens=batch,
        precision=precision,
        activation_checkpointing=True,
    )
    raise InfeasiblePlanError(
        f"memory must hold a training step, {needed(checkpointing=True) / 1e9:.1f} GB on each device; got "
        f"{rates.num_devices} x {rates.hardware.name} with {room / 1e9:.1f} GB usable.",
        hint=f"budget.num_devices={fewest} is the least that fits",
    )
