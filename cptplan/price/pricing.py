"""What a plan or any training run costs, as rows that say how each number is known."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cptplan.errors import ConfigError, InfeasiblePlanError
from cptplan.files import read_json
from cptplan.price.cost import CO2_KG_PER_KWH, JOIN, TrainingCost, gpu_hours_6nd, price_run
from cptplan.price.hardware import Basis, Hardware, find_hardware
from cptplan.price.memory import USABLE_SHARE, Precision, estimate_memory, smallest_num_devices
from cptplan.price.model_lookup import NamedShape, find_shape, parse_size
from cptplan.price.throughput import measured_speed

if TYPE_CHECKING:
    from cptplan.config import Project
    from cptplan.workspace import Workspace

COLUMNS = ("what", "value", "unit", "known by")
NODE_DEVICES = 8  # assumed: the common server, which HSDP shards within

Sharding = Literal["ddp", "fsdp", "hsdp"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """How a run is trained and paid for."""

    num_devices: int = 8
    seq_len: int = 4096
    micro_batch_tokens: int | None = None
    """Of one forward pass on one device; None is one sequence."""
    strategy: Sharding = "fsdp"
    precision: Precision = "bf16"
    activation_checkpointing: bool = False
    lora_rank: int | None = None
    eval_tokens: float = 0.0
    synthetic_tokens: float = 0.0
    mfu: float | None = None
    flops_per_second: float | None = None
    """Achieved by one device; wins over mfu."""
    tokens_per_second: float | None = None
    """Measured, of all devices together; wins over both."""
    usd_per_hour: float | None = None
    co2_kg_per_kwh: float | None = None
    """Carbon intensity of the electricity; None is the world's average."""
    kept_checkpoints: int = 2
    kept_exports: int = 1
    hardware_file: Path | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PriceRow:
    """One number of a price."""

    what: str
    value: float | None
    """None when there is none, such as a number of devices that would be enough."""
    text: str
    unit: str
    basis: Basis
    source: str
    date: datetime.date | None = None

    def cells(self) -> tuple[str, ...]:
        """The row as a table shows it."""
        return self.what, self.text, self.unit, self.basis

    def to_json(self) -> dict[str, str | float | None]:
        """The row for --json."""
        date = None if self.date is None else self.date.isoformat()
        return {
            "what": self.what,
            "value": self.value,
            "unit": self.unit,
            "basis": self.basis,
            "source": self.source,
            "date": date,
        }


def source_lines(rows: Sequence[PriceRow]) -> list[str]:
    """Where the numbers of a table are from: a line for each source, with what it enters and its date."""
    uses: dict[str, list[int]] = {}
    dates: dict[str, datetime.date | None] = {}
    for number, row in enumerate(rows):
        parts = row.source.split(JOIN)
        for part in parts:
            uses.setdefault(part, []).append(number)
        if len(parts) == 1:
            dates.setdefault(row.source, row.date)
    return [
        f"{_listed(rows, numbers)}: {part}{f' ({date})' if (date := dates.get(part)) else ''}"
        for part, numbers in uses.items()
    ]


def _listed(rows: Sequence[PriceRow], numbers: Sequence[int]) -> str:
    """Names of rows: the first and the last of a run of many, else all."""
    if len(numbers) > 3 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{rows[numbers[0]].what} to {rows[numbers[-1]].what}"
    return ", ".join(rows[number].what for number in numbers)


def parse_tokens(text: str | None, option: str = "--tokens") -> float:
    """A number of tokens such as 50B or 1.5e9.

    Raises:    ConfigError if it is missing or no number.
    """
    tokens = parse_size(text or "")
    if not tokens:
        raise ConfigError(f"{option} must be a number of tokens; got {text!r}.", hint="such as 50B or 2e9")
    return tokens


def price_model(model: str, tokens: float, gpu: str, terms: Terms) -> list[PriceRow]:
    """Price a run of any model (find_shape) on one kind of accelerator."""
    found = find_shape(model)
    hardware = find_hardware(gpu, terms.hardware_file)
    return _rows(found, tokens, hardware, terms, None)


def price_plan(
    project: Project,
    workspace: Workspace,
    *,
    gpu: str | None = None,
    num_devices: int | None = None,
    terms: Terms | None = None,
) -> list[PriceRow]:
    """Price the newest plan: on this machine as measured by the pilots, and on the project's accelerator.

    Args:      gpu, num_devices: other than the budget's. terms: the rest; sequence, micro batch, precision and
               evaluation are the project's.
    """
    from cptplan.pilots.design import default_eval_tokens  # here: a price without a plan needs none of what they import
    from cptplan.planning.plan import read_plan

    plan = read_plan(workspace.latest("plans") / "plan.json")
    start = next(s for s in project.model.starts if s.name == plan.chosen.start)
    tokens = float(plan.chosen.total_steps * plan.batch_tokens)
    terms = replace(
        terms or Terms(),
        num_devices=num_devices or project.budget.num_devices,
        seq_len=project.data.seq_len,
        micro_batch_tokens=project.pilot.micro_batch_tokens,
        precision=project.pilot.precision,
        eval_tokens=default_eval_tokens(project, plan.chosen.total_steps),
    )
    found = find_shape(start.path)
    hardware = find_hardware(gpu or project.budget.hardware, terms.hardware_file)
    rows = _rows(found, tokens, hardware, terms, workspace.runs)
    return [*rows, *_here_rows(workspace, tokens)]


def _rows(found: NamedShape, tokens: float, hardware: Hardware, terms: Terms, runs_dir: Path | None) -> list[PriceRow]:
    """All rows of a price, what the model is first."""
    speed, source = terms.tokens_per_second, None
    given = speed or terms.mfu or terms.flops_per_second
    if not given and runs_dir is not None:
        measured = measured_speed(runs_dir, hardware, found.shape.total_params)
        speed, source = measured.on(terms.num_devices) if measured else (None, None)
    mfu = terms.mfu if terms.flops_per_second is None else terms.flops_per_second / hardware.peak_flops.value
    cost = price_run(
        found.shape,
        tokens,
        terms.seq_len,
        hardware,
        terms.num_devices,
        mfu=mfu,
        measured_tokens_per_second=speed,
        speed_source=source,
        eval_tokens=terms.eval_tokens,
        synthetic_tokens=terms.synthetic_tokens,
        lora_rank=terms.lora_rank,
        recompute=terms.activation_checkpointing,
        kept_checkpoints=terms.kept_checkpoints,
        kept_exports=terms.kept_exports,
        usd_per_gpu_hour=terms.usd_per_hour,
        co2_kg_per_kwh=CO2_KG_PER_KWH if terms.co2_kg_per_kwh is None else terms.co2_kg_per_kwh,
    )
    where = f"{terms.num_devices} x {hardware.name}"
    return [
        _plain("accelerators", terms.num_devices, where, "", "assumed", f"{hardware.description}, as asked for"),
        *_model_rows(found, terms),
        *_cost_rows(found, tokens, cost, hardware, terms),
        *_memory_rows(found, hardware, terms),
    ]


def _model_rows(found: NamedShape, terms: Terms) -> Iterable[PriceRow]:
    shape = found.shape
    basis: Basis = "assumed" if parse_size(found.name) else "published"
    yield _plain("parameters", shape.total_params, _count(shape.total_params), "", basis, found.source)
    if shape.active_params != shape.total_params:
        yield _plain("active parameters", shape.active_params, _count(shape.active_params), "", basis, found.source)
    if terms.lora_rank is not None:
        adapters = shape.lora_params(terms.lora_rank)
        source = "adapters on all linear layers"
        yield _plain(f"trained parameters, LoRA rank {terms.lora_rank}", adapters, _count(adapters), "", basis, source)


def _cost_rows(
    found: NamedShape, tokens: float, cost: TrainingCost, hardware: Hardware, terms: Terms
) -> Iterable[PriceRow]:
    def row(key: str, what: str, value: float, text: str, unit: str) -> PriceRow:
        known = cost.provenance[key]
        return _plain(what, value, text, unit, known.basis, known.source, known.date)

    yield row("flops_6nd", "FLOPs, 6ND", cost.flops_6nd, f"{cost.flops_6nd:.3g}", "FLOP")
    yield row("flops_exact", "FLOPs, exact", cost.flops_exact, f"{cost.flops_exact:.3g}", "FLOP")
    yield row("tokens_per_second", "speed", cost.tokens_per_second, _short(cost.tokens_per_second), "tokens/s")
    yield row("mfu", "MFU", cost.mfu, f"{cost.mfu:.1%}", "of peak")
    if terms.lora_rank is None:
        rule = gpu_hours_6nd(cost.flops_6nd / 6.0 / tokens, tokens, cost.mfu * hardware.peak_flops.value)
        yield row("mfu", "device hours by 6ND at that MFU", rule, _short(rule), "GPU-hours")
    yield row("gpu_hours", "device hours", cost.gpu_hours, _short(cost.gpu_hours), "GPU-hours")
    if terms.synthetic_tokens:
        hours = cost.generation_gpu_hours
        yield row("generation_gpu_hours", "of these, writing synthetic replay", hours, _short(hours), "GPU-hours")
    hours = cost.wall_seconds / 3600
    yield row("wall_seconds", "wall clock", hours, _short(hours), "hours")
    if cost.price_usd is not None:
        yield row("price_usd", "price", cost.price_usd, _short(cost.price_usd), "USD")
    yield row("energy_kwh", "energy", cost.energy_kwh, _short(cost.energy_kwh), "kWh")
    yield row("co2_kg", "CO2", cost.co2_kg, _short(cost.co2_kg), "kg")
    kept = f"resume checkpoints, {terms.kept_checkpoints} kept"
    yield row("checkpoint_bytes", kept, cost.checkpoint_bytes / 1e9, _short(cost.checkpoint_bytes / 1e9), "GB")
    kept = f"exported models, {terms.kept_exports} kept"
    yield row("export_bytes", kept, cost.export_bytes / 1e9, _short(cost.export_bytes / 1e9), "GB")


def _memory_rows(found: NamedShape, hardware: Hardware, terms: Terms) -> Iterable[PriceRow]:
    single = terms.num_devices == 1
    strategy: Literal["ddp", "fsdp"] = "ddp" if single or terms.strategy == "ddp" else "fsdp"
    memory = estimate_memory(
        found.shape,
        seq_len=terms.seq_len,
        micro_batch_tokens=terms.micro_batch_tokens,
        num_devices=terms.num_devices,
        strategy=strategy,
        precision=terms.precision,
        activation_checkpointing=terms.activation_checkpointing,
        shard_devices=min(NODE_DEVICES, terms.num_devices) if terms.strategy == "hsdp" else None,
        lora_rank=terms.lora_rank,
    )
    name = "one device alone" if single else terms.strategy.upper()
    recomputed = ", activation checkpointing" if terms.activation_checkpointing else ""
    source = f"formulas of cptplan.price.memory: {name}, {terms.precision}{recomputed}, AdamW"
    parts = {
        "weights": memory.weights_bytes,
        "gradients": memory.gradients_bytes,
        "optimizer": memory.optimizer_bytes,
        "gathered or cast copies": memory.gathered_bytes,
        "activations": memory.activations_bytes,
        "logits and their loss": memory.logits_bytes,
    }
    for what, size in parts.items():
        yield _plain(f"memory: {what}", size / 1e9, _short(size / 1e9), "GB", "assumed", source)
    total, room = memory.total_bytes / 1e9, hardware.memory_bytes.value / 1e9
    fits = "fits" if total <= USABLE_SHARE * room else "does not fit"
    unit = f"GB of {room:.0f}, {fits}"
    yield _plain("memory of one device", total, _short(total), unit, "assumed", source)
    for checkpointing in dict.fromkeys((terms.activation_checkpointing, True)):
        yield _fewest_row(found, hardware, terms, checkpointing=checkpointing)


def _fewest_row(found: NamedShape, hardware: Hardware, terms: Terms, *, checkpointing: bool) -> PriceRow:
    """Smallest number of devices that a step fits on, in powers of two."""
    again = ", activation checkpointing" if checkpointing else ""
    what = "fewest that fit, checkpointing" if checkpointing else "fewest devices that fit"
    source = f"formulas of cptplan.price.memory: FSDP, {USABLE_SHARE:.0%} of the memory filled{again}"
    try:
        fewest = smallest_num_devices(
            found.shape,
            hardware,
            seq_len=terms.seq_len,
            micro_batch_tokens=terms.micro_batch_tokens,
            precision=terms.precision,
            activation_checkpointing=checkpointing,
            lora_rank=terms.lora_rank,
        )
    except InfeasiblePlanError:
        return _plain(what, None, "none", "devices", "assumed", source)
    return _plain(what, float(fewest), str(fewest), "devices", "assumed", source)


def _here_rows(workspace: Workspace, tokens: float) -> Iterable[PriceRow]:
    """Time on this machine from the pilots' measured speeds; nothing when no pilot ran here."""
    results = [read_json(path) for path in sorted(workspace.runs.glob("pilot-*/result.json"))]
    if not results:
        return
    train_speed = sum(r["tokens"] for r in results) / sum(r["train_seconds"] for r in results)
    eval_share = sum(r["eval_seconds"] for r in results) / sum(r["train_seconds"] for r in results)
    seconds = tokens / train_speed * (1.0 + eval_share)
    source = f"mean of {len(results)} pilots that ran here"
    yield _plain("speed here, one run", train_speed, f"{train_speed:,.0f}", "tokens/s", "measured", source)
    yield _plain("time here, with evaluation", seconds, _short(seconds / 60), "minutes", "measured", source)


def _plain(
    what: str,
    value: float | None,
    text: str,
    unit: str,
    basis: Basis,
    source: str,
    date: datetime.date | None = None,
) -> PriceRow:
    return PriceRow(what=what, value=value, text=text, unit=unit, basis=basis, source=source, date=date)


def _count(number: int) -> str:
    """A number of parameters as people say it."""
    for suffix, unit in (("B", 1e9), ("M", 1e6)):
        if number >= unit:
            return f"{number / unit:.3g}{suffix}"
    return f"{number:,}"


def _short(value: float) -> str:
    """Three significant digits, without an exponent for everyday sizes."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 1e-4 or value == 0 else f"{value:.2e}"
