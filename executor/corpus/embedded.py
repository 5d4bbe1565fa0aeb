"""The two corpora of the demo, taken from what is installed: English documentation and Python code.

general = prose of the docstrings, readme texts and language reference of Python and of the packages it runs with;
domain = their code without docstrings and comments. Nothing is downloaded. The same versions give the same bytes on
every machine: packages come in a fixed order, files in the order of a hash of their names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from cptplan.errors import DataError
from executor.corpus.documents import Document
from executor.corpus.installed import DISTRIBUTIONS, PYTHON, installed_versions, list_files, read_readme
from executor.corpus.prose import likeness_key, paragraphs
from executor.corpus.source_code import without_documentation

Kind = Literal["general", "domain"]
Progress = Callable[[int, int, str], None]
"""Called with bytes done, bytes to do, and what is being done."""

# Bounds of a document, so that one file does not make up much of a validation set. Shares set by eye (2026-11).
MIN_PROSE_BYTES, MAX_PROSE_BYTES = 240, 16_000  # longer files become several documents, cut between docstrings
MIN_CODE_BYTES, MAX_CODE_BYTES = 400, 40_000  # a document is a whole file; longer ones are left out
MAX_DIGIT_SHARE = 0.08  # more is a table of constants
MAX_NON_ASCII_SHARE = 0.02  # more is a table of characters
MAX_BLOCK_STRING_SHARE = 0.2  # more is text, or a template in another language
MAX_LINE_LENGTH = 400  # longer lines were written by a program
MIN_GRANT_BYTES = 2_000


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddedCorpus:
    """Documents taken from the installed packages, and what they were taken from."""

    documents: tuple[Document, ...]
    num_bytes: int
    versions: dict[str, str]
    """Of Python and of every distribution read."""
    num_skipped_files: int
    """Files that could not be read, are not UTF-8 or not Python."""


def read_embedded(
    kind: Kind, *, max_bytes: int, progress: Progress = lambda done, total, message: None
) -> EmbeddedCorpus:
    """Documents of one kind, at most max_bytes of UTF-8 text, spread over all packages.

    Every package may give the same number of bytes; what the small ones cannot give is granted to the others, again
    in equal parts, until the corpus is full or nothing is left.

    Args:      kind: "general" (English prose) or "domain" (Python code). max_bytes: bytes of text.
    Raises:    DataError if no document was found.
    """
    reader = _Reader(kind)
    streams = {name: reader.documents(name) for name in (PYTHON, *DISTRIBUTIONS)}
    documents: list[Document] = []
    num_bytes = 0
    while streams and max_bytes - num_bytes >= MIN_GRANT_BYTES:
        grant = max(MIN_GRANT_BYTES, (max_bytes - num_bytes) // len(streams))
        for name, stream in list(streams.items()):
            progress(num_bytes, max_bytes, f"reading {name}")
            granted = num_bytes + grant
            while num_bytes < granted:
                document = next(stream, None)
                size = len(document.text.encode()) if document else 0
                if document is None or num_bytes + size > max_bytes:
                    del streams[name]
                    break
                documents.append(document)
                num_bytes += size
    if not documents:
        raise DataError(
            f"embedded corpus must have documents; got none for {kind} in the installed packages.",
            hint="install the packages of constraints.txt, or give a corpus of your own",
        )
    progress(num_bytes, max_bytes, f"read {len(documents)} documents")
    return EmbeddedCorpus(
        documents=tuple(documents),
        num_bytes=num_bytes,
        versions=installed_versions(),
        num_skipped_files=reader.num_skipped,
    )


class _Reader:
    """Turns files into documents of one kind; remembers what it has seen, so that nothing comes twice."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.num_skipped = 0
        self._seen: set[bytes] = set()

    def documents(self, name: str) -> Iterator[Document]:
        """Documents of one distribution."""
        if self.kind == "general":
            yield from self._prose(f"{name}:readme", read_readme(name))
        for file in list_files(name, (".py", ".txt", ".rst", ".md") if self.kind == "general" else (".py",)):
            try:
                content = file.path.read_bytes()
                if self.kind == "domain":
                    yield from self._code(file.id, content)
                else:
                    text = content.decode("utf-8")
                    yield from self._prose(file.id, block_strings(text) if file.id.endswith(".py") else [text])
            except (OSError, UnicodeDecodeError):
                self.num_skipped += 1

    def _prose(self, name: str, texts: Iterable[str]) -> Iterator[Document]:
        """Documents of whole docstrings: each paragraph once in the corpus, close copies left out."""
        kept: list[str] = []
        num_bytes = num_documents = 0
        for text in texts:
            if not self._is_new(text.strip()):
                continue
            for paragraph in paragraphs(text):
                if self._is_new(likeness_key(paragraph)):
                    kept.append(paragraph)
                    num_bytes += len(paragraph.encode()) + 2
            if num_bytes >= MAX_PROSE_BYTES:
                num_documents += 1
                yield Document(id=f"{name}#{num_documents}", text="\n\n".join(kept))
                kept, num_bytes = [], 0
        if num_bytes >= MIN_PROSE_BYTES:
            yield Document(id=f"{name}#{num_documents + 1}", text="\n\n".join(kept))

    def _code(self, name: str, content: bytes) -> Iterator[Document]:
        """The file's code as one document, if there is enough of it and it is code."""
        if not MIN_CODE_BYTES <= len(content) <= 4 * MAX_CODE_BYTES:  # parsing a giant to throw it away is slow
            return
        code = without_documentation(content)
        if code is None:
            self.num_skipped += 1
        elif reads_as_code(code) and self._is_new(" ".join(code.split())):
            yield Document(id=name, text=code)

    def _is_new(self, key: str) -> bool:
        digest = hashlib.blake2b(key.encode("utf-8", "replace"), digest_size=8).digest()
        if digest in self._seen:
            return False
        self._seen.add(digest)
        return True


def block_strings(text: str) -> list[str]:
    """Contents of the triple-quoted strings of a module.

    Found by splitting at the quotes: far faster than a syntax tree, and it also finds documentation that is handed to
    a function, as extension modules do. Where another kind of string holds such quotes, the rest of the file comes out
    as code, which no prose test lets through.
    """
    return text.split('"""' if '"""' in text else "'''")[1::2]


def reads_as_code(code: str) -> bool:
    """Not a table, not text or another language in long strings, neither a stub nor endless."""
    size = len(code.encode())
    return (
        MIN_CODE_BYTES <= size <= MAX_CODE_BYTES
        and sum(map(code.count, "0123456789")) <= MAX_DIGIT_SHARE * size
        and size - len(code) <= MAX_NON_ASCII_SHARE * size
        and max(map(len, code.split("\n"))) <= MAX_LINE_LENGTH
        and sum(map(len, block_strings(code))) <= MAX_BLOCK_STRING_SHARE * size
    )
