"""A fast slice of every analysis on its kept data, and the summary page made from what the folders hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = ROOT / "experiments"
WHOLE = ("01_predict_longer", "03_forms_of_the_law", "04_curve_set", "09_classic_lab", "10_pilot_budget", "11_watch")
"""Analyses that take seconds."""
FAST = sorted(
    path.parent.name
    for path in EXPERIMENTS.glob("*/analyse.py")
    if '"--fast"' in path.read_text() and (path.parent / "results.json").exists()
)


def python(*arguments: object, timeout: float = 300.0) -> subprocess.CompletedProcess[str]:
    """A process of its own: the analyses' modules have names that others have too."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=timeout, env=environment, cwd=ROOT
    )


@pytest.mark.parametrize("name", FAST)
def test_fast_slice_of_an_analysis_answers_like_the_kept_one(name: str, tmp_path: Path) -> None:
    done = python(EXPERIMENTS / name / "analyse.py", "--fast", "--out", tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "results.json").read_text())
    kept = json.loads((EXPERIMENTS / name / "results.json").read_text())
    assert set(kept) <= set(found) | {"seconds"}
    assert (tmp_path / "results.md").read_text().strip()


@pytest.mark.parametrize("name", WHOLE)
def test_kept_results_are_what_the_analysis_gives(name: str, tmp_path: Path) -> None:
    """Results of an older fit, or numbers typed by hand, are not what the curves say."""
    done = python(EXPERIMENTS / name / "analyse.py", "--out", tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "results.json").read_text())
    kept = json.loads((EXPERIMENTS / name / "results.json").read_text())
    assert not list(differences(kept, found))


def differences(kept: object, found: object, place: str = "results") -> Iterator[str]:
    """Where two results differ; numbers by more than another processor's rounding moves a fit."""
    if isinstance(kept, dict) and isinstance(found, dict) and kept.keys() == found.keys():
        for key in kept:
            yield from differences(kept[key], found[key], f"{place}.{key}")
    elif isinstance(kept, list) and isinstance(found, list) and len(kept) == len(found):
        for number, (one, other) in enumerate(zip(kept, found, strict=True)):
            yield from differences(one, other, f"{place}[{number}]")
    elif isinstance(kept, float) and isinstance(found, float):
        if found != pytest.approx(kept, rel=0.02, abs=2e-3, nan_ok=True):
            yield f"{place}: kept {kept}, found {found}"
    elif kept != found:
        yield f"{place}: kept {kept}, found {found}"


def test_a_result_of_an_older_fit_is_a_difference() -> None:
    kept = {"rms": 0.0139, "runs": [{"run": "final", "predicted": 4.130, "inside": True}]}
    assert not list(differences(kept, json.loads(json.dumps(kept))))
    for old in (
        {**kept, "rms": 0.0105},
        {**kept, "runs": []},
        {**kept, "runs": [{**kept["runs"][0], "inside": False}]},
    ):
        assert len(list(differences(kept, old))) == 1


def test_every_question_with_an_analysis_has_a_fast_slice_or_is_fast() -> None:
    assert len(FAST) >= 6


def test_summary_page_is_what_the_folders_say() -> None:
    code = "import sys; sys.path.insert(0, 'experiments'); from pathlib import Path; from summary import page; "
    done = python("-c", code + "sys.stdout.write(page(Path('experiments')))")
    assert done.returncode == 0, done.stderr[-2000:]
    kept = (ROOT / "reports" / "evidence.md").read_text()
    assert kept == done.stdout, "run make evidence, or experiments/evidence.py --page-only"
    for folder in EXPERIMENTS.glob("[0-9]*"):
        assert f"({folder.name}/README.md)" in (EXPERIMENTS / "README.md").read_text(), folder.name
        assert f"experiments/{folder.name}/README.md" in done.stdout
        text = (folder / "README.md").read_text()
        for word in ("**Question", "**Answer", "**What would have refuted it", "**What it does not show"):
            assert word in text, (folder.name, word)
        assert "to be filled" not in text, folder.name
