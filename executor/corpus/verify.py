"""Whether a token shard is what its index says, and whether shards belong together; asked before the first step."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from cptplan.errors import DataError
from executor.corpus.pack import ShardIndex, TokenShard

_BLOCK_BYTES = 1 << 20  # stays in the cache between the two things done with it


def verify_shard(shard: TokenShard) -> None:
    """Read a token file once: its checksum and its largest token id must be those that its index allows.

    The checksum is left out where the index has none.
    Raises:    DataError naming the file and the value found.
    """
    index, digest, largest = shard.index, hashlib.sha256(), -1
    dtype = np.dtype(index.dtype).newbyteorder("<")
    try:
        with shard.path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                if index.sha256:
                    digest.update(block)
                whole = len(block) // dtype.itemsize
                largest = max(largest, int(np.frombuffer(block, dtype=dtype, count=whole).max(initial=0)))
    except OSError as error:
        raise DataError(
            f"token file must be readable; got {error.strerror or error} for {shard.path}.",
            hint="copy it again or pack the corpora again",
        ) from error
    if index.sha256 and digest.hexdigest() != index.sha256:
        raise DataError(
            f"token file must have the SHA-256 {index.sha256[:12]} of its index; got {digest.hexdigest()[:12]} in "
            f"{shard.path}.",
            hint="copy it again or pack the corpora again",
        )
    if largest >= index.vocab_size:
        raise DataError(
            f"token ids must be below the vocabulary's size of {index.vocab_size}; got {largest} in {shard.path}.",
            hint="pack the corpora again with the tokenizer of this model",
        )


def require_one_tokenizer(indices: Mapping[str, ShardIndex]) -> None:
    """Refuse shards of different tokenizers; those that do not say whose they are fit any.

    Args:      indices: by the name of the shard, for the message.
    Raises:    DataError naming two shards and the hashes of their tokenizers.
    """
    named = [(name, index.tokenizer_hash) for name, index in indices.items() if index.tokenizer_hash]
    for name, tokenizer_hash in named[1:]:
        first_name, first_hash = named[0]
        if tokenizer_hash != first_hash:
            raise DataError(
                f"shards must be of one tokenizer; got {first_hash} for {first_name} and {tokenizer_hash} for {name}.",
                hint="pack all of them with the tokenizer of this model",
            )
