"""Where a campaign keeps its files, and the rule that one directory belongs to one campaign."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cptplan.config import Project
from cptplan.errors import ConfigError, StorageError
from cptplan.files import hash_json, read_json, write_json


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
        """Make the directory this campaign's own.

        Weights, budget and prices may change from call to call; model, data, pilots and seed may not, because runs
        that are there were trained with them.
        Raises:    StorageError if it belongs to another campaign or cannot be written.
        """
        record = {key: project.to_json().get(key) for key in ("model", "data", "pilot", "seed")}
        path = self.root / "campaign.json"
        if not path.exists():
            write_json(path, {"schema_version": 1, "hash": hash_json(record), **record})
            return
        old = read_json(path)
        if old.get("hash") != hash_json(record):
            changed = [key for key in record if old.get(key) != record[key]]
            raise StorageError(
                f"a directory must hold one campaign; got another {' and '.join(changed) or 'version'} in {path}.",
                hint="choose another --out, or remove the old campaign",
            )

    def latest(self, kind: str) -> Path:
        """The newest fit ("fits") or plan ("plans").

        Raises:    ConfigError if there is none yet.
        """
        path = self.root / kind / "latest.json"
        if not path.exists():
            verb = {"fits": "cptplan fit", "plans": "cptplan optimize"}[kind]
            raise ConfigError(f"{kind} must hold a finished one; got none in {path.parent}.", hint=f"run {verb} first")
        return self.root / kind / str(read_json(path)["hash"])

    def set_latest(self, kind: str, name: str) -> None:
        """Name the newest fit or plan."""
        write_json(self.root / kind / "latest.json", {"schema_version": 1, "hash": name})
