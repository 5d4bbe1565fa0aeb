"""Where the time of a training step goes, and how well the device is used (MFU).

    python experiments/benchmarks/training_profile.py --device cuda
    accelerate launch --num_processes 8 --use_fsdp --fsdp_version 2 experiments/benchmarks/training_profile.py \\
        --device cuda --work DIR
    python experiments/benchmarks/training_profile.py --device cpu --size tiny --no-record profile.json

A Llama-shaped model of 1.2 billion parameters (bf16, compiled) is trained by the executor itself, as its command line
does it. After a warm-up some steps are timed by the executor's log, without a profiler; some more are watched by
torch.profiler, which is started and stopped by the optimizer's steps, so that the executor knows nothing of it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
import time
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from record import LOG, Goal, start, write_record
from training_speed import SHAPES, model_config, pack_corpus, run_spec

from cptplan.errors import ConfigError, RunFailedError
from cptplan.files import write_json
from cptplan.run_spec import RunSpec, ValidationSet, write_run_spec

# 1.24 billion parameters, those of the untied output layer and the embedding included
BILLION = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": 32_768,
    "tie_word_embeddings": False,
}
SETTINGS = {"1B": (BILLION, 2048, 65_536, 16_384), "tiny": (SHAPES["tiny"], 64, 256, 256)}
"""Shape, seq_len, tokens of a step and of a forward pass on each process."""
# published: dense bf16 FLOP/s without sparsity, NVIDIA data sheets of H100 and H200 SXM (2024) and A100 (2021)
PEAK_FLOPS = {"H100": 989.4e12, "H200": 989.4e12, "GH200": 989.4e12, "A100": 312e12}
MFU_TARGET = 0.5
WARM_UP, TIMED, PROFILED = 12, 20, 5
TOP = 25

# the first that matches an operation's name (of the kernel on a GPU, of the torch operation on a CPU) is its part
PARTS = (
    ("communication", r"nccl|all_gather|reduce_scatter|all_reduce|c10d"),
    ("attention", r"flash|fmha|attention|cudnn.*sdpa"),
    ("optimiser", r"adam|multi_tensor|foreach"),
    ("matmul", r"gemm|cutlass|cublas|nvjet|xmma|::mm$|::addmm$|::bmm$|mkldnn|mkl_|::linear$"),
    ("loss", r"log_softmax|nll_loss|cross_entropy"),
    ("copies", r"memcpy|memset|copy_|::to$|::cat$|::fill_|::zero_"),
)


class StepWatch:
    """A profiler around the optimizer's steps from `first` on; `done` steps have been seen."""

    def __init__(self, first: int, last: int, device: str) -> None:
        import torch
        from torch.optim.optimizer import register_optimizer_step_post_hook
        from torch.profiler import ProfilerActivity

        self._first, self._last, self.done = first, last, 0
        self.wall_seconds = 0.0
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
        self.profiler = torch.profiler.profile(activities=activities)
        self._synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
        self._hook = register_optimizer_step_post_hook(self._after_step)

    def _after_step(self, *_: Any) -> None:
        self.done += 1
        if self.done == self._first:
            self._synchronize()
            self.profiler.start()
            self.wall_seconds -= time.perf_counter()
        elif self.done == self._last:
            self._synchronize()
            self.wall_seconds += time.perf_counter()
            self.profiler.stop()
            self._hook.remove()


def main() -> None:
    """Train, watch, write; only the first process writes."""
    options = parse()
    start()
    rank = int(os.environ.get("RANK", "0"))
    with tempfile.TemporaryDirectory() as temporary:
        # all processes of one machine must meet in one directory
        work = options.work or Path(temporary)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and options.work is None:
            raise ConfigError("work must be given for several processes; it is missing.", hint="give --work DIR")
        spec = prepare(work, options, rank)
        watch = StepWatch(WARM_UP + TIMED, WARM_UP + TIMED + PROFILED, options.device)
        train(work / "run")
        if rank == 0:
            report(spec, watch, work / "run", options)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), required=True)
    parser.add_argument("--size", choices=SETTINGS, default="1B")
    parser.add_argument("--micro-batch-tokens", type=int, help="tokens of a forward pass on one device")
    parser.add_argument("--activation-checkpointing", action="store_true")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--work", type=Path, help="directory for corpus and run, which must be new; default temporary")
    parser.add_argument("--no-record", type=Path, metavar="FILE", help="write there instead of reports/benchmarks")
    return parser.parse_args()


def prepare(work: Path, options: argparse.Namespace, rank: int) -> RunSpec:
    """The run's directory, made by the first process; the others wait for it."""
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device must be there; got no CUDA device.", hint="take --device cpu --size tiny")
    if options.device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    shape, seq_len, batch_tokens, micro_batch_tokens = SETTINGS[options.size]
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    spec = run_spec(
        {**model_config("tiny"), "max_position_embeddings": seq_len, **shape},
        work / "corpora",
        total_steps=WARM_UP + TIMED + PROFILED + 1,
        seq_len=seq_len,
        validation=(ValidationSet(name="general", path=str(work / "corpora" / "general"), num_tokens=seq_len),),
        batch_tokens=batch_tokens * processes,
        micro_batch_tokens=options.micro_batch_tokens or micro_batch_tokens,
        precision="bf16" if options.device == "cuda" else "fp32",
        activation_checkpointing=options.activation_checkpointing,
        compile=not options.eager,
    )
    ready = work / "run" / "spec.json"
    if rank == 0:
        pack_corpus(work / "corpora")
        ready.parent.mkdir(parents=True)
        write_run_spec(ready, spec)
    while not ready.exists():
        time.sleep(0.1)
    return spec


def train(run_dir: Path) -> None:
    """What `python -m executor.train --run-dir` does, in this process."""
    from executor.train import main as train_main

    code = train_main(["--run-dir", str(run_dir)])
    if code:
        raise RunFailedError(f"the run must complete; got exit code {code} in {run_dir}.", hint="see what it said")


def report(spec: RunSpec, watch: StepWatch, run_dir: Path, options: argparse.Namespace) -> None:
    """Write speed, MFU and the parts of a step."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if "train_loss" in line][WARM_UP : WARM_UP + TIMED - 1]
    seconds = np.array([spec.batch_tokens / line["tokens_per_second"] for line in steps])
    result = json.loads((run_dir / "result.json").read_text(encoding="utf-8"))
    used = utilisation(spec, result, float(np.median(seconds)))
    step_seconds = watch.wall_seconds / PROFILED
    parts, top = profile_tables(watch, options.device)
    results = {
        "size": options.size,
        "num_params_total": result["num_params_total"],
        "num_params_without_embeddings": result["num_params"],
        "batch_tokens": spec.batch_tokens,
        "micro_batch_tokens": spec.micro_batch_tokens,
        "seq_len": spec.seq_len,
        "precision": spec.precision,
        "compile": spec.compile,
        "activation_checkpointing": spec.activation_checkpointing,
        "num_processes": result["num_processes"],
        "device": result["device"],
        "versions": {name: version(name) for name in ("torch", "transformers", "accelerate")},
        "memory_gb": steps[-1].get("memory_gb"),
        "utilisation": used,
        "data_share": float(np.median([line["data_seconds"] for line in steps] / seconds)),
        "profiled_step_seconds": step_seconds,
        "share_of_step_by_part": {part: found / PROFILED / step_seconds for part, found in parts.items()},
        "top": [{**row, "share_of_step": row["seconds"] / PROFILED / step_seconds} for row in top],
    }
    LOG.info("%s", json.dumps({**used, "parts": results["share_of_step_by_part"]}, indent=1))
    if options.no_record:
        write_json(options.no_record, results)
    else:
        write_record("training_profile", goals(used, results), results)


def utilisation(spec: RunSpec, result: dict[str, Any], seconds: float) -> dict[str, float | None]:
    """Speed of a step without a profiler, and which part of the devices' peak it is.

    FLOPs of a token, forward and backward: 6 for every parameter but the embedding's, and 12 layers x hidden x seq_len
    for attention, of which a causal one needs half; both are given, the lower is the goal's.
    Reference: Chowdhery et al. 2022, arXiv:2204.02311, appendix B.
    """
    model = spec.model.config or {}
    output = model["vocab_size"] * model["hidden_size"]
    attention = 12 * model["num_hidden_layers"] * model["hidden_size"] * spec.seq_len
    flops = 6 * (result["num_params"] + output)
    speed = spec.batch_tokens / seconds / result["num_processes"]
    peak = next((value for name, value in PEAK_FLOPS.items() if name in result["device"]), None)
    return {
        "step_seconds": seconds,
        "tokens_per_second_per_device": speed,
        "flops_per_token_causal": flops + attention / 2,
        "peak_flops": peak,
        "mfu": speed * (flops + attention / 2) / peak if peak else None,
        "mfu_full_attention": speed * (flops + attention) / peak if peak else None,
    }


def profile_tables(watch: StepWatch, device: str) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Seconds of the profiled steps by part, and of the operations that take most; kernels on a GPU, else torch's."""
    from torch.autograd import DeviceType

    kind = DeviceType.CUDA if device == "cuda" else DeviceType.CPU
    parts: dict[str, float] = defaultdict(float)
    rows = []
    for event in watch.profiler.key_averages():
        if event.device_type != kind or event.is_user_annotation:
            continue
        spent = (event.self_device_time_total if device == "cuda" else event.self_cpu_time_total) / 1e6
        part = part_of(event.key)
        parts[part] += spent
        rows.append({"operation": event.key[:160], "part": part, "calls": event.count, "seconds": spent})
    largest = sorted(rows, key=lambda row: float(row["seconds"]), reverse=True)[:TOP]
    return dict(sorted(parts.items(), key=lambda item: -item[1])), largest


def part_of(operation: str) -> str:
    """Which part of a step an operation belongs to; norms, activations and whatever was fused are "elementwise"."""
    found = (part for part, pattern in PARTS if re.search(pattern, operation, re.IGNORECASE))
    return next(found, "elementwise")


def goals(used: dict[str, float | None], results: dict[str, Any]) -> list[Goal]:
    """The rows of the table."""
    mfu = used["mfu"]
    what = f"MFU at {results['num_params_total'] / 1e9:.2f} billion parameters, {results['num_processes']} device(s)"
    if mfu is None:
        return [
            Goal(what=what, target=f">= {MFU_TARGET:.0%}", reached="peak not known", met=False, miss="no known GPU")
        ]
    reached = f"{mfu:.1%} on {results['device']}"
    return [
        Goal(what=what, target=f">= {MFU_TARGET:.0%}", reached=reached, met=mfu >= MFU_TARGET, miss="see its profile")
    ]


if __name__ == "__main__":
    main()
