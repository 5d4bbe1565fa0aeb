"""Tokenizers: a byte-level BPE trained on the corpora, or the one that belongs to a base model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from cptplan.errors import DataError
from cptplan.files import write_json, write_text

END_OF_TEXT = "<|endoftext|>"
MIN_VOCAB_SIZE = 257  # the 256 bytes and the end of text
# transformers 4 does not know the class name that transformers 5 writes; both know this one.
_PORTABLE_CLASS = "PreTrainedTokenizerFast"


@dataclass(frozen=True, kw_only=True, slots=True)
class TextTokenizer:
    """A tokenizer and what packing and training need to know of it."""

    backend: Tokenizer
    config: dict[str, Any]
    """Contents of tokenizer_config.json."""
    eos_token_id: int
    vocab_size: int
    """Largest token id + 1: the smallest vocabulary a model for it may have."""
    hash: str
    """First 12 hex digits of the SHA-256 of tokenizer.json as this library writes it."""

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.uint32]]:
        """Token ids of each text, without special tokens; the name of one inside a text is ordinary text."""
        encodings = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]

    def decode(self, token_ids: Iterable[int]) -> str:
        """Text of token ids, special tokens by their names."""
        return str(self.backend.decode(list(token_ids), skip_special_tokens=False))


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> TextTokenizer:
    """A byte-level BPE: every text comes back byte for byte. The same texts in the same order give the same file.

    Args:      texts: to learn the merges from. vocab_size: tokens, the 256 bytes and the end of text included; little
               text can give fewer.
    Raises:    DataError if vocab_size cannot hold the bytes.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise DataError(
            f"vocab_size must be at least {MIN_VOCAB_SIZE}; got {vocab_size} in tokenizer.train.",
            hint=f"give {MIN_VOCAB_SIZE} or more, such as 4096",
        )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[AddedToken(END_OF_TEXT, special=True, normalized=False)],
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    config = {
        "tokenizer_class": _PORTABLE_CLASS,
        "eos_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000,  # no limit of its own: packing cuts the stream
    }
    return _wrap(backend, config, eos_token_id=0)  # special tokens come first


def save_tokenizer(tokenizer: TextTokenizer, directory: Path) -> None:
    """Write a tokenizer directory that transformers 4 and 5 load; tokenizer.json comes last."""
    config = dict(tokenizer.config)
    if config.get("tokenizer_class") in (None, "TokenizersBackend"):
        config["tokenizer_class"] = _PORTABLE_CLASS
    write_json(directory / "tokenizer_config.json", config)
    write_text(directory / "tokenizer.json", tokenizer.backend.to_str(pretty=True))


def load_tokenizer(path_or_id: str) -> TextTokenizer:
    """The tokenizer of a directory or of a hub id.

    Raises:    DataError if there is none, or it does not say what ends a text.
    """
    directory = Path(path_or_id)
    if (directory / "tokenizer.json").is_file():
        return _read(directory, path_or_id)
    if directory.is_dir() and not any(directory.glob("*token*")) and not any(directory.glob("vocab*")):
        raise DataError(
            f"tokenizer must be a directory with tokenizer.json; got none in {directory}.",
            hint="copy the tokenizer's files beside the model, or give its hub id",
        )
    from transformers import AutoTokenizer  # slow to import, and only other kinds of tokenizer need it

    with TemporaryDirectory() as converted:
        try:
            AutoTokenizer.from_pretrained(path_or_id).save_pretrained(converted)
        except (OSError, ValueError, ImportError, KeyError) as error:
            reason = str(error).strip().split("\n")[0]
            raise DataError(
                f"tokenizer must be a directory or a hub id; got {reason} for {path_or_id}.", hint="check the path"
            ) from error
        return _read(Path(converted), path_or_id)


def _read(directory: Path, where: str) -> TextTokenizer:
    try:
        backend = Tokenizer.from_file(str(directory / "tokenizer.json"))
    except Exception as error:  # tokenizers raises bare Exception for a missing or malformed file
        raise DataError(
            f"tokenizer must be readable; got {error} in {where}.", hint="copy tokenizer.json again from its source"
        ) from error
    backend.no_truncation()
    backend.no_padding()
    config = _read_mapping(directory / "tokenizer_config.json")
    token = config.get("eos_token") or _read_mapping(directory / "special_tokens_map.json").get("eos_token")
    if isinstance(token, dict):
        token = token.get("content")
    if token is None:
        ids = _read_mapping(directory / "config.json").get("eos_token_id")
        token_id = ids[0] if isinstance(ids, list) and ids else ids
        token = backend.id_to_token(token_id) if isinstance(token_id, int) else None
    eos_token_id = None if token is None else backend.token_to_id(token)
    if eos_token_id is None:
        raise DataError(
            f"tokenizer must have an end-of-text token; got {token!r} in {where}.",
            hint="set eos_token in tokenizer_config.json to a token of the vocabulary",
        )
    return _wrap(backend, {**config, "eos_token": token}, eos_token_id)


def _wrap(backend: Tokenizer, config: dict[str, Any], eos_token_id: int) -> TextTokenizer:
    backend.encode_special_tokens = True  # a text that spells a special token must not end a document; not saved
    return TextTokenizer(
        backend=backend,
        config=config,
        eos_token_id=eos_token_id,
        vocab_size=max(backend.get_vocab(with_added_tokens=True).values()) + 1,
        hash=hashlib.sha256(backend.to_str().encode()).hexdigest()[:12],
    )


def _read_mapping(path: Path) -> dict[str, Any]:
    """A JSON object, empty if the file is not there."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise DataError(f"tokenizer must be readable; got {error} in {path}.", hint="mend the file") from error
    return value if isinstance(value, dict) else {}
