"""The demo's corpora, small, from what is installed here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cptplan.errors import DataError
from executor.corpus import embedded, installed
from executor.corpus.embedded import EmbeddedCorpus, Kind, block_strings, read_embedded, reads_as_code
from executor.corpus.prose import FUNCTION_WORDS, likeness_key

MAX_BYTES = 150_000
# A few of the list, so that the tests stay quick; the demo reads them all.
PACKAGES = ("numpy", "scipy", "pandas", "matplotlib", "optuna", "hypothesis", "pytest", "pluggy", "pydantic", "Jinja2")


@pytest.fixture(scope="module", autouse=True)
def few_packages() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded, "DISTRIBUTIONS", {name: installed.DISTRIBUTIONS[name] for name in PACKAGES})
        yield


@pytest.fixture(scope="module")
def corpora() -> dict[Kind, EmbeddedCorpus]:
    return {
        "general": read_embedded("general", max_bytes=MAX_BYTES),
        "domain": read_embedded("domain", max_bytes=MAX_BYTES),
    }


@pytest.fixture(params=["general", "domain"])
def corpus(request: pytest.FixtureRequest, corpora: dict[Kind, EmbeddedCorpus]) -> tuple[Kind, EmbeddedCorpus]:
    return request.param, corpora[request.param]


def test_read_embedded_fills_the_budget_from_many_packages(corpus: tuple[Kind, EmbeddedCorpus]) -> None:
    _, found = corpus
    sizes = [len(document.text.encode()) for document in found.documents]
    assert 0.9 * MAX_BYTES <= sum(sizes) == found.num_bytes <= MAX_BYTES
    packages = {document.id.split("/")[0].split(":")[0] for document in found.documents}
    assert len(packages) >= 7  # one large file can take the part of another package
    assert {"python", "numpy"} <= set(found.versions)


def test_read_embedded_twice_gives_the_same_documents(corpus: tuple[Kind, EmbeddedCorpus]) -> None:
    kind, found = corpus
    assert read_embedded(kind, max_bytes=MAX_BYTES) == found


def test_read_embedded_ids_are_unique_and_of_no_machine(corpus: tuple[Kind, EmbeddedCorpus]) -> None:
    _, found = corpus
    ids = [document.id for document in found.documents]
    assert len(set(ids)) == len(ids)
    assert not any(id_.startswith("/") or sys.prefix in id_ for id_ in ids)


def test_read_embedded_general_reads_as_english_without_repetition(corpora: dict[Kind, EmbeddedCorpus]) -> None:
    text = "\n\n".join(document.text for document in corpora["general"].documents)
    words = text.split()
    # Counted over both corpora at 9 MB: 0.42 of the words here, 0.12 in code (where `if`, `for`, `in` are keywords).
    assert 0.33 < sum(word in FUNCTION_WORDS for word in words) / len(words) < 0.5
    assert ">>>" not in text
    assert "copyright" not in text.lower()
    keys = [likeness_key(paragraph) for paragraph in text.split("\n\n")]
    assert len(set(keys)) == len(keys)


def test_read_embedded_domain_is_code_without_documentation(corpora: dict[Kind, EmbeddedCorpus]) -> None:
    documents = corpora["domain"].documents
    for document in documents:
        compile(document.text, document.id, "exec", dont_inherit=True)
        assert reads_as_code(document.text)
    words = " ".join(document.text for document in documents).split()
    assert sum(word in FUNCTION_WORDS for word in words) / len(words) < 0.2


def test_read_embedded_reports_progress_with_package_names() -> None:
    seen: list[tuple[int, int, str]] = []
    read_embedded("domain", max_bytes=30_000, progress=lambda *report: seen.append(report))
    assert {"reading python", "reading numpy", "reading pluggy"} <= {message for _, _, message in seen}
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert all(total == 30_000 for _, total, _ in seen)


def test_read_embedded_without_packages_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "list_files", lambda name, suffixes: [])
    with pytest.raises(DataError, match=r"must have documents.*hint: install"):
        read_embedded("domain", max_bytes=1000_000)


def test_read_embedded_counts_files_that_it_cannot_use(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    contents = {
        "good.py": b"value = [item for item in items]\n" * 40,
        "same.py": b"value = [item  for item in items]\n" * 40,
        "two.py": b"print 'a statement of another language version'\n" * 40,
        "latin.py": b"# \xe9\n" * 200,
        "gone.py": None,
    }
    for name, content in contents.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
    files = [installed.InstalledFile(id=f"p/{name}", path=tmp_path / name) for name in contents]
    monkeypatch.setattr(embedded, "DISTRIBUTIONS", {})
    monkeypatch.setattr(embedded, "list_files", lambda name, suffixes: files)
    found = read_embedded("domain", max_bytes=100_000)
    assert [document.id for document in found.documents] == ["p/good.py"]
    assert found.num_skipped_files == 3


def test_list_files_order_does_not_follow_the_alphabet_or_leave_the_package() -> None:
    files = installed.list_files("numpy", (".py",))
    ids = [file.id for file in files]
    assert ids == [file.id for file in installed.list_files("numpy", (".py",))]
    assert ids != sorted(ids)
    assert all(file.id.startswith("numpy/") and file.path.is_file() for file in files)
    assert not any("/tests/" in id_ for id_ in ids)


def test_list_files_of_a_missing_package_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(installed.DISTRIBUTIONS, "nothing", ("no_such_package", "no_such_parent.child"))
    assert installed.list_files("nothing", (".py",)) == []
    assert installed.read_readme("nothing") == []
    assert "nothing" not in installed.installed_versions()


@pytest.mark.parametrize(
    ("text", "strings"),
    [('a = """b"""\n', ["b"]), ("'''b'''", ["b"]), ('"""a""" x """b"""', ["a", "b"]), ("none", [])],
)
def test_block_strings_finds_what_is_between_triple_quotes(text: str, strings: list[str]) -> None:
    assert block_strings(text) == strings


CODE = "def function(argument):\n    return argument + other(argument)\n" * 10


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (CODE, True),
        ("x = 1\n", False),
        (CODE * 100, False),
        ("table = [\n" + "    0.12345678, 1.12345678,\n" * 50 + "]\n", False),
        (CODE + 'text = """' + "words of another language " * 20 + '"""\n', False),
        (CODE + "x = '" + "a" * 500 + "'\n", False),
        (CODE + "x = '" + "é" * 60 + "'\n", False),
    ],
)
def test_reads_as_code_refuses_tables_texts_and_giants(code: str, expected: bool) -> None:
    assert reads_as_code(code) is expected
