"""Coverage and errors of groups of runs, and results.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from analyse import Verdict

FloatArray = NDArray[np.float64]
Row = dict[str, Any]

LEVELS = (0.5, 0.8, 0.9, 0.95)
NINETY = LEVELS.index(0.9)
RESAMPLES = 2000
FEWEST = 4  # campaigns to take a spread over

HEAD = """# Are the intervals honest?

Coverage of measured values by intervals of 50, 80, 90 and 95 %, at the end of unseen runs and along them (from the
first fitted step on; each run counts alike). Brackets: 90 % of a bootstrap over campaigns where there are four or more,
since the runs of a campaign share one fit; else over runs, marked *, which is too narrow. "Too narrow by": the factor
that would make the 90 % intervals hold 90 % of the ends; under 1 they are too wide."""


def summaries(verdicts: Sequence[Verdict]) -> dict[str, list[Row]]:
    """All tables as rows."""
    return {
        "by_origin": grouped(verdicts, lambda v: (v.origin, v.set_name)),
        "by_campaign": grouped([v for v in verdicts if v.origin != "virtual"], lambda v: (v.campaign, v.set_name)),
        "by_kind": grouped([v for v in verdicts if v.origin == "curve set"], lambda v: (v.kind, v.set_name)),
        "by_length": grouped(verdicts, lambda v: (v.origin, length_of(v))),
        "by_flag": grouped(verdicts, lambda v: (v.origin, "flagged" if v.flags else "no flag")),
        "by_flag_kind": [
            row
            for flag in sorted({flag for v in verdicts for flag in v.flags})
            for row in grouped([v for v in verdicts if flag in v.flags], lambda v, flag=flag: (v.origin, flag))
        ],
        "flag_ratio": flag_ratios(verdicts),
    }


def length_of(verdict: Verdict) -> str:
    """How many times as long as the pilots."""
    edges = (2.5, 3.5, 4.5, 8.5)
    names = ("up to 2.5 times", "2.5 to 3.5 times", "3.5 to 4.5 times", "4.5 to 8.5 times", "more than 8.5 times")
    return names[int(np.searchsorted(edges, verdict.length))]


def grouped(verdicts: Sequence[Verdict], key: Callable[[Verdict], tuple[str, str]]) -> list[Row]:
    """The summary of every group."""
    groups: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in verdicts:
        groups.setdefault(key(verdict), []).append(verdict)
    return [{"group": list(name), **summary(own)} for name, own in groups.items()]


def summary(verdicts: Sequence[Verdict]) -> Row:
    """Coverage with its spread, errors and widths."""
    errors, half = np.array([v.end_error for v in verdicts]), np.array([v.half_width for v in verdicts])
    picks, clustered = resamples(verdicts)
    found: Row = {"runs": len(verdicts), "campaigns": len({v.campaign for v in verdicts}), "clustered": clustered}
    for name in ("end", "points"):
        table = np.array([getattr(v, f"{name}_inside") for v in verdicts], dtype=np.float64)
        found[name] = table.mean(axis=0).round(4).tolist()
        drawn = np.array([table[pick, NINETY].mean() for pick in picks])
        found[f"{name}_spread"] = np.percentile(drawn, [5.0, 95.0]).round(4).tolist()
    found["rms_error"] = float(np.sqrt(np.mean(errors**2)))
    found["mean_error"] = float(errors.mean())
    found["half_width"] = float(np.median(half))
    found["too_narrow_by"] = float(np.quantile(np.abs(errors) / half, 0.9))
    found["below"] = float(np.mean([v.end_tenth == 0 for v in verdicts]))
    found["above"] = float(np.mean([v.end_tenth == 9 for v in verdicts]))
    return {key: round(value, 5) if isinstance(value, float) else value for key, value in found.items()}


def resamples(verdicts: Sequence[Verdict]) -> tuple[list[NDArray[np.int64]], bool]:
    """Bootstrap samples of whole campaigns when there are enough, else of runs; and which."""
    rng = np.random.default_rng(0)
    members: dict[str, list[int]] = {}
    for number, verdict in enumerate(verdicts):
        members.setdefault(verdict.campaign, []).append(number)
    if len(members) < FEWEST:
        # a run counts once, whatever number of sets it was judged on
        members = {}
        for number, verdict in enumerate(verdicts):
            members.setdefault(f"{verdict.campaign} {verdict.run}", []).append(number)
        clustered = False
    else:
        clustered = True
    blocks = [np.array(numbers) for numbers in members.values()]
    draws = rng.integers(len(blocks), size=(RESAMPLES, len(blocks)))
    return [np.concatenate([blocks[n] for n in draw]) for draw in draws], clustered


def flag_ratios(verdicts: Sequence[Verdict]) -> list[Row]:
    """Rms error of flagged runs over that of the others, of the same origin and set."""
    found = []
    for origin, set_name in dict.fromkeys((v.origin, v.set_name) for v in verdicts):
        own = [v for v in verdicts if (v.origin, v.set_name) == (origin, set_name)]
        flagged = np.array([bool(v.flags) for v in own])
        errors = np.array([v.end_error for v in own])
        if not 1 < flagged.sum() < len(own) - 1:
            continue
        picks, clustered = resamples(own)
        drawn = [ratio for pick in picks if (ratio := _ratio(errors[pick], flagged[pick])) is not None]
        low, high = np.percentile(drawn, [5.0, 95.0])
        found.append(
            {
                "origin": origin,
                "set": set_name,
                "flagged": int(flagged.sum()),
                "others": int((~flagged).sum()),
                "ratio": round(float(_ratio(errors, flagged) or np.nan), 3),
                "low": round(float(low), 3),
                "high": round(float(high), 3),
                "clustered": clustered,
            }
        )
    return found


def _ratio(errors: FloatArray, flagged: NDArray[np.bool_]) -> float | None:
    if flagged.all() or not flagged.any():
        return None
    return float(np.sqrt(np.mean(errors[flagged] ** 2) / np.mean(errors[~flagged] ** 2)))


def markdown(found: Mapping[str, list[Row]]) -> str:
    """All tables."""
    parts = [HEAD, "## By origin and validation set", coverage(found["by_origin"], ("origin", "set"))]
    parts += ["## By campaign", coverage(found["by_campaign"], ("campaign", "set"))]
    parts += ["## The curve set by group of runs", coverage(found["by_kind"], ("group", "set"))]
    parts += ["## By length over the pilots'", coverage(found["by_length"], ("origin", "length"))]
    parts += ["## When a support flag fires", coverage(found["by_flag"], ("origin", "flag"))]
    parts += [ratios(found["flag_ratio"]), "One run may have several flags."]
    parts += [coverage(found["by_flag_kind"], ("origin", "flag"))]
    return "\n\n".join(parts) + "\n"


def coverage(rows: Sequence[Row], names: tuple[str, str]) -> str:
    """One table of coverage and errors."""
    levels = " / ".join(f"{level:.0%}" for level in LEVELS).replace("%", "")
    head = (*names, "runs", "campaigns", f"ends inside {levels} %", "90 % of ends", f"points inside {levels} %")
    head += ("90 % of points", "rms error", "mean", "half width", "too narrow by")
    lines = [
        (
            *r["group"],
            str(r["runs"]),
            str(r["campaigns"]),
            _shares(r["end"]),
            _spread(r["end_spread"], r["clustered"]),
            _shares(r["points"]),
            _spread(r["points_spread"], r["clustered"]),
            f"{r['rms_error']:.2%}",
            f"{r['mean_error']:+.2%}",
            f"{r['half_width']:.1%}",
            f"{r['too_narrow_by']:.2f}",
        )
        for r in rows
    ]
    return table(head, lines)


def ratios(rows: Sequence[Row]) -> str:
    """Errors of flagged runs over those of others."""
    lines = [
        (
            r["origin"],
            r["set"],
            str(r["flagged"]),
            str(r["others"]),
            f"{r['ratio']:.2f} [{r['low']:.2f} to {r['high']:.2f}]{'' if r['clustered'] else '*'}",
        )
        for r in rows
    ]
    return table(("origin", "set", "flagged", "others", "rms error of flagged runs over that of others"), lines)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table; a sentence when it is empty."""
    if not rows:
        return "No such run yet."
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(head)} |", "|" + " --- |" * len(head), *lines])


def _shares(values: Sequence[float]) -> str:
    return " / ".join(f"{100.0 * value:.0f}" for value in values)


def _spread(ends: Sequence[float], clustered: bool) -> str:
    return f"[{ends[0]:.0%} to {ends[1]:.0%}]{'' if clustered else '*'}"
