"""The training loop: set the rate, gather the gradient, clip, update, log; then evaluate, export, save.

The loss of a step is the mean over all its tokens, exactly: all forward passes of all processes are of one size.
What the next step needs is in the model, the optimizer and the step's number alone: data come from (seed, sequence),
random numbers of dropout from (seed, step, rank). So a run that was stopped anywhere goes on as if it never was.
"""

from __future__ import annotations

import logging
import math
import platform
import signal
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import torch
import transformers
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_

from cptplan.errors import RunFailedError
from cptplan.files import write_json
from cptplan.run_spec import RunSpec
from executor import distributed
from executor.checkpoint import Checkpoints
from executor.curve_log import LOSS_PREFIX, CurveLog
from executor.data import TrainingData, ValidationData, open_validation
from executor.model import check_vocabulary, count_params, export_model, load_model, tied_names

logger = logging.getLogger(__name__)


class Stopped(Exception):
    """The run was asked to stop and has saved a checkpoint."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


class Requests:
    """The signal to obey after this step: SIGUSR1 saves, SIGINT and SIGTERM save and stop.

    Repeats change nothing: torchrun passes on a Ctrl-C that its workers have had from the terminal already.
    """

    def __init__(self) -> None:
        self.pending = 0
        for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: object) -> None:
        if self.pending in (0, signal.SIGUSR1):
            self.pending = number

    def saved(self) -> None:
        """A checkpoint was written: what only asked for one is done."""
        if self.pending == signal.SIGUSR1:
            self.pending = 0


class Trainer:
    """One run, from its spec to its result. The parts are made in order; run() is the loop."""

    def __init__(self, run_dir: Path, spec: RunSpec, started: float) -> None:
        """Open data and model, and go to the last checkpoint.

        Args:      started: time.perf_counter() at the start of the process, for wall_seconds.
        """
        self.run_dir, self.spec, self.started = run_dir, spec, started
        self.accelerator = distributed.open_accelerator(spec)
        self.main, self.rank = self.accelerator.is_main_process, self.accelerator.process_index
        self.share = distributed.sequences_per_process(spec, self.accelerator.num_processes)
        self.forward_size = distributed.sequences_per_forward(spec, self.share)
        self.data = TrainingData(spec)
        self.validation = [open_validation(chosen, spec.seq_len) for chosen in spec.validation]
        model, self.tokenizer = load_model(spec)
        shards = (*self.data.sources.values(), *self.validation)
        check_vocabulary(model, self.tokenizer, {shard.name: shard.vocab_size for shard in shards})
        self.num_params_total, self.num_params = count_params(model)
        self.tied = tied_names(model)
        self.model, self.optimizer = distributed.prepare(self.accelerator, model, spec)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.checkpoints = Checkpoints(run_dir / "checkpoints", spec.hash, self.accelerator)
        self.position = self.resumed = self.checkpoints.load_latest(self.model, self.optimizer)
        unique_tokens = {source.name: len(source.tokens) for source in self.data.sources.values()}
        self.log = CurveLog(run_dir, spec, num_params=self.num_params, unique_tokens=unique_tokens)
        if self.main:
            self.log.resume(self.position.metrics_bytes)

    def run(self) -> None:
        """Train to the last step and write the result.

        Raises:    Stopped after a signal; RunFailedError if a loss is not finite or the disk is full.
        """
        spec, requests, rates = self.spec, Requests(), self.spec.lr()
        evaluate_after, export_after = set(spec.steps_to_evaluate()), {*spec.keep_steps, spec.total_steps}
        if self.position.step == 0:
            self.evaluate()
        for step in range(self.position.step, spec.total_steps):
            begun = time.perf_counter()
            distributed.set_lr(self.optimizer, float(rates[step]))
            loss, grad_norm, asked = self.train_step(step, requests)
            self._log_step(float(rates[step]), loss, grad_norm, time.perf_counter() - begun)
            done = step + 1
            if done in evaluate_after:
                self.evaluate()
            if done in export_after:
                self.export()
            if done < spec.total_steps and (asked or done % spec.checkpoint_every == 0):
                self.save()
                requests.saved()
                if asked in (signal.SIGINT, signal.SIGTERM):
                    raise Stopped(asked)
        self.finish()

    def train_step(self, step: int, requests: Requests) -> tuple[float, float, int]:
        """One optimiser step: mean loss of its tokens, gradient norm before clipping, and the signal to obey.

        The three come from all processes in one exchange, so that all obey a signal after the same step.
        """
        processes, device = self.accelerator.num_processes, self.accelerator.device
        torch.manual_seed(((self.spec.seed << 32) + step * processes + self.rank) % 2**63)
        first = step * self.spec.sequences_per_step + self.rank * self.share
        micro_batches = self._to_device(self.data.read(first, self.share)).split(self.forward_size)
        loss = torch.zeros((), device=device)
        for number, micro_batch in enumerate(micro_batches, start=1):
            with self._gradient_exchange(number == len(micro_batches)):
                part = token_losses(self.model, micro_batch).mean() / len(micro_batches)
                part.backward()
            loss += part.detach()
        grad_norm = _whole(clip_grad_norm_(self.parameters, self.spec.optimizer.max_grad_norm))
        self.optimizer.step()
        self.optimizer.zero_grad()
        mine = torch.stack([loss, grad_norm, torch.tensor(float(requests.pending), device=device)])
        every = np.array(self.accelerator.gather(mine).tolist()).reshape(processes, 3)
        return float(every[:, 0].mean()), float(every[0, 1]), int(every[:, 2].max())

    def _gradient_exchange(self, last: bool) -> AbstractContextManager[None]:
        """DDP exchanges gradients in the last micro batch only; FSDP2 in each, or it would hold them unsharded."""
        if last or self.accelerator.is_fsdp2:
            return nullcontext()
        return self.accelerator.no_sync(self.model)

    def evaluate(self) -> None:
        """Loss on the fixed windows of every validation set, logged with the curve."""
        self._progress("evaluating", force=True)
        begun = time.perf_counter()
        self.model.eval()
        losses = {data.name: self._validation_loss(data) for data in self.validation}
        self.model.train()
        seconds = time.perf_counter() - begun
        self.position = replace(self.position, eval_seconds=self.position.eval_seconds + seconds)
        for name, loss in losses.items():
            self._check_finite(f"{LOSS_PREFIX}{name}", loss)
        if self.main:
            self.log.evaluation(self.position.step, losses, seconds)
            found = ", ".join(f"{LOSS_PREFIX}{name} {loss:.4f}" for name, loss in losses.items())
            logger.info("step %d of %d: %s", self.position.step, self.spec.total_steps, found)

    @torch.no_grad()
    def _validation_loss(self, data: ValidationData) -> float:
        """Mean over tokens, float64. Every process runs as many windows as the others; repeats of the last are cut."""
        share = math.ceil(data.num_windows / self.accelerator.num_processes)
        mine = np.minimum(np.arange(share) + self.rank * share, data.num_windows - 1)
        parts = np.split(mine, range(self.forward_size, share, self.forward_size))
        losses = [token_losses(self.model, self._to_device(data.read(part))).mean(dim=1) for part in parts]
        every = self.accelerator.gather(torch.cat(losses)).tolist()
        return float(np.mean(every[: data.num_windows]))

    def export(self) -> None:
        """Write the weights as a model directory."""
        self._progress("exporting", force=True)
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_model_state_dict(self.model, options=options)
        if self.main:
            directory = self.run_dir / "export" / f"step-{self.position.step}"
            once = {name: tensor for name, tensor in state.items() if name not in self.tied}
            export_model(directory, self.accelerator.unwrap_model(self.model), once, self.tokenizer)

    def save(self) -> None:
        """Write a checkpoint, after the log that it counts on."""
        metrics_bytes = self.log.sync() if self.main else 0
        self.position = replace(self.position, metrics_bytes=metrics_bytes, wall_seconds=self._wall_seconds())
        self.checkpoints.save(self.model, self.optimizer, self.position)

    def finish(self) -> None:
        """Write the result, which marks the run complete, and drop the checkpoints."""
        if self.main:
            write_json(self.run_dir / "result.json", self._result())
            self.checkpoints.remove()
            self._progress("done", force=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()

    def _result(self) -> dict[str, Any]:
        spec, position, device = self.spec, self.position, self.accelerator.device
        return {
            "schema_version": 1,
            "spec_hash": spec.hash,
            "name": spec.name,
            "losses": self.log.final_losses,
            "eval_tokens": {data.name: data.num_tokens for data in self.validation},
            "steps": spec.total_steps,
            "tokens": spec.total_tokens,
            "tokens_by_source": self.data.tokens_by_source(spec.total_steps),
            "num_params": self.num_params,
            "num_params_total": self.num_params_total,
            "train_seconds": round(position.train_seconds, 3),
            "eval_seconds": round(position.eval_seconds, 3),
            "wall_seconds": round(self._wall_seconds(), 3),
            "tokens_per_second": round(spec.total_tokens / position.train_seconds, 1),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "num_processes": self.accelerator.num_processes,
            "num_threads": torch.get_num_threads(),
            "exports": [f"export/step-{step}" for step in sorted({*spec.keep_steps, spec.total_steps})],
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "accelerate": accelerate.__version__,
            },
        }

    def _log_step(self, lr: float, loss: float, grad_norm: float, seconds: float) -> None:
        step, tokens = self.position.step + 1, self.spec.batch_tokens
        self.position = replace(self.position, step=step, train_seconds=self.position.train_seconds + seconds)
        self._check_finite("train_loss", loss, lr)
        if self.main:
            self.log.step(
                step=step,
                lr=lr,
                train_loss=loss,
                grad_norm=grad_norm,
                tokens=step * tokens,
                tokens_by_source=self.data.tokens_by_source(step),
                tokens_per_second=round(tokens / seconds, 1),
            )
            self._progress("training", loss=loss)

    def _check_finite(self, name: str, loss: float, lr: float | None = None) -> None:
        """Stop a run that broke, before it writes a checkpoint.

        Raises:    RunFailedError naming the step and its rate.
        """
        if math.isfinite(loss):
            return
        step = self.position.step
        lr = float(self.spec.lr()[max(step - 1, 0)]) if lr is None else lr
        raise RunFailedError(
            f"{name} must be finite; got {loss} at step {step} with lr {lr:g} in {self.run_dir}.",
            hint="lower peak_lr or lengthen the warm-up",
        )

    def _progress(self, message: str, *, force: bool = False, **extra: float) -> None:
        if self.main and (force or self.log.progress_due()):
            self.log.progress(self.position.step, message, eta_seconds=self._eta_seconds(), **extra)

    def _eta_seconds(self) -> float | None:
        """Time left at the pace of this run so far, evaluations included; None before the first step."""
        position, spec = self.position, self.spec
        if not position.step:
            return None
        moments = spec.steps_to_evaluate()
        evaluations = sum(step <= position.step for step in moments)
        training = position.train_seconds / position.step * (spec.total_steps - position.step)
        return round(training + position.eval_seconds / evaluations * (len(moments) - evaluations), 1)

    def _wall_seconds(self) -> float:
        return self.resumed.wall_seconds + time.perf_counter() - self.started

    def _to_device(self, rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(rows).to(self.accelerator.device)


def token_losses(model: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of every token given those before it in its row, nats, fp32.

    No attention mask is passed: rows are full, and a mask of ones would only cost time.
    Args:      rows: token ids, shape (n, seq_len + 1).
    Returns:   losses, shape (n, seq_len).
    """
    logits = model(input_ids=rows[:, :-1], use_cache=False).logits
    losses = cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten(), reduction="none")
    return losses.view(rows.shape[0], -1)


def _whole(norm: torch.Tensor) -> torch.Tensor:
    """The gradient norm over all shards (a DTensor under FSDP2)."""
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm
