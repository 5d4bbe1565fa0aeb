"""Rows, sentences and JSON of advice, checklist and diagnosis."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from cptplan.advice.advise import TITLES, Advice, Fact, Setting, Situation
from cptplan.advice.diagnosis import Finding
from cptplan.advice.preflight import Check
from cptplan.advice.remedies import Effect

Row = tuple[str, ...]
Diagnosed = tuple[Finding, Effect | None]

SITUATION_COLUMNS = ("what is known", "value", "how")
RECIPE_COLUMNS = ("default setting", "value", "how it is known", "source")
CHECK_COLUMNS = ("check", "", "value", "threshold", "next step")
DIAGNOSIS_COLUMNS = ("run", "failure mode", "evidence", "remedy", "predicted effect")


def situation_rows(situation: Situation) -> list[Row]:
    """What the advice stands on."""

    def row(what: str, fact: Fact | None, form: str) -> Row:
        return (what, "not known", "") if fact is None else (what, format(fact.value, form), fact.source)

    size = "not known" if situation.num_params is None else f"{situation.num_params / 1e6:,.1f} M parameters"
    fits = {True: "yes", False: "no", None: "not known"}
    return [
        ("use", situation.use, "--use"),
        row("domain tokens", situation.corpus_tokens, ",.0f"),
        row("domain gap", situation.gap, ".2f"),
        row("budget tokens", situation.budget_tokens, ",.0f"),
        ("model", size, ""),
        ("full training fits the devices", fits[situation.full_fits], "estimate"),
    ]


def advice_lines(advice: Advice) -> list[str]:
    """The advice in sentences."""
    leaning = "" if advice.sure else " (as far as can be told: something that decides is not known)"
    lines = [f"advice: {TITLES[advice.method]}{leaning}"]
    for reason in advice.reasons:
        source = "" if reason.source == "-" else f", {reason.source}"
        lines.append(f"  because {reason.text} ({reason.basis}{source})")
    lines += [f"  beside: {text}" for text in advice.beside]
    return [*lines, *(f"  not known: {text}" for text in advice.unknown)]


def recipe_rows(settings: Iterable[Setting]) -> list[Row]:
    """The default settings."""
    return [(s.name, s.value if isinstance(s.value, str) else f"{s.value:.3g}", s.basis, s.source) for s in settings]


def check_rows(checks: Iterable[Check]) -> list[Row]:
    """The checklist, a row for each line."""
    return [
        (c.name, c.status.upper() if c.status == "fail" else c.status, c.value, c.threshold, c.next_step)
        for c in checks
    ]


def diagnosis_rows(found: Iterable[Diagnosed]) -> list[Row]:
    """What the runs show."""
    return [(f.run, f.mode, f.evidence, f.advice, effect_words(effect)) for f, effect in found]


def effect_words(effect: Effect | None) -> str:
    """Such as lower peak_lr to 1e-3: general -0.02 [-0.05, +0.01]."""
    if effect is None:
        return "-"
    changes = ", ".join(f"{n} {v.mean:+.3f} [{v.low:+.3f}, {v.high:+.3f}]" for n, v in effect.losses.items())
    return f"{effect.change}: {changes}{' (' + '; '.join(effect.notes) + ')' if effect.notes else ''}"


def to_json(
    situation: Situation,
    advice: Advice,
    settings: Sequence[Setting],
    checks: Sequence[Check],
    found: Sequence[Diagnosed],
    runs: int,
) -> dict[str, Any]:
    """All of it as JSON values."""
    return {
        "schema_version": 1,
        "situation": asdict(situation),
        "advice": {**asdict(advice), "title": TITLES[advice.method]},
        "recipe": [asdict(setting) for setting in settings],
        "preflight": [asdict(check) for check in checks],
        "runs": runs,
        "diagnosis": [
            {**asdict(finding), "effect": None if effect is None else asdict(effect)} for finding, effect in found
        ],
    }
