"""Answer the question from the kept curves: python analyse.py. Writes results.json and results.md."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cptplan.curves import LossCurve, read_curve_directory
from cptplan.files import write_json, write_text
from cptplan.fitting.select import select_law
from cptplan.fitting.separable import predict, solve
from cptplan.laws.cpt import PUBLISHED, CptForm, CptLaw, memory_prior
from cptplan.laws.history import history_of, observations

HERE = Path(__file__).resolve().parent
SETS = ("general", "domain")
CAMPAIGNS = {
    "first": HERE / "campaigns" / "first",
    "second": HERE.parent / "01_predict_longer" / "curves",
    "third": HERE / "campaigns" / "third",
    "fourth": HERE / "campaigns" / "fourth",
}
FORMS: Mapping[str, tuple[CptForm, ...]] = {
    "general": (
        PUBLISHED,
        CptForm(clock=False, free_power=False),
        CptForm(),
        CptForm(clock=False, free_power=False, transient=True),
        CptForm(transient=True),
    ),
    "domain": (
        PUBLISHED,
        CptForm(amplitude="none", free_power=False),
        CptForm(amplitude="exponential"),
        CptForm(amplitude="none"),
    ),
}
WARMUPS = (1, 2, 4, 8)


def is_test(name: str) -> bool:
    """Runs that no fit sees: three times as long as the pilots."""
    return name.startswith(("long-", "l")) or name in {"final", "rule-of-thumb"}


def main(out: Path) -> None:
    """Every form with every length of the part that is left out, and what cptplan fit chooses with its interval."""
    campaigns = {name: read_curve_directory(path) for name, path in CAMPAIGNS.items()}
    forms = [row for s in SETS for form in FORMS[s] for w in WARMUPS if (row := form_row(s, form, w, campaigns))]
    chosen = [row for set_name in SETS for name in campaigns for row in chosen_rows(set_name, name, campaigns[name])]
    write_json(out / "results.json", {"schema_version": 1, "forms": forms, "chosen": chosen})
    write_text(out / "results.md", markdown(forms, chosen))


def form_row(
    set_name: str, form: CptForm, warmups: int, campaigns: Mapping[str, dict[str, LossCurve]]
) -> dict[str, Any]:
    """Root mean square of the relative end errors of one form, by campaign and over all runs."""
    errors = {name: end_errors(set_name, form, warmups, curves) for name, curves in campaigns.items()}
    every = np.concatenate(list(errors.values()))
    return {
        "set": set_name,
        "form": form.name,
        "left_out_warmups": warmups,
        "runs": len(every),
        "rms": rms(every),
        "mean": float(every.mean()),
        "by_campaign": {name: rms(found) for name, found in errors.items()},
    }


def end_errors(set_name: str, form: CptForm, warmups: int, curves: dict[str, LossCurve]) -> np.ndarray:
    """Relative errors at the end of the runs that were not fitted, shape (runs,)."""
    seen = {name: curve for name, curve in curves.items() if not is_test(name)}
    warm = max(int(c.lr().argmax()) + 1 for c in seen.values() if c.record.phase == "cpt")
    data = observations(seen, set_name, skip_steps=warmups * warm)
    rate = max(float(max(d.history.lr.max(), d.history.pretrain_lr.max(initial=0.0))) for d in data)
    memory = memory_prior(max(len(d.history.pretrain_lr) + len(d.history.lr) for d in data))
    law = CptLaw(set_name, rate, form, memory)
    solution = solve(law, data)
    found = []
    for curve in (curve for name, curve in curves.items() if is_test(name)):
        end = predict(law, solution, history_of(curve, curves), curve.steps[-1:])[0]
        found.append(end / curve.losses[set_name][-1] - 1.0)
    return np.array(found)


def chosen_rows(set_name: str, campaign: str, curves: dict[str, LossCurve]) -> list[dict[str, Any]]:
    """What cptplan fit chooses, its error at the end of every run, and whether the interval holds."""
    fitted = select_law({n: c for n, c in curves.items() if not is_test(n)}, set_name, set_name).fitted
    rows = []
    for curve in (curve for name, curve in curves.items() if is_test(name)):
        band = fitted.predict(history_of(curve, curves), curve.steps, measured=True)
        loss = curve.losses[set_name]
        inside = ((loss >= band.low) & (loss <= band.high))[curve.steps >= fitted.settled_step]
        rows.append(
            {
                "set": set_name,
                "campaign": campaign,
                "run": curve.name,
                "form": fitted.law.name,
                "end_error": float(band.mean[-1] / loss[-1] - 1.0),
                "half_width": float((band.high[-1] - band.low[-1]) / 2.0 / loss[-1]),
                "inside": bool(band.low[-1] <= loss[-1] <= band.high[-1]),
                "points_inside": float(inside.mean()),
            }
        )
    return rows


def rms(values: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(values))))


def markdown(forms: list[dict[str, Any]], chosen: list[dict[str, Any]]) -> str:
    """Two tables."""
    head = "| set | form | " + " | ".join(f"{w} warm-ups out" for w in WARMUPS) + " |\n"
    lines = ["# Root mean square of relative end errors\n", head + "| --- | --- |" + " --- |" * len(WARMUPS)]
    for set_name in SETS:
        for form in dict.fromkeys(row["form"] for row in forms if row["set"] == set_name):
            cells = [row for row in forms if (row["set"], row["form"]) == (set_name, form)]
            lines.append(f"| {set_name} | {form} | " + " | ".join(f"{row['rms']:.2%}" for row in cells) + " |")
    lines += ["", "# What cptplan fit chooses\n", "| set | runs | rms end error | ends inside | points inside |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for set_name in SETS:
        rows = [row for row in chosen if row["set"] == set_name]
        errors = np.array([row["end_error"] for row in rows])
        inside, points = (float(np.mean([row[key] for row in rows])) for key in ("inside", "points_inside"))
        lines.append(f"| {set_name} | {len(rows)} | {rms(errors):.2%} | {inside:.0%} | {points:.0%} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE, help="where the results go; default: beside this file")
    main(parser.parse_args().out)
