"""Python source code without its documentation: docstrings and comments go, the formatting of the rest stays."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator

# Strings are matched first, so that a hash sign or a blank line inside one is left alone. An f-string of Python 3.12
# whose braces hold its own quote and a hash sign would be misread; the installed packages must run on 3.11 as well.
_STRING = (
    r'"""[^"\\]*(?:(?:\\.|"(?!""))[^"\\]*)*"""'
    r"|'''[^'\\]*(?:(?:\\.|'(?!''))[^'\\]*)*'''"
    r'|"[^"\\\n]*(?:\\.[^"\\\n]*)*"'
    r"|'[^'\\\n]*(?:\\.[^'\\\n]*)*'"
)
_LINES = r"^(?P<lines>(?:[ \t\f]*(?:#[^\n]*)?\n)+)"
_TOKEN = re.compile(rf"(?P<string>{_STRING})|{_LINES}|[ \t\f]*#[^\n]*", re.DOTALL | re.MULTILINE)
MAX_BLANK_LINES = 2

Span = tuple[int, int]


def without_documentation(source: bytes) -> str | None:
    """The code of a module without docstrings, other string statements and comments; None if it is not Python.

    The syntax tree of the result is that of the source less its string statements; `pass` stands where one shared
    its line with code or was a whole body.
    """
    source = source.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes and the like are the package's affair
            tree = ast.parse(source)
        text = _cut(source, sorted(_string_statements(tree, source))).decode("utf-8")
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # ValueError: null bytes, another encoding
        return None
    code = _TOKEN.sub(_keep, text.rstrip() + "\n").strip("\n")
    return code + "\n" if code else ""


def _keep(match: re.Match[str]) -> str:
    """What stays: of a string all, of lines blank or only commented at most two blank ones, of a comment nothing."""
    if match["string"] is not None:
        return match["string"]
    if match["lines"] is None:
        return ""
    num_blank = sum(not line.strip() for line in match["lines"].split("\n")[:-1])
    return "\n" * min(num_blank, MAX_BLANK_LINES)


def _string_statements(tree: ast.Module, source: bytes) -> Iterator[tuple[Span, bool]]:
    """Byte span of every expression statement that is a string, and whether its body holds nothing else."""
    starts = [0]
    for line in source.split(b"\n"):
        starts.append(starts[-1] + len(line) + 1)
    nodes: list[ast.AST] = [tree]
    while nodes:
        node = nodes.pop()
        for field in ("body", "orelse", "finalbody"):
            body = getattr(node, field, None)
            if not isinstance(body, list):  # the body of a lambda or of a conditional expression
                continue
            texts = [statement.value for statement in body if isinstance(statement, ast.Expr) and _is_text(statement)]
            for text in texts:
                begin = starts[text.lineno - 1] + text.col_offset
                end = starts[(text.end_lineno or 0) - 1] + (text.end_col_offset or 0)  # the parser gives both
                yield (begin, end), text is texts[0] and len(texts) == len(body) and node is not tree
            nodes += [statement for statement in body if hasattr(statement, "body") or hasattr(statement, "cases")]
        nodes += getattr(node, "handlers", None) or getattr(node, "cases", None) or []


def _is_text(statement: ast.Expr) -> bool:
    return isinstance(statement.value, ast.Constant) and isinstance(statement.value.value, str)


def _cut(source: bytes, texts: list[tuple[Span, bool]]) -> bytes:
    """Source without these strings; their lines go too, with the blank lines behind them, unless code is on them."""
    kept: list[bytes] = []
    position = 0
    for (begin, end), alone in texts:
        line_begin = source.rfind(b"\n", 0, begin) + 1
        line_end = source.find(b"\n", end) + 1 or len(source)
        rest = source[end:line_end].strip()
        if alone or source[line_begin:begin].strip() or (rest and not rest.startswith(b"#")):
            kept += [source[position:begin], b"pass"]
            position = end
            continue
        kept.append(source[position:line_begin])
        position = line_end
        while source[position : (following := source.find(b"\n", position) + 1)].isspace():
            position = following
    kept.append(source[position:])
    return b"".join(kept)
