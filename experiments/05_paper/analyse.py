"""Answer the question from the printed numbers: python analyse.py [--fast] [--out DIR].

Writes results.json, results.md, figure.png (parts a to d) and figure_limits.png (parts e to h).
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from paper_choices import choice_rows, orientation_rows, turning_rows
from paper_curves import curve_rows, potential_rows, size_rows
from paper_figures import draw_curves, draw_limits
from paper_fits import fit_rows, misbehaviour_rows, out_of_domain_rows
from paper_runs import Row

from cptplan.files import write_bytes, write_json, write_text

HERE = Path(__file__).resolve().parent
SEEDS = 8
PARTS = {
    "a": "Curves, and fit then predict (figures 2, 3, 10)",
    "b": "Loss potential (figure 5)",
    "c": "Best peak rate, start and replay ratio (figure 8)",
    "d": "Critical point and turning length (figures 7, 13)",
    "e": "Orientation of eq. 8",
    "f": "Out-of-domain loss (eq. 6)",
    "g": "Model sizes (eq. 7)",
    "h": "Where the law misbehaves",
}


def main(*, fast: bool = False, out: Path = HERE) -> list[Row]:
    """Every part, its rows and its figure.

    Args:      fast: fewer sets, weights and seeds, no figure. out: where the files go.
    """
    begin, seeds = time.process_time(), range(1 if fast else SEEDS)
    rows: list[Row] = []
    tables = {}
    for name, (found, table) in {
        "curves": curve_rows(fast=fast),
        "fits": fit_rows(seeds, fast=fast),
        "potential": potential_rows(),
        "choices": choice_rows(fast=fast),
        "turning": turning_rows(),
        "orientation": orientation_rows(),
        "out_of_domain": out_of_domain_rows(seeds),
        "sizes": size_rows(),
        "limits": misbehaviour_rows(seeds, fast=fast),
    }.items():
        rows += found
        tables[name] = table
    ran = {"fast": fast, "seeds": len(seeds), "cpu_seconds": round(time.process_time() - begin, 1)}
    content = {"schema_version": 1, "rows": [asdict(row) for row in rows], "tables": tables}
    write_json(out / "results.json", content)
    write_text(out / "results.md", markdown(rows, ran))
    if not fast:
        write_bytes(out / "figure.png", draw_curves(tables))
        write_bytes(out / "figure_limits.png", draw_limits(tables))
    return rows


def markdown(rows: list[Row], ran: dict[str, object]) -> str:
    """The tables, one for each part."""
    count = Counter(row.verdict for row in rows)
    lines = [
        f"{len(rows)} rows: " + ", ".join(f"{number} '{verdict}'" for verdict, number in count.most_common()) + ".",
        "",
        "Paper: arXiv:2505.07796. Second computation: from the same printed numbers, by other code. Losses in nats per",
        f"token. {ran['seeds']} seeds where curves have noise; {ran['cpu_seconds']} s of CPU.",
    ]
    for part, title in PARTS.items():
        lines += ["", f"## {part}. {title}", ""]
        lines += ["| what | place | paper | second computation | ours | difference | verdict |", "|" + " --- |" * 7]
        for row in (row for row in rows if row.part == part):
            numbers = (_text(row.paper), _text(row.other), _text(row.ours), _text(row.difference))
            lines.append(f"| {row.what} | {row.place} | {' | '.join(numbers)} | {row.verdict} |")
    return "\n".join(lines) + "\n"


def _text(value: float | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.4f}" if abs(value) >= 1e-4 else f"{value:.1e}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="a slice of a few seconds, without figures")
    parser.add_argument("--out", type=Path, default=HERE, help="where the results go")
    told = parser.parse_args()
    main(fast=told.fast, out=told.out)
