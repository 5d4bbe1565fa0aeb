"""Fast tokenizing: the same ids as from the tokenizer alone, whatever the text and whatever is remembered."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from executor.corpus import encode
from executor.corpus.encode import KNOWN_EXPRESSIONS, Encoder
from executor.corpus.tokenizer import TextTokenizer, train_tokenizer

TEXTS = [
    "The cat's tail, and the dog's; they'LL run 12,345.67 m/s (or 3rd).\n\n\tWe don't!",
    "def f(x):\n    return x  # né à Łódź — “so”\n\n\n    y = [1, 2]\r\n  z_1 = 'it''s'\n",
    "   ", "\n", "a", "", "Привет, мир! 你好 世界 ² Ⅷ ½", "x\u00a0y\u2003z \u0301 e\u0301 K",
    "\x00\x01 a\x7f.b\x85c\x1cd",
    "word " * 50 + "a" * 100 + "/" * 40 + " " * 40 + "1" * 40,
]  # fmt: skip


def make(pre_tokenizer: Any, normalizer: Any = None, added: list[AddedToken] | None = None) -> TextTokenizer:
    """A byte-level BPE with a pre-tokenizer of its own, learnt from the texts so that it has many merges."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.ByteLevel()
    if normalizer is not None:
        backend.normalizer = normalizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=alphabet, show_progress=False, special_tokens=["<e>"]
    )
    backend.train_from_iterator(TEXTS * 3, trainer)
    backend.add_tokens(added or [])
    backend.encode_special_tokens = True
    size = backend.get_vocab_size()
    return TextTokenizer(backend=backend, config={}, eos_token_id=0, vocab_size=size, hash="h")


def split(expression: str, **changes: Any) -> Any:
    options = {"behavior": "isolated", "invert": False, **changes}
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(expression), **options),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)
FAMILIES = {
    "gpt2": lambda: make(BYTE_LEVEL),
    "digits": lambda: make(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTE_LEVEL])),
    **{f"known{i}": lambda e=e: make(split(e)) for i, e in enumerate(KNOWN_EXPRESSIONS)},
    "removed": lambda: make(split(KNOWN_EXPRESSIONS[0], behavior="removed", invert=True)),
    "nfc": lambda: make(split(KNOWN_EXPRESSIONS[1]), normalizers.NFC()),
    "added": lambda: make(BYTE_LEVEL, added=[AddedToken("<tool.call>", normalized=False)]),
}


def expected(tokenizer: TextTokenizer, texts: list[str]) -> list[int]:
    return [token for ids in tokenizer.encode(texts) for token in (*ids.tolist(), tokenizer.eos_token_id)]


@pytest.fixture(scope="module", params=FAMILIES)
def tokenizer(request: pytest.FixtureRequest) -> TextTokenizer:
    return FAMILIES[request.param]()


def test_encode_equals_the_tokenizer_alone_and_cuts(tokenizer: TextTokenizer) -> None:
    encoder = Encoder(tokenizer)
    assert encoder._cuts is not None
    assert encoder.encode(TEXTS).tolist() == expected(tokenizer, TEXTS)
    for text in TEXTS:  # from what is remembered
        assert encoder.encode([text]).tolist() == expected(tokenizer, [text])


def test_encode_equals_the_tokenizer_alone_on_every_short_string(tokenizer: TextTokenizer) -> None:
    """All triples of the kinds of characters between a letter and a letter, where rules about neighbours could fail."""
    signs = [" ", "\n", "\t", "a", "B", "7", ".", "(", "/", "'", "s", "é", "\u0301", "\u00a0", "—", "\r", "\x1c"]
    texts = [f"{a}{b}{c}x" for a in signs for b in signs for c in signs]
    texts += [f"x{text[:3]}" for text in texts]
    assert Encoder(tokenizer).encode(texts).tolist() == expected(tokenizer, texts)


@pytest.mark.parametrize("block", [1, 7, 64])
def test_encode_does_not_depend_on_blocks_or_memory(
    block: int, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "_BLOCK_BYTES", block)
    monkeypatch.setattr(encode, "MAX_PIECES", 10)
    encoder = Encoder(tokenizer)
    assert encoder.encode(TEXTS).tolist() == expected(tokenizer, TEXTS)
    assert len(encoder._numbers) < 60


def test_encode_keeps_equal_hashes_of_different_pieces_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "_HASH_FACTORS", (np.uint64(0), np.uint64(0)))
    tokenizer = FAMILIES["gpt2"]()
    assert Encoder(tokenizer).encode(TEXTS * 2).tolist() == expected(tokenizer, TEXTS * 2)


def test_encode_leaves_added_tokens_whole() -> None:
    tokenizer = FAMILIES["added"]()
    texts = ["x <tool.call> y", "no such thing"]
    assert Encoder(tokenizer).encode(texts).tolist() == expected(tokenizer, texts)
    assert tokenizer.backend.token_to_id("<tool.call>") in Encoder(tokenizer).encode(texts)


def test_encode_takes_names_of_special_tokens_for_text() -> None:
    tokenizer = train_tokenizer(TEXTS, vocab_size=300)
    found = Encoder(tokenizer).encode(["a<|endoftext|>b"])
    assert (found == tokenizer.eos_token_id).sum() == 1


@pytest.mark.parametrize(
    ("pre_tokenizer", "normalizer"),
    [
        (split(r"\w+|\W"), None),  # not known
        (split(KNOWN_EXPRESSIONS[0], behavior="merged_with_next"), None),
        (pre_tokenizers.ByteLevel(add_prefix_space=True), None),
        (pre_tokenizers.Metaspace(), None),
        (BYTE_LEVEL, normalizers.Lowercase()),
    ],
)
def test_encode_leaves_whole_texts_to_an_unknown_tokenizer(pre_tokenizer: Any, normalizer: Any) -> None:
    tokenizer = make(pre_tokenizer, normalizer)
    encoder = Encoder(tokenizer)
    assert encoder._cuts is None
    assert encoder.encode(TEXTS).tolist() == expected(tokenizer, TEXTS)


def test_encode_leaves_whole_texts_to_a_tokenizer_without_pre_tokenizer_or_of_words() -> None:
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    tokenizer = TextTokenizer(backend=backend, config={}, eos_token_id=1, vocab_size=2, hash="h")
    assert Encoder(tokenizer).encode(["a", "b"]).tolist() == expected(tokenizer, ["a", "b"])
    assert json.loads(backend.to_str())["pre_tokenizer"] is None


@pytest.mark.parametrize(("vocab_size", "dtype"), [(300, "uint16"), (1 << 16, "uint16"), ((1 << 16) + 1, "uint32")])
def test_encode_uses_the_smallest_type_and_nothing_for_no_texts(vocab_size: int, dtype: str) -> None:
    made = FAMILIES["gpt2"]()
    larger = TextTokenizer(
        backend=made.backend, config={}, eos_token_id=vocab_size - 1, vocab_size=vocab_size, hash="h"
    )
    found = Encoder(larger).encode(["a b"])
    assert found.dtype.name == dtype
    assert found[-1] == vocab_size - 1
    assert Encoder(larger).encode([]).tolist() == []
