"""English prose out of documentation: paragraphs of sentences, without examples, tables, markup and licences.

Documentation comes in reStructuredText, numpydoc, Google style, Markdown and no style at all. What they share is
layout, so layout decides which lines belong together (blank lines, indentation, list marks, prompts, fences); then a
plain test of the words decides what is prose: sentences with a capital and a full stop, held together by the small
words of English, with few names and symbols among them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# About two in five words of running prose are among these; in lists of names and in code hardly any is.
FUNCTION_WORDS = frozenset(
    "a about after all also an and any are as at be because been before between both but by can could do does each "  # noqa: SIM905
    "either for from given had has have how however if in instead into is it its may more most must no not of on one "
    "only or other otherwise out over same should since so some such than that the their them then there these they "
    "this those through to two under until up use used using was we when where whether which while who will with "
    "within without would you your".split()
)
# The limits below were set by eye (2026-11) on random samples of the installed packages, until what was let through
# read as prose and what was held back did not.
MIN_CHARACTERS = 40
MIN_WORDS = 9
MIN_FUNCTION_WORD_SHARE = 0.28
MIN_PLAIN_WORD_SHARE = 0.86
MAX_SYMBOL_SHARE = 0.012
MAX_CAPITAL_SHARE = 0.12

_REFUSED_PHRASES = (
    *("copyright", "license", "licence", "licensing", "warrant", "redistribut", "all rights reserved", "spdx"),
    *("deprecated", "versionadded", "versionchanged", "http:", "https:", "www.", "::", "%s", "%(", "-*-"),
    *("et al", "arxiv", "doi:", "isbn", "todo", "fixme", "xxx"),
)
_REFUSED_CHARACTERS = frozenset("\\{}$|^")
_SYMBOLS = str.maketrans("", "", "=_<>[]*#@~/&+`")

_FENCE = re.compile(r"^[ \t]*(```|~~~).*?(?:^[ \t]*\1[^\n]*$|\Z)", re.DOTALL | re.MULTILINE)
_UNDERLINE = re.compile(r"([-=~^*\"#+_.])\1{2,}$")
_PROMPT = re.compile(r">>>|\.\.\.(?!\w)|In \[|Out\[|\$ |% |#|@|\||\+-|<\w")
_SPOKEN_DIRECTIVE = re.compile(r"\.\. (?:note|warning|tip|hint|important|attention|caution)::", re.IGNORECASE)
_DROPPED_SECTIONS = frozenset(("references", "see also", "examples", "example", "authors", "license", "methods"))
_ITEM = re.compile(
    r"[-*+•] +|\(?\d{1,2}[.)] +"  # bullet, number
    r"|:\w+[^:\n]*: +|[*`]*\w[\w.,* ]{0,40}`*\*{0,2} ?\([^)\n]*\) ?: +"  # ":param x: ", "x (int): "
    r"|[*`]{0,2}\w+[*`]{0,2}: +"  # "x: "
)
_ROLE = re.compile(r":[a-z][\w:+-]*:`|`__?\b")
_LINK = re.compile(r"\[([^\]\[]+)\]\([^)\s]*\)|\s*<[^<>\s]*>(?=`)|\[[\w,. #*-]{1,12}\]_")
_EMPHASIS = re.compile(r"(\*{1,2})(\w(?:[^*\n]*\w)?)\1")
_PLAIN_WORD = re.compile(r"(?<!\S)[(\"'“]*[A-Za-z]+(?:['’/-][A-Za-z]+)*[.,;:!?)\"'”]*(?!\S)")
_LOWER_WORD = re.compile(r"\b[a-z]{2,}\b")
_SENTENCE_END = re.compile(r"(?<!e\.g)(?<!i\.e)(?<!\bcf)(?<!\bvs)(?<!\betc)[.!?][)\"'”]*(?=\s+[A-Z\"'(]|$)")

Line = tuple[int, str]


def paragraphs(text: str) -> Iterator[str]:
    """The prose paragraphs of one documentation text, each on one line, markup removed."""
    if "```" in text or "~~~" in text:
        text = _FENCE.sub("", text)
    for piece in _pieces(text):
        prose = as_prose(piece)
        if prose is not None:
            yield prose


def as_prose(piece: str) -> str | None:
    """The piece without its markup, up to its last full stop, if it reads as English prose; else None."""
    if len(piece) < MIN_CHARACTERS or not _REFUSED_CHARACTERS.isdisjoint(piece):
        return None
    if "`" in piece or "[" in piece:
        piece = _LINK.sub(r"\1", _ROLE.sub("`", piece)).replace("`~", "`").replace("`", "")
    if "*" in piece:
        piece = _EMPHASIS.sub(r"\2", piece)
    if not (piece[0].isupper() or piece[0] in "(\"'"):
        return None
    ends = [match.end() for match in _SENTENCE_END.finditer(piece)]
    if not ends:
        return None
    piece = " ".join(piece[: ends[-1]].split())
    return piece if _reads_as_prose(piece, num_sentences=len(ends)) else None


def _reads_as_prose(piece: str, *, num_sentences: int) -> bool:
    """Enough words, held together by function words, with few symbols, names and numbers; no licence."""
    words = piece.split()
    if len(words) < MIN_WORDS or sum(word in FUNCTION_WORDS for word in words) < MIN_FUNCTION_WORD_SHARE * len(words):
        return False
    if len(piece) - len(piece.translate(_SYMBOLS)) > MAX_SYMBOL_SHARE * len(piece):
        return False
    if sum(word[0].isupper() for word in words) - num_sentences > MAX_CAPITAL_SHARE * len(words):
        return False
    if len(_PLAIN_WORD.findall(piece)) < MIN_PLAIN_WORD_SHARE * len(words):
        return False
    lower = piece.lower()
    return not any(phrase in lower for phrase in _REFUSED_PHRASES)


def likeness_key(paragraph: str) -> str:
    """What is equal in two paragraphs that differ only in names, numbers and punctuation: their lower-case words."""
    return " ".join(_LOWER_WORD.findall(paragraph))


def _pieces(text: str) -> Iterator[str]:
    """Lines that belong together by layout, joined: a paragraph, a list item, the description of a parameter."""
    piece: list[str] = []
    start = 0  # indentation of the first line of the piece
    hanging = False  # the piece is a list item: its other lines are indented deeper
    for indent, body in _live_lines(text):
        item = _ITEM.match(body)
        if piece and body and not item and ((indent > start) if hanging else (indent == start)):
            piece.append(body)
            continue
        if piece:
            yield " ".join(piece)
        start, hanging = indent, item is not None
        if item:
            body = body[item.end() :]
            body = body[:1].upper() + body[1:]
        piece = [body] if body else []
    if piece:
        yield " ".join(piece)


def _live_lines(text: str) -> Iterator[Line]:
    """(indentation, content) of the lines outside literal blocks, examples, titles and sections that are not prose.

    A blank line, and each place where something was left out, comes as (-1, "").
    """
    lines = _measured(text)
    literal = -1  # lines indented deeper than this belong to a literal block; -1: in none
    opens_literal = -1  # indentation of the last line if it ended in "::", else -1
    example = dropped = False  # after a prompt, until a blank line; inside a section that is not prose
    for (indent, body), (_, following) in zip(lines, [*lines[1:], (-1, "")], strict=True):
        if indent < 0:
            literal = max(literal, opens_literal)
            opens_literal, example = -1, False
            yield -1, ""
            continue
        if example or (literal >= 0 and indent > literal):
            continue
        literal = -1
        if _UNDERLINE.match(following) and len(following) >= len(body) // 2:
            dropped = body.lower() in _DROPPED_SECTIONS
            yield -1, ""
        elif dropped or _UNDERLINE.match(body):
            continue
        elif body[-1] == ":" and body[:-1].lower() in _DROPPED_SECTIONS:
            literal = indent
        elif _PROMPT.match(body):
            example = True
            yield -1, ""
        elif body.startswith(".. "):
            if not _SPOKEN_DIRECTIVE.match(body):
                literal = indent
            yield -1, ""
        else:
            opens_literal = indent if body.endswith("::") else -1
            yield indent, body


def _measured(text: str) -> list[Line]:
    """(indentation, content) of every line, (-1, "") if blank; the first line counts as indented like the rest."""
    lines: list[Line] = []
    for line in text.expandtabs(4).split("\n"):
        body = line.strip()
        lines.append((len(line) - len(line.lstrip()), body) if body else (-1, ""))
    if lines[0][0] >= 0:
        lines[0] = (min((indent for indent, _ in lines[1:] if indent >= 0), default=0), lines[0][1])
    return lines
