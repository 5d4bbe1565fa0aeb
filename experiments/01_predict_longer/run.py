"""Train the runs of this question on top of a finished demo, through the executor: python run.py DEMO_DIR.

Six runs of settings that no pilot had, three times as long as the pilots. Resumable: the same command goes on.
Afterwards curves/ beside this file holds the demo's curves and these, and analyse.py answers the question.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from cptplan import campaign, stages
from cptplan.config import read_project
from cptplan.console import Screen
from cptplan.pilots.design import run_schedule, run_spec
from cptplan.schedule import CosineSchedule, Schedule
from cptplan.workspace import Workspace

HERE = Path(__file__).resolve().parent
STEPS = 384


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One run; decay_share None is a cosine to a tenth of the peak, a schedule that no pilot has."""

    peak_lr: float
    replay_ratio: float
    decay_share: float | None
    start: str


CELLS = (
    Cell(peak_lr=2e-3, replay_ratio=0.1, decay_share=0.3, start="stable"),
    Cell(peak_lr=3e-4, replay_ratio=0.3, decay_share=None, start="annealed"),
    Cell(peak_lr=3e-3, replay_ratio=0.0, decay_share=0.2, start="annealed"),
    Cell(peak_lr=1e-3, replay_ratio=0.5, decay_share=0.5, start="stable"),
    Cell(peak_lr=6e-4, replay_ratio=0.02, decay_share=None, start="annealed"),
    Cell(peak_lr=1e-3, replay_ratio=0.005, decay_share=0.0, start="annealed"),
)


def schedule(cell: Cell, warmup_steps: int) -> Schedule:
    """The schedule of a cell."""
    if cell.decay_share is not None:
        return run_schedule(
            peak_lr=cell.peak_lr, total_steps=STEPS, warmup_steps=warmup_steps, decay_share=cell.decay_share
        )
    return CosineSchedule(
        kind="cosine", peak_lr=cell.peak_lr, min_lr=cell.peak_lr / 10, total_steps=STEPS, warmup_steps=warmup_steps
    )


def main(demo: Path) -> None:
    """Train every cell and gather the curves."""
    project, workspace = read_project(demo / "cptplan.yaml"), Workspace(root=demo)
    starts = {start.name: start for start in project.model.starts}
    specs = [
        run_spec(
            project,
            str(workspace.data.resolve()),
            name=f"long-{number:02d}",
            start=starts[cell.start],
            schedule=schedule(cell, project.pilot.warmup_steps),
            replay_ratio=cell.replay_ratio,
        )
        for number, cell in enumerate(CELLS, start=1)
    ]
    jobs = campaign.jobs_of(specs, demo / "experiments" / HERE.name)
    with Screen().stage("long runs") as note:
        stages.run_jobs(project, jobs, note)
    for path in sorted(workspace.curves.glob("*")):
        shutil.copy(path, HERE / "curves" / path.name)
    proof = [workspace.launch / "local" / "run", workspace.runs / "rule-of-thumb"]
    stages.collect_curves(HERE / "curves", [*proof, *(job.run_dir for job in jobs)])


if __name__ == "__main__":
    (HERE / "curves").mkdir(exist_ok=True)
    main(Path(sys.argv[1]))
