"""The summary page: numbers from the folders' results.json, questions and short answers from their READMEs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cptplan.files import read_json

HEAD = """# Evidence

What cptplan promises, what was measured, and what stands against it. `make evidence` makes this page, every number and
every figure again from the kept curves, without training anything; missed targets stay on it.

"""
TARGETS = """## Promises

No verdict: no target was set.

| promise | target | measured | verdict | where |
| --- | --- | --- | --- | --- |
"""
AGAINST = """## What it does not show

"""
LEVEL = 0.9


@dataclass(frozen=True, slots=True)
class Claim:
    """One row of the table."""

    promise: str
    target: str
    measured: str
    verdict: str = ""


def page(experiments: Path) -> str:
    """The page, from what the folders hold now."""
    folders = sorted(path.parent for path in experiments.glob("[0-9]*/README.md"))
    judged = [experiments / name for name in CLAIMS]
    rows = [f"| {c.promise} | {c.target} | {c.measured} | {c.verdict} | {link(f)} |" for f in judged for c in claims(f)]
    limits = [f"- {link(folder)}: {paragraph(folder, 'What it does not show')}" for folder in folders]
    parts = [HEAD + data(experiments), TARGETS + "\n".join(rows), AGAINST + "\n".join(limits), *map(section, folders)]
    return "\n\n".join(parts) + "\n"


def data(experiments: Path) -> str:
    """What all of it was measured on."""
    labs = {path.stem: read_json(path) for path in sorted(experiments.glob("04_curve_set/curves/*.json"))}
    runs = {name: len(lab["runs"]) for name, lab in labs.items()}
    count = " and ".join(f"{number} of {name}" for name, number in runs.items())
    return (
        f"Judged by {sum(runs.values())} real runs kept in {link(experiments / '04_curve_set')} ({count}: a far and a "
        "near domain, 0.44M parameters, real text), by the runs of four earlier campaigns, and by virtual campaigns "
        "whose truth is a published law. Where a choice was made with the judging runs in view, the folder says so."
    )


def claims(folder: Path) -> list[Claim]:
    """The rows of one folder."""
    results = folder / "results.json"
    return list(CLAIMS[folder.name](read_json(results))) if results.exists() else []


def section(folder: Path) -> str:
    """One question with the first paragraph of its answer, and its figure."""
    title = (folder / "README.md").read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
    answer = re.sub(r"^\(20.*?\)[.:] +", "", paragraph(folder, "Answer").split("\n\n")[0], flags=re.DOTALL)
    lines = [f"## {title}", "", f"*{paragraph(folder, 'Question')}*", "", f"{answer} More: {link(folder)}."]
    if (folder / "figure.png").exists():
        lines += ["", f"![{title}](../experiments/{folder.name}/figure.png)"]
    return "\n".join(lines)


def link(folder: Path) -> str:
    """To the folder's README, by its number."""
    return f"[{folder.name[:2]}](../experiments/{folder.name}/README.md)"


def paragraph(folder: Path, word: str) -> str:
    """What a README says after **Word**, up to its next bold word, as it would stand in reports/."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"^\*\*{word}[^*\n]*\*\*(.*?)(?=^\*\*[A-Z]|^!\[|\Z)", text, flags=re.MULTILINE | re.DOTALL)
    kept = found.group(1).strip() if found else ""
    here = f"](../experiments/{folder.name}/"
    kept = re.sub(r"\]\((?!https?:|\.\./)", here, kept).replace("](../../", "](../")
    return re.sub(r"\]\(\.\./(?=\d\d_)", "](../experiments/", kept)


def held(good: bool) -> str:
    """The word for a target."""
    return "met" if good else "**missed**"


def predictions(results: dict[str, Any]) -> Iterator[Claim]:
    """06: what the ends of long runs of fresh tokens are missed by."""
    for lab, sets in results["end_errors"].items():
        fresh = [run for run, facts in results["runs"][lab].items() if facts["group"] in FRESH]
        for name, laws in sets.items():
            missed = {law: np.array([errors[run] for run in fresh]) for law, errors in laws.items()}
            rms = {law: float(np.sqrt(np.mean(errors**2))) for law, errors in missed.items()}
            ours, published = rms["cptplan fit"], rms["cpt-published"]
            best = min((law for law in rms if law not in OWN and not law.startswith("form ")), key=lambda law: rms[law])
            said = f"{ours:.1%} of {len(fresh)} runs (published law {published:.1%}; {best} {rms[best]:.1%})"
            verdict = held(ours < min(published, rms[best]))
            yield Claim(f"final losses of long runs, rms error: {lab}, {name}", "below other laws", said, verdict)


def intervals(results: dict[str, Any]) -> Iterator[Claim]:
    """07: coverage at the ends, with and without a flag."""
    level = results["levels"].index(LEVEL)
    for flag, target in (("no flag", "85 to 95 %"), ("flagged", "")):
        rows = [row for row in results["by_flag"] if row["group"][1] == flag]
        said = ", ".join(f"{row['end'][level]:.0%} of {row['runs']} {row['group'][0]}" for row in rows)
        shares = [row["end"][level] for row in rows]
        verdict = held(min(shares) >= 0.85) + (", too wide" if max(shares) > 0.95 else "")
        yield Claim(f"90 % intervals hold final losses: {flag}", target, said, verdict if target else "")


def plan_quality(results: dict[str, Any]) -> Iterator[Claim]:
    """08: regret of the plan and of its rivals."""
    regret = {name: 100.0 * share for name, share in results["mean_regret_share"].items()}
    ours, on_grid = regret.pop("plan", None), regret.pop("plan, on the grid")
    judged = on_grid if ours is None else ours
    trained = [row for row in results["verdicts"] if row["judged"] == "plan"] or results["verdicts"]
    each = ", ".join(f"{100.0 * row['regret_share']:+.2f}" for row in trained)
    said = f"mean {judged:+.2f} %; each {each}; best cell by the law {on_grid:+.2f} %"
    missed = sum(not row["regret_met"] for row in trained)
    verdict = held(missed == 0) + (f" by {missed} of {len(trained)}" if missed else "")
    yield Claim("regret of the trained plan against the best real run of the grid", "<= 0.5 %", said, verdict)
    best = sorted(regret.items(), key=lambda pair: pair[1])
    rivals = "; ".join(f"{name} {value:.1f} %" for name, value in best[:4])
    rivals += f"; rule of thumb {regret['rule of thumb']:.1f} %"
    yield Claim("regret of rivals at equal compute, mean", "above the plan's", rivals, held(best[0][1] > judged))
    plans = next((row for row in results["honesty"] if row["runs"] == "plan"), None)
    if plans:
        inside = f"{plans['inside']} of {plans['promises']}; mean error {plans['mean_error']:+.3f} nats"
        verdict = held(plans["inside"] >= 0.85 * plans["promises"])
        yield Claim("the chosen plan's 90 % interval holds", ">= 85 %", inside, verdict)


def classic(results: dict[str, Any]) -> Iterator[Claim]:
    """09: how far code perplexity falls."""
    best = min(results["points"], key=lambda point: point["change"])
    worst = min((point for point in results["points"] if point["num_trained"]), key=lambda point: point["domain_drop"])
    said = (
        f"{best['domain_drop']:.0%} at a forgetting_ratio of {best['forgetting_ratio']:.2f} ({best['name']}); "
        f"least of all runs {worst['domain_drop']:.0%} ({worst['name']})"
    )
    yield Claim("150 steps of CPT lower code perplexity", "> 30 %", said, held(worst["domain_drop"] > 0.3))


def budget(results: dict[str, Any]) -> Iterator[Claim]:
    """10: regret by share of compute, on virtual campaigns."""
    rows = [row for row in results["virtual"]["budgets"].values() if row["designed"] == 8 and not row["advised"]]
    said = ", ".join(f"{row['share']:.0%}: {row['regret']['cptplan']['mean']:.4f}" for row in rows)
    tenth = next(row for row in rows if row["share"] == 0.1)
    said = f"{said} nats ({tenth['campaigns']} virtual campaigns; a tenth is {tenth['share_of_loss']:.2%} of the loss)"
    verdict = held(tenth["share_of_loss"] <= 0.005)
    yield Claim("regret by share of compute spent on pilots", "<= 0.5 % at a tenth", said, verdict)


def watched(results: dict[str, Any]) -> Iterator[Claim]:
    """11: false alarms and faults found."""
    inside = [row for row in results["healthy"] if row["place"] in ("inside", "all")]
    counts = {
        kind: [sum(row["alarmed"][key] for row in inside if (row["source"] == "virtual") == virtual) for key in KEYS]
        for kind, virtual in (("real", False), ("virtual", True))
    }
    said = ", ".join(f"{alarms} of {runs} {kind} runs" for kind, (alarms, runs) in counts.items())
    alarms, runs = counts["real"]
    verdict = held(alarms <= ALARMS * runs) + (f" by {alarms / runs - ALARMS:.1%}" if alarms > ALARMS * runs else "")
    yield Claim("watch alarms on healthy runs inside the pilots' span", f"<= {ALARMS:.0%}", said, verdict)
    for source in dict.fromkeys(row["source"] for row in results["sick"]):
        found = [(row["fault"], row["found"]) for row in results["sick"] if row["source"] == source]
        said = ", ".join(f"{fault} {count['hits']} of {count['of']}" for fault, count in found)
        yield Claim(f"watch finds a run that is not what the plan says: {source} runs", "", said)


def paper(results: dict[str, Any]) -> Iterator[Claim]:
    """05: verdicts."""
    verdicts = [row["verdict"] for row in results["rows"]]
    said = ", ".join(f"{verdicts.count(word)} {word}" for word in dict.fromkeys(verdicts))
    yield Claim("arXiv:2505.07796 comes back from its printed parameters", "", said)


KEYS = ("hits", "of")
ALARMS = 0.05
FRESH = ("grid", "half", "schedules", "longer", "long")
"""Groups of 04 that read no token twice, at rates and ratios that pilots spanned; as 06 counts them."""
OWN = ("cptplan fit", "cpt-published", "combination of general and domain")
"""Contenders of 06 that are no rivals, or have a number of their own in the row."""
CLAIMS: dict[str, Callable[[dict[str, Any]], Iterator[Claim]]] = {
    "08_plan_quality": plan_quality,
    "07_interval_honesty": intervals,
    "06_fit_short_predict_long": predictions,
    "11_watch": watched,
    "10_pilot_budget": budget,
    "09_classic_lab": classic,
    "05_paper": paper,
}
