"""Makes the trainer_state_*.json beside it: a random Llama of 5,000 parameters on random tokens, 60 steps, on the CPU.

Run where transformers and torch are installed: python make.py. The numbers are of no meaning; what counts is what the
Trainer of the installed version writes, and when. The files that are here were made with transformers 5.23.0.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

STEPS = 60
HERE = Path(__file__).parent
SCHEDULES: dict[str, dict[str, Any]] = {
    "cosine": {"lr_scheduler_type": "cosine", "logging_steps": 5},
    "wsd": {
        "lr_scheduler_type": "warmup_stable_decay",
        "lr_scheduler_kwargs": {"num_decay_steps": 20, "num_stable_steps": 33, "min_lr_ratio": 0.1},
        "logging_steps": 4,
    },
}


class RandomTokens(Dataset[dict[str, torch.Tensor]]):
    """Sequences of 16 tokens out of the first few of the vocabulary."""

    def __init__(self, seed: int, vocabulary: int, length: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.tokens = torch.randint(0, vocabulary, (length, 16), generator=generator)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.tokens[index]}


def main() -> None:
    """Train with each schedule and keep the state of the last checkpoint."""
    for name, options in SCHEDULES.items():
        torch.manual_seed(0)
        shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=2, **shape))
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                max_steps=STEPS,
                per_device_train_batch_size=4,
                gradient_accumulation_steps=2,
                learning_rate=3e-3,
                warmup_steps=7,
                eval_strategy="steps",
                eval_steps=10,
                eval_on_start=True,
                save_steps=STEPS,
                use_cpu=True,
                report_to=[],
                **options,
            )
            sets = {"general": RandomTokens(1, 64, 64), "domain": RandomTokens(8, 40, 64)}
            Trainer(model=model, args=arguments, train_dataset=RandomTokens(9, 40, 512), eval_dataset=sets).train()
            state = json.loads((Path(folder) / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
        (HERE / f"trainer_state_{name}.json").write_text(json.dumps(state, indent=1) + "\n")


if __name__ == "__main__":
    main()
