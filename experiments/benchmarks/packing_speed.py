"""How fast corpora become token shards, and in how much memory: python experiments/benchmarks/packing_speed.py [DIR].

Each number is of a process of its own with one thread on one core, from the first byte read to the last byte on the
disk: both readings, duplicates, split, tokens, checksums. Seconds are of the processor, which other work on the machine
disturbs less than the clock. The text is that of the embedded corpora, and of all .jsonl.zst of DIR if it is given; the
tokenizers are trained on it beforehand.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}  # before numpy and tokenizers

import numpy as np
from record import LOG, Goal, start, write_record

from cptplan.files import hash_file
from executor.corpus.documents import Document, read_documents
from executor.corpus.embedded import Kind, read_embedded
from executor.corpus.encode import Encoder
from executor.corpus.pack import open_shard
from executor.corpus.prepare import prepare
from executor.corpus.spec import CorpusSpec
from executor.corpus.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from executor.corpus.verify import verify_shard

MAX_BYTES = 20_000_000  # of every corpus
VOCABULARIES = (4096, 32768)
SAMPLE_BYTES = 4_000_000  # of every corpus, to train a tokenizer and to measure the tokenizer alone
MEMORY_BYTES = (20_000_000, 400_000_000)
VERIFY_TOKENS = 300_000_000
REPEATS = 2
TARGET_MB, TARGET_VERIFY_MB, TARGET_GROWTH = 5.0, 500.0, 0.2


def main() -> None:
    """Measure and write."""
    start()
    kinds: tuple[Kind, ...] = ("general", "domain")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        corpora = {f"embedded {kind}": write_corpus(work, f"embedded-{kind}", embedded(kind)) for kind in kinds}
        for path in sorted(Path(sys.argv[1]).glob("*.jsonl.zst")) if len(sys.argv) > 1 else ():
            found = write_corpus(work, path.name.split(".")[0], read_documents(path, max_bytes=MAX_BYTES))
            corpora[path.name.split(".")[0]] = found
        tokenizers = {size: write_tokenizer(work, list(corpora.values()), size) for size in VOCABULARIES}
        speeds = [
            speed_row(work, name, corpus, size, tokenizer)
            for size, tokenizer in tokenizers.items()
            for name, corpus in corpora.items()
        ]
        memory = [memory_row(work, list(corpora.values()), size, tokenizers[VOCABULARIES[1]]) for size in MEMORY_BYTES]
        checked = verify_row(work)
    write_record(
        "packing_speed", goals(speeds, memory, checked), {"speed": speeds, "memory": memory, "verify": checked}
    )


def embedded(kind: Kind) -> Iterator[Document]:
    """Text of the installed packages."""
    return iter(read_embedded(kind, max_bytes=MAX_BYTES).documents)


def write_corpus(work: Path, name: str, documents: Iterator[Document]) -> Path:
    """A corpus as a person has it, one document a line."""
    path = work / f"{name}.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for document in documents:
            file.write(json.dumps({"text": document.text}, ensure_ascii=False) + "\n")
    return path


def write_tokenizer(work: Path, corpora: list[Path], vocab_size: int) -> Path:
    """A tokenizer of the beginnings of all corpora."""
    LOG.info("training a tokenizer of %d", vocab_size)
    texts = (document.text for path in corpora for document in read_documents(path, max_bytes=SAMPLE_BYTES))
    save_tokenizer(train_tokenizer(texts, vocab_size=vocab_size), work / f"tokenizer-{vocab_size}")
    return work / f"tokenizer-{vocab_size}"


def measured(work: Callable[[], Any]) -> dict[str, float]:
    """Seconds of the processor and of the clock, in a process of its own on one core."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        before, clock = time.process_time(), time.perf_counter()
        work()
        found = {"seconds": time.process_time() - before, "wall_seconds": time.perf_counter() - clock}
        os.write(writing, json.dumps(found).encode())
        os._exit(0)
    os.close(writing)
    content = b"".join(iter(lambda: os.read(reading, 1 << 16), b""))
    os.close(reading)
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("the measured process failed")
    return dict(json.loads(content))


def memory_bytes(name: str) -> int:
    """A line of this process's status, such as VmRSS. Not getrusage, which remembers the process that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def pack_once(out: Path, corpus: Path, tokenizer: Path) -> None:
    """The whole way of one source."""
    value = {
        "schema_version": 1,
        "out": str(out),
        "tokenizer": {"path": str(tokenizer)},
        "sources": [{"name": "s", "role": "general", "path": str(corpus)}],
    }
    prepare(CorpusSpec.parse(value, "the benchmark"))


def speed_row(work: Path, name: str, corpus: Path, vocab_size: int, tokenizer: Path) -> dict[str, Any]:
    """MB of text a second: median and best of several, and the tokenizer alone on a sample."""
    runs = []
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory(dir=work) as out:
            runs.append(measured(lambda out=out: pack_once(Path(out), corpus, tokenizer)))
            sides = [open_shard(Path(out) / "s", split).index for split in ("train", "validation")]
    size = sum(index.num_bytes for index in sides) / 1e6
    backend = load_tokenizer(str(tokenizer))
    texts = [document.text for document in read_documents(corpus, max_bytes=SAMPLE_BYTES)]
    alone = measured(lambda: backend.encode(texts))["seconds"]
    tokens = measured(lambda: Encoder(backend).encode(texts))["seconds"]
    sample = sum(len(text.encode()) for text in texts) / 1e6
    row = {
        "corpus": name,
        "vocab_size": vocab_size,
        "text_mb": size,
        "tokens": sum(index.num_tokens for index in sides),
        "mb_per_second": size / float(np.median([run["seconds"] for run in runs])),
        "best_mb_per_second": size / min(run["seconds"] for run in runs),
        "wall_mb_per_second": size / float(np.median([run["wall_seconds"] for run in runs])),
        "tokenizer_alone_mb_per_second": sample / alone,
        "encoder_on_the_same_sample_mb_per_second": sample / tokens,
    }
    LOG.info("%s", row)
    return row


def memory_row(work: Path, corpora: list[Path], size: int, tokenizer: Path) -> dict[str, Any]:
    """Peak memory for a corpus of a size: the texts again and again, each time with a number in every line of them."""
    path = work / "repeated.jsonl"
    num_bytes = num_documents = turn = 0
    with path.open("w", encoding="utf-8") as file:
        while num_bytes < size:
            for document in (found for corpus in corpora for found in read_documents(corpus, max_bytes=SAMPLE_BYTES)):
                text = document.text.replace("\n", f"\n{turn} ") + f" {turn}"
                file.write(json.dumps({"text": text}) + "\n")
                num_documents += 1
                num_bytes += len(text.encode())
                if num_bytes >= size:
                    break
            turn += 1
    with tempfile.TemporaryDirectory(dir=work) as out:
        # a fresh interpreter: a forked one would begin with the memory of this one
        code = (
            "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import packing_speed as p;"
            "base = p.memory_bytes('VmRSS'); p.pack_once(*map(Path, sys.argv[2:]));"
            "print(base, p.memory_bytes('VmHWM'))"
        )
        arguments = [str(Path(__file__).parent), out, str(path), str(tokenizer)]
        said = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    base, peak = map(int, said.stdout.split())
    path.unlink()
    row = {"text_bytes": num_bytes, "documents": num_documents, "imported_bytes": base, "peak_bytes": peak}
    LOG.info("%s", row)
    return row


def verify_row(work: Path) -> dict[str, float]:
    """MB a second of checking a shard that lies in the page cache."""
    tokens = np.random.default_rng(0).integers(0, 32768, VERIFY_TOKENS // 100, dtype=np.uint16)
    path = work / "train.bin"
    with path.open("wb") as file:
        for _ in range(100):
            file.write(tokens.tobytes())
    index = {
        "source": "s", "split": "train", "dtype": "uint16", "num_tokens": VERIFY_TOKENS, "num_documents": 1,
        "num_bytes": 1, "eos_token_id": 0, "vocab_size": 32768, "tokenizer_hash": "", "corpus_hash": "",
        "sha256": hash_file(path),
    }  # fmt: skip
    path.with_suffix(".json").write_text(json.dumps(index))
    shard = open_shard(work, "train")
    runs = [measured(lambda: verify_shard(shard)) for _ in range(REPEATS)]
    size = path.stat().st_size / 1e6
    return {"mb": size, "mb_per_second": size / float(np.median([run["seconds"] for run in runs]))}


def goals(speeds: list[dict[str, Any]], memory: list[dict[str, Any]], checked: dict[str, float]) -> list[Goal]:
    """The rows of the table."""
    rows = []
    for size in VOCABULARIES:
        found = [row["mb_per_second"] for row in speeds if row["vocab_size"] == size]
        rows.append(
            Goal(
                what=f"text packed on one core, vocabulary {size}, slowest and fastest of {len(found)} corpora",
                target=f">= {TARGET_MB:g} MB/s",
                reached=f"{min(found):.1f} to {max(found):.1f} MB/s",
                met=min(found) >= TARGET_MB,
                miss="" if min(found) >= TARGET_MB else f"{TARGET_MB - min(found):.1f} MB/s too slow",
            )
        )
    small, large = memory
    growth = large["peak_bytes"] / small["peak_bytes"] - 1
    rows.append(
        Goal(
            what=f"peak memory of packing {small['text_bytes'] / 1e6:.0f} and {large['text_bytes'] / 1e6:.0f} MB",
            target=f"<= {TARGET_GROWTH:.0%} more",
            reached=f"{small['peak_bytes'] / 1e6:.0f} and {large['peak_bytes'] / 1e6:.0f} MB",
            met=growth <= TARGET_GROWTH,
            miss="" if growth <= TARGET_GROWTH else f"{growth:.0%} more",
        )
    )
    rate = checked["mb_per_second"]
    rows.append(
        Goal(
            what="token shard checked on one core",
            target=f">= {TARGET_VERIFY_MB:g} MB/s",
            reached=f"{rate:.0f} MB/s",
            met=rate >= TARGET_VERIFY_MB,
            miss="" if rate >= TARGET_VERIFY_MB else f"{TARGET_VERIFY_MB - rate:.0f} MB/s too slow",
        )
    )
    return rows


if __name__ == "__main__":
    main()
