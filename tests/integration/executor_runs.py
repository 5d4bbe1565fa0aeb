"""Tiny corpora, models and run directories for the tests of the trainer, and processes to run and kill it in."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, models

from cptplan.mixture import ConstantMixture
from cptplan.run_spec import ModelSource, Optimizer, RunSpec, Source, ValidationSet, write_run_spec
from cptplan.schedule import CosineSchedule
from executor.corpus.pack import ShardIndex
from executor.data import TrainingData

VOCAB = 64
SEQ_LEN = 16
LLAMA = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": VOCAB,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
GPT2 = {
    "model_type": "gpt2",
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 2,
    "vocab_size": VOCAB,
    "n_positions": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
TIMINGS = {"tokens_per_second", "eval_seconds", "data_seconds", "memory_gb", "gpu_hours", "price_usd", "mfu"}


def toy_tokens(num_tokens: int, *, rule: int, seed: int) -> np.ndarray:
    """A stream that can be learnt: nine times in ten the next token is 5 * token + rule (mod VOCAB)."""
    rng = np.random.default_rng(seed)
    noise, fresh = rng.random(num_tokens) < 0.1, rng.integers(0, VOCAB, num_tokens)
    tokens = np.zeros(num_tokens, dtype=np.uint16)
    for place in range(1, num_tokens):
        tokens[place] = fresh[place] if noise[place] else (5 * int(tokens[place - 1]) + rule) % VOCAB
    return tokens


def write_shard(directory: Path, split: str, tokens: np.ndarray, vocab_size: int = VOCAB) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    tokens.astype("<u2").tofile(directory / f"{split}.bin")
    index = ShardIndex(
        source=directory.name,
        split=split,
        dtype="uint16",
        num_tokens=len(tokens),
        num_documents=1,
        num_bytes=len(tokens),
        eos_token_id=0,
        vocab_size=vocab_size,
        tokenizer_hash="",
        corpus_hash="",
        sha256="",
    )
    (directory / f"{split}.json").write_text(json.dumps(index.to_json()))


def write_corpora(root: Path) -> None:
    """Two sources with different rules, and a tokenizer of their vocabulary."""
    for rule, name in ((1, "general"), (3, "domain")):
        write_shard(root / name, "train", toy_tokens(6000, rule=rule, seed=rule))
        write_shard(root / name, "validation", toy_tokens(1000, rule=rule, seed=rule + 10))
    write_tokenizer(root / "tokenizer")


def validation_windows(root: Path, name: str, count: int = 33) -> np.ndarray:
    """The windows that a run of make_spec evaluates, evenly over the validation shard, shape (count, SEQ_LEN + 1)."""
    tokens = np.fromfile(root / name / "validation.bin", dtype="<u2").astype(np.int64)
    there = (len(tokens) - 1) // SEQ_LEN
    starts = [SEQ_LEN * (number * there // count) for number in range(count)]
    return np.stack([tokens[start : start + SEQ_LEN + 1] for start in starts])


def poison_step(spec: RunSpec, step: int) -> None:
    """Make noise of what a run reads in one step (from 0), in the shards of its sources."""
    data, rng = TrainingData(spec), np.random.default_rng(0)
    first, count = step * spec.sequences_per_step, spec.sequences_per_step
    rows, numbers = data.read(first, count), data.sources_of(first, count)
    for number, source in data.sources.items():
        directory = Path(next(chosen.path for chosen in spec.sources if chosen.name == source.name))
        tokens = np.array(source.tokens)
        starts = {tuple(tokens[at : at + SEQ_LEN + 1].tolist()): at for at in range(0, len(tokens) - SEQ_LEN, SEQ_LEN)}
        for row in rows[numbers == number]:
            at = starts[tuple(row.tolist())]
            tokens[at + 1 : at + SEQ_LEN] = rng.integers(0, VOCAB, SEQ_LEN - 1)
        write_shard(directory, "train", tokens)


def write_tokenizer(directory: Path, vocab_size: int = VOCAB) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    words = {f"w{number}": number for number in range(vocab_size)}
    Tokenizer(models.WordLevel(words, unk_token="w0")).save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "w0", "eos_token": "w0"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def make_spec(root: Path, **changes: Any) -> RunSpec:
    """24 steps of 8 sequences in micro batches of 2, with warm-up and decay."""
    values = {
        "name": "run",
        "phase": "cpt",
        "model": ModelSource(config=LLAMA, tokenizer=str(root / "tokenizer")),
        "sources": (
            Source(name="general", role="general", path=str(root / "general")),
            Source(name="domain", role="domain", path=str(root / "domain")),
        ),
        "validation": tuple(
            ValidationSet(name=name, path=str(root / name), num_tokens=33 * SEQ_LEN) for name in ("general", "domain")
        ),
        "schedule": CosineSchedule(kind="cosine", peak_lr=1e-2, total_steps=24, warmup_steps=4, min_lr=1e-4),
        "mixture": ConstantMixture(replay_ratio=0.3),
        "optimizer": Optimizer(),
        "seq_len": SEQ_LEN,
        "batch_tokens": 8 * SEQ_LEN,
        "micro_batch_tokens": 2 * SEQ_LEN,
        "eval_steps": (3, 10, 17),
        "checkpoint_every": 4,
        "keep_steps": (9,),
    }
    return RunSpec(**{**values, **changes})


def write_run(run_dir: Path, spec: RunSpec) -> Path:
    run_dir.mkdir(parents=True)
    write_run_spec(run_dir / "spec.json", spec)
    return run_dir


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """All of metrics.jsonl but what a clock said."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMINGS} for line in lines]


def train_losses(run_dir: Path) -> np.ndarray:
    return np.array([line["train_loss"] for line in metrics(run_dir) if "train_loss" in line])


def result(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "result.json").read_text())


def train_process(run_dir: str, error_path: str, prepare: Callable[[], None] | None) -> None:
    """What `python -m executor.train --run-dir ...` does, in a process that has imported torch already."""
    from executor.train import main

    with open(error_path, "a") as errors:
        os.dup2(errors.fileno(), 2)
    if prepare is not None:
        prepare()
    raise SystemExit(main(["--run-dir", run_dir, "--threads", "1"]))


_context = multiprocessing.get_context("forkserver")
# each run is a process of its own that can be killed; only the seconds of importing torch are spent once
_context.set_forkserver_preload(["executor.train", "executor.loop"])


def start(run_dir: Path, prepare: Callable[[], None] | None = None) -> ForkServerProcess:
    """A training process; what it says goes to <run_dir>.stderr."""
    process = _context.Process(target=train_process, args=(str(run_dir), f"{run_dir}.stderr", prepare))
    process.start()
    return process


def finish(process: ForkServerProcess, timeout: float = 60.0) -> int:
    """The exit code of a process; negative signal number if it was killed."""
    process.join(timeout)
    assert process.exitcode is not None, "the run does not end"
    return process.exitcode


def train(run_dir: Path, prepare: Callable[[], None] | None = None) -> int:
    return finish(start(run_dir, prepare))


def said(run_dir: Path) -> str:
    return Path(f"{run_dir}.stderr").read_text()


def wait_until(condition: Callable[[], bool], process: ForkServerProcess, timeout: float = 60.0) -> bool:
    """Watch closely until something is so; False if the process ended first."""
    limit = time.monotonic() + timeout
    while not condition():
        if not process.is_alive():
            return False
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.0005)
    return True
