"""Train the curve set through the executor: python train.py LAB DIR [GROUP ...]; the same command goes on.

LAB is prose_code (about two hours of two cores) or wiki_medicine (half an hour). DIR becomes the campaign: packed
corpora, the base model, the pilots that `cptplan pilot` designs, and every run of cells.py. The curves of what is
finished are gathered in curves/LAB beside this file; curves/LAB.json says machine, versions, code and data hashes.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cells import LABS, Cell

from cptplan import campaign, stages
from cptplan.config import Project, read_project
from cptplan.console import Screen
from cptplan.files import read_json, write_json
from cptplan.mixture import ConstantMixture
from cptplan.pilots.design import run_spec
from cptplan.run_spec import ModelSource, RunSpec, Source, ValidationSet, default_eval_steps
from cptplan.schedule import WsdSchedule
from cptplan.workspace import Workspace

HERE = Path(__file__).resolve().parent
HIDDEN, LAYERS, HEADS = 96, 4, 4


def base_spec(project: Project, data_dir: Path) -> RunSpec:
    """Pre-training: general text alone, WSD with a decay of a fifth, the checkpoint before the decay kept too."""
    stable, annealed = (start.parent_step or 0 for start in project.model.starts)
    corpora = (project.data.general, *project.data.domains)
    return RunSpec(
        name="base",
        phase="pretrain",
        model=ModelSource(
            config={
                "model_type": "llama",
                "vocab_size": project.data.train_tokenizer,
                "hidden_size": HIDDEN,
                "intermediate_size": HIDDEN * 8 // 3,
                "num_hidden_layers": LAYERS,
                "num_attention_heads": HEADS,
                "num_key_value_heads": HEADS,
                "max_position_embeddings": 2 * project.data.seq_len,
                "tie_word_embeddings": True,
            },
            tokenizer=str(data_dir / "tokenizer"),
        ),
        sources=(Source(name="general", role="general", path=str(data_dir / "general")),),
        validation=tuple(
            ValidationSet(name=c.name, path=str(data_dir / c.name), num_tokens=project.data.validation_tokens)
            for c in corpora
        ),
        schedule=WsdSchedule(
            kind="wsd",
            peak_lr=project.model.pretrain_peak_lr,
            total_steps=annealed,
            warmup_steps=annealed // 20,
            decay_steps=annealed - stable,
        ),
        mixture=ConstantMixture(replay_ratio=1.0),
        seq_len=project.data.seq_len,
        batch_tokens=project.pilot.batch_tokens,
        precision=project.pilot.precision,
        eval_steps=default_eval_steps(annealed),
        keep_steps=(stable,),
    )


def cell_spec(project: Project, data_dir: Path, cell: Cell) -> RunSpec:
    """The spec of one run of cells.py."""
    spec = run_spec(
        project,
        str(data_dir),
        name=cell.name,
        start=next(start for start in project.model.starts if start.name == cell.start),
        schedule=cell.schedule,
        replay_ratio=cell.replay_ratio,
        passes={"domain": cell.passes} if cell.passes > 1 else None,
    )
    changed = {
        "seed": cell.seed,
        "batch_tokens": cell.batch * spec.batch_tokens,
        "eval_steps": default_eval_steps(cell.schedule.total_steps),
    }
    return spec.model_copy(update=changed)


def gather(lab: str, workspace: Workspace, run_dirs: Sequence[Path]) -> None:
    """Copy finished curves beside this file, and say what made them."""
    out = HERE / "curves" / lab
    out.mkdir(parents=True, exist_ok=True)
    done = sorted((path for path in run_dirs if (path / "result.json").exists()), key=lambda path: path.name)
    stages.collect_curves(out, done)
    corpora = read_json(workspace.data / "corpora.json")
    results = {path.name: read_json(path / "result.json") for path in done}
    provenance = {
        "schema_version": 1,
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "system": platform.system()},
        "code": _git_revision(),
        "versions": next(iter(results.values()))["versions"] if results else {},
        "corpora": {source["name"]: source["train"] for source in corpora["sources"]},
        "runs": {
            name: {key: result[key] for key in ("spec_hash", "num_params", "train_seconds", "eval_seconds")}
            for name, result in results.items()
        },
    }
    write_json(HERE / "curves" / f"{lab}.json", provenance)


def _git_revision() -> str:
    found = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"


def main(lab: str, directory: Path, groups: Sequence[str]) -> None:
    """Bring every run of a lab to completion."""
    directory.mkdir(parents=True, exist_ok=True)
    config = directory / "cptplan.yaml"
    if not config.exists():
        shutil.copy(HERE / f"{lab}.yaml", config)
    os.chdir(directory)  # the project's paths are relative to it
    project, workspace, screen = read_project(Path("cptplan.yaml")), Workspace(root=Path(".")), Screen()
    workspace.claim(project)
    with screen.stage("corpora") as note:
        corpora = stages.pack_data(project, workspace, note)
    data_dir = workspace.data.resolve()
    base = campaign.jobs_of([base_spec(project, data_dir)], workspace.runs)
    with screen.stage("base") as note:
        stages.run_jobs(project, base, note)
        stages.collect_curves(workspace.curves, [job.run_dir for job in base])
    with screen.stage("pilots") as note:
        stages.run_pilots(project, workspace, corpora, note)
    pilots = [job.run_dir for job in stages.pilot_jobs(project, workspace, corpora)]
    cells = [cell for cell in LABS[lab] if not groups or cell.group in groups]
    jobs = campaign.jobs_of([cell_spec(project, data_dir, cell) for cell in cells], Path("cells"))
    try:
        with screen.stage("cells") as note:
            stages.run_jobs(project, jobs, note)
    finally:
        everything = [Path("cells") / cell.name for cell in LABS[lab]]
        gather(lab, workspace, [base[0].run_dir, *pilots, *everything])


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]).resolve(), sys.argv[3:])
