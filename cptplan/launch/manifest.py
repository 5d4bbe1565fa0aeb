"""manifest.json: which token shards a run reads, with hashes, so that the same bytes can be asked for elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from cptplan.contract import Contract
from cptplan.errors import DataError
from cptplan.files import hash_file, read_json
from cptplan.run_spec import RunSpec

Count = Annotated[int, Field(ge=0)]


class _Index(Contract):
    """What is needed of <split>.json, the index that the packer writes beside a token file."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    dtype: str
    num_tokens: Count
    num_documents: Count
    eos_token_id: Count
    tokenizer_hash: str
    sha256: str


class Shard(Contract):
    """One token file of a run."""

    use: Literal["train", "validation"]
    name: str
    """Of the source or validation set."""
    path: str
    """Of the token file, as the run spec names its directory."""
    sha256: str
    """As the packer noted it; that of the file itself where there is no note."""
    dtype: str
    num_tokens: Count
    num_documents: Count
    eos_token_id: Count
    tokenizer_hash: str


class Manifest(Contract):
    """All token files of a run."""

    schema_version: Literal[1] = 1
    spec_hash: str
    tokenizer_hash: str | None
    """One for all shards; None when the packer noted none."""
    shards: tuple[Shard, ...]

    def shard(self, use: str, name: str) -> Shard:
        """The shard of a source or validation set."""
        return next(shard for shard in self.shards if (shard.use, shard.name) == (use, name))


def build_manifest(spec: RunSpec, project_dir: Path) -> Manifest:
    """The manifest of a run, from the indices of its shards.

    Args:      project_dir: where relative paths of the spec start.
    Raises:    DataError if a shard is missing or not as long as its index says, or tokenizers differ.
    """
    shards = [_shard("train", source.name, source.path, project_dir) for source in spec.sources]
    shards += [_shard("validation", chosen.name, chosen.path, project_dir) for chosen in spec.validation]
    hashes = sorted({shard.tokenizer_hash for shard in shards if shard.tokenizer_hash})
    if len(hashes) > 1:
        raise DataError(f"shards must be of one tokenizer; got {', '.join(hashes)}.", hint="pack the corpora again")
    return Manifest(spec_hash=spec.hash, tokenizer_hash=hashes[0] if hashes else None, shards=tuple(shards))


def _shard(use: Literal["train", "validation"], name: str, directory: str, project_dir: Path) -> Shard:
    tokens = project_dir / directory / f"{use}.bin"
    index_path = tokens.with_suffix(".json")
    if not (tokens.is_file() and index_path.is_file()):
        missing = index_path if tokens.is_file() else tokens
        raise DataError(f"token shard must be there; got no {missing}, for {name}.", hint="run cptplan data pack")
    index = _Index.parse(read_json(index_path), str(index_path))
    there, wanted = tokens.stat().st_size, index.num_tokens * {"uint16": 2, "uint32": 4}.get(index.dtype, 0)
    if there != wanted:
        raise DataError(
            f"token file must be as long as its index says, {wanted} bytes; got {there} in {tokens}.",
            hint="copy it again or pack the corpora again",
        )
    fields: dict[str, Any] = index.to_json() | {"sha256": index.sha256 or hash_file(tokens)}
    return Shard(use=use, name=name, path=f"{directory}/{use}.bin", **fields)
