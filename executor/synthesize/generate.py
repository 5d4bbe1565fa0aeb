"""Batches of texts from a frozen model, each a pure function of its number and the seed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from transformers import GenerationConfig, PreTrainedModel

from cptplan.contract import Contract
from cptplan.errors import ConfigError, ModelError
from executor.corpus.tokenizer import TextTokenizer, load_tokenizer
from executor.frozen import load_frozen
from executor.model import check_vocabulary
from executor.synthesize.prompts import Prompts, open_prompts

Positive = Annotated[int, Field(gt=0)]


class Settings(Contract):
    """What the texts depend on, besides the model and the prompts."""

    tokens: Positive
    """Tokens of the corpus as it will be packed: texts are added until there are as many."""
    batch_size: Positive
    prompt_tokens: Positive
    max_new_tokens: Positive
    temperature: Annotated[float, Field(gt=0)]
    top_p: Annotated[float, Field(gt=0, le=1)]
    dtype: Literal["fp32", "bf16"]
    seed: Annotated[int, Field(ge=0)]


@dataclass(frozen=True, kw_only=True)
class Generator:
    """The frozen model and all that a batch needs."""

    model: PreTrainedModel
    tokenizer: TextTokenizer
    prompts: Prompts
    settings: Settings

    @property
    def num_batches(self) -> int:
        """Batches until every place has been used once."""
        return -(-len(self.prompts.starts) // self.settings.batch_size)

    def texts(self, batch: int) -> list[str]:
        """Texts of a batch, prompt and continuation; empty where the model ended the text at once."""
        settings, eos = self.settings, self.tokenizer.eos_token_id
        first = batch * settings.batch_size
        numbers = range(first, min(first + settings.batch_size, len(self.prompts.starts)))
        rows = self.prompts.read(numbers, settings.seed)
        opening = np.tile(np.array(opening_tokens(self.tokenizer), dtype=np.int64), (len(rows), 1))
        inputs = torch.from_numpy(np.hstack([opening, rows])).to(self.model.device)
        torch.manual_seed(int.from_bytes(hashlib.sha256(f"{settings.seed}/{batch}".encode()).digest()[:7], "big"))
        with torch.no_grad():
            outputs = self.model.generate(input_ids=inputs, attention_mask=torch.ones_like(inputs))
        texts = []
        for row, output in zip(rows.tolist(), outputs[:, inputs.shape[1] :].tolist(), strict=True):
            new = list(takewhile(lambda token: token != eos, output))
            text = str(self.tokenizer.backend.decode([*row, *new], skip_special_tokens=True))
            # the prompt can begin, and the last token end, within a character
            texts.append(text.strip("\ufffd") if new else "")
        return texts


def opening_tokens(tokenizer: TextTokenizer) -> list[int]:
    """What the tokenizer puts before every text (such as a beginning of text), which its model may rely on."""
    encoding = tokenizer.backend.encode("a", add_special_tokens=True)
    pairs = zip(encoding.ids, encoding.special_tokens_mask, strict=True)
    return [token for token, _ in takewhile(lambda pair: pair[1], pairs)]


def open_generator(model_directory: Path, prompts_path: Path, settings: Settings) -> Generator:
    """Load the model and find the prompts.

    Raises:    ConfigError, DataError or ModelError for what does not fit together.
    """
    if not model_directory.is_dir():
        raise ModelError(f"model must be a directory; got no {model_directory}.", hint="check --model")
    tokenizer = load_tokenizer(str(model_directory))
    spacing = settings.prompt_tokens + settings.max_new_tokens
    try:
        model, hub_tokenizer = load_frozen(model_directory, seq_len=len(opening_tokens(tokenizer)) + spacing)
    except ConfigError as error:
        raise ConfigError(
            f"prompt and new tokens must fit the model's positions; {error.message}",
            hint="lower --max-new-tokens or --prompt-tokens",
        ) from error
    prompts = open_prompts(prompts_path, tokenizer, length=settings.prompt_tokens, spacing=spacing)
    check_vocabulary(model, hub_tokenizer, {str(prompts_path): tokenizer.vocab_size})
    most = len(prompts.starts) * (spacing + 1)
    if most < settings.tokens:
        raise ConfigError(
            f"tokens must be at most {most}, since each place of the prompts is used once; got {settings.tokens}.",
            hint="give more text to --prompts, or raise --max-new-tokens",
        )
    # assigned, since what the model's own file says would fill the gaps of one that is passed
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=0,
        max_new_tokens=settings.max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    model.to(torch.float32 if settings.dtype == "fp32" else torch.bfloat16)
    return Generator(model=model, tokenizer=tokenizer, prompts=prompts, settings=settings)
