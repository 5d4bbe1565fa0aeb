"""How much text of one shard stands in another, word for word: long runs of tokens, and whole documents.

Runs of tokens are compared by polynomial hashes modulo 2^64: with C(i) = sum_{j < i} x(t_j) B^j the hash of tokens
i .. i + n - 1 is (C(i + n) - C(i)) B^-i, B odd, x a random 64-bit number for each token id. Two different runs agree by
chance with a probability near 2^-64 for each pair, so what is found is there.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cptplan.advice.shards import Shard, Tokens

Hashes = NDArray[np.uint64]

WINDOW = 50  # tokens; published: the length that Lee et al. 2021 (arXiv:2107.06499) call a duplicated substring
CHUNK = 1 << 21  # tokens of the other shard that are hashed at a time
MOST_TOKENS = 1_000_000  # of the searched shard, so that its windows fit a small table
BASE = np.uint64(0x9E3779B97F4A7C15 | 1)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlap:
    """What of a shard was found in others."""

    windows: int
    """Stretches of WINDOW tokens, not overlapping, none across two documents, that were looked for."""
    found_windows: int
    documents: int
    """Whole documents that were looked for."""
    found_documents: int
    scanned: float
    """Share of the other shards' tokens that was read in the time allowed."""

    @property
    def share(self) -> float:
        """Share of the text that stands in the other shards: of the windows, or of the documents if that is more."""
        return max(self.found_windows / max(self.windows, 1), self.found_documents / max(self.documents, 1))


def find_overlap(searched: Shard, others: list[Shard], *, seconds: float = 20.0, window: int = WINDOW) -> Overlap:
    """Look for the text of one shard in others.

    A copied passage of 2 window - 1 tokens or more holds a whole stretch, so it is found wherever it begins; a document
    that stands in the other shard whole is found however short it is.
    Args:      searched: of which at most MOST_TOKENS from the front are looked for. others: read in chunks spread over
               each of them until the time is up. seconds: time for all of them together.
    """
    tokens = np.asarray(searched.tokens[:MOST_TOKENS])
    starts, lengths = documents(tokens, searched.eos_token_id)
    sums, back = _sums(tokens)
    begins = _window_starts(starts, lengths, window)
    wanted, wanted_documents = _hashes(sums, back, begins, window), _hashes(sums, back, starts, lengths)
    found, found_documents = np.zeros(len(wanted), dtype=bool), np.zeros(len(starts), dtype=bool)
    until, read, whole = time.monotonic() + seconds, 0, sum(other.num_tokens for other in others)
    for other, begin, end in _chunks(others, window):
        if read and time.monotonic() > until:
            break
        part = np.asarray(other.tokens[begin : min(end + window - 1, other.num_tokens)])
        part_sums, part_back = _sums(part)
        positions = np.arange(max(len(part) - window + 1, 0))
        found |= _among(wanted, _hashes(part_sums, part_back, positions, window))
        there, sizes = documents(part, other.eos_token_id)
        if begin:
            there, sizes = there[1:], sizes[1:]  # the first may be the end of a longer one
        found_documents |= _among(wanted_documents, _hashes(part_sums, part_back, there, sizes))
        read += end - begin
    return Overlap(
        windows=len(wanted),
        found_windows=int(found.sum()),
        documents=len(starts),
        found_documents=int(found_documents.sum()),
        scanned=read / max(whole, 1),
    )


def documents(tokens: Tokens, eos_token_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First token and length of every whole document, without its end of text, empty ones left out."""
    ends = np.flatnonzero(tokens == eos_token_id)
    starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64) if len(ends) else np.zeros(0, dtype=np.int64)
    lengths = (ends - starts).astype(np.int64)
    return starts[lengths > 0], lengths[lengths > 0]


def _chunks(others: list[Shard], window: int) -> list[tuple[Shard, int, int]]:
    """Stretches of the shards, in an order that spreads what is read over all of them: every 16th first, and so on."""
    found = []
    for other in others:
        begins = range(0, max(other.num_tokens - window + 1, 0), CHUNK)
        found += [(other, begin, min(begin + CHUNK, other.num_tokens)) for begin in begins]
    order = np.argsort([number % 16 for number in range(len(found))], kind="stable")
    return [found[number] for number in order]


def _window_starts(starts: NDArray[np.int64], lengths: NDArray[np.int64], window: int) -> NDArray[np.int64]:
    """First tokens of the stretches of each document, one after the other."""
    counts = lengths // window
    within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(starts, counts) + window * within


def _sums(tokens: Tokens) -> tuple[Hashes, Hashes]:
    """C(0) .. C(n), and B^-0 .. B^-n, modulo 2^64."""
    inverse = np.uint64(pow(int(BASE), -1, 1 << 64))
    ahead, back = (_powers(base, len(tokens) + 1) for base in (BASE, inverse))
    terms = _scatter(tokens.astype(np.uint64)) * ahead[:-1]
    return np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(terms, dtype=np.uint64)]), back


def _powers(base: np.uint64, count: int) -> Hashes:
    """base^0 .. base^(count - 1), modulo 2^64."""
    factors = np.full(count, base, dtype=np.uint64)
    factors[0] = 1
    return np.cumprod(factors, dtype=np.uint64)


def _scatter(values: Hashes) -> Hashes:
    """A random-looking 64-bit number for each id: the finalizer of splitmix64 (Steele et al. 2014)."""
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _MIX[0]
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _MIX[1]
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))


def _hashes(sums: Hashes, back: Hashes, starts: NDArray[np.int64], lengths: NDArray[np.int64] | int) -> Hashes:
    """Hash of each run of tokens, its length mixed in."""
    plain = (sums[starts + lengths] - sums[starts]) * back[starts]
    return np.asarray(_scatter(plain + np.asarray(lengths).astype(np.uint64)))


def _among(wanted: Hashes, there: Hashes) -> NDArray[np.bool_]:
    """Which of the wanted hashes are there."""
    if not len(wanted) or not len(there):
        return np.zeros(len(wanted), dtype=bool)
    order = np.argsort(wanted)
    sorted_wanted = wanted[order]
    place = np.searchsorted(sorted_wanted, there)
    hit = sorted_wanted[np.minimum(place, len(wanted) - 1)] == there
    return np.isin(wanted, there[hit])
