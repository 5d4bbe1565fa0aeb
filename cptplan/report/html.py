"""The report as one HTML file that needs nothing else, with report.json and the PNG figures beside it."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from cptplan.files import write_bytes, write_json, write_text
from cptplan.report.data import OutcomeRow, ReportData, RunView
from cptplan.report.findings import (
    QUANTITIES,
    ROLES,
    account_texts,
    decimal,
    figure_texts,
    format_lr,
    quantity_label,
)
from cptplan.report.pictures import draw_figures

SCRIPTS = ("draw.js", "figures.js", "maps.js")


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportFiles:
    """Where a report was written."""

    page: Path
    data: Path
    figures: tuple[Path, ...]


def write_report(data: ReportData, out: Path) -> ReportFiles:
    """Write out/index.html, out/report.json and out/figures/<name>.png, each whole or not at all.

    Raises:    StorageError if out cannot be written; RunFailedError if the disk is full; ConfigError if a number of
               the report is not finite.
    """
    values = data.to_json()
    ReportData.from_json(values, "the report data")
    page = render_page(data)
    figures = []
    for name, content in draw_figures(data).items():
        figures.append(out / "figures" / f"{name}.png")
        write_bytes(figures[-1], content)
    write_json(out / "report.json", values)
    write_text(out / "index.html", page)
    return ReportFiles(page=out / "index.html", data=out / "report.json", figures=tuple(figures))


def render_page(data: ReportData) -> str:
    """The HTML page as text."""
    data = data.drawable()
    package = files("cptplan.report")
    script = "".join(package.joinpath(name).read_text(encoding="utf-8") for name in SCRIPTS)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {
        "ensure_ascii": False,
        "allow_nan": False,
        "separators": (",", ":"),
    }
    environment.filters |= {"unbroken": _unbroken, "decimal": decimal, "lr": format_lr}
    template = environment.from_string(package.joinpath("page.html.j2").read_text(encoding="utf-8"))
    return template.render(
        data=data,
        texts=figure_texts(data),
        account_texts=account_texts(data),
        warnings=_warnings(data),
        outcomes=_proof_rows(data),
        compared=any(row.rule_of_thumb for row in data.plan),
        quantity_label=quantity_label,
        css=Markup(package.joinpath("page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=_content_hash(script),
        payload={"data": _rounded(data.to_json()), "words": {"quantities": QUANTITIES, "roles": ROLES}},
    )


def _proof_rows(data: ReportData) -> list[tuple[RunView, list[OutcomeRow]]]:
    """Outcomes of the runs that the law never saw, by run."""
    runs = data.runs_of("chosen", "rule_of_thumb")
    grouped = [(run, [row for row in data.outcomes if row.run == run.name]) for run in runs]
    return [(run, rows) for run, rows in grouped if rows]


def _warnings(data: ReportData) -> list[tuple[str, str]]:
    """What to read with care, with what kind of care."""
    found = [("", line) for line in data.warnings]
    if data.account is None:
        return found
    extrapolated = [("Extrapolated", line) for line in data.account.extrapolations]
    return [*extrapolated, *(("Assumed", line) for line in data.account.assumptions), *found]


def _unbroken(text: str) -> Markup:
    """The text, escaped, with numbers such as 1.2e-3 and intervals such as [3.1, 3.4] kept on one line."""
    return Markup(re.sub(r"\[[-+−\d., ]+\]|\d[\d.]*e-?\d+", r'<span class="unbroken">\g<0></span>', str(escape(text))))


def _rounded(value: Any) -> Any:
    """Six significant digits: more than a picture shows, and half the bytes."""
    if isinstance(value, float):
        short = float(f"{value:.6g}")
        return int(short) if short.is_integer() and abs(short) < 1e15 else short
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return value


def _content_hash(script: str) -> str:
    """The hash by which the page's security policy knows its own script; no other one may run."""
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"
