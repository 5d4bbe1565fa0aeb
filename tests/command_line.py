"""The command line run inside the test's process, and a small project of a user's own to run it on."""

from __future__ import annotations

import json
import random
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from cptplan.cli import main

PROJECT = """
schema_version: 1
name: mine
model:
  starts:
    - {name: base, path: base}
  pretrain_peak_lr: 3e-3
data:
  general: {name: general, path: general.jsonl}
  domains:
    - {name: domain, path: domain.jsonl}
  seq_len: 64
  validation_tokens: 512
budget: {tokens: 8192, num_devices: 1}
pilot:
  total_steps: 8
  batch_tokens: 256
  num_runs: 6
  warmup_steps: 2
  parallel: 2
  threads: 1
  eval_points: 5
  precision: fp32
"""
TEXTS = {
    "general": "the law of loss says that a run goes down with area and up with shift",
    "domain": "def return import self for in if else x y z = ( ) : + - * lambda yield",
}


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


class CommandLine:
    """Runs commands as a user types them; what they said."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys
        monkeypatch.setenv("COLUMNS", "120")

    def __call__(self, *arguments: object) -> Said:
        self._monkeypatch.setattr(sys, "argv", ["cptplan", *map(str, arguments)])
        self._capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        said = self._capsys.readouterr()
        return Said(code, said.out, said.err)

    def assert_refused(self, *arguments: object, says: str, code: int = 2) -> Said:
        """Run a command that must be refused in one line of the house's form, with a hint.

        Args:      says: regular expression somewhere in the error line.
        """
        said = self(*arguments)
        assert said.code == code, said
        error, hint = said.err.splitlines()[-2:]
        assert re.fullmatch(r"error: \S.* must .*(; got|; it is missing| got) .*\.", error), error
        assert re.search(says, error), error
        assert re.fullmatch(r"hint: \S.*", hint), hint
        assert "Traceback" not in said.err
        assert "error:" not in "".join(said.err.splitlines(keepends=True)[:-2])
        assert said.out == ""
        return said


def write_project(directory: Path) -> Path:
    """cptplan.yaml, two small corpora and a model directory that is whole to the planner's eyes (no real weights)."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "cptplan.yaml").write_text(PROJECT)
    for seed, (name, text) in enumerate(TEXTS.items()):
        chance, words = random.Random(seed), text.split()
        texts = (" ".join(chance.choice(words) for _ in range(200)) for _ in range(150))
        (directory / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    write_model(directory / "base")
    return directory / "cptplan.yaml"


def write_model(directory: Path, vocab_size: int = 512) -> None:
    """A model directory with a byte-level tokenizer; the weights are an empty file."""
    from executor.corpus.tokenizer import save_tokenizer, train_tokenizer

    save_tokenizer(train_tokenizer(TEXTS.values(), vocab_size=vocab_size), directory)
    (directory / "config.json").write_text(json.dumps(model_config(vocab_size)))
    (directory / "model.safetensors").touch()


def model_config(vocab_size: int) -> dict[str, object]:
    """A Llama of a few thousand parameters."""
    return {
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
    }


def no_leftovers(directory: Path) -> bool:
    """Whether no temporary file was left below a directory."""
    return not [path for path in directory.rglob("*") if path.name.endswith(".tmp")]
