"""What a training run costs: FLOPs, device hours, money, energy, storage. Pure functions of shape, tokens and hardware.

Two counts of FLOPs: 6ND, which everyone quotes, and the exact count with attention, grouped heads, experts,
recomputation and evaluation. Time comes from measured throughput when there is one, else from an MFU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cptplan.errors import ConfigError
from cptplan.hardware import Basis, Hardware, Provenance
from cptplan.model_shape import ModelShape

BACKWARD_SHARE = 2.0  # published: gradients of inputs and of weights cost one forward each (arXiv:2001.08361, 2.1)
STATE_BYTES = 12  # per parameter of a checkpoint that can be resumed: float32 weights and two AdamW moments
EXPORT_BYTES = 2  # per parameter of an exported model: bf16
PUE = 1.2  # assumed: power of the whole data centre over that of the computers; 1.1 is very good, 1.5 common
SECONDS_PER_HOUR = 3600.0
JOULES_PER_KWH = 3.6e6

_STRENGTH: tuple[Basis, ...] = ("measured", "published", "assumed")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingCost:
    """Cost of one run; provenance says of every figure how it is known."""

    flops_6nd: float
    flops_exact: float
    """With causal attention, recomputation and evaluation: what the devices execute."""
    tokens_per_second: float
    """Training tokens of all devices together."""
    mfu: float
    gpu_hours: float
    wall_seconds: float
    price_usd: float | None
    """None when the hardware has no price."""
    energy_kwh: float
    co2_kg: float | None
    """None without the carbon intensity of the electricity."""
    checkpoint_bytes: float
    provenance: Mapping[str, Provenance]


def attention_span(seq_len: int, *, causal: bool = True, window: int | None = None) -> float:
    """Positions that a token attends to, on average over a sequence.

    Causal: (1 / T) sum_{i <= T} min(i, w). Full: min(T, w).
    Args:      seq_len: T. causal: only positions before and itself. window: w, or None for all.
    Returns:   mean number of positions.
    """
    width = min(seq_len, window) if window else seq_len
    if not causal:
        return float(width)
    return (width * (width + 1) / 2 + (seq_len - width) * width) / seq_len


def forward_flops(shape: ModelShape, seq_len: int, *, causal: bool = True) -> float:
    """FLOPs of one token's forward pass through a model, head included.

    2 x (matrix weights that the token meets) + 4 x span x heads x head_dim for each layer + 2 x hidden x vocabulary.
    Args:      seq_len: tokens of a sequence. causal: count only the half of the attention square that is needed.
    Returns:   FLOPs per token; norms, activation functions, softmax and the optimiser are left out (below 1 %).
    Reference: PaLM, arXiv:2204.02311, appendix B, which counts the full square (causal=False) and no grouped heads.
    """
    head = 2.0 * shape.hidden * shape.vocab_size
    return _layer_flops(shape, seq_len, causal) + head


def _layer_flops(shape: ModelShape, seq_len: int, causal: bool) -> float:
    """FLOPs of one token's forward pass through the layers alone."""
    near = attention_span(seq_len, causal=causal, window=shape.sliding_window)
    far = attention_span(seq_len, causal=causal)
    spans = shape.num_sliding_layers * near + (shape.num_layers - shape.num_sliding_layers) * far
    return 2.0 * shape.matrix_weights(shape.experts_per_token) + 4.0 * spans * shape.num_heads * shape.head_dim


def training_flops_6nd(shape: ModelShape, tokens: float) -> float:
    """FLOPs of training by the rule 6 N D.

    N = active parameters without token and position tables, with the head once; D = training tokens.
    Reference: Kaplan et al. 2020, arXiv:2001.08361, 2.1; deviation: the head counts, since it is multiplied.
    """
    num_multiplied = shape.active_params - shape.embedding_params + shape.vocab_size * shape.hidden
    return 6.0 * num_multiplied * tokens


def training_flops(
    shape: ModelShape,
    tokens: float,
    seq_len: int,
    *,
    causal: bool = True,
    recompute: bool = False,
    eval_tokens: float = 0.0,
) -> float:
    """FLOPs of a training run, exact up to norms and element-wise work.

    tokens x (3 x forward + layers' forward once more if recomputed) + eval_tokens x forward
    Args:      tokens: training tokens. seq_len: tokens of a sequence. causal: as in forward_flops. recompute: full
               activation checkpointing, which runs the layers (not the head) a second time. eval_tokens: validation
               tokens over the whole run.
    Returns:   FLOPs of all devices together.
    """
    forward = forward_flops(shape, seq_len, causal=causal)
    again = _layer_flops(shape, seq_len, causal) if recompute else 0.0
    return tokens * ((1.0 + BACKWARD_SHARE) * forward + again) + eval_tokens * forward


def measured_mfu(
    shape: ModelShape, seq_len: int, tokens_per_second: float, hardware: Hardware, num_devices: int = 1
) -> float:
    """Model FLOPs utilisation: training FLOPs per second over the peak of the devices.

    MFU = tokens/s x 3 x forward(full attention square) / (devices x peak); recomputation does not count as useful.
    Args:      tokens_per_second: training tokens of all devices together.
    Reference: PaLM, arXiv:2204.02311, appendix B; the full square is what published tables (llm-foundry) count.
    """
    useful = training_flops(shape, tokens_per_second, seq_len, causal=False)
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
    eval_tokens: float = 0.0,
    recompute: bool = False,
    kept_checkpoints: int = 2,
    kept_exports: int = 1,
    usd_per_gpu_hour: float | None = None,
    co2_kg_per_kwh: float | None = None,
    pue: float = PUE,
) -> TrainingCost:
    """Cost of one training run on some devices.

    device seconds = devices x (tokens + eval_tokens / 3) / (tokens per second), since evaluation runs forward only;
    price = device hours x price; energy = device hours x TDP x PUE.
    Args:      tokens: training tokens. seq_len: tokens of a sequence. num_devices: devices at work all the time.
               mfu: share of the peak, full attention square counted, recomputation not; None takes the table's.
               measured_tokens_per_second: of all devices together; wins over mfu. eval_tokens: validation tokens over
               the whole run. recompute: full activation checkpointing; counts in flops_exact only, because an MFU or
               a measured speed already holds its time. kept_checkpoints: resumable ones on disk at a time.
               kept_exports: bf16 models kept. usd_per_gpu_hour: wins over the hardware's price.
    Returns:   TrainingCost; start-up, failures and queueing are not in it.
    Raises:    ConfigError for a number outside its range.
    """
    _check_positive(tokens=tokens, seq_len=seq_len, num_devices=num_devices, pue=pue)
    _check_not_negative(eval_tokens=eval_tokens, usd_per_gpu_hour=usd_per_gpu_hour, co2_kg_per_kwh=co2_kg_per_kwh)
    speed, how_fast = _speed(shape, seq_len, hardware, num_devices, mfu, measured_tokens_per_second)
    wall_seconds = (tokens + eval_tokens / (1.0 + BACKWARD_SHARE)) / speed
    gpu_hours = wall_seconds * num_devices / SECONDS_PER_HOUR
    hourly, how_dear = _hourly_price(hardware, usd_per_gpu_hour)
    energy_kwh = gpu_hours * SECONDS_PER_HOUR * hardware.tdp_watts.value * pue / JOULES_PER_KWH
    power = Provenance(basis="assumed", source=f"devices draw their TDP ({hardware.tdp_watts.source}), PUE {pue:g}")
    energy = _weakest(how_fast, power)
    given = Provenance(basis="assumed", source="carbon intensity as given" if co2_kg_per_kwh is not None else "none")
    return TrainingCost(
        flops_6nd=training_flops_6nd(shape, tokens),
        flops_exact=training_flops(shape, tokens, seq_len, recompute=recompute, eval_tokens=eval_tokens),
        tokens_per_second=speed,
        mfu=measured_mfu(shape, seq_len, speed, hardware, num_devices),
        gpu_hours=gpu_hours,
        wall_seconds=wall_seconds,
        price_usd=None if hourly is None else gpu_hours * hourly,
        energy_kwh=energy_kwh,
        co2_kg=None if co2_kg_per_kwh is None else energy_kwh * co2_kg_per_kwh,
        checkpoint_bytes=float(shape.total_params * (STATE_BYTES * kept_checkpoints + EXPORT_BYTES * kept_exports)),
        provenance={
            "flops_6nd": Provenance(basis="published", source="6 N D, arXiv:2001.08361"),
            "flops_exact": Provenance(basis="published", source="matrix sizes; arXiv:2204.02311, appendix B, causal"),
            "tokens_per_second": how_fast,
            "mfu": how_fast,
            "gpu_hours": how_fast,
            "wall_seconds": how_fast,
            "price_usd": _weakest(how_fast, how_dear),
            "energy_kwh": energy,
            "co2_kg": _weakest(energy, given),
            "checkpoint_bytes": Provenance(
                basis="assumed",
                source=f"{kept_checkpoints} x {STATE_BYTES} bytes a parameter (float32 weights, AdamW moments) "
                f"and {kept_exports} x {EXPORT_BYTES} (bf16 export)",
            ),
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


def _speed(
    shape: ModelShape,
    seq_len: int,
    hardware: Hardware,
    num_devices: int,
    mfu: float | None,
    measured_tokens_per_second: float | None,
) -> tuple[float, Provenance]:
    """Training tokens per second of all devices together, and how that is known."""
    if measured_tokens_per_second is not None:
        _check_positive(measured_tokens_per_second=measured_tokens_per_second)
        return measured_tokens_per_second, Provenance(basis="measured", source="training tokens per second, measured")
    known = Provenance(basis="assumed", source="mfu as given")
    if mfu is None:
        mfu, known = hardware.expected_mfu(shape.active_params)
        known = known.model_copy(update={"source": f"mfu {mfu:.2f}: {known.source}"})
    if not 0.0 < mfu <= 1.0:
        raise ConfigError(f"mfu must be in (0, 1]; got {mfu:g}.", hint="give a share of the peak such as 0.4")
    useful = training_flops(shape, 1.0, seq_len, causal=False)
    return num_devices * hardware.peak_flops.value * mfu / useful, known


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
    return Provenance(basis=basis, source="; ".join(p.source for p in parts), date=min(dates, default=None))


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not 0.0 < value < float("inf"):
            raise ConfigError(f"{name} must be positive and finite; got {value:g}.", hint=f"give another {name}")


def _check_not_negative(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not 0.0 <= value < float("inf"):
            raise ConfigError(f"{name} must be >= 0 and finite; got {value:g}.", hint=f"give another {name}")
