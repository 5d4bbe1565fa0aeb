"""What the corpus process is asked to do: corpus.json, written by the planner."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from cptplan.contract import Contract
from cptplan.errors import ConfigError
from cptplan.files import hash_json

Positive = Annotated[int, Field(gt=0)]


class TrainTokenizer(Contract):
    """A new byte-level BPE, learnt from the training side of all sources."""

    vocab_size: Positive


class TokenizerSpec(Contract):
    """A new tokenizer, or the one of a directory or hub id."""

    train: TrainTokenizer | None = None
    path: str | None = None

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.train is None) == (self.path is None):
            raise ConfigError(
                "tokenizer must have either train or path; got neither or both.", hint="give tokenizer.path"
            )
        return self


class SourceSpec(Contract):
    """One corpus: files, or one of the two taken from the installed packages."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    """Also the name of its folder."""
    role: Literal["general", "domain"]
    kind: Literal["files", "embedded:general", "embedded:domain"] = "files"
    path: str | None = None
    provenance: Literal["original", "proxy", "synthetic"] | None = None
    """Of the text: that of the base model's own pre-training (when absent), like it, or written by a model."""
    text_column: str = "text"
    id_column: str | None = None
    max_bytes: Positive | None = None
    """UTF-8 bytes of text to take; all when absent."""

    @model_validator(mode="after")
    def _check_path(self) -> Self:
        if (self.kind == "files") != (self.path is not None):
            raise ConfigError(
                f"path must be given for kind files and only there; got kind {self.kind} and path {self.path!r}.",
                hint="give path, or choose kind embedded:general or embedded:domain",
            )
        if self.name == "tokenizer":
            raise ConfigError("name must not be that of another folder; got 'tokenizer'.", hint="rename the source")
        return self


class CorpusSpec(Contract):
    """All sources of a project, how they are split, and their tokenizer."""

    schema_version: Literal[1]
    out: str
    """Directory for tokenizer/, one folder for each source, and corpora.json."""
    seed: Annotated[int, Field(ge=0, lt=1 << 64)] = 0
    tokenizer: TokenizerSpec
    sources: Annotated[tuple[SourceSpec, ...], Field(min_length=1)]
    validation_share: Annotated[float, Field(gt=0, le=0.5)] = 0.02
    """Of the text of every source."""

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ConfigError(f"sources must have different names; got {', '.join(names)}.", hint="rename one")
        return self

    @property
    def content(self) -> dict[str, Any]:
        """All but the place: what the result depends on."""
        return {key: value for key, value in self.to_json().items() if key != "out"}

    @property
    def content_hash(self) -> str:
        """Name of the content; a directory that was moved keeps it."""
        return hash_json(self.content)
