"""The whole process on small corpora: what it leaves behind, started again, killed, or asked for something else."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from executor.corpus import embedded, pack
from executor.corpus import prepare as prepare_module
from executor.corpus.__main__ import main
from executor.corpus.pack import open_shard
from executor.corpus.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer

WORDS = "the values of a row are copied to its end before it is read again by the one who wrote them".split()  # noqa: SIM905

ROLES = (("general", "general"), ("code", "domain"))


def texts(name: str, num: int) -> list[str]:
    return [f"{name} {i}: " + " ".join(WORDS[(i * k) % len(WORDS)] for k in range(1, 40)) for i in range(num)]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A spec over two small corpora that share a text, as corpus.json."""
    (tmp_path / "general").mkdir()
    for number, text in enumerate(texts("general", 60)):
        (tmp_path / "general" / f"{number}.txt").write_text(text)
    domain = [*texts("domain", 80), "General  0: " + texts("general", 1)[0].removeprefix("general 0: ")]
    (tmp_path / "domain.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in domain))
    write_spec(tmp_path)
    return tmp_path


def write_spec(project: Path, **changes: Any) -> None:
    spec = {
        "schema_version": 1,
        "out": str(project / "out"),
        "seed": 3,
        "tokenizer": {"train": {"vocab_size": 300}},
        "sources": [
            {"name": "general", "role": "general", "kind": "files", "path": str(project / "general")},
            {"name": "code", "role": "domain", "path": str(project / "domain.jsonl")},
        ],
        "validation_share": 0.1,
        **changes,
    }
    (project / "corpus.json").write_text(json.dumps(spec))


def run(project: Path) -> int:
    return main(["--spec", str(project / "corpus.json")])


def snapshot(out: Path) -> dict[str, bytes]:
    files = (path for path in out.rglob("*") if path.is_file() and path.name != "progress.json")
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def test_process_leaves_tokenizer_shards_and_the_record(project: Path) -> None:
    assert run(project) == 0
    out = project / "out"
    record = json.loads((out / "corpora.json").read_text())
    tokenizer = load_tokenizer(str(out / record["tokenizer"]["path"]))
    assert record["tokenizer"]["hash"] == tokenizer.hash
    assert [source["name"] for source in record["sources"]] == ["general", "code"]
    for source in record["sources"]:
        for split in ("train", "validation"):
            index = open_shard(out / source["path"], split).index
            assert source[split]["num_tokens"] == index.num_tokens > 0
            assert index.tokenizer_hash == tokenizer.hash
    progress = json.loads((out / "progress.json").read_text())
    assert (progress["done"], progress["total"]) == (100, 100)
    assert not list(out.rglob("*.tmp"))


def test_process_never_puts_a_text_on_two_sides(project: Path) -> None:
    assert run(project) == 0
    tokenizer = load_tokenizer(str(project / "out" / "tokenizer"))
    seen: list[str] = []
    for name in ("general", "code"):
        for split in ("train", "validation"):
            tokens = open_shard(project / "out" / name, split).tokens  # type: ignore[arg-type]
            seen += tokenizer.decode(tokens).split("<|endoftext|>")[:-1]
    normalised = [" ".join(text.split()).casefold() for text in seen]
    assert len(normalised) == len(set(normalised)) == 140
    record = json.loads((project / "out" / "corpora.json").read_text())
    assert [source["num_duplicates"] for source in record["sources"]] == [0, 1]


def test_process_on_a_finished_directory_does_nothing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(project) == 0
    before = snapshot(project / "out")
    monkeypatch.setattr(prepare_module, "survey", None)  # would fail if called
    assert run(project) == 0
    assert snapshot(project / "out") == before


def test_process_for_another_spec_in_the_same_directory_is_refused(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(project) == 0
    before = snapshot(project / "out")
    write_spec(project, seed=4)
    assert run(project) == 2
    assert "error: directory must be empty or hold the corpora of this spec" in capsys.readouterr().err
    assert snapshot(project / "out") == before


@pytest.mark.parametrize("stage", ["train_tokenizer", "save_tokenizer", "pack_source", "read_packed", "_record"])
@pytest.mark.parametrize("call", [1, 2])
def test_process_interrupted_and_started_again_writes_the_same_bytes(
    stage: str, call: int, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(project) == 0
    straight = snapshot(project / "out")
    write_spec(project, out=str(project / "again"))
    original = getattr(prepare_module, stage)
    calls = 0

    def interrupted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, stage, interrupted)
        code = run(project)
    if calls >= call:
        assert code == 130
        assert "error: interrupted" in capsys.readouterr().err
        assert not (project / "again" / "corpora.json").exists()
    assert run(project) == 0
    assert snapshot(project / "again") == straight


def test_process_does_not_pack_a_finished_source_again(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(project) == 0
    (project / "out" / "corpora.json").unlink()
    (project / "out" / "code" / "train.json").unlink()
    packed: list[str] = []
    original = prepare_module.pack_source

    def counted(*arguments: Any, **options: Any) -> Any:
        packed.append(options["source"])
        return original(*arguments, **options)

    monkeypatch.setattr(prepare_module, "pack_source", counted)
    assert run(project) == 0
    assert packed == ["code"]


def test_process_killed_leaves_leftovers_that_the_next_one_removes(project: Path) -> None:
    (project / "out" / "code").mkdir(parents=True)
    (project / "out" / "code" / ".train.bin.1.tmp").write_bytes(b"half")
    assert run(project) == 0
    assert not list((project / "out").rglob("*.tmp"))


def test_process_reports_progress_that_never_goes_back(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[tuple[int, str]] = []
    monkeypatch.setattr(
        prepare_module, "write_progress", lambda path, *, done, message, **rest: reported.append((done, message))
    )
    monkeypatch.setattr(prepare_module.time, "monotonic", iter(range(10**6)).__next__)
    assert run(project) == 0
    percents = [done for done, _ in reported]
    assert percents == sorted(percents)
    assert (percents[0], percents[-1]) == (0, 100)
    assert {"reading general", "reading code", "packing code", "training the tokenizer"} <= {m for _, m in reported}


def test_process_embedded_sources_record_versions(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "DISTRIBUTIONS", {"numpy": ("numpy",)})
    sources = [
        {"name": "general", "role": "general", "kind": "embedded:general", "max_bytes": 30_000},
        {"name": "domain", "role": "domain", "kind": "embedded:domain", "max_bytes": 30_000},
    ]
    write_spec(project, sources=sources)
    assert run(project) == 0
    record = json.loads((project / "out" / "corpora.json").read_text())
    assert all("numpy" in source["versions"] and "python" in source["versions"] for source in record["sources"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sead": 1}, "must be known; got .*sead.*did you mean 'seed'"),
        ({"validation_share": 0}, "validation_share"),
        ({"sources": []}, "sources"),
        ({"tokenizer": {}}, "must have either train or path"),
        ({"tokenizer": {"train": {"vocab_size": 300}, "path": "x"}}, "must have either train or path"),
        ({"tokenizer": {"train": {"vocab_size": 10}}}, "vocab_size must be at least 257"),
        ({"sources": [{"name": "a", "role": "general"}]}, "path must be given for kind files"),
        ({"sources": [{"name": "../a", "role": "general", "kind": "embedded:general"}]}, "name"),
        ({"sources": [{"name": "tokenizer", "role": "general", "kind": "embedded:general"}]}, "another folder"),
        ({"sources": [{"name": "a", "role": "general", "kind": "embedded:general"}] * 2}, "different names"),
        ({"sources": [{"name": "a", "role": "general", "path": "/no/such/place"}]}, "got no /no/such/place"),
    ],
)
def test_process_with_a_bad_spec_ends_with_one_error_and_its_hint(
    changes: dict[str, Any], message: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_spec(project, **changes)
    assert run(project) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("general:")]
    assert len(lines) == 2
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("hint: ")
    assert re.search(message, " ".join(lines))
    assert not (project / "out" / "corpora.json").exists()


def test_process_into_a_place_that_cannot_be_written_ends_with_2(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "file").write_text("")
    write_spec(project, out=str(project / "file" / "below"))
    assert run(project) == 2
    assert "error: path must be writable" in capsys.readouterr().err


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGKILL])
def test_process_killed_for_real_and_started_again_writes_the_same_bytes(kill: signal.Signals, project: Path) -> None:
    assert run(project) == 0
    straight = snapshot(project / "out")
    write_spec(project, out=str(project / "again"))
    command = [sys.executable, "-m", "executor.corpus", "--spec", str(project / "corpus.json")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    while not (project / "again" / "progress.json").exists() and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(kill)
    _, stderr = process.communicate()
    assert b"Traceback" not in stderr
    assert run(project) == 0
    assert snapshot(project / "again") == straight


def prepare_process(spec: str) -> None:
    """The process with small pieces of work, so that there is much to lose."""
    pack._BATCH_CHARACTERS, pack._SAVE_EVERY_BYTES = 20_000, 100_000
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    raise SystemExit(main(["--spec", spec]))


def test_process_killed_at_random_moments_again_and_again_writes_the_same_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    words = ["".join(chr(97 + letter) for letter in rng.integers(0, 26, 7)) for _ in range(20_000)]
    for name in ("general", "code"):
        documents = [" ".join(rng.choice(words, 400)) for _ in range(200)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    save_tokenizer(train_tokenizer(words[:500], vocab_size=300), tmp_path / "tokenizer")
    sources = [{"name": n, "role": r, "path": str(tmp_path / f"{n}.jsonl")} for n, r in ROLES]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["executor.corpus.__main__"])

    def start(out: str) -> ForkServerProcess:
        write_spec(tmp_path, out=str(tmp_path / out), tokenizer={"path": str(tmp_path / "tokenizer")}, sources=sources)
        process = context.Process(target=prepare_process, args=(str(tmp_path / "corpus.json"),))
        process.start()
        return process

    start("warm").join()  # the server itself starts
    begin = time.monotonic()
    straight = start("straight")
    straight.join()
    seconds = time.monotonic() - begin
    assert straight.exitcode == 0
    going_on = kills = 0
    for _ in range(100):
        going_on += any((tmp_path / "killed").rglob("packing.json"))
        process = start("killed")
        process.join(rng.uniform(0.2, 1.0) * seconds)
        if process.exitcode is not None:
            break
        process.kill()
        process.join()
        kills += 1
    assert process.exitcode == 0, "no progress is made between the kills"
    assert kills >= 1
    assert going_on >= 1
    assert snapshot(tmp_path / "killed") == snapshot(tmp_path / "straight")


@pytest.mark.parametrize("provenance", ["proxy", "synthetic"])
def test_process_marks_where_a_text_comes_from(provenance: str, project: Path) -> None:
    sources = json.loads((project / "corpus.json").read_text())["sources"]
    sources[0]["provenance"] = provenance
    write_spec(project, sources=sources)
    assert run(project) == 0
    record = json.loads((project / "out" / "corpora.json").read_text())
    assert [source["provenance"] for source in record["sources"]] == [provenance, "original"]
    assert open_shard(project / "out" / "general", "train").index.provenance == provenance


def test_corpus_room_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, executor.corpus.prepare, executor.corpus.__main__;"
        "sys.exit(bool({'torch', 'transformers', 'accelerate'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
