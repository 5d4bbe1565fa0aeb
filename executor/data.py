"""Which tokens a run reads: the order is a pure function of (seed, global sample index).

Sequence g of a run belongs to step g // sequences_per_step. Its source comes from the mixture, its place among that
source's sequences (the ordinal) gives an epoch and a position, and a seeded permutation of the epoch gives the
window. Nothing depends on the number of processes or the micro batch, so a run goes on from one integer: the step.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cptplan.errors import DataError
from cptplan.mixture import source_of_sequences
from cptplan.run_spec import RunSpec, Source, ValidationSet
from executor.corpus.pack import ShardIndex, open_shard

IntArray = NDArray[np.int64]
KeyArray = NDArray[np.uint64]

# published: increments and multipliers of SplitMix64 (Steele, Lea & Flood 2014, doi:10.1145/2660193.2660195)
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
MIX_2 = np.uint64(0x94D049BB133111EB)
# assumed: four make a strong pseudorandom permutation (Luby & Rackoff 1988); two more for small sets
FEISTEL_ROUNDS = 6


def _mix(value: KeyArray) -> KeyArray:
    """SplitMix64's finaliser: every input bit changes half of the output bits."""
    value = (value ^ (value >> np.uint64(30))) * MIX_1
    value = (value ^ (value >> np.uint64(27))) * MIX_2
    return value ^ (value >> np.uint64(31))


def permute(index: IntArray, size: int, key: KeyArray) -> IntArray:
    """Places of indices in a pseudorandom permutation of 0 .. size - 1, without a table.

    A balanced Feistel network over the smallest 4^k >= size; a place outside is sent through again (cycle walking),
    so that the whole is a bijection on 0 .. size - 1 for each key.
    Args:      index: in [0, size), shape (n,). size: >= 1. key: one per index, shape (n,).
    Returns:   places, shape (n,).
    Reference: Black & Rogaway 2002, doi:10.1007/3-540-45760-7_9, method 2; own round function.
    """
    half = np.uint64(max(1, math.ceil((size - 1).bit_length() / 2)))
    mask = (np.uint64(1) << half) - np.uint64(1)
    rounds = np.arange(1, FEISTEL_ROUNDS + 1, dtype=np.uint64)
    round_keys = _mix(key + GOLDEN * rounds[:, None])
    place = index.astype(np.uint64)
    walking = np.arange(len(place))
    while len(walking):
        left, right = place[walking] >> half, place[walking] & mask
        for round_key in round_keys[:, walking]:
            left, right = right, left ^ (_mix(round_key ^ right) & mask)
        place[walking] = (left << half) | right
        walking = walking[place[walking] >= size]
    return place.astype(np.int64)


def read_windows(tokens: NDArray[np.integer], numbers: IntArray, seq_len: int) -> IntArray:
    """Windows of seq_len + 1 tokens; one starts every seq_len tokens, so each token is predicted once.

    Args:      tokens: the shard, shape (num_tokens,). numbers: window numbers, shape (n,).
    Returns:   token ids, shape (n, seq_len + 1).
    """
    places = numbers[:, None] * seq_len + np.arange(seq_len + 1)
    return np.asarray(tokens[places], dtype=np.int64)


def spread(numbers: IntArray, chosen: int, there: int) -> IntArray:
    """Windows by their number among some that lie evenly over a shard: floor(number x there / chosen).

    A shard holds documents as they came, often one source after the other: its first windows are no sample of it.
    Args:      numbers: in [0, chosen), shape (n,). chosen: windows taken, at most there. there: windows of the shard.
    """
    return numbers * there // chosen


def num_windows(num_tokens: int, seq_len: int) -> int:
    """Whole windows of seq_len + 1 tokens, one every seq_len tokens."""
    return max(num_tokens - 1, 0) // seq_len


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenSource:
    """One stream of training tokens and the key of its order."""

    name: str
    tokens: NDArray[np.integer]
    num_windows: int
    """Windows that are read, which lie evenly over the shard."""
    num_there: int
    """Windows of the shard."""
    num_tokens: int
    """Different tokens that are read."""
    index: ShardIndex
    key: np.uint64

    def read(self, ordinals: IntArray, seq_len: int) -> IntArray:
        """Sequences by their number within this source, every window once in each epoch, shape (n, seq_len + 1)."""
        epochs, positions = np.divmod(ordinals, self.num_windows)
        keys = self.key + GOLDEN * (epochs.astype(np.uint64) + np.uint64(1))
        numbers = permute(positions, self.num_windows, keys)
        return read_windows(self.tokens, spread(numbers, self.num_windows, self.num_there), seq_len)


class TrainingData:
    """The sequences of a run in their order."""

    def __init__(self, spec: RunSpec) -> None:
        """Open the shards; general first, then the domains in the spec's order.

        Raises:    DataError if a shard is missing, broken or has not one window.
        """
        self._seq_len, self._per_step = spec.seq_len, spec.sequences_per_step
        general = [source for source in spec.sources if source.role == "general"]
        domains = [source for source in spec.sources if source.role == "domain"]
        self._weights = np.array([source.weight for source in domains])
        opened = [_open_source(source, spec) for source in (*general, *domains)]
        self.sources = dict(enumerate(opened, start=0 if general else 1))
        """Sources by their number in the mixture: 0 is general."""
        self.set_replay(spec.replay_ratios())

    def set_replay(self, ratios: NDArray[np.float64]) -> None:
        """Take other replay ratios. Those of steps that are done must be as they were: then their sequences are, too.

        Args:      ratios: general share of every step, in [0, 1], shape (total_steps,).
        """
        self._source, self._ordinal = source_of_sequences(ratios, self._weights, self._per_step)
        by_step = self._source.reshape(len(ratios), self._per_step)
        self._tokens = {
            source.name: np.concatenate([[0], np.cumsum((by_step == number).sum(axis=1))]) * self._seq_len
            for number, source in self.sources.items()
        }

    def sources_of(self, first: int, count: int) -> IntArray:
        """Source number of sequences first .. first + count - 1 of the run, shape (count,)."""
        return self._source[first : first + count]

    def read(self, first: int, count: int) -> IntArray:
        """Sequences first .. first + count - 1 of the run, shape (count, seq_len + 1)."""
        source = self._source[first : first + count]
        ordinal = self._ordinal[first : first + count]
        rows = np.empty((count, self._seq_len + 1), dtype=np.int64)
        for number in np.unique(source):
            mine = source == number
            rows[mine] = self.sources[int(number)].read(ordinal[mine], self._seq_len)
        return rows

    def tokens_by_source(self, step: int) -> dict[str, int]:
        """Training tokens of each source in the first steps of the run."""
        return {name: int(tokens[step]) for name, tokens in self._tokens.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationData:
    """The fixed windows of one validation set, evenly over its shard."""

    name: str
    tokens: NDArray[np.integer]
    num_windows: int
    num_there: int
    """Windows of the shard."""
    index: ShardIndex
    seq_len: int

    @property
    def num_tokens(self) -> int:
        """Tokens predicted, which may be fewer than the spec asked for."""
        return self.num_windows * self.seq_len

    def read(self, numbers: IntArray) -> IntArray:
        """Windows by number, shape (n, seq_len + 1)."""
        return read_windows(self.tokens, spread(numbers, self.num_windows, self.num_there), self.seq_len)

    def bytes_per_token(self, decode: Callable[[list[int]], str] | None) -> float:
        """UTF-8 bytes of text for each token that is predicted; for bits per byte.

        Args:      decode: from token ids to text; None takes the mean of the whole shard.
        """
        if decode is None:
            return self.index.num_bytes / max(self.index.num_tokens, 1)
        windows = self.read(np.arange(self.num_windows))[:, 1:].tolist()
        # a character that the edge of a window cuts counts as U+FFFD: a few bytes of thousands
        return sum(len(decode(window).encode()) for window in windows) / self.num_tokens


def _open_source(source: Source, spec: RunSpec) -> TokenSource:
    shard = open_shard(Path(source.path), "train")
    there = num_windows(len(shard.tokens), spec.seq_len)
    most = len(shard.tokens) if source.max_tokens is None else min(source.max_tokens, len(shard.tokens))
    windows = num_windows(most, spec.seq_len)
    _check_windows(f"source {source.name!r}", windows, most, spec.seq_len, source.path)
    digest = hashlib.sha256(f"{spec.seed}/{source.name}".encode()).digest()
    key = np.uint64(int.from_bytes(digest[:8], "little"))
    return TokenSource(
        name=source.name,
        tokens=shard.tokens,
        num_windows=windows,
        num_there=there,
        num_tokens=most,
        index=shard.index,
        key=key,
    )


def open_validation(chosen: ValidationSet, seq_len: int) -> ValidationData:
    """Windows that lie evenly over a validation shard: as many as num_tokens asks for, or as there are.

    Raises:    DataError if there is not one window.
    """
    shard = open_shard(Path(chosen.path), "validation")
    there = num_windows(len(shard.tokens), seq_len)
    windows = min(there, chosen.num_tokens // seq_len)
    most = min(len(shard.tokens), chosen.num_tokens + 1)
    _check_windows(f"validation set {chosen.name!r}", windows, most, seq_len, chosen.path)
    return ValidationData(
        name=chosen.name, tokens=shard.tokens, num_windows=windows, num_there=there, index=shard.index, seq_len=seq_len
    )


def _check_windows(what: str, windows: int, num_tokens: int, seq_len: int, path: str) -> None:
    if windows < 1:
        raise DataError(
            f"{what} must hold at least one window of {seq_len + 1} tokens; got {num_tokens} in {path}.",
            hint="add text, or take a smaller seq_len",
        )
