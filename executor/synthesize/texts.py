"""The texts kept so far: a file that grows by whole batches, and beside it how far it is good."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cptplan.errors import StorageError
from cptplan.files import read_json, write_json
from executor.corpus.tokenizer import TextTokenizer
from executor.synthesize.judge import TextFilter

TEXTS, RESULT = "synthetic.jsonl", "synthetic.json"
UNFINISHED, STATE = ".synthetic.jsonl", ".state.json"  # readers of corpora pass over names with a dot


@dataclass(kw_only=True, slots=True)
class Counts:
    """What has been generated so far, over all attempts."""

    batches: int = 0
    generated: int = 0
    kept: int = 0
    duplicate: int = 0
    degenerate: int = 0
    tokens: int = 0
    """Of the kept texts, their ends of text included."""
    num_bytes: int = 0
    """Length of the file that they are in."""


@dataclass(kw_only=True)
class TextFile:
    """The directory of one synthetic corpus."""

    out: Path
    origin: dict[str, Any]
    """All that the texts depend on; a directory with texts of another origin is refused."""
    tokenizer: TextTokenizer
    judge: TextFilter
    counts: Counts = field(default_factory=Counts)

    def is_complete(self) -> bool:
        """Whether the directory holds all texts of this origin.

        Raises:    StorageError if it holds those of another.
        """
        result = self.out / RESULT
        if not result.exists():
            return False
        self._check_origin(read_json(result), result)
        return True

    def resume(self) -> None:
        """Go to the end of the last whole batch.

        Raises:    StorageError if the directory holds texts of another origin, or not as many as it says.
        """
        texts, unfinished, state = (self.out / name for name in (TEXTS, UNFINISHED, STATE))
        if state.exists():
            found = read_json(state)
            self._check_origin(found, state)
            self.counts = Counts(**found["counts"])
            if texts.exists():  # killed between the last two steps of finish
                texts.rename(unfinished)
        elif texts.exists():
            raise StorageError(f"out must not hold other texts; got {texts}.", hint="choose another --out")
        unfinished.touch()
        if unfinished.stat().st_size < self.counts.num_bytes:
            raise StorageError(
                f"file must have {self.counts.num_bytes} bytes, as {STATE} says; got {unfinished.stat().st_size} in "
                f"{unfinished}.",
                hint="remove the directory, then run the same command again",
            )
        os.truncate(unfinished, self.counts.num_bytes)
        with unfinished.open(encoding="utf-8") as lines:
            for line in lines:
                text = json.loads(line)["text"]
                self.judge.remember(text, self._encode(text))

    def add(self, texts: Sequence[str], most_tokens: int) -> None:
        """Judge the texts of the next batch, and write those kept until there are enough tokens."""
        counts, lines = self.counts, []
        for text in texts:
            if counts.tokens >= most_tokens:
                break
            token_ids = self._encode(text)
            verdict = self.judge.judge(text, token_ids)
            setattr(counts, verdict, getattr(counts, verdict) + 1)
            if verdict == "kept":
                counts.tokens += len(token_ids) + 1
                lines.append(json.dumps({"text": text, "id": f"synthetic-{counts.generated}"}, ensure_ascii=False))
            counts.generated += 1
        content = "".join(f"{line}\n" for line in lines).encode()
        with (self.out / UNFINISHED).open("ab") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        counts.num_bytes += len(content)
        counts.batches += 1
        write_json(self.out / STATE, {"schema_version": 1, "origin": self.origin, "counts": asdict(counts)})

    def finish(self, places: Mapping[str, str]) -> None:
        """Give the file its name and write the record, which marks it complete.

        Args:      places: of model and prompts, for the record.
        """
        (self.out / UNFINISHED).rename(self.out / TEXTS)
        record = {"schema_version": 1, "kind": "synthetic", **places, "origin": self.origin}
        write_json(self.out / RESULT, {**record, "counts": asdict(self.counts)})
        (self.out / STATE).unlink()

    def _encode(self, text: str) -> NDArray[np.uint32]:
        return self.tokenizer.encode([text])[0]

    def _check_origin(self, record: Mapping[str, Any], path: Path) -> None:
        if record.get("origin") != self.origin:
            raise StorageError(
                f"out must hold texts of the same model, prompts and settings; got others in {path}.",
                hint="choose another --out",
            )
