"""The summary page: questions and answers from the folders' READMEs, numbers from their results.json."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cptplan.files import read_json

HEAD = """# Evidence

What cptplan promises, and what was measured. Each row and each answer below comes from a folder of `experiments/` with
its question, data, command and what would have refuted it; `make evidence` makes them and this page again from the kept
curves, without training anything. Missed targets stay on the page.

"""


def page(experiments: Path) -> str:
    """The page, from what the folders hold now."""
    folders = sorted(path.parent for path in experiments.glob("[0-9]*/README.md"))
    table = ["| promise | measured | where |", "| --- | --- | --- |"]
    for name, lines in NUMBERS.items():
        results = experiments / name / "results.json"
        if results.exists():
            where = f"[{name[:2]}](../experiments/{name}/README.md)"
            table += [f"| {promise} | {measured} | {where} |" for promise, measured in lines(read_json(results))]
    return HEAD + "\n".join(table) + "\n\n" + "\n".join(section(folder) for folder in folders)


def section(folder: Path) -> str:
    """One question with its answer and its figure."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    title = text.splitlines()[0].removeprefix("# ")
    lines = [f"## {title}", "", paragraph(text, "Question")]
    answer = paragraph(text, "Answer")
    lines += ["", answer] if answer else []
    lines += ["", f"[Everything on it](../experiments/{folder.name}/README.md)", ""]
    if (folder / "figure.png").exists():
        lines += [f"![{title}](../experiments/{folder.name}/figure.png)", ""]
    return "\n".join(lines)


def paragraph(text: str, word: str) -> str:
    """What a README says after **Word**, up to its next bold word, without figures, as it would stand in reports/."""
    found = re.findall(rf"^\*\*{word}[^*\n]*\*\*(.*?)(?=^\*\*[A-Z]|\Z)", text, flags=re.MULTILINE | re.DOTALL)
    answer = "\n\n".join(part.strip(" .\n") for part in found)
    kept = re.sub(r"^!\[.*$", "", answer, flags=re.MULTILINE)
    kept = re.sub(r"\]\((?!https?:)([^)]+)\)", "]", kept).replace("[results.md]", "results.md")
    kept = re.sub(r"\[([^\]]+)\](?!\()", r"\1", kept)
    return re.sub(r"\n{3,}", "\n\n", kept).strip()


def plan_quality(results: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """08: regret of the plan and of its rivals."""
    regret = {name: 100.0 * share for name, share in results["mean_regret_share"].items()}
    ours = regret.pop("plan", None)
    on_grid = regret.pop("plan, on the grid")
    said = f"{ours:+.2f} % trained, {on_grid:.2f} % among the cells" if ours is not None else f"{on_grid:.2f} %"
    yield "regret of the plan against the best of 30 real runs: at most 0.5 % of the loss", said
    best = sorted(regret.items(), key=lambda pair: pair[1])
    yield (
        "ahead of each rival at the same compute (mean over four weights)",
        "; ".join(f"{name} {value:.1f} %" for name, value in best[:4])
        + f"; rule of thumb {regret['rule of thumb']:.1f} %",
    )
    plans = next((row for row in results["honesty"] if row["runs"] == "plan"), None)
    if plans:
        inside = f"{plans['inside']} of {plans['promises']}"
        yield "the chosen plan's 90 % interval holds", f"{inside}; mean error {plans['mean_error']:+.3f} nats"


def intervals(results: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """07: coverage at the ends, by origin of the runs."""
    level = results["levels"].index(0.9)
    for origin in dict.fromkeys(row["group"][0] for row in results["by_origin"]):
        rows = [row for row in results["by_origin"] if row["group"][0] == origin]
        said = ", ".join(f"{row['group'][1]} {row['end'][level]:.0%} of {row['runs']}" for row in rows)
        yield f"90 % intervals of final losses hold: {origin}", said


def watched(results: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """11: false alarms and faults found."""
    healthy = results["healthy"]
    alarms, runs = (sum(row["alarmed"][key] for row in healthy) for key in ("hits", "of"))
    yield "watch stays quiet on healthy runs (at most 5 % alarm)", f"{alarms} of {runs}"
    for fault in dict.fromkeys(row["fault"] for row in results["sick"]):
        rows = [row for row in results["sick"] if row["fault"] == fault]
        said = ", ".join(f"{row['source']} {row['found']['hits']} of {row['found']['of']}" for row in rows)
        yield f"watch finds a wrong plan: {fault}", said


def paper(results: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """05: verdicts."""
    verdicts = [row["verdict"] for row in results["rows"]]
    said = ", ".join(f"{verdicts.count(word)} {word}" for word in dict.fromkeys(verdicts))
    yield "the paper's numbers come back from its printed parameters (arXiv:2505.07796)", said


NUMBERS: dict[str, Callable[[dict[str, Any]], Iterator[tuple[str, str]]]] = {
    "08_plan_quality": plan_quality,
    "07_interval_honesty": intervals,
    "11_watch": watched,
    "05_paper": paper,
}
