"""Which generated texts are kept, where prompts begin, and what a stopped process goes on from."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models, processors

from cptplan.errors import DataError, StorageError
from executor.corpus.tokenizer import load_tokenizer, train_tokenizer
from executor.synthesize.generate import opening_tokens
from executor.synthesize.judge import MULTIPLIER, TextFilter, hash_ngrams, repeated_share
from executor.synthesize.prompts import Prompts, find_places, open_prompts
from executor.synthesize.texts import RESULT, STATE, TEXTS, UNFINISHED, TextFile


def random_tokens(count, seed=0):
    return np.random.default_rng(seed).integers(0, 50_000, count)


def words(token_ids):
    return " ".join(f"w{token}" for token in token_ids)


def test_hash_ngrams_is_the_sum_of_powers_mixed():
    tokens = random_tokens(20)
    wanted = []
    for start in range(len(tokens) - 3):
        total = (
            sum((int(t) + 1) * pow(MULTIPLIER, i + 1, 2**64) for i, t in enumerate(tokens[start : start + 4])) % 2**64
        )
        wanted.append(((total ^ (total >> 32)) * MULTIPLIER % 2**64) ^ (total >> 29))
    assert hash_ngrams(tokens, 4).tolist() == wanted
    assert len(hash_ngrams(tokens[:3], 4)) == 0


@pytest.mark.parametrize(
    ("tokens", "share"),
    [
        (np.arange(100), 0.0),
        (np.tile(np.arange(4), 25), 1 - 4 / 97),  # one 4-gram over the whole text
        (np.tile(np.arange(10), 10), 1 - 10 / 97),  # a loop longer than a 4-gram
        (np.r_[np.arange(50), np.full(50, 7)], 1 - (50 + 1) / 97),  # it ends in a loop: 50 grams start before, 1 within
        (np.arange(3), 0.0),
    ],
)
def test_repeated_share_counts_four_grams_that_came_before(tokens, share):
    assert repeated_share(tokens) == pytest.approx(share, abs=0.011)


@pytest.mark.parametrize("loop", [[5], [1, 2, 3, 4], list(range(20))])
def test_loops_and_empty_texts_are_degenerate(loop):
    judge = TextFilter(1000)
    tokens = np.array(loop * (240 // len(loop)))
    assert judge.judge(words(tokens), tokens) == "degenerate"
    assert judge.judge(" \n", tokens[:0]) == "degenerate"


def test_equal_texts_up_to_white_space_are_duplicates():
    judge = TextFilter(1000)
    tokens = random_tokens(5)  # too short for any 13-gram
    assert judge.judge("to be or not", tokens) == "kept"
    assert judge.judge(" to  be\nor not ", random_tokens(5, seed=1)) == "duplicate"
    assert judge.judge("to be or", tokens) == "kept"


@pytest.mark.parametrize(("copied", "verdict"), [(0, "kept"), (100, "kept"), (160, "duplicate"), (256, "duplicate")])
def test_texts_that_mostly_say_what_others_said_are_duplicates(copied, verdict):
    judge = TextFilter(10_000)
    first, other = random_tokens(256), random_tokens(256, seed=1)
    assert judge.judge("first", first) == "kept"
    # 244 13-grams, of which copied - 12 were in the first text; half of them is the limit
    assert judge.judge("second", np.r_[first[:copied], other[copied:]]) == verdict


def test_a_full_table_of_seen_ngrams_keeps_unrelated_texts():
    judge = TextFilter(100_000)
    verdicts = [judge.judge(str(seed), random_tokens(256, seed)) for seed in range(400)]  # 102 400 tokens
    assert set(verdicts) == {"kept"}
    # 1 - exp(-1/16) = 6.1 % of the table; 20 000 draws have a standard error of 0.2 %
    assert judge._overlap(random_tokens(20_000, seed=1000)) == pytest.approx(0.061, abs=0.01)


def test_find_places_starts_documents_and_spaces_out_long_ones():
    #              0  1  2  3   4  5   6  7  8  9 10 11 12
    tokens = np.array([5, 6, 7, 0, 8, 0, 0, 5, 5, 5, 5, 5, 5])
    assert find_places(tokens, 0, length=2, spacing=3).tolist() == [0, 7, 10]
    assert find_places(tokens, 0, length=1, spacing=100).tolist() == [0, 4, 7]
    assert find_places(tokens, 0, length=7, spacing=1).tolist() == []


def test_find_places_does_not_depend_on_how_the_file_is_scanned(monkeypatch):
    tokens = np.random.default_rng(0).integers(0, 9, 1000)
    whole = find_places(tokens, 0, length=3, spacing=5)
    monkeypatch.setattr("executor.synthesize.prompts._SCANNED_TOKENS", 7)
    assert np.array_equal(find_places(tokens, 0, length=3, spacing=5), whole)
    assert all(0 not in tokens[start : start + 3] for start in whole)


def test_prompts_use_each_place_once_in_an_order_of_the_seed():
    prompts = Prompts(tokens=np.arange(1000), starts=np.arange(0, 990, 10), length=3, content="")
    whole = prompts.read(range(99), 0)
    assert sorted(whole[:, 0].tolist()) == list(range(0, 990, 10))
    assert np.array_equal(whole[:, 2], whole[:, 0] + 2)
    assert np.array_equal(prompts.read(range(40, 60), 0), whole[40:60])
    assert whole[:, 0].tolist() != prompts.read(range(99), 1)[:, 0].tolist()
    # places near one another are not drawn together: neighbours in the order lie 330 apart on average
    assert np.abs(np.diff(whole[:, 0])).mean() > 200


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["the cat sat on the mat and the dog sat on the log"] * 3, vocab_size=270)


def test_prompts_of_plain_files_are_those_of_their_tokens(tmp_path, tokenizer):
    texts = ["the cat sat on the mat", "a", "the dog sat on the log and the mat"]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "corpus.jsonl").write_text(lines)
    prompts = open_prompts(tmp_path, tokenizer, length=4, spacing=1000)
    found = sorted(tokenizer.decode(row) for row in prompts.read(range(len(prompts.starts)), 0))
    assert found == sorted(tokenizer.decode(tokenizer.encode([text])[0][:4]) for text in (texts[0], texts[2]))
    with pytest.raises(DataError, match="must hold a document of at least 1000 tokens; got none"):
        open_prompts(tmp_path, tokenizer, length=1000, spacing=1)


@pytest.mark.parametrize(("template", "opening"), [("<s> $A", [1]), ("$A </s>", []), ("<s> $A </s>", [1]), (None, [])])
def test_opening_tokens_are_what_the_tokenizer_puts_first(tmp_path, template, opening):
    backend = Tokenizer(models.WordLevel({"</s>": 0, "<s>": 1, "a": 2}, unk_token="a"))
    backend.add_special_tokens(["<s>", "</s>"])
    if template is not None:
        backend.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[("<s>", 1), ("</s>", 0)]
        )
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    assert opening_tokens(load_tokenizer(str(tmp_path))) == opening


BATCHES = [
    ["the cat sat on the mat", "the  cat sat on the mat", "the dog", ""],
    ["on the log and the mat", "the dog", "at at at at at at at at at at"],
    ["and the log sat", "and the mat sat\u2028on the log\r\n"],
]


def text_file(out, tokenizer, origin="a"):
    return TextFile(out=out, origin={"name": origin}, tokenizer=tokenizer, judge=TextFilter(1000))


def write(out, tokenizer, batches=BATCHES):
    out.mkdir(exist_ok=True)
    file = text_file(out, tokenizer)
    file.resume()
    for batch in batches[file.counts.batches :]:
        file.add(batch, 1000)
    return file


def test_text_file_counts_and_keeps_what_is_worth_it(tmp_path, tokenizer):
    file = write(tmp_path, tokenizer)
    file.finish({"model": "m", "prompts": "p"})
    lines = [json.loads(line) for line in (tmp_path / TEXTS).read_bytes().decode().split("\n")[:-1]]
    assert [line["text"] for line in lines] == [
        BATCHES[0][0],
        BATCHES[0][2],
        BATCHES[1][0],
        BATCHES[2][0],
        BATCHES[2][1],
    ]
    assert len({line["id"] for line in lines}) == 5
    counts = json.loads((tmp_path / RESULT).read_text())["counts"]
    assert (counts["generated"], counts["kept"], counts["duplicate"], counts["degenerate"]) == (9, 5, 2, 2)
    assert counts["tokens"] == sum(len(tokenizer.encode([line["text"]])[0]) + 1 for line in lines)
    assert sorted(path.name for path in tmp_path.iterdir()) == [RESULT, TEXTS]
    assert text_file(tmp_path, tokenizer).is_complete()


@pytest.mark.parametrize("done", [0, 1, 2, 3])
@pytest.mark.parametrize("torn", [b"", b'{"text": "the ca', b'{"text": "whole", "id": "x"}\n'])
def test_text_file_goes_on_after_the_last_whole_batch(tmp_path, tokenizer, done, torn):
    write(tmp_path / "whole", tokenizer).finish({})
    write(tmp_path / "stopped", tokenizer, BATCHES[:done])
    with (tmp_path / "stopped" / UNFINISHED).open("ab") as file:
        file.write(torn)
    write(tmp_path / "stopped", tokenizer).finish({})
    for name in (TEXTS, RESULT):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_text_file_that_was_killed_while_finishing_is_finished(tmp_path, tokenizer):
    write(tmp_path, tokenizer)
    content = (tmp_path / UNFINISHED).read_bytes()
    (tmp_path / UNFINISHED).rename(tmp_path / TEXTS)
    assert not text_file(tmp_path, tokenizer).is_complete()
    write(tmp_path, tokenizer).finish({})
    assert (tmp_path / TEXTS).read_bytes() == content


def test_text_file_stops_at_the_wanted_tokens(tmp_path, tokenizer):
    file = text_file(tmp_path, tokenizer)
    file.resume()
    file.add(["the cat", "the dog", "the mat"], 1)
    assert file.counts.generated == file.counts.kept == 1


def test_text_file_refuses_what_is_not_its_own(tmp_path, tokenizer):
    write(tmp_path, tokenizer)
    with pytest.raises(StorageError, match="texts of the same model, prompts and settings; got others"):
        text_file(tmp_path, tokenizer, origin="b").resume()
    (tmp_path / UNFINISHED).write_bytes(b"")
    with pytest.raises(StorageError, match=r"file must have \d+ bytes, as .state.json says; got 0"):
        text_file(tmp_path, tokenizer).resume()
    (tmp_path / STATE).unlink()
    (tmp_path / TEXTS).write_text("another's")
    with pytest.raises(StorageError, match="out must not hold other texts"):
        text_file(tmp_path, tokenizer).resume()
    assert (tmp_path / TEXTS).read_text() == "another's"
