"""Which generated texts are worth keeping: no loops, no text twice, no text that mostly says what another said."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from executor.corpus.split import document_key

Verdict = Literal["kept", "duplicate", "degenerate"]

LOOP_GRAM = 4
# Share of 4-grams that came before in the same text (seq-rep-4 of Welleck et al. 2020, arXiv:1908.04319).
# measured on the first 272 tokens of documents (2048-token vocabulary): above it are 0.3 % of 4176 of English prose and
# 0.7 % of 1124 of Python code
MOST_REPEATED = 0.5
OVERLAP_GRAM = 13  # published: the length for overlap between texts of Brown et al. 2020, arXiv:2005.14165, appendix C
# measured on the same documents one after the other: above it are 0.35 % of the prose and 3.6 % of the code
MOST_OVERLAP = 0.5
# bits for each token in the table of seen n-grams; at the end at most 1 - exp(-1/16) = 6 % of them err towards "seen"
BITS_PER_TOKEN = 16
MULTIPLIER = 0x9E3779B97F4A7C15  # published: SplitMix64's increment (doi:10.1145/2660193.2660195), an odd number


class TextFilter:
    """Judges texts one after the other; what it says of one depends on those kept before."""

    def __init__(self, num_tokens: int) -> None:
        """Start with nothing seen.

        Args:      num_tokens: of all texts that will be kept, about; decides the size of the table.
        """
        self._keys: set[int] = set()
        self._num_bits = max(num_tokens, 1024) * BITS_PER_TOKEN
        self._seen = np.zeros(self._num_bits // 8 + 1, dtype=np.uint8)

    def judge(self, text: str, token_ids: NDArray[np.integer]) -> Verdict:
        """Say what a text is, and remember it if it is kept.

        Args:      token_ids: of the text, shape (n,).
        """
        if not text.strip() or repeated_share(token_ids) > MOST_REPEATED:
            return "degenerate"
        if document_key(text, 0) in self._keys or self._overlap(token_ids) > MOST_OVERLAP:
            return "duplicate"
        self.remember(text, token_ids)
        return "kept"

    def remember(self, text: str, token_ids: NDArray[np.integer]) -> None:
        """Count a text among those kept."""
        self._keys.add(document_key(text, 0))
        places = self._places(token_ids)
        np.bitwise_or.at(self._seen, places >> 3, np.left_shift(1, places & 7).astype(np.uint8))

    def _overlap(self, token_ids: NDArray[np.integer]) -> float:
        """Share of the text's 13-grams that a kept text has."""
        places = self._places(token_ids)
        if not len(places):
            return 0.0
        return float(np.mean((self._seen[places >> 3] >> (places & 7)) & 1))

    def _places(self, token_ids: NDArray[np.integer]) -> NDArray[np.int64]:
        places = hash_ngrams(token_ids, OVERLAP_GRAM) % np.uint64(self._num_bits)
        return places.astype(np.int64)


def repeated_share(token_ids: NDArray[np.integer]) -> float:
    """Share of a text's 4-grams that came before in it: 1 - different / all; 0 for a text too short to have any.

    Args:      token_ids: shape (n,).
    """
    grams = hash_ngrams(token_ids, LOOP_GRAM)
    return 1.0 - len(np.unique(grams)) / len(grams) if len(grams) else 0.0


def hash_ngrams(token_ids: NDArray[np.integer], length: int) -> NDArray[np.uint64]:
    """64-bit hashes of all runs of tokens: sum over i of (token_i + 1) x M^(i+1) modulo 2^64, high bits mixed down.

    Args:      token_ids: shape (n,). length: tokens of a run.
    Returns:   shape (max(n - length + 1, 0),).
    """
    if len(token_ids) < length:
        return np.empty(0, dtype=np.uint64)
    powers = np.array([pow(MULTIPLIER, place + 1, 1 << 64) for place in range(length)], dtype=np.uint64)
    runs = np.lib.stride_tricks.sliding_window_view(np.asarray(token_ids, dtype=np.uint64) + np.uint64(1), length)
    sums = (runs * powers).sum(axis=1, dtype=np.uint64)
    hashes: NDArray[np.uint64] = (sums ^ (sums >> np.uint64(32))) * np.uint64(MULTIPLIER) ^ (sums >> np.uint64(29))
    return hashes
