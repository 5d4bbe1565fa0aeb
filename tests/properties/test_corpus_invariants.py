"""What holds for any corpus."""

from __future__ import annotations

import ast

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from executor.corpus.documents import Document
from executor.corpus.encode import Encoder
from executor.corpus.prose import as_prose, paragraphs
from executor.corpus.source_code import without_documentation
from executor.corpus.split import NO_KEYS, choose_validation, document_key, select, survey
from executor.corpus.tokenizer import train_tokenizer

TOKENIZER = train_tokenizer(["the cat and the dog", "def f(x):\n    return x"], vocab_size=280)
ENCODER = Encoder(TOKENIZER)
TEXT = st.text(st.characters(exclude_categories=("Cs",)))


@given(st.dictionaries(st.integers(0, 2**64 - 1), st.integers(1, 10**6), min_size=2), st.floats(0.001, 0.5))
def test_validation_has_a_document_and_leaves_one_and_is_less_than_twice_the_share(
    sizes: dict[int, int], share: float
) -> None:
    keys = np.array(sorted(sizes), dtype=np.uint64)
    by_key = np.array([sizes[key] for key in sorted(sizes)])
    chosen = choose_validation(keys, by_key, share)
    assert 1 <= chosen.sum() < len(sizes)
    held_out, wanted = by_key[chosen].sum(), share * by_key.sum()
    assert held_out <= max(2 * wanted, by_key.min())
    # one by one, as the words say it
    slow: list[int] = []
    for number, size in enumerate(by_key):
        if by_key[slow].sum() < wanted and len(slow) < len(keys) - 1 and size <= wanted:
            slow.append(number)
    assert np.flatnonzero(chosen).tolist() == (slow or [int(by_key.argmin())])


@given(st.lists(TEXT, unique_by=lambda text: document_key(text, 0), min_size=2, max_size=30), st.randoms())
def test_side_of_a_text_does_not_depend_on_order_or_repetition(texts: list[str], random: object) -> None:
    def sides(order: list[str]) -> dict[int, str]:
        documents = [Document(id=str(i), text=text) for i, text in enumerate(order)]
        found = survey(documents, name="s", seed=0, share=0.1, seen=NO_KEYS)
        return {document_key(document.text, 0): split for document, split in select(documents, found, name="s")}

    shuffled = texts + [text + " " for text in texts]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    by_text = sides(texts)
    assert set(by_text) == set(sides(shuffled))
    assert set(by_text.values()) == {"train", "validation"}


@given(TEXT)
def test_any_text_comes_back_from_the_tokenizer(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode([text])[0]) == text


CLOSE = st.text(st.sampled_from(" \t\n\r\x0b\x1c\x85\u00a0aBé\u0301你7²'’.,(_/\\-\x00"), max_size=40)


@given(st.lists(st.one_of(TEXT, CLOSE), max_size=8))
def test_fast_tokens_are_those_of_the_tokenizer_alone(texts: list[str]) -> None:
    wanted = [token for ids in TOKENIZER.encode(texts) for token in (*ids.tolist(), TOKENIZER.eos_token_id)]
    assert ENCODER.encode(texts).tolist() == wanted  # ENCODER remembers the texts of the examples before


@given(st.text())
def test_prose_is_one_line_that_is_prose_itself(text: str) -> None:
    for paragraph in paragraphs(text):
        assert "\n" not in paragraph
        assert as_prose(paragraph) == paragraph


STATEMENTS = st.sampled_from(
    ['"""doc\n\n# no comment\n"""', "x = 1  # one", "# comment", "", "y = '#'", "'doc'; z = 2", "w = '''a\n\n\n\nb'''"]
)


@given(st.lists(STATEMENTS, max_size=12))
def test_code_without_documentation_is_its_own_fixed_point_and_keeps_assignments(statements: list[str]) -> None:
    source = "\n".join(statements)
    code = without_documentation(source.encode())
    assert code is not None
    assert without_documentation(code.encode()) == code

    def assignments(text: str) -> list[str]:
        return [ast.dump(node) for node in ast.parse(text).body if isinstance(node, ast.Assign)]

    assert assignments(code) == assignments(source)
