"""What is installed: the files, readme texts and versions of Python and of the packages in constraints.txt."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import sysconfig
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path

# What the pinned installation holds (distribution: packages). One that is missing is left out, and the record shows it.
# pip and setuptools are not among them: they come with the environment, in versions of their own.
DISTRIBUTIONS: dict[str, tuple[str, ...]] = {
    "torch": ("torch", "torchgen"),
    "transformers": ("transformers",),
    "scipy": ("scipy",),
    "numpy": ("numpy",),
    "pandas": ("pandas",),
    "sympy": ("sympy",),
    "networkx": ("networkx",),
    "matplotlib": ("matplotlib", "mpl_toolkits"),
    "SQLAlchemy": ("sqlalchemy",),
    "optuna": ("optuna",),
    "pyarrow": ("pyarrow",),
    "datasets": ("datasets",),
    "huggingface_hub": ("huggingface_hub",),
    "peft": ("peft",),
    "accelerate": ("accelerate",),
    "tokenizers": ("tokenizers",),
    "safetensors": ("safetensors",),
    "fonttools": ("fontTools",),
    "mypy": ("mypy", "mypyc"),
    "hypothesis": ("hypothesis",),
    "pytest": ("_pytest",),
    "pluggy": ("pluggy",),
    "pydantic": ("pydantic",),
    "pydantic_core": ("pydantic_core",),
    "mpmath": ("mpmath",),
    "pillow": ("PIL",),
    "Jinja2": ("jinja2",),
    "MarkupSafe": ("markupsafe",),
    "Mako": ("mako",),
    "alembic": ("alembic",),
    "click": ("click",),
    "typer": ("typer",),
    "rich": ("rich",),
    "Pygments": ("pygments",),
    "markdown-it-py": ("markdown_it",),
    "websockets": ("websockets",),
    "anyio": ("anyio",),
    "httpcore2": ("httpcore2",),
    "httpx2": ("httpx2",),
    "h11": ("h11",),
    "fsspec": ("fsspec",),
    "filelock": ("filelock",),
    "packaging": ("packaging",),
    "pyparsing": ("pyparsing",),
    "python-dateutil": ("dateutil",),
    "psutil": ("psutil",),
    "sortedcontainers": ("sortedcontainers",),
    "contourpy": ("contourpy",),
    "dill": ("dill",),
    "multiprocess": ("multiprocess",),
    "tqdm": ("tqdm",),
    "zstandard": ("zstandard",),
    "PyYAML": ("yaml",),
    "ruamel.yaml": ("ruamel.yaml",),
    "regex": ("regex",),
    "idna": ("idna",),
    "colorlog": ("colorlog",),
    "cycler": ("cycler",),
    "pathspec": ("pathspec",),
    "pytest-xdist": ("xdist",),
    "execnet": ("execnet",),
}
PYTHON = "python"  # the standard library, under this name in ids and in the record

# Tests repeat themselves, vendored copies repeat others, lexers are lists of other languages' words, and the record of
# a build differs between machines.
_SKIPPED_FOLDERS = frozenset(
    "__pycache__ test tests idle_test _vendor _vendored_packages vendored _extern extern site-packages dist-packages "  # noqa: SIM905
    "lib2to3 typeshed pydoc_data licenses lexers".split()
)
_SKIPPED_PREFIXES = ("_sysconfigdata", "config-", "license", "notice", "author", "__config__")


@dataclass(frozen=True, kw_only=True, slots=True)
class InstalledFile:
    """A file of a package; its id is the package and the path inside it, the same on every machine."""

    id: str
    path: Path


def list_files(name: str, suffixes: tuple[str, ...]) -> list[InstalledFile]:
    """Files of a distribution in the order of a hash of their ids, so that any first part is a fair sample."""
    files = []
    for package, root in _roots(name):
        for folder, folders, names in os.walk(root):
            folders[:] = [f for f in folders if f not in _SKIPPED_FOLDERS and not f.startswith(_SKIPPED_PREFIXES)]
            for file in names:
                if file.endswith(suffixes) and not file.lower().startswith(_SKIPPED_PREFIXES):
                    path = Path(folder, file)
                    files.append(InstalledFile(id=f"{package}/{path.relative_to(root).as_posix()}", path=path))
    return sorted(files, key=lambda file: hashlib.blake2b(file.id.encode(), digest_size=8).digest())


def read_readme(name: str) -> list[str]:
    """The long description of a distribution; for Python, the language reference that pydoc carries."""
    if name == PYTHON:
        topics: dict[str, str] = import_module("pydoc_data.topics").topics
        return [topics[topic] for topic in sorted(topics)]
    try:
        description = metadata.metadata(name).get_payload()  # type: ignore[attr-defined]
    except metadata.PackageNotFoundError:
        return []
    return [description] if isinstance(description, str) else []


def installed_versions() -> dict[str, str]:
    """Version of Python and of every distribution of the list that is here."""
    versions = {PYTHON: platform.python_version()}
    for name in DISTRIBUTIONS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _roots(name: str) -> list[tuple[str, Path]]:
    """The packages of a distribution with their folders. Nothing is imported."""
    if name == PYTHON:
        return [(PYTHON, Path(sysconfig.get_paths()["stdlib"]))]
    roots = []
    for package in DISTRIBUTIONS[name]:
        try:
            spec = importlib.util.find_spec(package)
        except ModuleNotFoundError:  # of a package with a dot in its name, the parent
            continue
        if spec and spec.submodule_search_locations:
            roots.append((package, Path(next(iter(spec.submodule_search_locations)))))
    return roots
