"""A model directory that is measured or sampled from and never trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cptplan.errors import RunFailedError
from cptplan.run_spec import ModelSource
from executor.data import ValidationData
from executor.model import Loading, load_model
from executor.objective import num_predicted, token_losses


def load_frozen(directory: Path, *, seq_len: int = 1) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """The model of a directory in fp32, in evaluation mode, on the accelerator if there is one; and its tokenizer.

    Args:      seq_len: tokens that it must have positions for.
    Raises:    ModelError if a part is missing or does not load; ConfigError if seq_len is longer than its positions.
    """
    # the loader is the trainer's own, so that a model is refused here for what it would be refused for there
    model, tokenizer = load_model(Loading(model=ModelSource(path=str(directory.absolute())), seq_len=seq_len))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.eval().requires_grad_(False).to(device), tokenizer


@torch.no_grad()
def validation_losses(
    model: PreTrainedModel,
    sets: Sequence[ValidationData],
    *,
    batch_size: int,
    isolate_documents: bool = False,
) -> dict[str, float]:
    """Mean loss of every validation set, nats per token, float64: the trainer's windows and loss.

    Args:      batch_size: windows of one forward pass.
    Raises:    RunFailedError if a loss is not finite.
    """
    losses = {}
    for data in sets:
        eos_token_id = data.index.eos_token_id if isolate_documents else None
        total = count = 0.0
        for numbers in np.split(np.arange(data.num_windows), range(batch_size, data.num_windows, batch_size)):
            rows = torch.from_numpy(data.read(numbers)).to(model.device)
            total += float(token_losses(model, rows, eos_token_id).double().sum())
            count += float(num_predicted(rows, eos_token_id).sum())
        losses[data.name] = total / count
        if not math.isfinite(losses[data.name]):
            raise RunFailedError(
                f"loss_{data.name} must be finite; got {losses[data.name]}.", hint="look at the weights of the models"
            )
    return losses
