"""Where a campaign keeps its files, and the rule that one directory belongs to one campaign."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cptplan.config import Project
from cptplan.errors import ConfigError, StorageError
from cptplan.files import hash_json, read_json, write_json

WHERE_AND_HOW_MANY = ("num_runs", "parallel", "processes", "threads", "max_share")
"""Keys of pilot that may change while a campaign goes on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workspace:
    """The directory of one campaign."""

    root: Path

    @property
    def data(self) -> Path:
        """Token shards, tokenizer, corpora.json."""
        return self.root / "data"

    @property
    def runs(self) -> Path:
        """One directory for each training run."""
        return self.root / "runs"

    @property
    def curves(self) -> Path:
        """Curve directory that the law is fitted to."""
        return self.root / "curves"

    @property
    def fits(self) -> Path:
        """One directory for each fit, and latest.json."""
        return self.root / "fits"

    @property
    def plans(self) -> Path:
        """One directory for each plan, and latest.json."""
        return self.root / "plans"

    @property
    def launch(self) -> Path:
        """Launch files by target."""
        return self.root / "launch"

    @property
    def report(self) -> Path:
        """The HTML report and its figures."""
        return self.root / "report"

    def claim(self, project: Project) -> None:
        """Take the directory for a project, or find it taken by the same one.

        Raises:    StorageError if it belongs to another campaign or cannot be written.
        """
        self.check(project)
        path = self.root / "campaign.json"
        if not path.exists():
            record = _identity(project)
            write_json(path, {"schema_version": 1, "hash": hash_json(record), **record})

    def check(self, project: Project) -> None:
        """Raise StorageError if the directory belongs to another campaign."""
        path = self.root / "campaign.json"
        if not path.exists():
            return
        old, record = read_json(path), _identity(project)
        if not isinstance(old, dict) or old.get("hash") != hash_json(record):
            changed = [key for key in record if not isinstance(old, dict) or old.get(key) != record[key]]
            raise StorageError(
                f"directory must hold one campaign; got another {' and '.join(changed) or 'version'} in {path}.",
                hint="choose another --out, or remove the old campaign",
            )

    def latest(self, kind: str) -> Path:
        """The newest fit ("fits") or plan ("plans").

        Raises:    ConfigError if there is none yet.
        """
        path = self.root / kind / "latest.json"
        what, verb = {"fits": ("fit", "cptplan fit"), "plans": ("plan", "cptplan optimize")}[kind]
        if not path.exists():
            raise ConfigError(f"{what} must be there; got none in {path.parent}.", hint=f"run {verb} first")
        value = read_json(path)
        name = value.get("hash") if isinstance(value, dict) else None
        if not isinstance(name, str):
            raise ConfigError(f"{what} must be named by its hash; got {name!r} in {path}.", hint=f"run {verb} again")
        return self.root / kind / name

    def set_latest(self, kind: str, name: str) -> None:
        """Name the newest fit or plan."""
        write_json(self.root / kind / "latest.json", {"schema_version": 1, "hash": name})


def _identity(project: Project) -> dict[str, Any]:
    """What the runs that are there were trained with.

    Weights, budget and prices may change from call to call, more pilots may be asked for, and runs may go on with other
    processes; model, data, seed and what else the pilots are may not change.
    """
    record = {key: project.to_json()[key] for key in ("model", "data", "pilot", "seed")}
    for key in WHERE_AND_HOW_MANY:
        record["pilot"].pop(key, None)
    return record
