"""The synthesize command on tiny models that lie on disk: a corpus that packs, the same again, killed, refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil

import executor_runs as runs
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from executor.corpus.__main__ import main as pack
from executor.corpus.pack import open_shard
from executor.corpus.tokenizer import save_tokenizer, train_tokenizer
from executor.export import export_model
from executor.model import tied_names
from executor.synthesize.__main__ import main
from executor.synthesize.generate import Settings, open_generator

WORDS = "the values of a row are copied to its end before it is read again by one who wrote".split()  # noqa: SIM905
TOKENIZER_SIZE = 300
LLAMA = {**runs.LLAMA, "vocab_size": TOKENIZER_SIZE}
GPT2 = {**runs.GPT2, "vocab_size": TOKENIZER_SIZE}
SIZES = ("--tokens", "900", "--batch-size", "8", "--prompt-tokens", "6", "--max-new-tokens", "20")


def texts(count):
    return [f"{i} " + " ".join(WORDS[(i * k) % len(WORDS)] for k in range(1, 40)) for i in range(count)]


def write_corpus(root):
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts(60))
    (root / "general.jsonl").write_text(lines)
    save_tokenizer(train_tokenizer(texts(60), vocab_size=TOKENIZER_SIZE), root / "tokenizer")
    pack_files(root, root / "general.jsonl", "data")


def pack_files(root, path, out):
    spec = {
        "schema_version": 1,
        "out": str(root / out),
        "tokenizer": {"path": str(root / "tokenizer")},
        "sources": [{"name": "general", "role": "general", "path": str(path)}],
    }
    (root / f"{out}.json").write_text(json.dumps(spec))
    assert pack(["--spec", str(root / f"{out}.json")]) == 0


def write_model(root, config, name="model"):
    torch.manual_seed(0)
    values = dict(config)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(values.pop("model_type"), **values))
    model.generation_config.top_k = 1  # what the file of a model asks for must not reach the samples
    model.generation_config.do_sample = True
    tied = tied_names(model)
    state = {key: tensor for key, tensor in model.state_dict().items() if key not in tied}
    export_model(root / name, model, state, PreTrainedTokenizerFast.from_pretrained(root / "tokenizer"))


def synthesize(root, *more, out="out", prompts="data/general"):
    places = ["--model", str(root / "model"), "--prompts", str(root / prompts), "--out", str(root / out)]
    return main([*places, *SIZES, *more])


def written(root, out="out"):
    return [(root / out / name).read_bytes() for name in ("synthetic.jsonl", "synthetic.json")]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A packed corpus and a Llama with its tokenizer."""
    root = tmp_path_factory.mktemp("synthesize")
    write_corpus(root)
    write_model(root, LLAMA)
    return root


@pytest.fixture
def root(made, tmp_path):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=lambda config: config["model_type"])
def test_texts_pack_into_a_shard_of_as_many_tokens(root, config, caplog):
    write_model(root, config)
    with caplog.at_level("INFO"):
        assert synthesize(root) == 0
    record = json.loads((root / "out" / "synthetic.json").read_text())
    assert record["kind"] == "synthetic"
    assert 900 <= record["counts"]["tokens"] < 900 + 200
    lines = [json.loads(line) for line in (root / "out" / "synthetic.jsonl").read_text().splitlines()]
    corpus = "\n".join(texts(60))
    assert all(line["text"][:6] in corpus for line in lines)  # six tokens of a prompt are six letters or more
    assert sum(line["text"] in corpus for line in lines) == 0
    for path, packed in ((root / "out", "again"), (root / "out" / "synthetic.jsonl", "alone")):
        pack_files(root, path, packed)
        shards = [open_shard(root / packed / "general", split) for split in ("train", "validation")]
        assert sum(shard.index.num_tokens for shard in shards) == record["counts"]["tokens"]
        assert sum(shard.index.num_documents for shard in shards) == len(lines) == record["counts"]["kept"]
    assert f"{record['counts']['tokens']} tokens in {len(lines)} texts" in caplog.text


def test_same_seed_gives_the_same_texts_and_another_gives_others(root):
    for out, more in (("one", ()), ("two", ()), ("other", ("--seed", "1"))):
        assert synthesize(root, *more, out=out) == 0
    assert written(root, "one") == written(root, "two")
    assert written(root, "one")[0] != written(root, "other")[0]
    before = (root / "one" / "synthetic.jsonl").stat()
    assert synthesize(root, out="one") == 0
    assert (root / "one" / "synthetic.jsonl").stat() == before


def test_weights_are_in_the_type_asked_for(root):
    settings = {"batch_size": 8, "prompt_tokens": 6, "max_new_tokens": 20, "temperature": 1.0, "top_p": 1.0, "seed": 0}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        parsed = Settings.parse({**settings, "tokens": 100, "dtype": name}, "")
        assert open_generator(root / "model", root / "data" / "general", parsed).model.dtype == dtype
    assert synthesize(root, "--dtype", "bf16") == 0


def test_a_model_that_only_writes_loops_is_refused_and_they_are_counted(root, capsys):
    sharp = ("--temperature", "0.001", "--max-new-tokens", "50", "--tokens", "1000")
    assert synthesize(root, *sharp) == 5
    assert re.search(r"must write texts worth keeping; got (\d+) degenerate of \1", capsys.readouterr().err)
    assert not (root / "out" / "synthetic.jsonl").exists()


def run(arguments, error_path):
    with open(error_path, "a") as errors:
        os.dup2(errors.fileno(), 2)
    raise SystemExit(main(arguments))


def test_killed_and_started_again_writes_the_same_files(root):
    context = multiprocessing.get_context("forkserver")
    more = ["--batch-size", "2", "--tokens", "2500"]
    assert synthesize(root, *more, out="whole") == 0
    places = ["--model", str(root / "model"), "--prompts", str(root / "data/general"), "--out", str(root / "out")]
    kills = 0
    for batches in (1, 6):
        process = context.Process(target=run, args=([*places, *SIZES, *more], str(root / "stderr")))
        process.start()
        state = root / "out" / ".state.json"
        if runs.wait_until(lambda: state.exists() and count(state) >= batches, process):  # noqa: B023
            process.kill()
            kills += 1
        process.join(30)
    assert kills == 2, (root / "stderr").read_text()
    assert synthesize(root, *more) == 0
    assert written(root) == written(root, "whole")


def count(state):
    return json.loads(state.read_text())["counts"]["batches"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tokens", "0"), "tokens must be greater than 0; got 0 in the command line"),
        (("--tokens", "-5"), "tokens must be greater than 0; got -5"),
        (("--tokens", "1000000"), r"tokens must be at most \d+, since each place of the prompts is used once"),
        (("--temperature", "0"), "temperature must be greater than 0"),
        (("--top-p", "1.5"), "top_p must be less than or equal to 1|top_p must be at most 1"),
        (("--max-new-tokens", "60"), "prompt and new tokens must fit the model's positions; .*got 66 and 64"),
        (("--prompt-tokens", "70"), "prompt and new tokens must fit the model's positions; .*got 90 and 64"),
        (("--prompts", "nowhere"), "corpus must be a file or a directory; got no nowhere"),
        (("--prompts", "empty"), "corpus must hold files"),
        (("--prompts", "short"), "prompts must hold a document of at least 6 tokens; got none in short"),
        (("--prompts", "foreign"), "prompts must be packed with the model's tokenizer .*got 64 and 0 in foreign"),
        (("--model", "nowhere"), "model must be a directory; got no nowhere"),
        (("--model", "small"), "vocabulary must fit the model's 290 embeddings; got 300"),
    ],
)
def test_bad_input_gets_one_line(root, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(root)
    for name in ("empty", "short"):
        (root / name).mkdir()
    (root / "short" / "corpus.jsonl").write_text('{"text": "a"}\n')
    runs.write_shard(root / "foreign", "train", runs.toy_tokens(1000, rule=1, seed=0))
    if "small" in arguments:
        write_model(root, {**LLAMA, "vocab_size": 290}, name="small")
    assert synthesize(root, *arguments) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert len(error.splitlines()) == 2
    assert not (root / "out" / "synthetic.json").exists()


def test_another_request_in_the_same_directory_is_refused(root, capsys):
    assert synthesize(root) == 0
    assert synthesize(root, "--temperature", "0.9") == 2
    assert "out must hold texts of the same model, prompts and settings" in capsys.readouterr().err
