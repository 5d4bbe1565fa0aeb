"""From texts to one stream of token ids, several times faster than the tokenizer alone, and the same to the last id.

Byte-level tokenizers first cut a text by a regular expression and then look at each piece alone. At some places any of
the known expressions cuts, whatever stands around: before a space that a letter follows, after a word that a comma
follows. There the text is cut here, with arrays; every different piece is given to the tokenizer once and remembered.
Where nothing is known of a tokenizer, it reads the whole texts itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from executor.corpus.tokenizer import TextTokenizer

Bytes = NDArray[np.uint8]
Tokens = NDArray[np.unsignedinteger]

# Pieces remembered at most, about 200 bytes each with what their tokens take (measured); then it starts anew.
MAX_PIECES = 1 << 18
# Pieces of up to 15 bytes, with their length, are two 64-bit numbers: equal ones are found by sorting.
_KEY_BYTES = 15
# A text is worked on in blocks, which take some 50 times their size (measured); it is cut where pieces begin.
_BLOCK_BYTES = 1 << 21
_TEXT_END = 0xFF  # no byte of UTF-8
_HASH_FACTORS = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))  # odd, of mixed bits

# published: the expressions of the tokenizers of GPT-2 (its ByteLevel has it inside), GPT-4 and Llama 3, Qwen 2 to 3,
# GPT-4o and gpt-oss, and Mistral NeMo (without contractions), as their tokenizer.json files write them.
_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT4 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTION}?|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTION}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_TEKKEN = _GPT4O.replace(f"{_CONTRACTION}?", "").replace("{1,3}", "")
KNOWN_EXPRESSIONS = (_GPT4, _GPT4.replace("{1,3}", ""), _GPT4O, _TEKKEN)

_OTHER, _SPACE, _LETTER, _DIGIT, _MARK, _APOSTROPHE, _BLANK, _END = range(8)
"""Kinds of bytes; a mark is printable ASCII, a blank is white space but the space, other is control and non-ASCII."""


def _byte_kinds() -> Bytes:
    kinds = np.full(256, _OTHER, dtype=np.uint8)
    kinds[0x21:0x7F] = _MARK
    for byte in range(0x80):
        if chr(byte).isalpha():
            kinds[byte] = _LETTER
        elif chr(byte).isdigit():
            kinds[byte] = _DIGIT
    kinds[list(b"\t\n\v\f\r")] = _BLANK
    kinds[[ord(" "), ord("'"), _TEXT_END]] = _SPACE, _APOSTROPHE, _END
    return kinds


_KINDS = _byte_kinds()
_WORD_BEGINS = np.isin(_KINDS, (_LETTER, _MARK, _APOSTROPHE))
"""Bytes that a single space before them goes with, also after other white space. Not digits: some split those off."""


class Encoder:
    """A tokenizer with the pieces it has seen."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.tokenizer = tokenizer
        self.dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
        self._cuts, self._whole = _read_rules(tokenizer.backend)
        self._forget()

    def encode(self, texts: Sequence[str]) -> Tokens:
        """Token ids of the texts, each followed by the end of text; names of special tokens are ordinary text.

        Returns:   shape (tokens,), little-endian, the smallest type that holds the vocabulary.
        """
        content = b"".join(part for text in texts for part in (text.encode(), b"\xff"))
        if self._cuts is None or any(token in content for token in self._whole):
            return self._encode_whole(texts)
        parts = [self._pool[:0]]
        begin, size = 0, _BLOCK_BYTES
        while begin < len(content):
            block = content[begin : begin + size]
            begins = _find_cuts(np.frombuffer(block, dtype=np.uint8), self._cuts)
            if begin + size < len(content):  # the last piece may go on in the next block
                begins = begins[:-1]
            if len(begins) < 2:
                size *= 2
                continue
            parts.append(self._encode_pieces(block, begins))
            begin, size = begin + int(begins[-1]), _BLOCK_BYTES
        return np.concatenate(parts)

    def _encode_pieces(self, block: bytes, begins: NDArray[np.int64]) -> Tokens:
        chosen, which = _find_equal(block, begins)
        numbers = self._look_up(block, begins, chosen)
        starts, counts = self._starts[numbers][which], self._counts[numbers][which]
        shifts = starts - np.cumsum(counts) + counts
        return self._pool[np.repeat(shifts, counts) + np.arange(int(counts.sum()))]

    def _encode_whole(self, texts: Sequence[str]) -> Tokens:
        end = np.array([self.tokenizer.eos_token_id], dtype=self.dtype)
        parts = [part for ids in self.tokenizer.encode(texts) for part in (ids.astype(self.dtype), end)]
        return np.concatenate(parts) if parts else end[:0]

    def _forget(self) -> None:
        self._numbers: dict[bytes, int] = {bytes([_TEXT_END]): 0}
        self._pool: Tokens = np.array([self.tokenizer.eos_token_id], dtype=self.dtype)
        self._starts, self._counts = np.zeros(1, dtype=np.int64), np.ones(1, dtype=np.int64)

    def _look_up(self, text: bytes, begins: NDArray[np.int64], chosen: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers of the chosen pieces, having learnt the new ones."""
        if len(self._numbers) > MAX_PIECES:
            self._forget()
        places = zip(begins[chosen].tolist(), begins[chosen + 1].tolist(), strict=True)
        pieces = [text[begin:end] for begin, end in places]
        known = self._numbers
        new = [piece for piece in dict.fromkeys(pieces) if piece not in known]
        if new:
            ids = self.tokenizer.encode([piece.decode() for piece in new])
            counts = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
            known.update(zip(new, range(len(known), len(known) + len(new)), strict=True))
            self._starts = np.append(self._starts, len(self._pool) + np.cumsum(counts) - counts)
            self._counts = np.append(self._counts, counts)
            self._pool = np.concatenate([self._pool, *ids]).astype(self.dtype)
        return np.fromiter(map(known.__getitem__, pieces), dtype=np.int64, count=len(pieces))


def _find_cuts(text: Bytes, cuts: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Places where pieces begin, and the end of the last one."""
    kinds = _KINDS[text]
    begin = np.empty(len(text), dtype=np.bool_)
    begin[:1] = True
    begin[1:] = cuts[kinds[:-1] * np.uint8(8) + kinds[1:]]
    begin[:-1] |= (text[:-1] == ord(" ")) & _WORD_BEGINS[text[1:]]
    return np.append(np.flatnonzero(begin), len(text))


def _find_equal(text: bytes, begins: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """One piece of each kind, and which of these every piece equals. Long pieces all count as different.

    Args:      begins: of the pieces, and the end of the last one, shape (pieces + 1,).
    Returns:   numbers of pieces, shape (kinds,); for every piece a place in them, shape (pieces,).
    """
    padded = text + bytes(16)  # so that 16 bytes can be read from any place
    words: NDArray[np.uint64] = np.ndarray((len(text) + 8,), dtype="<u8", buffer=padded, strides=(1,))
    lengths = np.diff(begins)
    short = np.flatnonzero(lengths <= _KEY_BYTES)
    at, length = begins[short], lengths[short]
    keep = np.array([(1 << 8 * n) - 1 for n in range(9)], dtype=np.uint64)
    low = words[at] & keep[np.minimum(length, 8)]
    high = words[at + 8] & keep[np.maximum(length - 8, 0)] | length.astype(np.uint64) << np.uint64(56)
    mixed = low * _HASH_FACTORS[0] ^ (high * _HASH_FACTORS[1]) >> np.uint64(7) ^ high
    order = np.argsort(mixed)
    low, high = low[order], high[order]
    # two pieces of one hash that differ stand apart at worst, as two kinds: nothing is lost but a little time
    first = np.ones(len(order), dtype=np.bool_)
    first[1:] = (low[1:] != low[:-1]) | (high[1:] != high[:-1])
    which = np.empty(len(lengths), dtype=np.int64)
    which[short[order]] = np.cumsum(first) - 1
    long = np.flatnonzero(lengths > _KEY_BYTES)
    num_short = int(first.sum())
    which[long] = num_short + np.arange(len(long))
    return np.concatenate([short[order[first]], long]), which


def _read_rules(backend: Tokenizer) -> tuple[NDArray[np.bool_] | None, list[bytes]]:
    """Whether to cut between two kinds of bytes, shape (64,), and what must be left whole.

    None where a cut could change the tokens: an expression, normaliser or model that is not known here.
    """
    settings = json.loads(backend.to_str())
    normalizer, model = settings["normalizer"], settings["model"]
    expressions = _read_expressions(settings["pre_tokenizer"])
    added = [token for token in settings["added_tokens"] if not token["special"]]
    if (
        expressions is None
        or (normalizer is not None and (normalizer != {"type": "NFC"} or any(token["normalized"] for token in added)))
        or model["type"] != "BPE"
        or model.get("dropout")
        or model.get("continuing_subword_prefix")
        or model.get("end_of_word_suffix")
    ):
        return None, []
    # every expression ends a word before these, and begins anew with them
    after = {
        _LETTER: [_SPACE, _BLANK, _DIGIT, _MARK],
        _DIGIT: [_SPACE, _BLANK, _LETTER, _MARK, _APOSTROPHE],
        _MARK: [_SPACE, _DIGIT],
        _APOSTROPHE: [_SPACE, _DIGIT],
    }
    if expressions == "gpt2":  # no mark is taken along with letters or line ends
        after[_MARK] += [_BLANK, _LETTER]
        after[_APOSTROPHE] += [_BLANK]
    cuts = np.zeros((8, 8), dtype=np.bool_)
    for kind, following in after.items():
        cuts[kind, following] = True
    cuts[_END, :] = cuts[:, _END] = True
    return cuts.ravel(), [token["content"].encode() for token in added]


def _read_expressions(settings: dict[str, Any] | None) -> str | None:
    """Which family of expressions a tokenizer cuts by: "gpt2", "gpt4", or None if it is not known."""
    steps = (settings or {}).get("pretokenizers", [settings])
    if not steps or steps[-1] is None or steps[-1]["type"] != "ByteLevel" or steps[-1]["add_prefix_space"]:
        return None
    if steps[-1]["use_regex"]:
        digits = all(step["type"] == "Digits" and step["individual_digits"] for step in steps[:-1])
        return "gpt2" if digits else None
    if len(steps) != 2 or steps[0]["type"] != "Split":
        return None
    # what matches is a piece, or what does not is removed: the same where everything matches
    way = steps[0]["behavior"], steps[0]["invert"]
    is_known = steps[0]["pattern"].get("Regex") in KNOWN_EXPRESSIONS
    return "gpt4" if is_known and way in (("Isolated", False), ("Removed", True)) else None
