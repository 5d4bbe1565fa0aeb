"""The import rule: cptplan plans without torch, and executor takes only the contracts from cptplan."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cptplan
import executor

PLANNER = Path(cptplan.__file__).parent
EXECUTOR = Path(executor.__file__).parent
FORBIDDEN_IN_PLANNER = {"torch", "transformers", "accelerate", "executor"}
CONTRACTS = {
    "cptplan.contract",
    "cptplan.errors",
    "cptplan.files",
    "cptplan.schedule",
    "cptplan.mixture",
    "cptplan.run_options",
    "cptplan.run_spec",
    "cptplan.curves",
    "cptplan.areas",
}


def imported(source: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import, those inside functions and by name (importlib, __import__) included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            # from cptplan import x: x may be a module or a name, so both are given
            yield from ((node.lineno, f"{module}.{alias.name}".strip(".")) for alias in node.names)
            yield node.lineno, "relative" if node.level else module
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func)
            if called in {"importlib.import_module", "import_module", "__import__"}:
                yield node.lineno, str(node.args[0].value)


def files(package: Path) -> list[Path]:
    return sorted(package.rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(PLANNER.parent))


@pytest.mark.parametrize("path", files(PLANNER), ids=name_of)
def test_planner_never_imports_the_training_side(path: Path) -> None:
    wrong = [(line, name) for line, name in imported(path.read_text()) if name.split(".")[0] in FORBIDDEN_IN_PLANNER]
    assert wrong == []


@pytest.mark.parametrize("path", files(EXECUTOR), ids=name_of)
def test_executor_imports_only_the_contracts(path: Path) -> None:
    def allowed(name: str) -> bool:
        return name in CONTRACTS or any(name.startswith(f"{module}.") for module in CONTRACTS)

    found = [(line, name) for line, name in imported(path.read_text()) if name.split(".")[0] == "cptplan"]
    # `from cptplan import x` gives "cptplan" beside "cptplan.x": only the second is judged
    assert [(line, name) for line, name in found if name != "cptplan" and not allowed(name)] == []
    assert not [line for line, name in imported(path.read_text()) if name == "relative"]


def test_contracts_import_nothing_else_of_the_planner() -> None:
    # so that executor never loads the planner's own stages along with them
    shared = CONTRACTS | {"cptplan"}
    for module in CONTRACTS:
        source = (PLANNER / f"{module.split('.')[1]}.py").read_text()
        used = {name for _, name in imported(source) if name.split(".")[0] == "cptplan"}
        assert {".".join(name.split(".")[:2]) for name in used} <= shared, module


def test_importing_every_planner_module_leaves_torch_out() -> None:
    code = """
import importlib, pkgutil, sys
import cptplan
for module in pkgutil.walk_packages(cptplan.__path__, "cptplan."):
    if module.name != "cptplan.__main__":
        importlib.import_module(module.name)
found = {name.split(".")[0] for name in sys.modules} & {"torch", "transformers", "accelerate", "executor"}
print(len([name for name in sys.modules if name.startswith("cptplan.")]), *sorted(found))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    count, *found = done.stdout.split()
    assert int(count) >= len([path for path in files(PLANNER) if path.stem not in {"__init__", "__main__"}])
    assert found == []


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import torch", "torch"),
        ("import torch.nn as nn", "torch.nn"),
        ("from torch import nn", "torch"),
        ("def f():\n    import torch", "torch"),
        ("import importlib\nimportlib.import_module('torch.nn')", "torch.nn"),
        ("__import__('torch')", "torch"),
        ("from cptplan import search", "cptplan.search"),
        ("from . import search", "relative"),
    ],
)
def test_import_reader_sees_every_form(source: str, name: str) -> None:
    assert name in {found for _, found in imported(source)}
