"""Bytes that training takes on one device, under DDP, FSDP or HSDP, and how many devices a model needs.

An estimate for planning: it adds up what AdamW, the float32 master weights and the bf16 copies hold and what autograd
saves in the transformers layers (compared with the tensors saved on a CPU, and with published peaks of an 8B on H100).
Left out: extra norms of Gemma and of queries and keys, imbalance of experts, CUDA context, NCCL buffers and
fragmentation; a share of the memory is kept free for these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cptplan.errors import ConfigError, InfeasiblePlanError
from cptplan.price.hardware import Hardware
from cptplan.price.model_shape import ModelShape

Strategy = Literal["ddp", "fsdp"]
Precision = Literal["fp32", "bf16"]

MASTER_BYTES = 4  # float32 weights and gradients
MOMENT_BYTES = 8  # two float32 AdamW moments
USABLE_SHARE = 0.9  # assumed: the rest goes to the CUDA context, NCCL buffers and fragmentation
MAX_DEVICES = 4096
ADAPTED_MATRICES = 7  # of a layer: queries, keys, values, output, gate, up, down; each keeps its low-rank output


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryEstimate:
    """Peak bytes on one device, by what holds them."""

    weights_bytes: float
    gradients_bytes: float
    optimizer_bytes: float
    gathered_bytes: float
    """bf16 copies of weights (DDP), or the weights and gradients of layers while they are not sharded (FSDP)."""
    activations_bytes: float
    logits_bytes: float

    @property
    def total_bytes(self) -> float:
        """All of it at once: the moment between forward and backward."""
        state = self.weights_bytes + self.gradients_bytes + self.optimizer_bytes
        return state + self.gathered_bytes + self.activations_bytes + self.logits_bytes


def estimate_memory(
    shape: ModelShape,
    *,
    seq_len: int,
    micro_batch_tokens: int | None = None,
    num_devices: int = 1,
    strategy: Strategy = "fsdp",
    precision: Precision = "bf16",
    activation_checkpointing: bool = False,
    eager_attention: bool = False,
    shard_devices: int | None = None,
    lora_rank: int | None = None,
) -> MemoryEstimate:
    """Bytes on one device at the peak of a training step with AdamW.

    DDP: 4N weights + 4T gradients + 8T moments (+ 2N bf16 copies that autocast keeps); T = trained parameters.
    FSDP: the first three over shard_devices, plus two layers and the tables gathered, and the gradients of one layer
    and of the tables before they are scattered (none with adapters: theirs are small).
    Args:      seq_len: tokens of a sequence. micro_batch_tokens: tokens of one forward pass on one device, None is one
               sequence. strategy: ddp keeps all on each device, fsdp shards all over shard_devices.
               activation_checkpointing: keep only the input of each layer. eager_attention: keep the score matrices.
               shard_devices: devices that hold one copy of the state between them, such as those of a node (HSDP);
               None is num_devices (FSDP full shard). lora_rank: adapters on all linear layers, None trains all
               weights; what is kept for the backward pass is then over-estimated by up to a tenth, since frozen norms
               keep less (measured: as in activation_bytes).
    Raises:    ConfigError for a number below 1, or more shard_devices than num_devices.
    Reference: states as in ZeRO, arXiv:1910.02054, section 3 (there with fp16 gradients).
    """
    tokens = seq_len if micro_batch_tokens is None else micro_batch_tokens
    shards = _shards(strategy, num_devices, shard_devices)
    rank = 1 if lora_rank is None else lora_rank
    for name, number in {"seq_len": seq_len, "micro_batch_tokens": tokens, "lora_rank": rank}.items():
        if number < 1:
            raise ConfigError(f"{name} must be at least 1; got {number}.", hint=f"give another {name}")
    compute_bytes = 2 if precision == "bf16" else 4
    adapters = 0 if lora_rank is None else shape.lora_params(lora_rank)
    params = shape.total_params + adapters
    trained = adapters or params
    tables = shape.embedding_params + shape.final_vectors
    layer = shape.non_embedding_params / shape.num_layers
    if strategy == "ddp":
        gathered = 2.0 * params if precision == "bf16" else 0.0
    else:
        gathered = compute_bytes * (2.0 * layer + tables + (0.0 if adapters else layer + tables))
    residual_bytes = compute_bytes if strategy == "fsdp" else MASTER_BYTES
    kept = activation_bytes(
        shape,
        seq_len,
        compute_bytes=compute_bytes,
        residual_bytes=residual_bytes,
        eager_attention=eager_attention,
    )
    if lora_rank is not None:
        kept += compute_bytes * lora_rank * ADAPTED_MATRICES
    if activation_checkpointing:
        per_token = shape.num_layers * residual_bytes * shape.hidden + kept
    else:
        per_token = shape.num_layers * kept
    return MemoryEstimate(
        weights_bytes=MASTER_BYTES * params / shards,
        gradients_bytes=MASTER_BYTES * trained / shards,
        optimizer_bytes=MOMENT_BYTES * trained / shards,
        gathered_bytes=gathered,
        activations_bytes=tokens * per_token,
        logits_bytes=float(tokens * shape.vocab_size * logit_bytes(precision)),
    )


def _shards(strategy: Strategy, num_devices: int, shard_devices: int | None) -> int:
    """Devices that the state is spread over."""
    if num_devices < 1:
        raise ConfigError(f"num_devices must be at least 1; got {num_devices}.", hint="give another num_devices")
    shards = num_devices if shard_devices is None else shard_devices
    if not 1 <= shards <= num_devices:
        raise ConfigError(
            f"shard_devices must be in [1, num_devices]; got {shards} of {num_devices}.", hint="give another number"
        )
    return 1 if strategy == "ddp" else shards


def activation_bytes(
    shape: ModelShape, seq_len: int, *, compute_bytes: int, residual_bytes: int, eager_attention: bool = False
) -> float:
    """Bytes that one layer's forward pass keeps for its backward pass, for each token.

    two norms: 2 h (4 + r + c), a float32 copy of the input, the normalised and the scaled vector
    (LayerNorm: 2 h (r + c));  attention: c (2 q + 2 k) + 4 a, queries, output, keys, values, log-sum-exp;
    under autocast (r > c) 3 c h more, since queries, keys and values, gate and up cast their inputs one by one;
    MLP: 4 c f gated (gate, its activation, up, product), 2 c f plain, 5 c f in GPT-2, whose GELU keeps its steps;
    eager attention: T a (4 + c) for float32 scores and, in bf16, their copy.
    Args:      compute_bytes: c, bytes of a matrix product's numbers. residual_bytes: r, bytes of the residual stream
               (float32 under autocast alone, as computed under FSDP's mixed precision). seq_len: T.
    Returns:   bytes; h hidden, q and k widths of queries and keys, a heads, f width of the MLP.
    Reference: Korthikanti et al. 2022, arXiv:2205.05198, section 4.1, which has 34 h bytes for 16-bit GPT layers with
               fused norms and dropout. Deviations: unfused RMSNorm in float32, no dropout, grouped heads, gated MLPs,
               experts (measured: what transformers 5.23 saves; a test compares).
    """
    norms = 2 * shape.hidden * (residual_bytes + compute_bytes)
    norms += 2 * shape.hidden * 4 if shape.gated_mlp else 0
    queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    attention = compute_bytes * 2 * (queries + keys) + 4 * shape.num_heads
    if residual_bytes > compute_bytes and not shape.fused_inputs:
        norms += compute_bytes * shape.hidden * 3
    if eager_attention:
        attention += seq_len * shape.num_heads * (4 if compute_bytes == 4 else 4 + compute_bytes)
    kept_widths = 4 if shape.gated_mlp else 5 if shape.model_type == "gpt2" else 2
    widths = shape.num_dense_layers * shape.intermediate
    mixtures = shape.num_layers - shape.num_dense_layers
    widths += mixtures * (shape.experts_per_token * shape.expert_intermediate + shape.shared_expert_intermediate)
    routed = mixtures * shape.experts_per_token * 2 * shape.hidden  # copies of tokens on their way to and from experts
    return norms + attention + compute_bytes * (kept_widths * widths + routed) / shape.num_layers


def logit_bytes(precision: Precision) -> int:
    """Bytes for each logit as the backward pass begins: float32 logits, log-softmax and gradient, and a bf16 copy.

    An assumption about the loss in transformers, which works on float32 logits of all tokens at once; a fused
    cross-entropy needs next to nothing.
    """
    return 3 * 4 + (2 if precision == "bf16" else 0)


def smallest_num_devices(
    shape: ModelShape,
    hardware: Hardware,
    *,
    seq_len: int,
    micro_batch_tokens: int | None = None,
    strategy: Strategy = "fsdp",
    precision: Precision = "bf16",
    activation_checkpointing: bool = False,
    lora_rank: int | None = None,
    usable_share: float = USABLE_SHARE,
) -> int:
    """Fewest devices, in powers of two, on which a training step fits; one alone does not shard.

    Args:      usable_share: share of a device's memory that may be filled; the others as in estimate_memory.
    Raises:    InfeasiblePlanError if it fits on no number of devices.
    """
    room = usable_share * hardware.memory_bytes.value
    num_devices, needed = 1, float("inf")
    while num_devices <= MAX_DEVICES:
        needed = estimate_memory(
            shape,
            seq_len=seq_len,
            micro_batch_tokens=micro_batch_tokens,
            num_devices=num_devices,
            strategy=strategy if num_devices > 1 else "ddp",
            precision=precision,
            activation_checkpointing=activation_checkpointing,
            lora_rank=lora_rank,
        ).total_bytes
        if needed <= room:
            return num_devices
        num_devices *= 2
    raise InfeasiblePlanError(
        f"a training step must fit into {room / 1e9:.0f} GB of {hardware.name}; got {needed / 1e9:.0f} GB on each of "
        f"{MAX_DEVICES} devices with {strategy}.",
        hint="shorten seq_len or micro_batch_tokens, set activation_checkpointing, or use fsdp",
    )
