"""`python -m executor.corpus.megatron SHARD_DIR --out PREFIX`: a token shard as Megatron's PREFIX.bin and PREFIX.idx.

The .bin holds the tokens as they are. The .idx, little-endian: 9 bytes of magic; version, uint64; code of the token
type, uint8; number of sequences and of document indices, uint64; the length of every sequence in tokens, int32; its
place in the .bin in bytes, int64; the sequence that each document begins with, and the end, int64. Here a document is
one sequence, its end of text included.
Reference: megatron/core/datasets/indexed_dataset.py of megatron-core 0.16.1.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from cptplan.errors import CptplanError, DataError
from cptplan.files import storage_error
from executor.corpus.pack import TokenShard, open_shard
from executor.corpus.split import SPLITS
from executor.corpus.verify import verify_shard

_MAGIC, _VERSION = b"MMIDIDX\x00\x00", 1
_TYPE_CODES = {"uint16": 8, "uint32": 4}  # there is no code for uint32; as int32 the ids have the same bytes
_BLOCK_TOKENS = 1 << 20

log = logging.getLogger(__name__)


def export_megatron(shard: TokenShard, prefix: Path) -> None:
    """Write <prefix>.bin and <prefix>.idx, the latter last; the shard is checked first. Memory stays small.

    Raises:    DataError for a damaged shard, one whose documents do not end with the end of text, or a document of
               2^31 tokens or more; StorageError or RunFailedError if the files cannot be written.
    """
    verify_shard(shard)
    _check_documents(shard)
    binary, index = Path(f"{prefix}.bin"), Path(f"{prefix}.idx")
    temporary = [path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in (binary, index)]
    try:
        prefix.parent.mkdir(parents=True, exist_ok=True)
        index.unlink(missing_ok=True)  # an old index must not describe new tokens
        with shard.path.open("rb") as source, temporary[0].open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
            _finish(file)
        with temporary[1].open("wb") as file:
            _write_index(file, shard)
            _finish(file)
        temporary[0].replace(binary)
        temporary[1].replace(index)
    except OSError as error:
        raise storage_error(error, prefix) from error
    finally:
        for path in temporary:
            path.unlink(missing_ok=True)


def _check_documents(shard: TokenShard) -> None:
    num_documents, longest, last_end = 0, 0, 0
    for ends in _ends(shard):
        longest = max(longest, int(np.diff(ends, prepend=last_end).max()))
        num_documents, last_end = num_documents + len(ends), int(ends[-1])
    if (num_documents, last_end) != (shard.index.num_documents, shard.index.num_tokens):
        raise DataError(
            f"every one of {shard.index.num_documents} documents must end with the end of text "
            f"{shard.index.eos_token_id}; got {num_documents} such tokens in {shard.path}.",
            hint="pack the corpora again",
        )
    if longest > np.iinfo(np.int32).max:
        raise DataError(
            f"documents must have fewer than 2^31 tokens; got {longest} in {shard.path}.", hint="cut the document"
        )


def _ends(shard: TokenShard) -> Iterator[NDArray[np.int64]]:
    """Places behind the documents, in tokens, rising; a block without an end is left out."""
    dtype = np.dtype(shard.index.dtype).newbyteorder("<")
    with shard.path.open("rb") as file:
        begin = 0
        while block := file.read(_BLOCK_TOKENS * dtype.itemsize):
            tokens = np.frombuffer(block, dtype=dtype)
            found = np.flatnonzero(tokens == shard.index.eos_token_id)
            if len(found):
                yield begin + found + 1
            begin += len(tokens)


def _write_index(file: BinaryIO, shard: TokenShard) -> None:
    num_documents = shard.index.num_documents
    itemsize = np.dtype(shard.index.dtype).itemsize
    counts = (num_documents, num_documents + 1)
    file.write(_MAGIC + struct.pack("<QBQQ", _VERSION, _TYPE_CODES[shard.index.dtype], *counts))
    last_end = 0
    for ends in _ends(shard):
        file.write(np.diff(ends, prepend=last_end).astype("<i4").tobytes())
        last_end = int(ends[-1])
    last_end = 0
    for ends in _ends(shard):
        begins = np.concatenate([[last_end], ends[:-1]])
        file.write((begins * itemsize).astype("<i8").tobytes())
        last_end = int(ends[-1])
    for begin in range(0, num_documents + 1, _BLOCK_TOKENS):
        file.write(np.arange(begin, min(begin + _BLOCK_TOKENS, num_documents + 1), dtype="<i8").tobytes())


def _finish(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def main(arguments: list[str] | None = None) -> int:
    """Export one side of a shard; returns the exit code, having said on stderr what was wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m executor.corpus.megatron", description="A token shard as Megatron's .bin and .idx."
    )
    parser.add_argument("shard", type=Path, help="directory of the shard")
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--out", type=Path, required=True, help="path of the two files without their suffix")
    given = parser.parse_args(arguments)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    try:
        shard = open_shard(given.shard, given.split)
        export_megatron(shard, given.out)
    except CptplanError as error:
        sys.stderr.write(f"error: {error.message}\n" + (f"hint: {error.hint}\n" if error.hint else ""))
        return error.exit_code
    log.info("%d documents, %d tokens in %s.bin", shard.index.num_documents, shard.index.num_tokens, given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
