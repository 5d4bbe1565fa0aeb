"""Who races in training_speed.py: a hand-written loop, transformers.Trainer, and the model and batches of all.

As a process: python experiments/benchmarks/training_contestants.py bare|trainer --job job.json. It trains until it is
ended and adds one line to its steps file after every optimiser step, as the executor does to metrics.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# those of the run spec's Optimizer, with a constant rate; gains and biases are decayed like all else in both rivals
LR, BETAS, EPS, WEIGHT_DECAY, MAX_GRAD_NORM = 1e-3, (0.9, 0.95), 1e-8, 0.1, 1.0
MANY_STEPS = 100_000  # the race ends before
TOKEN_TYPE = "<u2"  # of the packed shards


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What all train alike, and where this one says that a step is done."""

    model: dict[str, Any]
    """transformers configuration with model_type."""
    tokens: str
    seq_len: int
    batch_tokens: int
    compile: bool
    steps_file: str

    def write(self, path: Path) -> Path:
        """Write it for a contestant's process."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return path


def read_window(tokens: NDArray[np.integer], place: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Windows of the shard from places, shape (n, length)."""
    return np.asarray(tokens[place[:, None] + np.arange(length)], dtype=np.int64)


def build_model(job: Job) -> Any:
    """The model with weights drawn from seed 0, fp32, for training."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    values = dict(job.model)
    config = AutoConfig.for_model(values.pop("model_type"), **values, use_cache=False)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    return model.train()


def train_bare(job: Job) -> None:
    """What one writes by hand: windows of a memory map, mean cross-entropy, clipping, fused AdamW.

    Compiled, model and loss are one graph, so that nothing stands between the logits and their gradient.
    """
    import torch
    from torch.nn.functional import cross_entropy

    model = build_model(job)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=LR, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY, fused=True)
    tokens, rng = np.memmap(job.tokens, dtype=TOKEN_TYPE, mode="r"), np.random.default_rng(0)
    sequences = job.batch_tokens // job.seq_len

    def loss_of(rows: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=rows[:, :-1]).logits
        return cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())

    compute: Callable[[torch.Tensor], torch.Tensor] = torch.compile(loss_of) if job.compile else loss_of
    with open(job.steps_file, "a", buffering=1, encoding="utf-8") as steps:
        while True:
            begun = time.perf_counter()
            places = rng.integers(0, len(tokens) - job.seq_len, sequences)
            rows = torch.from_numpy(read_window(tokens, places, job.seq_len + 1))
            data_seconds = time.perf_counter() - begun
            loss = compute(rows)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
            optimizer.step()
            optimizer.zero_grad()
            seconds = time.perf_counter() - begun
            steps.write(
                json.dumps({"train_loss": loss.item(), "seconds": seconds, "data_seconds": data_seconds}) + "\n"
            )


def train_with_trainer(job: Job) -> None:
    """transformers.Trainer with all that costs time switched off, and its data in this process.

    A loader process of its own would take one of two cores for work that is below 1 % of a step.
    """
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    tokens = np.memmap(job.tokens, dtype=TOKEN_TYPE, mode="r")

    class Windows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
        def __len__(self) -> int:
            return (len(tokens) - 1) // job.seq_len

        def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
            row = torch.from_numpy(read_window(tokens, np.array([number * job.seq_len]), job.seq_len)[0])
            return {"input_ids": row, "labels": row}

    class SayStep(TrainerCallback):
        def __init__(self) -> None:
            self.steps = open(job.steps_file, "a", buffering=1, encoding="utf-8")  # noqa: SIM115

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.steps.write('{"train_loss": null}\n')

    settings = TrainingArguments(
        output_dir=str(Path(job.steps_file).with_suffix("")),
        max_steps=MANY_STEPS,
        per_device_train_batch_size=job.batch_tokens // job.seq_len,
        learning_rate=LR,
        lr_scheduler_type="constant",
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        adam_epsilon=EPS,
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=MAX_GRAD_NORM,
        optim="adamw_torch_fused",
        torch_compile=job.compile,
        use_cpu=True,
        bf16=False,
        logging_steps=100,
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
    )
    Trainer(model=build_model(job), args=settings, train_dataset=Windows(), callbacks=[SayStep()]).train()


def main() -> None:
    """Train until ended."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("who", choices=("bare", "trainer"))
    parser.add_argument("--job", type=Path, required=True)
    options = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    job = Job(**json.loads(options.job.read_text(encoding="utf-8")))
    {"bare": train_bare, "trainer": train_with_trainer}[options.who](job)


if __name__ == "__main__":
    main()
