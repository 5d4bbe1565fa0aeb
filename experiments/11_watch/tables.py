"""The tables of results.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from cptplan.watch.alarm import FALSE_ALARMS

Row = dict[str, Any]
NAMES = ("lr", "replay", "start", "data", "one set alone", "unknown", "no alarm")


def markdown(results: Mapping[str, Any], early: float) -> str:
    """All tables.

    Args:      early: share of the run by which a fault is found early.
    """
    limit = f"{FALSE_ALARMS:.0%}"
    lines = [f"# Healthy runs: alarms (promised: at most {limit} of the runs ever)\n"]
    lines += _table(
        ("source", "lab", "settings", "alarmed", "after (share of the run)", "blamed at the alarm"),
        [
            (r["source"], r["lab"], r["place"], _share(r["alarmed"]), _list(r["after"]), _counts(r["blamed"]))
            for r in results["healthy"]
        ],
    )
    lines += ["", *(f"- {r['lab']}: {'; '.join(r['runs'])}" for r in results["healthy"] if r["runs"])]
    lines += ["", "# Healthy runs: the end, 90 % intervals\n", *_end_table(results["ends"])]
    lines += ["", f"# Wrong plans: found, and by {early:.0%} of the run\n"]
    lines += _table(
        ("source", "fault", "found", f"by {early:.0%}", "median share when found", "right cause then", "at the end"),
        [
            (
                r["source"],
                r["fault"],
                _share(r["found"]),
                _share(r["early"], short=True),
                _number(r["after"]),
                _share(r["named"], short=True),
                _share(r["named_at_end"], short=True),
            )
            for r in results["sick"]
        ],
    )
    lines += ["", "# A wrong plan against the right one of the same run\n"]
    lines += _table(
        ("source", "more evidence against the wrong plan", "found, of runs quiet under their own plan"),
        [(r["source"], _share(r["worse"]), _share(r["found_if_quiet"])) for r in results["pairs"]],
    )
    lines += ["", "# What is named at the alarm, by what is wrong\n"]
    lines += _table(
        ("source", "wrong", "plans", *NAMES),
        [
            (r["source"], r["kind"], str(r["runs"]), *(str(r["named"].get(name, 0)) for name in NAMES))
            for r in results["causes"]
        ],
    )
    lines += ["", "# Wrong plans: the end, 90 % intervals\n", *_end_table(results["sick_ends"])]
    return "\n".join(lines) + "\n"


def _end_table(rows: Sequence[Row]) -> list[str]:
    return _table(
        ("source", "settings", "done", "end inside", "half width", "of that before the run", "rms error of the mean"),
        [
            (
                r["source"],
                r["place"] if r["place"] != r["source"] else "all",
                f"{r['share']:.0%}",
                _share(r["covered"]),
                f"{r['half_width']:.2%}",
                f"{r['to_before']:.0%}",
                f"{r['rms_error']:.2%}",
            )
            for r in rows
        ],
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def _share(found: Mapping[str, Any], *, short: bool = False) -> str:
    if not found["of"]:
        return "-"
    count = f"{found['hits']} of {found['of']}"
    return count if short else f"{count}: {found['share']:.0%} ({found['low']:.0%} to {found['high']:.0%})"


def _list(shares: Sequence[float]) -> str:
    if len(shares) > 6:
        return f"median {np.median(shares):.0%}, {min(shares):.0%} to {max(shares):.0%}"
    return ", ".join(f"{share:.0%}" for share in shares) or "-"


def _counts(named: Mapping[str, int]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in named.items()) or "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
