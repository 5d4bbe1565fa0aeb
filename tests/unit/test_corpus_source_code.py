"""Code without its documentation is the same code."""

from __future__ import annotations

import ast
import sysconfig
import textwrap
import warnings
from pathlib import Path

import pytest

from executor.corpus.source_code import without_documentation

STDLIB = Path(sysconfig.get_paths()["stdlib"])


def strip(source: str) -> str | None:
    return without_documentation(textwrap.dedent(source).encode())


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ('"""Module."""\n\nimport os\n', "import os\n"),
        ("#!/usr/bin/python\n# -*- coding: utf-8 -*-\nx = 1  # one\n", "x = 1\n"),
        ('def f():\n    """Doc.\n\n    More.\n    """\n\n    return 1\n', "def f():\n    return 1\n"),
        ('def f():\n    """Only."""\n', "def f():\n    pass\n"),
        ('def f(): "Only."\n', "def f(): pass\n"),
        (
            'class A:\n    "Doc."  # comment\n    x = 1\n    "attribute"\n    y = 2\n',
            "class A:\n    x = 1\n    y = 2\n",
        ),
        ('x = "# no comment"  # but this\n', 'x = "# no comment"\n'),
        ("x = '''\n# inside\n\n\n\n'''\n", "x = '''\n# inside\n\n\n\n'''\n"),
        ("a = 1\n\n\n\n\n\nb = 2\n", "a = 1\n\n\nb = 2\n"),
        ("f(\n    # first\n    1,  # second\n)\n", "f(\n    1,\n)\n"),
        ("x = '\\''  # escaped\n", "x = '\\''\n"),
        ('"a"; x = 1\n', "pass; x = 1\n"),
        ("try:\n    pass\nexcept E:\n    'doc'\n", "try:\n    pass\nexcept E:\n    pass\n"),
        ("# only a comment\n", ""),
        ("", ""),
        ("x = 'é'  # é\n", "x = 'é'\n"),
        ("def f():\r\n    '''é\r\n    '''\r\n    return 1\r\n", "def f():\n    return 1\n"),
        ("\ufeff'''doc'''\nx = 1\n", "x = 1\n"),
    ],
)
def test_without_documentation_keeps_only_code(source: str, code: str) -> None:
    assert without_documentation(source.encode()) == code


@pytest.mark.parametrize("source", [b"def f(:\n", b"print 'two'\n", b"x = 1\0", b"x = '\xff'\n", b"if x:\ny\n"])
def test_without_documentation_of_what_is_not_python_is_none(source: bytes) -> None:
    assert without_documentation(source) is None


def bare(source: str | bytes) -> str:
    """The syntax tree without string statements and `pass`."""

    class Bare(ast.NodeTransformer):
        def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
            is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
            return None if is_text else node

        def visit_Pass(self, node: ast.Pass) -> None:
            return None

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.dump(Bare().visit(ast.parse(source)))


@pytest.mark.parametrize("folder", ["json", "logging", "http"])
def test_without_documentation_keeps_the_syntax_tree_of_real_modules(folder: str) -> None:
    files = sorted((STDLIB / folder).glob("*.py"))
    assert files
    for file in files:
        code = without_documentation(file.read_bytes())
        assert code is not None
        assert bare(code) == bare(file.read_bytes()), file.name
        assert "#" not in code or '"' in code or "'" in code  # any hash sign left is inside a string
