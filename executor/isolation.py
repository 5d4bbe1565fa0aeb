"""Documents that share a row and do not see one another: positions, what is predicted, and a test of the model.

Positions that start again at 0 tell transformers where documents meet, and it then masks attention between them; but
only as long as no attention mask is passed: with one of ones documents see one another (measured, transformers 5.23).
Not every architecture obeys, so a run asks its own model before it starts: check_isolation.
"""

from __future__ import annotations

from typing import cast

import torch
from transformers import PreTrainedModel

from cptplan.errors import ConfigError

CHECKED_TOKENS = 64  # of a row in check_isolation
# measured 2026-11 on 24 drawn architectures: isolated logits change by exactly 0 where documents are apart, by as much
# as plain ones where all layers leak, and by 0.0005 of that or more where only a convolution or recurrence does
LEAK = 1e-4
LEAK_BF16 = 0.05  # there one unit in the last place of a logit is up to as much


def document_positions(input_ids: torch.Tensor, eos_token_id: int) -> torch.Tensor:
    """Position of every token within its document: t minus the last document start at or before t.

    A document starts at the first token of a row and after every end-of-text token.
    Args:      input_ids: token ids, shape (n, seq_len).
    Returns:   positions from 0, int64, shape (n, seq_len).
    """
    places = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    starts = torch.zeros_like(places)
    starts[:, 1:] = places[:, 1:] * (input_ids[:, :-1] == eos_token_id)
    return places - starts.cummax(dim=1).values


def predicted(input_ids: torch.Tensor, eos_token_id: int) -> torch.Tensor:
    """Which targets count: the one after an end-of-text token starts another document, which nothing foretells.

    Args:      input_ids: the tokens that the targets follow, shape (n, seq_len).
    Returns:   bool, shape (n, seq_len).
    """
    return input_ids != eos_token_id


def isolated_inputs(model: torch.nn.Module, input_ids: torch.Tensor, eos_token_id: int) -> dict[str, torch.Tensor]:
    """What the model is called with, so that a token sees only its own document.

    With flash attention the rows are laid end to end, since transformers looks for documents there only in a batch of
    one; its logits are then (1, n * seq_len, vocabulary), and the same as before once both are flattened.
    Args:      model: wrapped or not. input_ids: token ids, shape (n, seq_len).
    """
    positions = document_positions(input_ids, eos_token_id)
    if "flash" in str(_unwrapped(model).config._attn_implementation):
        input_ids, positions = input_ids.reshape(1, -1), positions.reshape(1, -1)
    return {"input_ids": input_ids, "position_ids": positions}


def check_isolation(model: torch.nn.Module, eos_token_id: int, seq_len: int) -> None:
    """Refuse a model whose documents see one another all the same.

    Two rows that differ in their first document only go through the model, isolated and plainly concatenated. What the
    second document's logits differ with isolation must be a tiny share of what they differ without: a share, since the
    size of logits depends on the model.
    Args:      model: as the run calls it, wrapped and on its device; flash attention does not run elsewhere.
    Raises:    ConfigError if documents leak.
    """
    rows = _two_rows(model, eos_token_id, min(seq_len, CHECKED_TOKENS))
    second = _second_document(rows.shape[1])
    was_training = model.training
    model.eval()
    # an extra shape must not make a compiled model compile for changing shapes
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        isolated = model(**isolated_inputs(model, rows, eos_token_id), use_cache=False).logits
        plain = model(input_ids=rows, use_cache=False).logits
    model.train(was_training)
    change, plain_change = (
        (first - other)[second:].abs().max().item() for first, other in (isolated.float().view_as(plain), plain.float())
    )
    in_bf16 = torch.equal(isolated.float(), isolated.bfloat16().float())  # autocast may say fp32 of logits in bf16
    if (
        not change <= (LEAK_BF16 if in_bf16 else LEAK) * plain_change
    ):  # so that a change that is not a number counts as a leak
        inner = _unwrapped(model)
        raise ConfigError(
            f"isolate_documents must keep documents apart; got logits of a document that change by {change:.2g} with "
            f"the one before ({plain_change:.2g} without isolation) in {type(inner).__name__} with attention "
            f"{inner.config._attn_implementation}.",
            hint="set isolate_documents to false, or take another attention",
        )


def _two_rows(model: torch.nn.Module, eos_token_id: int, length: int) -> torch.Tensor:
    """Rows of two documents each, the second one shared; shape (2, length)."""
    vocab_size = int(_unwrapped(model).get_input_embeddings().num_embeddings)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(vocab_size - 1, (2, length), generator=generator)
    rows += rows >= eos_token_id  # any token but the end of text
    second = _second_document(length)
    rows[:, second - 1] = eos_token_id
    rows[1, second:] = rows[0, second:]
    return rows.to(next(model.parameters()).device)


def _second_document(length: int) -> int:
    """Its first token: where no block of a model that attends in blocks begins."""
    return length * 3 // 7


def _unwrapped(model: torch.nn.Module) -> PreTrainedModel:
    """The model inside DDP, which hides its attributes."""
    return cast(PreTrainedModel, getattr(model, "module", model))
