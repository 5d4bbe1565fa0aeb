"""A fast slice of every analysis on its kept data, and the summary page made from what the folders hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = ROOT / "experiments"
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
