"""Answer the question from the kept rows: python analyse.py. Writes results.json, results.md and figure.png.

--fast measures one run of a kept campaign anew, under its own plan and two wrong ones, and analyses that alone.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cases import HEALTHY
from figure import draw
from scipy.stats import binomtest
from tables import Row, markdown

from cptplan.files import write_json, write_text

HERE = Path(__file__).resolve().parent
FAULTS = ("other start", "rate x 2", "rate x 0.5", "replay left out", "replay x 2", "replay x 0.5")
EARLY = 0.25  # of the run: a fault found by then has cost little


def main(*, fast: bool = False, out: Path = HERE) -> None:
    """Tables and figure of the rows."""
    rows = _rows(fast=fast)
    results = {
        "schema_version": 1,
        "healthy": [healthy_row(key, some) for key, some in groups(own(rows), lab_of)],
        "ends": [row for key, some in groups(own(rows), source_of) for row in end_rows(key, some)],
        "sick": [sick_row(key, some) for key, some in groups(sick(rows), lambda r: (r["source"], r["fault"]))],
        "pairs": [pair_row(key, some) for key, some in groups(rows, lambda r: (r["source"],))],
        "causes": [cause_row(key, some) for key, some in groups(rows, lambda r: (r["source"], r["kind"]))],
        "sick_ends": [row for key, some in groups(sick(rows), lambda r: (r["source"],)) for row in end_rows(key, some)],
    }
    write_json(out / "results.json", results)
    write_text(out / "results.md", markdown(results, EARLY))
    draw(rows, results["ends"], out / "figure.png")


def _rows(*, fast: bool) -> list[Row]:
    if fast:
        from measure import measure_fast

        return measure_fast()
    return [json.loads(line) for line in (HERE / "rows.jsonl").read_text(encoding="utf-8").splitlines()]


def own(rows: Iterable[Row]) -> list[Row]:
    """Runs under their own plan."""
    return [row for row in rows if row["fault"] == HEALTHY]


def sick(rows: Iterable[Row]) -> list[Row]:
    """Runs under a wrong one."""
    return sorted((row for row in rows if row["fault"] != HEALTHY), key=lambda row: FAULTS.index(row["fault"]))


def lab_of(row: Row) -> tuple[str, ...]:
    """Where a run comes from; virtual campaigns, whose runs are 4 to 10 times their pilots, count as one lab."""
    if row["source"] == "virtual":
        return row["source"], "all", "all"
    return row["source"], row["lab"], "beyond the pilots" if row["beyond"] else "inside"


def source_of(row: Row) -> tuple[str, ...]:
    """As lab_of, labs of a source together."""
    source, _, place = lab_of(row)
    return source, place


def groups(rows: Sequence[Row], key: Callable[[Row], tuple[str, ...]]) -> list[tuple[tuple[str, ...], list[Row]]]:
    """Rows by what key says, in the order in which they come."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return list(found.items())


def share_of(hits: int, count: int) -> dict[str, Any]:
    """A share with its 95 % Wilson interval; runs of one lab share a fit, so it is rather too narrow."""
    if not count:
        return {"hits": 0, "of": 0, "share": None, "low": None, "high": None}
    interval = binomtest(hits, count).proportion_ci(method="wilson")
    found = {"share": hits / count, "low": float(interval.low), "high": float(interval.high)}
    return {"hits": hits, "of": count, **found}


def _found(row: Row) -> float | None:
    """Share of the run after which the alarm came."""
    return None if row["alarm_step"] is None else row["alarm_step"] / row["steps"]


def healthy_row(key: tuple[str, ...], rows: Sequence[Row]) -> Row:
    """False alarms: how many, when, and what was blamed."""
    after = sorted(share for row in rows if (share := _found(row)) is not None)
    blamed = Counter(row["at_alarm"]["kind"] for row in rows if row["at_alarm"])
    return {
        "source": key[0],
        "lab": key[1],
        "place": key[2],
        "alarmed": share_of(len(after), len(rows)),
        "after": after,
        "blamed": dict(blamed.most_common()),
        "runs": [f"{row['run']} at {row['alarm_step']} of {row['steps']}" for row in rows if row["at_alarm"]],
    }


def end_rows(key: tuple[str, ...], rows: Sequence[Row]) -> list[Row]:
    """Coverage, width and error of the expected end, by the share of the run that was done."""
    by_share: dict[float, list[tuple[bool, float, float, float]]] = {}
    for row in rows:
        for name, ends in row["ends"].items():
            true = row["measured_ends"][name]
            _, _, low0, high0 = ends[0]
            for share, mean, low, high in ends:
                width = (high - low) / 2.0 / true
                one = (low <= true <= high, width, (high - low) / (high0 - low0), mean / true - 1.0)
                by_share.setdefault(share, []).append(one)
    return [
        {
            "source": key[0],
            "place": key[-1],
            "share": share,
            "covered": share_of(sum(inside for inside, *_ in found), len(found)),
            "half_width": float(np.median([width for _, width, _, _ in found])),
            "to_before": float(np.median([ratio for _, _, ratio, _ in found])),
            "rms_error": float(np.sqrt(np.mean([error**2 for *_, error in found]))),
        }
        for share, found in sorted(by_share.items())
    ]


def sick_row(key: tuple[str, ...], rows: Sequence[Row]) -> Row:
    """How many runs under a wrong plan were found, when, and whether the right cause was named."""
    after = [share for row in rows if (share := _found(row)) is not None]
    alarmed = [row for row in rows if row["at_alarm"]]
    return {
        "source": key[0],
        "fault": key[1],
        "found": share_of(len(after), len(rows)),
        "early": share_of(sum(share <= EARLY for share in after), len(rows)),
        "after": float(np.median(after)) if after else None,
        "named": share_of(sum(row["at_alarm"]["kind"] == row["kind"] for row in alarmed), len(alarmed)),
        "named_at_end": share_of(sum(row["at_end"]["kind"] == row["kind"] for row in alarmed), len(alarmed)),
    }


def pair_row(key: tuple[str, ...], rows: Sequence[Row]) -> Row:
    """Does a run make a wrong plan less likely than its own? And the faults of runs that are quiet under their own."""
    plain = {(row["lab"], row["run"]): row for row in own(rows)}
    pairs = [(plain[row["lab"], row["run"]], row) for row in sick(rows)]
    quiet = [row for real, row in pairs if real["alarm_step"] is None]
    worse = sum(row["peak_evidence"] > real["peak_evidence"] for real, row in pairs)
    found = sum(row["alarm_step"] is not None for row in quiet)
    return {"source": key[0], "worse": share_of(worse, len(pairs)), "found_if_quiet": share_of(found, len(quiet))}


def cause_row(key: tuple[str, ...], rows: Sequence[Row]) -> Row:
    """What was named at the alarm, by what was wrong."""
    named = Counter(_named(row["at_alarm"]) for row in rows)
    return {"source": key[0], "kind": key[1] or HEALTHY, "runs": len(rows), "named": dict(named)}


def _named(cause: Mapping[str, Any] | None) -> str:
    if cause is None:
        return "no alarm"
    kind = cause["kind"]
    return "data" if kind.startswith("data of") else "one set alone" if kind.endswith(" alone") else kind


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="one run, measured anew; needs --out")
    parser.add_argument("--out", type=Path, default=HERE)
    given = parser.parse_args()
    if given.fast and given.out == HERE:
        parser.error("--fast must write elsewhere: give --out")
    main(fast=given.fast, out=given.out)
