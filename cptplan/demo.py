"""The whole path, small: corpora from the installed packages, base model, pilots, law, plan, price, launch, proof.

A thin script over the stages that the verbs use. Only two things are its own: the project it writes, and the
pre-training of a base model, which a user brings.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cptplan import campaign, decide, final, stages, tables
from cptplan.config import Budget, Corpus, Data, Goal, Model, Pilot, Project, Start, project_text
from cptplan.console import Screen, duration
from cptplan.files import write_text
from cptplan.mixture import ConstantMixture
from cptplan.price.pricing import COLUMNS, price_plan
from cptplan.report.build import build_report
from cptplan.report.html import write_report
from cptplan.run_spec import ModelSource, RunSpec, Source, ValidationSet, default_eval_steps
from cptplan.schedule import WsdSchedule
from cptplan.workspace import Workspace

WEIGHTS = "general=0.4"
SEQ_LEN = 256
BASE_PROCESSES = 2  # the base model trains alone, on both cores; pilots train two at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """How large the demo is."""

    corpus_bytes: int
    vocab_size: int
    hidden_size: int
    num_layers: int
    batch_tokens: int
    base_steps: int
    pilot_steps: int
    final_steps: int
    num_pilots: int
    warmup_steps: int
    validation_tokens: int
    eval_points: int
    trials: int


FULL = Scale(
    corpus_bytes=9_000_000,
    vocab_size=2048,
    hidden_size=96,
    num_layers=4,
    batch_tokens=2048,
    base_steps=600,
    pilot_steps=128,
    final_steps=384,
    num_pilots=8,
    warmup_steps=10,
    validation_tokens=8192,
    eval_points=18,
    trials=120,
)
TINY = Scale(
    corpus_bytes=1_200_000,
    vocab_size=1024,
    hidden_size=48,
    num_layers=2,
    batch_tokens=1024,
    base_steps=160,
    pilot_steps=48,
    final_steps=96,
    num_pilots=6,
    warmup_steps=4,
    validation_tokens=4096,
    eval_points=14,
    trials=30,
)
PEAK_LR = 3e-3  # assumed: a usual peak for models of this size, not tuned


def run_demo(out: Path, *, tiny: bool, screen: Screen) -> dict[str, Any]:
    """Run or continue the demo in a directory.

    Returns:   what was chosen, predicted and measured, and where the report is.
    Raises:    CptplanError of the stage that failed; what was finished stays.
    """
    began = time.monotonic()
    scale = TINY if tiny else FULL
    workspace = Workspace(root=out)
    project = demo_project(workspace, scale)
    workspace.claim(project)
    write_text(out / "cptplan.yaml", project_text(project))

    with screen.stage("1/8 corpora from the installed packages") as note:
        corpora = stages.pack_data(project, workspace, note)
    screen.table("Corpora", tables.CORPORA_COLUMNS, tables.corpora_rows(corpora))
    with screen.stage("2/8 base model") as note:
        base = campaign.jobs_of([base_spec(workspace, scale)], workspace.runs, BASE_PROCESSES)
        stages.run_jobs(project, base, note)
        stages.collect_curves(workspace.curves, [job.run_dir for job in base])
    screen.table("Pilots", tables.PILOT_COLUMNS, tables.pilot_rows(project))
    with screen.stage("3/8 pilots") as note:
        stages.run_pilots(project, workspace, corpora, note)
    with screen.stage("4/8 law") as note:
        fit_dir = decide.fit(workspace.curves, workspace.fits, note=note)
    screen.table("Laws", tables.FIT_COLUMNS, tables.fit_rows(fit_dir))
    with screen.stage("5/8 plan"):
        weights = decide.goal_weights(project, WEIGHTS)
        _, plan = decide.optimize(project, workspace, weights, fit_dir, trials=scale.trials)
    screen.table("Plan", ("", "chosen", "rule of thumb"), tables.plan_rows(plan))
    with screen.stage("6/8 price and launch files"):
        costs = price_plan(project, workspace)
        for target in ("local", "accelerate"):
            final.write_launch_files(project, workspace, target)
    screen.table("Cost", COLUMNS, [row.cells() for row in costs])
    with screen.stage("7/8 proof: the chosen run and the rule of thumb") as note:
        jobs = [final.final_job(workspace), final.rule_of_thumb_job(project, workspace, plan)]
        stages.run_jobs(project, jobs, note)
    with screen.stage("8/8 report"):
        report = build_report(project, workspace)
        files = write_report(report, workspace.report)
    screen.table("Outcome", tables.OUTCOME_COLUMNS, tables.outcome_rows(report.outcomes))
    for sentence in report.verdict:
        screen.say(sentence)
    for headline in report.headlines[-1:]:
        screen.say(f"{headline.label}: {headline.value} ({headline.note}).")
    screen.say(f"\nfinished in {duration(time.monotonic() - began)}; report: {files.page}")
    screen.next_command("cptplan init, then the same path on your own model and corpora")
    return {"report": str(files.page), "held": report.held, "verdict": list(report.verdict)}


def demo_project(workspace: Workspace, scale: Scale) -> Project:
    """The project that the demo plans: what a user would write in cptplan.yaml."""
    export = workspace.runs.resolve() / "base" / "export"
    stable, annealed = _stable_step(scale), scale.base_steps
    return Project(
        name="demo-tiny" if scale is TINY else "demo",
        model=Model(
            starts=(
                Start(name="stable", path=f"{export}/step-{stable}", parent="base", parent_step=stable),
                Start(name="annealed", path=f"{export}/step-{annealed}", parent="base", parent_step=annealed),
            ),
            pretrain_peak_lr=PEAK_LR,
        ),
        data=Data(
            general=Corpus(name="general", path="embedded:general", max_bytes=scale.corpus_bytes),
            domains=(Corpus(name="domain", path="embedded:domain", max_bytes=scale.corpus_bytes),),
            train_tokenizer=scale.vocab_size,
            seq_len=SEQ_LEN,
            validation_tokens=scale.validation_tokens,
        ),
        goal=Goal(weights={"general": 0.4, "domain": 0.6}),
        budget=Budget(tokens=scale.final_steps * scale.batch_tokens, hardware="h100-sxm", num_devices=4),
        pilot=Pilot(
            total_steps=scale.pilot_steps,
            batch_tokens=scale.batch_tokens,
            num_runs=scale.num_pilots,
            peak_lr_range=(PEAK_LR / 10, PEAK_LR),
            warmup_steps=scale.warmup_steps,
            parallel=2,
            threads=1,
            eval_points=scale.eval_points,
            precision="fp32",
        ),
    )


def _stable_step(scale: Scale) -> int:
    """Where the base model's decay begins: the checkpoint of high loss potential."""
    return scale.base_steps - scale.base_steps // 5


def base_spec(workspace: Workspace, scale: Scale) -> RunSpec:
    """Pre-training of the base model: general text alone, WSD, the checkpoint before the decay kept too."""
    data = workspace.data.resolve()
    heads = 4
    return RunSpec(
        name="base",
        phase="pretrain",
        model=ModelSource(
            config={
                "model_type": "llama",
                "vocab_size": scale.vocab_size,
                "hidden_size": scale.hidden_size,
                "intermediate_size": scale.hidden_size * 8 // 3,
                "num_hidden_layers": scale.num_layers,
                "num_attention_heads": heads,
                "num_key_value_heads": heads,
                "max_position_embeddings": 2 * SEQ_LEN,
                "tie_word_embeddings": True,
            },
            tokenizer=str(data / "tokenizer"),
        ),
        sources=(Source(name="general", role="general", path=str(data / "general")),),
        validation=tuple(
            ValidationSet(name=name, path=str(data / name), num_tokens=scale.validation_tokens)
            for name in ("general", "domain")
        ),
        schedule=WsdSchedule(
            kind="wsd",
            peak_lr=PEAK_LR,
            total_steps=scale.base_steps,
            warmup_steps=max(scale.base_steps // 20, 1),
            decay_steps=scale.base_steps // 5,
        ),
        mixture=ConstantMixture(replay_ratio=1.0),
        seq_len=SEQ_LEN,
        batch_tokens=scale.batch_tokens,
        eval_steps=default_eval_steps(scale.base_steps, scale.eval_points),
        keep_steps=(_stable_step(scale),),
    )
