"""How a benchmark is kept: reports/benchmarks/<name>.json with machine, date and command, and one table of all."""

from __future__ import annotations

import datetime
import logging
import os
import platform
import shlex
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cptplan.files import read_json, write_json, write_text

ROOT = Path(__file__).resolve().parents[2]
REPORTS = ROOT / "reports" / "benchmarks"
LOG = logging.getLogger("benchmark")
LIBRARIES = ("numpy", "scipy", "torch", "transformers", "accelerate", "tokenizers")


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """One number to reach, as a row of the table."""

    what: str
    target: str
    reached: str
    met: bool
    miss: str = ""
    """By how much it is missed, and why."""


def start() -> None:
    """Log to stderr, so that a long benchmark shows where it is."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")


def write_record(name: str, goals: list[Goal], results: dict[str, Any]) -> None:
    """Write the benchmark's file and renew the table of all benchmarks."""
    record = {
        "schema_version": 1,
        "benchmark": name,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": shlex.join(["python", f"experiments/benchmarks/{name}.py", *map(_tidy, sys.argv[1:])]),
        "commit": _commit(),
        "machine": machine(),
        "goals": [asdict(goal) for goal in goals],
        "results": results,
    }
    write_json(REPORTS / f"{name}.json", record)
    write_text(REPORTS / "README.md", _table())
    for goal in goals:
        LOG.info("%s: %s (target %s): %s", goal.what, goal.reached, goal.target, "met" if goal.met else "NOT met")


def _tidy(argument: str) -> str:
    """An argument without the places of one machine."""
    path = Path(argument)
    return "DIR" if path.is_dir() else "FILE" if path.is_absolute() else argument


def machine() -> dict[str, Any]:
    """What the numbers were measured on, and how busy it was."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
        "threads": os.environ.get("OMP_NUM_THREADS", "not set"),
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str:
    """The commit measured, with a mark when the package differs from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout

    try:
        changed = git("status", "--porcelain", "--", "cptplan", "executor", "experiments/benchmarks")
        return git("rev-parse", "--short", "HEAD").strip() + (" and changes not committed" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _table() -> str:
    lines = [
        "# Benchmarks",
        "",
        "The numbers that cptplan has to reach, each made by one command of `experiments/benchmarks`. The scripts",
        "write this page from the .json files beside it, which hold the details. Seconds are of one thread unless said",
        "otherwise; on a busy machine they are upper bounds.",
        "",
        "| number | target | reached | met | by how much not, and why |",
        "|" + " --- |" * 5,
    ]
    notes = ["", "| benchmark | date | machine | commit | command |", "|" + " --- |" * 5]
    for path in sorted(REPORTS.glob("*.json")):
        record = read_json(path)
        lines += [
            f"| {g['what']} | {g['target']} | {g['reached']} | {'yes' if g['met'] else 'NO'} | {g['miss']} |"
            for g in record["goals"]
        ]
        at = record["machine"]
        notes.append(
            f"| [{record['benchmark']}]({path.name}) | {record['date']} | {at['processor']}, {at['cores']} cores, load "
            f"{at['load_average']}, Python {at['python']}, numpy {at['numpy']}, scipy {at['scipy']} | "
            f"{record['commit']} | `{record['command']}` |"
        )
    return "\n".join([*lines, *notes]) + "\n"
