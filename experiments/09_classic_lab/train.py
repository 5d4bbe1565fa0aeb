"""Train and measure the classic lab through the executor: python train.py LAB OUT; the same command goes on.

LAB is the finished campaign of experiments/04_curve_set (`train.py prose_code LAB`): its corpora and base are read.
23 runs of 150 steps, one at a time in one thread (about 10 minutes of one free core), soups of some of them with the
base, and the losses of every export by measure.py. Curves go to curves/ beside this file, the rest to measured.json
and windows.npz (loss of every validation window), from which analyse.py answers.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import num_trained, window_losses
from numpy.typing import NDArray
from points import soup_name
from runs import BASE, BATCH_TOKENS, RUNS, SEQ_LEN, SOUPS, STEPS, WARMUP, Run, spec_of

from cptplan import campaign, stages
from cptplan.console import Screen
from cptplan.files import read_json, write_bytes, write_json

HERE = Path(__file__).resolve().parent
SETS = ("general", "domain")
EXPORT = Path(f"export/step-{STEPS}")
SHARES = "0.2,0.4,0.6,0.7,0.8,0.9"


def train(lab: Path, out: Path) -> None:
    """Bring every run to completion, one at a time."""
    jobs = [
        campaign.Job(
            spec=spec_of(run, lab),
            run_dir=out / "runs" / run.name,
            command=(sys.executable, "-m", "executor.train", "--run-dir", str(out / "runs" / run.name)),
        )
        for run in RUNS
    ]
    with Screen().stage("runs") as note:
        campaign.run_all(
            jobs,
            threads=1,
            report=lambda all_of_them: note(
                sum(status.done for status in all_of_them), sum(status.total for status in all_of_them), "steps"
            ),
        )
    stages.collect_curves(HERE / "curves", [lab / "runs" / "base", *(job.run_dir for job in jobs)])


def soup(lab: Path, out: Path, name: str) -> dict[str, Any]:
    """Average a run's end with the base in several shares, measured on all validation windows; the best is exported."""
    directory = out / "soups" / name
    if not (directory / "soup.json").exists():
        command = [sys.executable, "-m", "executor.soup", "--base", str(lab / BASE), "--out", str(directory)]
        command += ["--adapted", str(out / "runs" / name / EXPORT), "--weights", "general=0.4,domain=0.6"]
        command += [part for each in SETS for part in ("--validation", f"{each}={lab / 'data' / each}")]
        command += ["--coefficients", SHARES, "--seq-len", str(SEQ_LEN)]
        subprocess.run(command, check=True)
    return {"run": name, **{key: read_json(directory / "soup.json")[key] for key in ("table", "chosen", "eval_tokens")}}


def step_seconds(run_dir: Path) -> float:
    """Seconds of one step after the warm-up: the 10th percentile, for other work of the machine only adds to it."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rates = [row["tokens_per_second"] for row in rows if "tokens_per_second" in row and row["step"] > WARMUP]
    return float(np.percentile(BATCH_TOKENS / np.array(rates), 10))


def about(run: Run, lab: Path, out: Path) -> dict[str, Any]:
    """Settings and cost of a run, and its last losses as it logged them, on its own windows."""
    run_dir = out / "runs" / run.name
    result, spec = read_json(run_dir / "result.json"), spec_of(run, lab)
    return {
        "name": run.name,
        "method": run.method,
        "peak_lr": run.peak_lr,
        "seed": run.seed,
        "replay_ratio": float(spec.replay_ratios().mean()),
        "strength": run.anchor.strength if run.anchor is not None else None,
        "num_trained": num_trained(run_dir / EXPORT, lab / BASE, run.freeze),
        "num_params_total": result["num_params_total"],
        "step_seconds": round(step_seconds(run_dir), 4),
        "losses": {each: result["losses"][each] for each in SETS},
    }


def measure(lab: Path, out: Path, soups: Sequence[dict[str, Any]]) -> None:
    """Write measured.json and windows.npz."""
    exports = {"base": lab / BASE, **{run.name: out / "runs" / run.name / EXPORT for run in RUNS}}
    exports |= {soup_name(each["run"], each["chosen"]): out / "soups" / each["run"] / "model" for each in soups}
    losses = {
        f"{name}/{each}": _kept_losses(out / "windows" / f"{name}-{each}.npy", export, lab / "data" / each)
        for name, export in exports.items()
        for each in SETS
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **losses)
    write_bytes(HERE / "windows.npz", buffer.getvalue())
    result = read_json(out / "runs" / RUNS[0].name / "result.json")
    measured = {
        "schema_version": 1,
        "machine": {"device": result["device"], "cores": os.cpu_count(), "threads": 1, "versions": result["versions"]},
        "runs": [about(run, lab, out) for run in RUNS],
        "soups": list(soups),
    }
    write_json(HERE / "measured.json", measured)


def _kept_losses(kept: Path, export: Path, shard: Path) -> NDArray[np.float32]:
    """Losses of an export on every window; measured once."""
    if not kept.exists():
        buffer = io.BytesIO()
        np.save(buffer, window_losses(export, shard, SEQ_LEN).astype(np.float32))
        write_bytes(kept, buffer.getvalue())
    return np.load(kept)


def main(lab: Path, out: Path) -> None:
    """Runs, soups, measurements."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    train(lab, out)
    measure(lab, out, [soup(lab, out, name) for name in SOUPS])


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
