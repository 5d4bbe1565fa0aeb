"""CSV files of any tool: header, cells, and the line each row stands in."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from cptplan.errors import CurveError


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A CSV file with a header, its cells still text."""

    path: Path
    header: tuple[str, ...]
    rows: tuple[tuple[int, tuple[str, ...]], ...]
    """Line in the file and cells, as many as the header has."""

    def points(self, step: str, column: str) -> tuple[list[tuple[float, float]], str | None]:
        """The (step, value) pairs of a column where it is not empty, or what is no number and where."""
        first, second = self.header.index(step), self.header.index(column)
        found: list[tuple[float, float]] = []
        for line, cells in self.rows:
            if not cells[second]:
                continue
            if not cells[first]:
                return [], f"a value but no {step} in {self.path}:{line}"
            try:
                found.append((float(cells[first]), float(cells[second])))
            except ValueError:
                return [], f"{cells[second]!r} at {step} {cells[first]!r} in {self.path}:{line}"
        return found, None


def read_table(path: Path) -> Table:
    """A CSV file; the delimiter is the one of comma, semicolon and tab that the header has most of.

    Raises:    CurveError if it cannot be read, has no row, two columns of one name, or a row of another length.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        first = text.split("\n", 1)[0]
        reader = csv.reader(text.splitlines(), delimiter=max(",;\t", key=first.count))
        header = tuple(cell.strip() for cell in next(reader, []))
        rows = tuple((reader.line_num, tuple(cell.strip() for cell in cells)) for cells in reader if any(cells))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CurveError(f"log must be a CSV file; got {error} in {path}.", hint="write it as UTF-8 text") from error
    if not rows:
        raise CurveError(f"log must have a header and at least one row; got none in {path}.", hint="check the file")
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise CurveError(f"columns must have different names; got {twice!r} twice in {path}.", hint="rename one")
    for line, cells in rows:
        if len(cells) != len(header):
            raise CurveError(
                f"row must have {len(header)} cells; got {len(cells)} in {path}:{line}.", hint="mend or remove the row"
            )
    return Table(path=path, header=header, rows=rows)
