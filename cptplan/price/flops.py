"""FLOPs of a decoder, by the rule 6 N D and exactly. Pure functions of shape and tokens; one multiply-add counts two.

Left out of the exact count: norms, activation functions, softmax and the optimiser (below 1 %).
"""

from __future__ import annotations

from dataclasses import dataclass

from cptplan.price.model_shape import ModelShape

BACKWARD_SHARE = 2.0  # published: gradients of inputs and of weights cost one forward each (arXiv:2001.08361, 2.1)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Forward:
    """FLOPs of one token's forward pass, by what they are spent on."""

    matrices: float
    """Weights of the layers."""
    attention: float
    """Scores and values: no weights."""
    head: float

    @property
    def layers(self) -> float:
        return self.matrices + self.attention

    @property
    def total(self) -> float:
        return self.layers + self.head


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
    Returns:   FLOPs per token.
    Reference: PaLM, arXiv:2204.02311, appendix B, which counts the full square (causal=False) and no grouped heads.
    """
    return _forward(shape, seq_len, causal).total


def _forward(shape: ModelShape, seq_len: int, causal: bool) -> _Forward:
    near = attention_span(seq_len, causal=causal, window=shape.sliding_window)
    far = attention_span(seq_len, causal=causal)
    spans = shape.num_sliding_layers * near + (shape.num_layers - shape.num_sliding_layers) * far
    return _Forward(
        matrices=2.0 * shape.matrix_weights(shape.experts_per_token),
        attention=4.0 * spans * shape.num_heads * shape.head_dim,
        head=2.0 * shape.hidden * shape.vocab_size,
    )


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
    lora_rank: int | None = None,
    eval_tokens: float = 0.0,
    synthetic_tokens: float = 0.0,
) -> float:
    """FLOPs of a training run, exact up to norms and element-wise work.

    full: tokens x 3 forward. LoRA: tokens x (2 (matrices + head) + 3 attention + 6 adapter parameters), since frozen
    weights need no gradient, but what lies before them does. Recomputation adds the layers' forward once more;
    validation and generated tokens cost one forward each.
    Args:      tokens: training tokens. seq_len: tokens of a sequence. causal: as in forward_flops. recompute: full
               activation checkpointing, which runs the layers (not the head) a second time. lora_rank: adapters on all
               linear layers, None trains all weights. eval_tokens: validation tokens over the whole run.
               synthetic_tokens: replay tokens that the base model writes before the run (keys and values kept).
    Returns:   FLOPs of all devices together.
    """
    forward = _forward(shape, seq_len, causal)
    each = (1.0 + BACKWARD_SHARE) * forward.total
    again = forward.layers
    if lora_rank is not None:
        adapters = 2.0 * shape.lora_params(lora_rank)
        each += (1.0 + BACKWARD_SHARE) * adapters - forward.matrices - forward.head
        again += adapters
    return tokens * (each + (again if recompute else 0.0)) + (eval_tokens + synthetic_tokens) * forward.total
