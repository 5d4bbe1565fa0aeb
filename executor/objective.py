"""What is minimised: cross entropy of the tokens that count, in training and in validation alike."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

from executor.isolation import isolated_inputs, predicted
from executor.model import auxiliary_loss


def token_losses(model: torch.nn.Module, rows: torch.Tensor, eos_token_id: int | None = None) -> torch.Tensor:
    """Cross-entropy of every token given those before it in its row, nats, fp32.

    Args:      rows: token ids, shape (n, seq_len + 1). eos_token_id: of isolated documents; None lets a token see all
               of its row.
    Returns:   losses, shape (n, seq_len); 0 where a token is not predicted because its document starts with it.
    """
    return batch_losses(model, rows, eos_token_id)[0]


def batch_losses(
    model: torch.nn.Module, rows: torch.Tensor, eos_token_id: int | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The losses of all tokens, and what the model itself adds to their mean (balance of experts), None if nothing.

    No attention mask is passed: rows are full, and a mask of ones would cost time and join the isolated documents.
    """
    inputs, targets = rows[:, :-1], rows[:, 1:]
    called = {"input_ids": inputs} if eos_token_id is None else isolated_inputs(model, inputs, eos_token_id)
    outputs = model(**called, use_cache=False)
    losses = cross_entropy(outputs.logits.flatten(0, 1).float(), targets.flatten(), reduction="none").view_as(targets)
    if eos_token_id is not None:
        losses = losses * predicted(inputs, eos_token_id)
    return losses, auxiliary_loss(model, outputs)


def num_predicted(rows: torch.Tensor, eos_token_id: int | None) -> torch.Tensor:
    """Tokens of each row that have a loss, shape (n,), float64."""
    if eos_token_id is None:
        return torch.full((len(rows),), rows.shape[1] - 1, dtype=torch.float64, device=rows.device)
    return predicted(rows[:, :-1], eos_token_id).sum(dim=1).double()


@torch.no_grad()
def excess_losses(
    reference: torch.nn.Module, rows: torch.Tensor, losses: torch.Tensor, eos_token_id: int | None
) -> torch.Tensor:
    """Summed losses of each row over those of the reference, every token's clipped at 0, nats, shape (n,).

    Args:      losses: of the model that is trained, shape (n, seq_len).
    Reference: Xie et al. 2023, arXiv:2305.10429, algorithm 1.
    """
    return (losses - token_losses(reference, rows, eos_token_id)).clamp(min=0).sum(dim=1)
