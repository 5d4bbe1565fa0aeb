"""How fast the executor trains beside a hand-written loop and transformers.Trainer.

python experiments/benchmarks/training_speed.py: the same model, batch, text, precision and cores for all, eager and
compiled. Each contestant is a process of its own. All are started, then stopped (SIGSTOP), and take turns: one runs a
few steps while the others stand still. So slow spells of a machine meet all alike, and what is compared are the steps
of one round. Seconds are those between the lines that a contestant writes after its steps, seen from outside: logging
and whatever else happens between two steps is in them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from record import LOG, ROOT, Goal, start, write_record
from training_contestants import LR, MANY_STEPS, Job

from cptplan.errors import RunFailedError
from cptplan.files import write_json
from cptplan.mixture import ConstantMixture
from cptplan.run_spec import ModelSource, RunSpec, Source, ValidationSet, write_run_spec
from cptplan.schedule import read_schedule

Who = Literal["ours", "bare", "trainer"]

SEQ_LEN, VOCAB = 256, 4096
# parameters in all, the tied embedding once: 1.1, 10.0 and 0.2 million
SHAPES = {
    "1M": {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 3, "num_attention_heads": 4},
    "10M": {"hidden_size": 320, "intermediate_size": 864, "num_hidden_layers": 7, "num_attention_heads": 5},
    "tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
}
CORPUS_BYTES = 4_000_000
BATCH_TOKENS = 4096
POLL_SECONDS = 0.001
STEP_MARK = b'"train_loss"'  # in the line of a step
START_LIMIT_SECONDS = 600.0
BARE_TARGET, TRAINER_TARGET, DATA_TARGET = 0.98, 1.15, 0.02
WARM_UP_STEPS = 3  # that are not counted
SAMPLES, LEVEL = 2000, 0.9  # of the bootstrap over rounds


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One contestant."""

    who: Who
    compile: bool

    @property
    def name(self) -> str:
        """Such as "bare compiled"."""
        return f"{self.who} {'compiled' if self.compile else 'eager'}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One step of a turn, on average."""

    seconds: float
    cpu_seconds: float
    """Of all threads: less shaken by other programs; of several threads it also counts those that wait."""


class Racer:
    """A contestant's process, which writes a line after each of its steps."""

    def __init__(self, entry: Entry, command: Sequence[str], steps_file: Path) -> None:
        self.entry, self.steps_file = entry, steps_file
        self._errors = steps_file.with_suffix(".stderr")
        self._read_bytes = self._steps = 0
        self._started = time.perf_counter()
        # a session of its own: the compiler's helpers stop and end with it
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                command, stdout=errors, stderr=errors, cwd=ROOT, start_new_session=True, env=environment()
            )

    def seconds_to_first_step(self) -> float:
        """Wait for the first line; seconds since the process was started."""
        return self._await_steps(1) - self._started

    def run_steps(self, steps: int) -> Turn:
        """Go on, leave the step in which it was stopped, and measure the next ones."""
        begun = self._count()
        self._signal(signal.SIGCONT)
        first, first_cpu = self._await_steps(begun + 1), self._cpu_seconds()
        last, last_cpu = self._await_steps(begun + 1 + steps), self._cpu_seconds()
        self._signal(signal.SIGSTOP)
        return Turn(seconds=(last - first) / steps, cpu_seconds=(last_cpu - first_cpu) / steps)

    def pause(self) -> None:
        """Stand still."""
        self._signal(signal.SIGSTOP)

    def end(self) -> None:
        """End the process and its helpers."""
        if self._process.poll() is None:
            self._signal(signal.SIGKILL)
        self._process.wait()

    def data_share(self) -> float | None:
        """Median share of a step's time that reading its tokens takes; None if it is not logged."""
        lines = [json.loads(line) for line in self.steps_file.read_text(encoding="utf-8").splitlines()[1:-1]]
        shares = [line["data_seconds"] / step_seconds(line) for line in lines if "data_seconds" in line]
        return float(np.median(shares)) if shares else None

    def _cpu_seconds(self) -> float:
        """Of all threads so far."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _signal(self, number: signal.Signals) -> None:
        os.killpg(self._process.pid, number)

    def _count(self) -> int:
        """Steps done so far; the executor's log also has lines of other things."""
        if self.steps_file.exists() and self.steps_file.stat().st_size > self._read_bytes:
            with self.steps_file.open("rb") as file:
                file.seek(self._read_bytes)
                whole, end, _ = file.read().rpartition(b"\n")
            self._read_bytes += len(whole) + len(end)
            self._steps += whole.count(STEP_MARK)
        return self._steps

    def _await_steps(self, count: int) -> float:
        """The moment at which so many steps are done."""
        limit = time.perf_counter() + START_LIMIT_SECONDS
        while True:
            now = time.perf_counter()
            if self._count() >= count:
                return now
            if self._process.poll() is not None or now > limit:
                raise RunFailedError(
                    f"{self.entry.name} must go on; got {self._errors.read_text()[-2000:]} in {self._errors}.",
                    hint="run its command alone to see more",
                )
            time.sleep(POLL_SECONDS)


def main() -> None:
    """Measure and write."""
    options = parse()
    start()
    # stopped processes would be left behind otherwise
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        corpus = pack_corpus(work / "corpora")
        sizes = {size: race(size, corpus, work / size, options) for size in options.sizes}
    results = {
        "batch_tokens": options.batch_tokens,
        "seq_len": SEQ_LEN,
        "precision": "fp32",
        "threads": options.threads,
        "versions": {name: version(name) for name in ("torch", "transformers", "accelerate")},
        "sizes": sizes,
    }
    found = [goal for size, result in sizes.items() for goal in goals(size, result)]
    if options.no_record:
        write_json(options.no_record, {"goals": [goal.reached for goal in found], "results": results})
    else:
        write_record("training_speed", found, results)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=SHAPES, default=["1M", "10M"])
    parser.add_argument("--kinds", nargs="+", choices=("eager", "compiled"), default=["eager", "compiled"])
    parser.add_argument("--rounds", type=int, default=40, help="turns of every contestant")
    parser.add_argument("--turn-seconds", type=float, default=2.5, help="about how long a turn is")
    parser.add_argument("--starts", type=int, default=3, help="times that every contestant is started")
    parser.add_argument("--batch-tokens", type=int, default=BATCH_TOKENS)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--work", type=Path, help="directory for corpora and runs, which are kept; default temporary")
    parser.add_argument("--no-record", type=Path, metavar="FILE", help="write there instead of reports/benchmarks")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    return options


def environment() -> dict[str, str]:
    """What all contestants run with; threads are set by parse()."""
    return {**os.environ, "TOKENIZERS_PARALLELISM": "false", "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}


def pack_corpus(out: Path) -> Path:
    """The demo's prose as token shards with a tokenizer of their own; its directory."""
    spec = {
        "schema_version": 1,
        "out": str(out),
        "tokenizer": {"train": {"vocab_size": VOCAB}},
        "sources": [{"name": "general", "role": "general", "kind": "embedded:general", "max_bytes": CORPUS_BYTES}],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    path = out.with_suffix(".json")
    write_json(path, spec)
    subprocess.run([sys.executable, "-m", "executor.corpus", "--spec", str(path)], check=True, cwd=ROOT)
    return out


def race(size: str, corpus: Path, work: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All contestants on one model: starts, then rounds in which everyone takes a turn in random order."""
    shutil.rmtree(work, ignore_errors=True)
    entries = [
        Entry(who=who, compile=kind == "compiled") for kind in options.kinds for who in ("ours", "bare", "trainer")
    ]
    order = random.Random(0)
    starts: dict[str, list[float]] = {entry.name: [] for entry in entries}
    racers: list[Racer] = []
    try:
        for number in range(options.starts):
            for entry in order.sample(entries, len(entries)):
                racer = launch(entry, size, corpus, work / f"{entry.name.replace(' ', '-')}-{number}", options)
                racers.append(racer)
                starts[entry.name].append(racer.seconds_to_first_step())
                LOG.info("%s %s: %.1f s to the first step", size, entry.name, starts[entry.name][-1])
                racer.pause() if number == options.starts - 1 else racers.pop().end()
        steps = {
            racer: max(1, round(options.turn_seconds / racer.run_steps(WARM_UP_STEPS).seconds)) for racer in racers
        }
        turns: dict[str, list[Turn]] = {entry.name: [] for entry in entries}
        for number in range(options.rounds):
            for racer in order.sample(racers, len(racers)):
                turns[racer.entry.name].append(racer.run_steps(steps[racer]))
            if number % 10 == 9:
                LOG.info("%s: round %d of %d", size, number + 1, options.rounds)
    finally:
        for racer in racers:
            racer.end()
    return summary(size, options, starts, turns, {racer.entry.name: racer for racer in racers})


def launch(entry: Entry, size: str, corpus: Path, work: Path, options: argparse.Namespace) -> Racer:
    """Start a contestant."""
    work.mkdir(parents=True)
    model = model_config(size)
    if entry.who == "ours":
        spec = run_spec(model, corpus, compile=entry.compile, batch_tokens=options.batch_tokens)
        write_run_spec(work / "spec.json", spec)
        command = [sys.executable, "-m", "executor.train", "--run-dir", str(work)]
        return Racer(entry, command, work / "metrics.jsonl")
    job = Job(
        model=model,
        tokens=str(corpus / "general" / "train.bin"),
        seq_len=SEQ_LEN,
        batch_tokens=options.batch_tokens,
        compile=entry.compile,
        steps_file=str(work / "steps.jsonl"),
    )
    script = Path(__file__).with_name("training_contestants.py")
    command = [sys.executable, str(script), entry.who, "--job", str(job.write(work / "job.json"))]
    return Racer(entry, command, work / "steps.jsonl")


def model_config(size: str) -> dict[str, Any]:
    """A Llama of a size."""
    return {
        "model_type": "llama",
        **SHAPES[size],
        "vocab_size": VOCAB,
        "max_position_embeddings": SEQ_LEN,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }


def run_spec(model: dict[str, Any], corpus: Path, **changes: Any) -> RunSpec:
    """The executor's run: one source, no evaluation but the first and the last, no checkpoint."""
    path = str(corpus / "general")
    schedule = {"kind": "constant", "peak_lr": LR, "total_steps": changes.pop("total_steps", MANY_STEPS)}
    values = {
        "name": "speed",
        "phase": "pretrain",
        "model": ModelSource(config=model),
        "sources": (Source(name="general", role="general", path=path),),
        "validation": (ValidationSet(name="general", path=path, num_tokens=SEQ_LEN),),
        "schedule": read_schedule(schedule, "the benchmark", corpus),
        "mixture": ConstantMixture(replay_ratio=1.0),
        "seq_len": SEQ_LEN,
        "eval_steps": (),
        "checkpoint_every": MANY_STEPS,
    }
    return RunSpec(**{**values, **changes})


def step_seconds(line: dict[str, Any]) -> float:
    """Wall-clock seconds of a step by its own log."""
    return float(line["seconds"] if "seconds" in line else line["tokens"] / line["step"] / line["tokens_per_second"])


def summary(
    size: str,
    options: argparse.Namespace,
    starts: dict[str, list[float]],
    turns: dict[str, list[Turn]],
    racers: dict[str, Racer],
) -> dict[str, Any]:
    """Speeds, ratios of the rounds, starts and shares of reading."""
    return {
        "model": model_config(size),
        "num_params": count_params(size),
        "contestants": {
            name: {
                "tokens_per_second": options.batch_tokens / float(np.median([turn.seconds for turn in found])),
                "tokens_per_second_best": options.batch_tokens / min(turn.seconds for turn in found),
                "cpu_seconds_per_step": float(np.median([turn.cpu_seconds for turn in found])),
                "seconds_to_first_step": float(np.median(starts[name])),
                "data_share": racers[name].data_share(),
                "step_seconds": [round(turn.seconds, 5) for turn in found],
            }
            for name, found in turns.items()
        },
        "ratios": {
            f"ours / {other} {kind}": ratio(turns[f"{other} {kind}"], turns[f"ours {kind}"])
            for kind in options.kinds
            for other in ("bare", "trainer")
        },
    }


def ratio(others: list[Turn], ours: list[Turn]) -> dict[str, float]:
    """How many times faster we are: median over rounds of the ratio of seconds, with a bootstrap interval."""
    by_round = np.array([other.seconds / our.seconds for other, our in zip(others, ours, strict=True)])
    by_cpu = [other.cpu_seconds / our.cpu_seconds for other, our in zip(others, ours, strict=True)]
    drawn = np.random.default_rng(0).integers(0, len(by_round), (SAMPLES, len(by_round)))
    low, high = np.quantile(np.median(by_round[drawn], axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {
        "median": float(np.median(by_round)),
        "low": float(low),
        "high": float(high),
        "of_best_rounds": min(turn.seconds for turn in others) / min(turn.seconds for turn in ours),
        "of_cpu_seconds": float(np.median(by_cpu)),
    }


def count_params(size: str) -> dict[str, int]:
    """Parameters in all and without the embedding, which is also the output layer."""
    shape = SHAPES[size]
    hidden, layers = shape["hidden_size"], shape["num_hidden_layers"]
    inner = layers * (4 * hidden**2 + 3 * hidden * shape["intermediate_size"] + 2 * hidden) + hidden
    return {"total": inner + VOCAB * hidden, "without_embedding": inner}


def goals(size: str, result: dict[str, Any]) -> list[Goal]:
    """The rows of the table."""
    rows = []
    for name, found in result["ratios"].items():
        target = BARE_TARGET if "bare" in name else TRAINER_TARGET
        reached = f"{found['median']:.3f} (90 % interval {found['low']:.3f} to {found['high']:.3f})"
        met = found["median"] >= target
        short = "" if met else f"{100 * (1 - found['median'] / target):.1f} % too slow"
        rows.append(
            Goal(
                what=f"{size} parameters, tokens/s: {name}", target=f">= {target}", reached=reached, met=met, miss=short
            )
        )
    for name, found in result["contestants"].items():
        if not name.startswith("ours"):
            continue
        share = found["data_share"]
        if share is not None:
            what, target = f"{size} parameters, {name}: reading data", f"< {100 * DATA_TARGET:.0f} % of a step"
            rows.append(Goal(what=what, target=target, reached=f"{100 * share:.2f} %", met=share < DATA_TARGET))
        trainer = result["contestants"][name.replace("ours", "trainer")]["seconds_to_first_step"]
        reached = f"{found['seconds_to_first_step']:.1f} s; Trainer {trainer:.1f} s"
        what = f"{size} parameters, {name}: process start to first step, first evaluation included"
        rows.append(Goal(what=what, target="reported", reached=reached, met=True))
    return rows


if __name__ == "__main__":
    main()
