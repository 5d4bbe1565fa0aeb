"""Training, saving and loading tokenizers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cptplan.errors import DataError
from executor.corpus.tokenizer import END_OF_TEXT, TextTokenizer, load_tokenizer, save_tokenizer, train_tokenizer

TEXTS = ["def f(x):\n    return x + 1\n", "The values are copied, and then they are released.", "tab\tand é"] * 20
ODD = [
    "",
    " ",
    "\n\n  \t x  \r\n",
    "é 漢字 🎉 \u200b \x00 \x7f",
    "".join(map(chr, range(0x20, 0x250))),
    f"a {END_OF_TEXT} b",
    "  leading and trailing  ",
]


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return train_tokenizer(TEXTS, vocab_size=300)


@pytest.mark.parametrize("text", ODD)
def test_encode_and_decode_give_the_text_back(tokenizer: TextTokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode([text])[0]) == text


def test_encode_never_gives_the_end_of_text(tokenizer: TextTokenizer) -> None:
    assert tokenizer.eos_token_id not in tokenizer.encode([f"a {END_OF_TEXT} b"])[0]
    assert tokenizer.decode([tokenizer.eos_token_id]) == END_OF_TEXT


def test_train_tokenizer_gives_the_wanted_vocabulary(tokenizer: TextTokenizer) -> None:
    assert tokenizer.vocab_size == 300
    assert tokenizer.backend.get_vocab_size() == 300


def test_train_tokenizer_with_little_text_gives_fewer_tokens() -> None:
    assert train_tokenizer(["ab"], vocab_size=1000).vocab_size == 258  # the bytes, the end of text and "ab"


def test_train_tokenizer_refuses_a_vocabulary_without_room_for_the_bytes() -> None:
    with pytest.raises(DataError, match=r"vocab_size must be at least 257; got 256"):
        train_tokenizer(TEXTS, vocab_size=256)


def test_save_tokenizer_of_another_process_writes_the_same_bytes(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path / "here")
    code = (
        "import sys; from pathlib import Path; from executor.corpus.tokenizer import *;"
        f"save_tokenizer(train_tokenizer({TEXTS!r}, vocab_size=300), Path(sys.argv[1]))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "there")], check=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()


def test_load_tokenizer_reads_what_was_saved(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert (loaded.hash, loaded.vocab_size, loaded.eos_token_id) == (tokenizer.hash, 300, tokenizer.eos_token_id)
    assert [list(ids) for ids in loaded.encode(ODD)] == [list(ids) for ids in tokenizer.encode(ODD)]


def test_saved_tokenizer_is_one_that_transformers_loads(tokenizer: TextTokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    save_tokenizer(tokenizer, tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.eos_token, theirs.eos_token_id, len(theirs)) == (END_OF_TEXT, tokenizer.eos_token_id, 300)
    assert theirs(TEXTS[0])["input_ids"] == list(tokenizer.encode(TEXTS[:1])[0])
    # transformers 4 knows this class name and not the one that transformers 5 would write
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_load_tokenizer_without_tokenizer_json_goes_through_transformers(
    tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    model = json.loads(tokenizer.backend.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("\n".join(" ".join(merge) for merge in model["merges"]))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.decode([loaded.eos_token_id]) == END_OF_TEXT
    assert list(loaded.encode(TEXTS[:1])[0]) == list(tokenizer.encode(TEXTS[:1])[0])


def test_load_tokenizer_ignores_truncation_and_padding_that_were_saved(
    tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    save_tokenizer(tokenizer, tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert len(load_tokenizer(str(tmp_path)).encode(["a b c d e f g h"])[0]) > 4


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"must be a directory with tokenizer\.json; got none"),
        ({"tokenizer.json": "{"}, r"tokenizer must be readable; got"),
        ({"tokenizer.json": None, "tokenizer_config.json": "{"}, r"tokenizer must be readable; got .*config\.json"),
        ({"tokenizer.json": None}, r"must have an end-of-text token; got None"),
        ({"tokenizer.json": None, "tokenizer_config.json": '{"eos_token": "<x>"}'}, r"end-of-text token; got '<x>'"),
    ],
)
def test_load_tokenizer_of_a_bad_directory_says_what_is_wrong(
    files: dict[str, str | None], message: str, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(tokenizer.backend.to_str() if content is None else content)
    with pytest.raises(DataError, match=message):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", {"eos_token": {"content": END_OF_TEXT}}),
        ("special_tokens_map.json", {"eos_token": END_OF_TEXT}),
        ("config.json", {"eos_token_id": 0}),
        ("config.json", {"eos_token_id": [0, 5]}),
    ],
)
def test_load_tokenizer_finds_the_end_of_text_where_models_say_it(
    name: str, content: dict[str, object], tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.json").write_text(tokenizer.backend.to_str())
    (tmp_path / name).write_text(json.dumps(content))
    assert load_tokenizer(str(tmp_path)).eos_token_id == 0


def test_load_tokenizer_of_a_missing_path_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must be a directory or a hub id; got .* for .*missing"):
        load_tokenizer(str(tmp_path / "missing"))
