"""What a training run costs: FLOPs, device hours, money, energy, storage. Pure functions of shape, tokens and hardware.

Two counts of FLOPs (flops.py): 6ND, which everyone quotes, and the exact count with attention, grouped heads, experts,
recomputation, adapters, evaluation and synthetic replay. Time comes from measured throughput when there is one, else
from an MFU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cptplan.errors import ConfigError
from cptplan.price.flops import (
    BACKWARD_SHARE,
    attention_span,
    forward_flops,
    training_flops,
    training_flops_6nd,
)
from cptplan.price.hardware import Basis, Hardware, Provenance
from cptplan.price.model_shape import ModelShape

__all__ = [
    "BACKWARD_SHARE",
    "CO2_KG_PER_KWH",
    "JOIN",
    "TrainingCost",
    "attention_span",
    "forward_flops",
    "gpu_hours_6nd",
    "measured_mfu",
    "price_run",
    "tokens_within",
    "training_flops",
    "training_flops_6nd",
]

STATE_BYTES = 12  # per trained parameter of a checkpoint that can be resumed: float32 weights and two AdamW moments
FROZEN_BYTES = 4  # per frozen parameter of it: float32 weights
EXPORT_BYTES = 2  # per parameter of an exported model: bf16
GENERATION_MFU = 0.05  # assumed: sampling in batches with kept keys and values, bound by memory rather than by FLOPs
PUE = 1.2  # assumed: power of the whole data centre over that of the computers; 1.1 is very good, 1.5 common
CO2_KG_PER_KWH = 0.436  # published: world average of 2022, Ember, Global Electricity Review 2023 (April 2023)
SECONDS_PER_HOUR = 3600.0
JOULES_PER_KWH = 3.6e6

JOIN = " + "  # between the sources of a product
_STRENGTH: tuple[Basis, ...] = ("measured", "published", "assumed")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingCost:
    """Cost of one run; provenance says of every figure how it is known."""

    flops_6nd: float
    flops_exact: float
    """With causal attention, recomputation, adapters, evaluation and synthetic replay: what the devices execute."""
    tokens_per_second: float
    """Training tokens of all devices together."""
    mfu: float
    gpu_hours: float
    """Training, evaluation and synthetic replay."""
    generation_gpu_hours: float
    """Of these, writing the synthetic replay."""
    wall_seconds: float
    price_usd: float | None
    """None when the hardware has no price."""
    energy_kwh: float
    co2_kg: float
    checkpoint_bytes: float
    """Resumable checkpoints on disk at a time."""
    export_bytes: float
    """Models kept, bf16."""
    provenance: Mapping[str, Provenance]


def gpu_hours_6nd(num_params: float, tokens: float, flops_per_second: float) -> float:
    """Device hours by the rule of thumb: 6 N D / (FLOP/s of a device x 3600).

    Args:      num_params: N. tokens: D. flops_per_second: what one device achieves, not its peak.
    Reference: Kaplan et al. 2020, arXiv:2001.08361, 2.1.
    """
    _check_positive(num_params=num_params, tokens=tokens, flops_per_second=flops_per_second)
    return 6.0 * num_params * tokens / (flops_per_second * SECONDS_PER_HOUR)


def measured_mfu(
    shape: ModelShape,
    seq_len: int,
    tokens_per_second: float,
    hardware: Hardware,
    num_devices: int = 1,
    *,
    lora_rank: int | None = None,
) -> float:
    """Model FLOPs utilisation: training FLOPs per second over the peak of the devices.

    MFU = tokens/s x 3 x forward(full attention square) / (devices x peak); recomputation does not count as useful.
    Args:      tokens_per_second: training tokens of all devices together.
    Reference: PaLM, arXiv:2204.02311, appendix B; the full square is what published tables (llm-foundry) count.
    """
    useful = training_flops(shape, tokens_per_second, seq_len, causal=False, lora_rank=lora_rank)
    return useful / (num_devices * hardware.peak_flops.value)


def price_run(
    shape: ModelShape,
    tokens: float,
    seq_len: int,
    hardware: Hardware,
    num_devices: int = 1,
    *,
    mfu: float | None = None,
    measured_tokens_per_second: float | None = None,
    speed_source: Provenance | None = None,
    eval_tokens: float = 0.0,
    synthetic_tokens: float = 0.0,
    lora_rank: int | None = None,
    recompute: bool = False,
    kept_checkpoints: int = 2,
    kept_exports: int = 1,
    usd_per_gpu_hour: float | None = None,
    co2_kg_per_kwh: float = CO2_KG_PER_KWH,
    pue: float = PUE,
) -> TrainingCost:
    """Cost of one training run on some devices.

    wall seconds = (tokens + eval_tokens x forward / training FLOPs) / (tokens per second)
    + synthetic_tokens x forward / (devices x peak x GENERATION_MFU); price = device hours x price;
    energy = device hours x TDP x PUE; CO2 = energy x carbon intensity.
    Args:      tokens: training tokens. seq_len: tokens of a sequence. num_devices: devices at work all the time.
               mfu: share of the peak, full attention square counted, recomputation not; None takes the table's.
               measured_tokens_per_second: training tokens of all devices together; wins over mfu. speed_source: how
               that speed is known; None says measured. eval_tokens: validation tokens over the whole run.
               synthetic_tokens: replay tokens that the base model writes on the same devices before the run.
               lora_rank: adapters on all linear layers, None trains all weights. recompute: full activation
               checkpointing; counts in flops_exact only, because an MFU or a measured speed already holds its time.
               kept_checkpoints: resumable ones on disk at a time. kept_exports: bf16 models kept.
               usd_per_gpu_hour: wins over the hardware's price.
    Returns:   TrainingCost; start-up, failures and queueing are not in it.
    Raises:    ConfigError for a number outside its range.
    """
    _check_positive(tokens=tokens, seq_len=seq_len, num_devices=num_devices, pue=pue)
    _check_positive(lora_rank=1 if lora_rank is None else lora_rank)
    _check_not_negative(
        eval_tokens=eval_tokens,
        synthetic_tokens=synthetic_tokens,
        usd_per_gpu_hour=usd_per_gpu_hour,
        co2_kg_per_kwh=co2_kg_per_kwh,
        kept_checkpoints=kept_checkpoints,
        kept_exports=kept_exports,
    )
    speed, how_fast = _speed(
        shape, seq_len, hardware, num_devices, lora_rank, mfu, measured_tokens_per_second, speed_source
    )
    forward = forward_flops(shape, seq_len, causal=False)
    each = training_flops(shape, 1.0, seq_len, causal=False, lora_rank=lora_rank)
    writing = synthetic_tokens * forward / (num_devices * hardware.peak_flops.value * GENERATION_MFU)
    wall_seconds = (tokens + eval_tokens * forward / each) / speed + writing
    how_long = how_fast if not synthetic_tokens else _weakest(how_fast, _GENERATION)
    gpu_hours = wall_seconds * num_devices / SECONDS_PER_HOUR
    hourly, how_dear = _hourly_price(hardware, usd_per_gpu_hour)
    energy_kwh = gpu_hours * SECONDS_PER_HOUR * hardware.tdp_watts.value * pue / JOULES_PER_KWH
    power = Provenance(basis="assumed", source=f"devices draw their TDP, {hardware.tdp_watts.value:g} W; PUE {pue:g}")
    trained = shape.total_params if lora_rank is None else shape.lora_params(lora_rank)
    frozen = 0 if lora_rank is None else shape.total_params
    return TrainingCost(
        flops_6nd=training_flops_6nd(shape, tokens),
        flops_exact=training_flops(
            shape,
            tokens,
            seq_len,
            recompute=recompute,
            lora_rank=lora_rank,
            eval_tokens=eval_tokens,
            synthetic_tokens=synthetic_tokens,
        ),
        tokens_per_second=speed,
        mfu=measured_mfu(shape, seq_len, speed, hardware, num_devices, lora_rank=lora_rank),
        gpu_hours=gpu_hours,
        generation_gpu_hours=writing * num_devices / SECONDS_PER_HOUR,
        wall_seconds=wall_seconds,
        price_usd=None if hourly is None else gpu_hours * hourly,
        energy_kwh=energy_kwh,
        co2_kg=energy_kwh * co2_kg_per_kwh,
        checkpoint_bytes=float(kept_checkpoints * (STATE_BYTES * trained + FROZEN_BYTES * frozen)),
        export_bytes=float(kept_exports * EXPORT_BYTES * shape.total_params),
        provenance={
            **_COUNTED,
            **dict.fromkeys(("tokens_per_second", "mfu"), how_fast),
            **dict.fromkeys(("gpu_hours", "wall_seconds"), how_long),
            "generation_gpu_hours": _GENERATION,
            "price_usd": _weakest(how_long, how_dear),
            "energy_kwh": _weakest(how_long, power),
            "co2_kg": _weakest(how_long, power, _intensity(co2_kg_per_kwh)),
        },
    )


def tokens_within(
    shape: ModelShape,
    seq_len: int,
    hardware: Hardware,
    num_devices: int = 1,
    *,
    flops: float | None = None,
    gpu_hours: float | None = None,
    usd: float | None = None,
    hours: float | None = None,
    mfu: float | None = None,
    measured_tokens_per_second: float | None = None,
    usd_per_gpu_hour: float | None = None,
    eval_share: float = 0.0,
    lora_rank: int | None = None,
) -> float:
    """Training tokens that a budget buys: the inverse of price_run, which is linear in tokens.

    tokens = budget / (what one training token costs, with its share of evaluation)
    Args:      one of flops (exact, of all devices), gpu_hours, usd, or hours of wall clock on num_devices.
               eval_share: validation tokens read for each training token. The others as in price_run.
    Returns:   tokens, not rounded.
    Raises:    ConfigError unless exactly one budget is given, or when usd is asked of hardware without a price.
    """
    budgets = {"flops": flops, "gpu_hours": gpu_hours, "usd": usd, "hours": hours}
    given = {name: value for name, value in budgets.items() if value is not None}
    if len(given) != 1:
        raise ConfigError(
            f"a budget must be one of {', '.join(budgets)}; got {', '.join(given) or 'none'}.", hint="give one of them"
        )
    _check_positive(**given)
    (name, budget), probe = next(iter(given.items())), 1e9
    cost = price_run(
        shape,
        probe,
        seq_len,
        hardware,
        num_devices,
        mfu=mfu,
        measured_tokens_per_second=measured_tokens_per_second,
        eval_tokens=eval_share * probe,
        lora_rank=lora_rank,
        usd_per_gpu_hour=usd_per_gpu_hour,
    )
    costs = {
        "flops": cost.flops_exact,
        "gpu_hours": cost.gpu_hours,
        "usd": cost.price_usd,
        "hours": cost.wall_seconds / SECONDS_PER_HOUR,
    }
    each = costs[name]
    if not each:
        raise ConfigError(
            f"usd must have a price of {hardware.name} to be spent at; got none.", hint="give usd_per_gpu_hour"
        )
    return probe * budget / each


_COUNTED = {
    "flops_6nd": Provenance(basis="published", source="6 N D, arXiv:2001.08361"),
    "flops_exact": Provenance(basis="published", source="matrix sizes; arXiv:2204.02311, appendix B, causal"),
    "checkpoint_bytes": Provenance(
        basis="assumed",
        source=f"{STATE_BYTES} bytes a trained parameter (float32, two AdamW moments), {FROZEN_BYTES} a frozen one",
    ),
    "export_bytes": Provenance(basis="assumed", source=f"{EXPORT_BYTES} bytes a parameter (bf16)"),
}
_GENERATION = Provenance(basis="assumed", source=f"synthetic replay is written at {GENERATION_MFU:.0%} of the peak")


def _speed(
    shape: ModelShape,
    seq_len: int,
    hardware: Hardware,
    num_devices: int,
    lora_rank: int | None,
    mfu: float | None,
    measured: float | None,
    source: Provenance | None,
) -> tuple[float, Provenance]:
    """Training tokens per second of all devices together, and how that is known."""
    if measured is not None:
        _check_positive(measured_tokens_per_second=measured)
        return measured, source or Provenance(basis="measured", source="training tokens per second, measured")
    known = Provenance(basis="assumed", source="MFU as given")
    if mfu is None:
        mfu, known = hardware.expected_mfu(shape.active_params)
        known = known.model_copy(update={"source": f"MFU {mfu:.0%}: {known.source}"})
    if not 0.0 < mfu <= 1.0:
        raise ConfigError(f"mfu must be in (0, 1]; got {mfu:g}.", hint="give a share of the peak such as 0.4")
    useful = training_flops(shape, 1.0, seq_len, causal=False, lora_rank=lora_rank)
    return num_devices * hardware.peak_flops.value * mfu / useful, known


def _intensity(co2_kg_per_kwh: float) -> Provenance:
    """How the carbon intensity of the electricity is known."""
    if co2_kg_per_kwh == CO2_KG_PER_KWH:
        return Provenance(
            basis="published", source=f"{co2_kg_per_kwh:g} kg/kWh, world average of 2022 (Ember, April 2023)"
        )
    return Provenance(basis="assumed", source=f"{co2_kg_per_kwh:g} kg/kWh as given")


def _hourly_price(hardware: Hardware, usd_per_gpu_hour: float | None) -> tuple[float | None, Provenance]:
    """Price of one device for an hour, and how it is known."""
    if usd_per_gpu_hour is not None:
        return usd_per_gpu_hour, Provenance(basis="assumed", source="price as given")
    price = hardware.usd_per_hour
    if price is None:
        return None, Provenance(basis="assumed", source=f"no price known for {hardware.name}")
    when = f", {price.date}" if price.date else ""
    return price.value, Provenance(basis=price.basis, source=f"{price.source}{when}", date=price.date)


def _weakest(*parts: Provenance) -> Provenance:
    """How a product is known: as badly as its worst factor, by all their sources."""
    basis = max((part.basis for part in parts), key=_STRENGTH.index)
    dates = [part.date for part in parts if part.date]
    return Provenance(basis=basis, source=JOIN.join(p.source for p in parts), date=min(dates, default=None))


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not 0.0 < value < float("inf"):
            raise ConfigError(f"{name} must be positive and finite; got {value:g}.", hint=f"give another {name}")


def _check_not_negative(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not 0.0 <= value < float("inf"):
            raise ConfigError(f"{name} must be >= 0 and finite; got {value:g}.", hint=f"give another {name}")
