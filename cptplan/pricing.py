"""What a plan or any training run costs, as rows that say how each number is known."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cptplan.config import Project
from cptplan.cost import TrainingCost, price_run
from cptplan.design import default_eval_tokens
from cptplan.errors import ConfigError
from cptplan.files import read_json
from cptplan.hardware import Basis, Hardware, find_hardware
from cptplan.memory import estimate_memory, smallest_num_devices
from cptplan.model_shape import ModelShape, read_model_shape
from cptplan.plan import read_plan
from cptplan.workspace import Workspace

COLUMNS = ("what", "value", "unit", "known by")
SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


@dataclass(frozen=True, kw_only=True, slots=True)
class PriceRow:
    """One number of a price."""

    what: str
    value: float
    text: str
    unit: str
    basis: Basis
    source: str

    def cells(self) -> tuple[str, ...]:
        """The row as a table shows it."""
        return self.what, self.text, self.unit, self.basis

    def to_json(self) -> dict[str, str | float]:
        """The row for --json."""
        return {"what": self.what, "value": self.value, "unit": self.unit, "basis": self.basis, "source": self.source}


def parse_tokens(text: str | None) -> float:
    """A number of tokens such as 50B or 1.5e9.

    Raises:    ConfigError if it is missing or no number.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?(?:[eE]\+?\d+)?)([KMBT]?)", (text or "").strip())
    if match is None or float(match[1]) <= 0:
        raise ConfigError(f"--tokens must be a number of tokens; got {text!r}.", hint="such as 50B or 2e9")
    return float(match[1]) * SUFFIXES[match[2]]


def price_model(model: Path, tokens: float, gpu: str, num_devices: int, seq_len: int) -> list[PriceRow]:
    """Price a run of any model directory on one kind of accelerator."""
    shape, hardware = read_model_shape(model), find_hardware(gpu)
    cost = price_run(shape, tokens, seq_len, hardware, num_devices)
    return [*_flops_rows(cost), *_device_rows(shape, cost, hardware, num_devices, seq_len)]


def price_plan(
    project: Project, workspace: Workspace, *, gpu: str | None = None, num_devices: int | None = None
) -> list[PriceRow]:
    """Price the newest plan: on this machine as measured by the pilots, and on the project's accelerator."""
    plan = read_plan(workspace.latest("plans") / "plan.json")
    start = next(s for s in project.model.starts if s.name == plan.chosen.start)
    shape = read_model_shape(Path(start.path))
    tokens = float(plan.chosen.total_steps * plan.batch_tokens)
    eval_tokens = default_eval_tokens(project, plan.chosen.total_steps)
    seq_len = project.data.seq_len
    hardware, devices = find_hardware(gpu or project.budget.hardware), num_devices or project.budget.num_devices
    there = price_run(shape, tokens, seq_len, hardware, devices, eval_tokens=eval_tokens)
    return [
        *_flops_rows(there),
        *_here_rows(workspace, tokens, eval_tokens),
        *_device_rows(shape, there, hardware, devices, seq_len),
    ]


def _flops_rows(cost: TrainingCost) -> list[PriceRow]:
    return [
        _row("FLOPs, 6ND", cost.flops_6nd, f"{cost.flops_6nd:.3g}", "FLOP", cost, "flops_6nd"),
        _row(
            "FLOPs, exact with attention, head and evaluation",
            cost.flops_exact,
            f"{cost.flops_exact:.3g}",
            "FLOP",
            cost,
            "flops_exact",
        ),
    ]


def _here_rows(workspace: Workspace, tokens: float, eval_tokens: float) -> Iterable[PriceRow]:
    """Time on this machine from the pilots' measured speeds; nothing when no pilot ran here."""
    results = [read_json(path) for path in sorted(workspace.runs.glob("pilot-*/result.json"))]
    if not results:
        return []
    train_speed = sum(r["tokens"] for r in results) / sum(r["train_seconds"] for r in results)
    eval_share = sum(r["eval_seconds"] for r in results) / sum(r["train_seconds"] for r in results)
    seconds = tokens / train_speed * (1.0 + eval_share)
    source = f"mean of {len(results)} pilots that ran here"
    return [
        PriceRow(
            what="speed here, one run",
            value=train_speed,
            text=f"{train_speed:,.0f}",
            unit="tokens/s",
            basis="measured",
            source=source,
        ),
        PriceRow(
            what="time here, with evaluation",
            value=seconds,
            text=_short(seconds / 60),
            unit="minutes",
            basis="measured",
            source=source,
        ),
    ]


def _device_rows(
    shape: ModelShape, cost: TrainingCost, hardware: Hardware, num_devices: int, seq_len: int
) -> list[PriceRow]:
    where = f"on {num_devices} x {hardware.name}"
    memory = estimate_memory(shape, seq_len=seq_len, num_devices=num_devices).total_bytes
    fewest = smallest_num_devices(shape, hardware, seq_len=seq_len)
    rows = [
        _row(f"MFU {where}", cost.mfu, f"{cost.mfu:.1%}", "of peak", cost, "mfu"),
        _row(f"device hours {where}", cost.gpu_hours, _short(cost.gpu_hours), "GPU-hours", cost, "gpu_hours"),
        _row(f"wall clock {where}", cost.wall_seconds, _short(cost.wall_seconds / 3600), "hours", cost, "wall_seconds"),
    ]
    if cost.price_usd is not None:
        rows.append(_row(f"price {where}", cost.price_usd, _short(cost.price_usd), "USD", cost, "price_usd"))
    rows += [
        _row(f"energy {where}", cost.energy_kwh, _short(cost.energy_kwh), "kWh", cost, "energy_kwh"),
        _row(
            "checkpoints on disk",
            cost.checkpoint_bytes,
            _short(cost.checkpoint_bytes / 1e9),
            "GB",
            cost,
            "checkpoint_bytes",
        ),
        PriceRow(
            what="memory of one device",
            value=memory,
            text=_short(memory / 1e9),
            unit="GB",
            basis="assumed",
            source="formulas of cptplan.memory",
        ),
        PriceRow(
            what=f"fewest {hardware.name} that fit",
            value=float(fewest),
            text=str(fewest),
            unit="devices",
            basis="assumed",
            source="formulas of cptplan.memory",
        ),
    ]
    return rows


def _row(what: str, value: float, text: str, unit: str, cost: TrainingCost, key: str) -> PriceRow:
    known = cost.provenance[key]
    return PriceRow(what=what, value=value, text=text, unit=unit, basis=known.basis, source=known.source)


def _short(value: float) -> str:
    """Three significant digits, without an exponent for everyday sizes."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 1e-4 else f"{value:.2e}"
