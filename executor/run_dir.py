"""To which run spec the files of a run directory belong."""

from __future__ import annotations

from pathlib import Path

from cptplan.errors import StorageError
from cptplan.files import read_json
from cptplan.run_spec import RunSpec


def is_complete(run_dir: Path, spec: RunSpec) -> bool:
    """Whether the directory holds the result of this spec.

    Raises:    StorageError if it holds the result of another.
    """
    path = run_dir / "result.json"
    if not path.exists():
        return False
    check_spec_hash(read_json(path).get("spec_hash"), spec.hash, path)
    return True


def check_spec_hash(found: object, own: str, path: Path) -> None:
    """Raise StorageError if a file was left by another run spec."""
    if found != own:
        raise StorageError(
            f"run directory must belong to one run spec; got {own} in spec.json and {found} in {path}.",
            hint="take another run directory, or remove this one",
        )
