"""Which documents are held out."""

from __future__ import annotations

import numpy as np
import pytest

from cptplan.errors import DataError
from executor.corpus.documents import Document
from executor.corpus.split import NO_KEYS, choose_validation, select, survey


def documents(texts: list[str]) -> list[Document]:
    return [Document(id=str(number), text=text) for number, text in enumerate(texts)]


TEXTS = [f"document {i} " + "word " * (i % 7 + 1) for i in range(400)]


def sides(texts: list[str], *, seed: int = 0, share: float = 0.1) -> dict[str, str]:
    found = survey(documents(texts), name="s", seed=seed, share=share, seen=NO_KEYS)
    return {document.text: split for document, split in select(documents(texts), found, name="s")}


def test_split_holds_out_the_share_of_the_text() -> None:
    chosen = sides(TEXTS)
    held_out = sum(len(text) for text, split in chosen.items() if split == "validation")
    total = sum(map(len, TEXTS))
    assert 0.1 <= held_out / total <= 0.1 + max(map(len, TEXTS)) / total


def test_split_does_not_depend_on_the_order() -> None:
    assert sides(TEXTS) == sides(TEXTS[::-1])


def test_split_depends_on_the_seed() -> None:
    assert sides(TEXTS) != sides(TEXTS, seed=1)


def test_split_keeps_almost_all_sides_when_a_document_is_added() -> None:
    before, after = sides(TEXTS), sides([*TEXTS, "one more document"])
    assert sum(after[text] != before[text] for text in before) <= 1


def test_split_drops_duplicates_up_to_white_space_and_case_within_and_across_sources() -> None:
    first = survey(documents(["A text", "a  text\n", "other"]), name="a", seed=0, share=0.5, seen=NO_KEYS)
    assert (len(first.keys), first.num_duplicates) == (2, 1)
    again = documents(["OTHER", "new", "newer", "new"])
    second = survey(again, name="b", seed=0, share=0.5, seen=first.keys)
    assert second.num_duplicates == 2
    assert second.num_bytes == len("new") + len("newer")
    assert [document.text for document, _ in select(again, second, name="b")] == ["new", "newer"]


@pytest.mark.parametrize("changed", [[*TEXTS, "more"], TEXTS[:-1], ["another", *TEXTS[1:]], TEXTS[::-1]])
def test_select_refuses_texts_that_changed_since_the_survey(changed: list[str]) -> None:
    found = survey(documents(TEXTS), name="mine", seed=0, share=0.1, seen=NO_KEYS)
    with pytest.raises(DataError, match=r"must stay as it is.*source 'mine'.*hint"):
        list(select(documents(changed), found, name="mine"))


@pytest.mark.parametrize(("texts", "found"), [(["one"], 1), (["one", "One ", " one"], 1), ([], 0)])
def test_survey_of_fewer_than_two_documents_is_refused(texts: list[str], found: int) -> None:
    with pytest.raises(DataError, match=rf"at least 2 different documents.*got {found} .*source 'mine'.*hint"):
        survey(documents(texts), name="mine", seed=0, share=0.02, seen=NO_KEYS)


@pytest.mark.parametrize("sizes", [[1, 1], [10**6, 1], [1, 10**6], [5, 5, 10**6], [1] * 1000])
@pytest.mark.parametrize("share", [0.001, 0.02, 0.5])
def test_choose_validation_leaves_something_on_both_sides(sizes: list[int], share: float) -> None:
    keys = np.arange(len(sizes), dtype=np.uint64)
    chosen = choose_validation(keys, np.array(sizes), share)
    assert 1 <= chosen.sum() < len(sizes)
    assert np.array(sizes)[chosen].sum() <= max(2 * share * sum(sizes), min(sizes))


def test_corpus_hash_sees_texts_order_and_split() -> None:
    def corpus_hash(texts: list[str], share: float = 0.1) -> str:
        return survey(documents(texts), name="s", seed=0, share=share, seen=NO_KEYS).corpus_hash

    assert corpus_hash(TEXTS) == corpus_hash(TEXTS)
    assert len({corpus_hash(TEXTS), corpus_hash(TEXTS[::-1]), corpus_hash(TEXTS[1:]), corpus_hash(TEXTS, 0.2)}) == 4
