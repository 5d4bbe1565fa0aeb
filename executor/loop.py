"""The training loop: set the rate, gather the gradient, clip, judge, update, log; then evaluate, react, export, save.

The loss of a step is the mean over all its tokens, exactly, however they are split into processes and micro batches.
What the next step needs is in the model, the optimizer, the step's number and what was measured before it: data come
from (seed, sequence), random numbers of dropout from (seed, step, rank), and what the watchers remember is saved with
the weights. So a run that was stopped anywhere goes on as if it never was.
"""

from __future__ import annotations

import logging
import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn.utils import clip_grad_norm_

from cptplan.errors import RunFailedError
from cptplan.files import write_json
from cptplan.run_spec import RunSpec
from executor import distributed
from executor.accounting import Meter
from executor.checkpoint import Checkpoints
from executor.curve_log import LOSS_PREFIX, CurveLog
from executor.data import ValidationData
from executor.export import export_model
from executor.model import stored_dtype
from executor.monitor import describe
from executor.objective import batch_losses, excess_losses, num_predicted, token_losses
from executor.parts import open_parts
from executor.requests import Requests, Stopped
from executor.result import about, model_card, readings, run_result
from executor.spikes import Spike, describe_spike, stop_error
from executor.tasks import evaluate_tasks, milestones
from executor.trackers import Trackers
from executor.watching import Watchers

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What all processes know of one step before it is applied."""

    loss: float
    """Mean over the step's tokens, nats."""
    grad_norm: float
    """Before clipping."""
    asked: int
    """Signal to obey after it; 0 for none."""
    data_seconds: float
    excess: np.ndarray | None = None
    """Of every sequence over the reference, nats per token, when reweighting."""


class Trainer:
    """One run, from its spec to its result; run() is the loop."""

    def __init__(self, run_dir: Path, spec: RunSpec, started: float) -> None:
        """Open data and model, and go to the last checkpoint.

        Args:      started: time.perf_counter() at the start of the process.
        """
        self.run_dir, self.spec = run_dir, spec
        self.parts = open_parts(spec, run_dir, fresh=not (run_dir / "metrics.jsonl").exists())
        self.accelerator, self.model, self.optimizer = self.parts.accelerator, self.parts.model, self.parts.optimizer
        self.main, self.rank = self.accelerator.is_main_process, self.accelerator.process_index
        self.parameters = self.parts.parameters
        self.anchor = self.parts.anchor(spec)
        self.meter = Meter(spec.accounting, self.accelerator, num_params=self.parts.num_params_used, started=started)
        self.trackers = Trackers(self.accelerator, spec.name, about(spec))
        self.bytes_per_token = self.parts.bytes_per_token() if self.main else {}
        self.checkpoints = Checkpoints(run_dir / "checkpoints", spec, self.accelerator)
        watched = {source.name for source in spec.sources if source.role == "domain" and not source.weight}
        sources = (source for source in self.parts.data.sources.values() if source.name not in watched)
        unique_tokens = {source.name: source.num_tokens for source in sources}
        self.log = CurveLog(
            run_dir,
            spec,
            num_params=self.parts.num_params,
            unique_tokens=unique_tokens,
            tokenizer=self.parts.tokenizer_hash,
        )
        self._go_to_checkpoint()
        self.meter.resume(self.position)

    def _go_to_checkpoint(self) -> None:
        """Put weights, log and watchers to where the last checkpoint left them, or to the start."""
        self.position = self.checkpoints.load_latest(self.model, self.optimizer)
        self.watchers = Watchers(self.spec, self.position.watched)
        self._obey_watchers()
        distributed.on_main(lambda: self.log.resume(self.position.metrics_bytes), self.accelerator)

    def run(self) -> None:
        """Train to the last step, or until a rule of the monitor stops the run, and write the result.

        Raises:    Stopped after a signal; RunFailedError if the run breaks or the disk is full.
        """
        requests = Requests()
        try:
            self._train(requests)
        except RuntimeError:
            if requests.pending:  # the launcher ends all processes since one has failed, which says why
                raise Stopped(requests.pending) from None
            raise

    def _train(self, requests: Requests) -> None:
        spec, evaluate_after = self.spec, set(self.spec.steps_to_evaluate())
        if not self.position.watched:  # no checkpoint was there, not even one of step 0
            self.evaluate()
            if spec.spikes is not None and spec.spikes.policy == "rollback":
                self.save()
        while not self.over:
            before = self.position.step
            asked = self.step(requests)
            done = self.position.step
            if done <= before:  # rolled back
                continue
            if done in evaluate_after:
                self.evaluate()
            if self.over:
                break
            if done in spec.keep_steps:
                self.export()
            if asked or done % spec.checkpoint_every == 0:
                self.save()
            if asked:
                self._progress("stopped", force=True)  # the campaign starts such a run again
                raise Stopped(asked)
        self.export()
        self.finish()

    @property
    def over(self) -> bool:
        """Whether the last step is done, or a rule has stopped the run."""
        return self.position.step == self.spec.total_steps or self.watchers.stopped

    def step(self, requests: Requests) -> int:
        """Do one optimiser step, or leave it out, or roll back. Returns the signal to obey after it, 0 for none."""
        step, begun = self.position.step, time.perf_counter()
        lr = float(self.rates[step])
        distributed.set_lr(self.optimizer, lr)
        found = self.gather_gradient(step, requests)
        spike = self.watchers.judge(step, found.loss, found.grad_norm)
        if spike is not None and spike.action == "stop":
            raise stop_error(spike, lr, self.run_dir)
        if spike is not None and spike.action == "rollback":
            self._roll_back(spike)
            return 0
        applied = spike is None and not self.watchers.is_left_out(step)
        if applied:
            self.optimizer.step()
            if found.excess is not None:
                self.watchers.reweight(self._sources_of_step(step), found.excess)
        self.optimizer.zero_grad()
        seconds = time.perf_counter() - begun
        self.position = replace(self.position, step=step + 1, train_seconds=self.position.train_seconds + seconds)
        if self.main:
            self._log_step(lr, found, seconds, applied)
            if spike is not None:
                self.log.event(self.position.step, "skip", describe_spike(spike))
        return found.asked

    def gather_gradient(self, step: int, requests: Requests) -> Step:
        """Put the clipped gradient of the step's objective into the parameters, and exchange what all must know.

        The numbers come from all processes in one exchange, so that all judge alike and obey a signal after the same
        step.
        """
        parts, processes, begun = self.parts, self.accelerator.num_processes, time.perf_counter()
        torch.manual_seed(((self.spec.seed << 32) + step * processes + self.rank) % 2**63)
        first = step * self.spec.sequences_per_step + self.rank * parts.share
        rows = self._to_device(parts.data.read(first, parts.share))
        data_seconds = time.perf_counter() - begun
        counted = num_predicted(rows, parts.eos_token_id)
        scales = self._row_scales(step, counted).float().split(parts.forward_size)
        losses, excess = [], []
        for number, (micro_batch, scale) in enumerate(zip(rows.split(parts.forward_size), scales, strict=True), 1):
            with self._gradient_exchange(number == len(scales)):
                found, extra = batch_losses(self.model, micro_batch, parts.eos_token_id)
                objective = (found.sum(dim=1) * scale).sum()
                (objective if extra is None else objective + extra / len(scales)).backward()
            losses.append(found.detach().sum(dim=1))
            if parts.reference is not None:
                excess.append(excess_losses(parts.reference, micro_batch, found.detach(), parts.eos_token_id))
        if self.anchor is not None and (strength := self.watchers.anchor_strength(step)):
            self.anchor.add_gradient(strength)
        grad_norm = _whole(clip_grad_norm_(self.parameters, self.spec.optimizer.max_grad_norm))
        asked = torch.tensor(float(requests.pending), device=rows.device)
        numbers = [torch.cat(losses).sum(), counted.sum(), grad_norm, asked]
        every = self._gather(torch.stack([number.double() for number in numbers]))
        return Step(
            loss=float(every[:, 0].sum() / every[:, 1].sum()),
            grad_norm=float(every[0, 2]),
            asked=int(every[:, 3].max()),
            data_seconds=data_seconds,
            excess=self._gather(torch.stack([torch.cat(excess).double(), counted], dim=1)).reshape(-1, 2)
            if excess
            else None,
        )

    def _row_scales(self, step: int, counted: torch.Tensor) -> torch.Tensor:
        """Weight of each sequence's summed losses in the objective of this process, float64, shape (share,).

        The mean over processes that DDP and FSDP2 take of their gradients is undone here.
        """
        parts, processes = self.parts, self.accelerator.num_processes
        if self.watchers.weights is not None:
            weights = self.watchers.row_weights(self._sources_of_step(step))
            mine = weights[self.rank * parts.share : (self.rank + 1) * parts.share]
            return torch.from_numpy(mine).to(counted.device) * processes / counted.clamp(min=1)
        total = counted.sum()
        total = total * processes if parts.eos_token_id is None else self.accelerator.reduce(total)
        return torch.ones_like(counted) * processes / total

    def _sources_of_step(self, step: int) -> np.ndarray:
        per_step = self.spec.sequences_per_step
        return self.parts.data.sources_of(step * per_step, per_step)

    def _gather(self, numbers: torch.Tensor) -> np.ndarray:
        """The numbers of all processes, float64, one more axis in front: by process."""
        every = self.accelerator.gather(numbers)
        return np.array(every.tolist()).reshape(self.accelerator.num_processes, *numbers.shape)

    def _gradient_exchange(self, last: bool) -> AbstractContextManager[None]:
        """DDP exchanges gradients in the last micro batch only; FSDP2 in each, or it would hold them unsharded."""
        if last or self.accelerator.is_fsdp2:
            return nullcontext()
        return self.accelerator.no_sync(self.model)

    def _roll_back(self, spike: Spike) -> None:
        """Go to the last checkpoint and leave the step out from then on. The time it took stays spent."""
        self.optimizer.zero_grad()
        train_seconds, eval_seconds = self.position.train_seconds, self.position.eval_seconds
        watchers = self.watchers
        self._go_to_checkpoint()
        self.watchers = watchers.rolled_back(spike, self.position.watched)
        self.position = replace(self.position, train_seconds=train_seconds, eval_seconds=eval_seconds)
        if self.main:
            self.log.event(
                self.position.step, "rollback", f"{describe_spike(spike)}; back to step {self.position.step}"
            )

    def evaluate(self) -> None:
        """Loss on the fixed windows of every validation set, and tasks at milestones; then what the monitor does."""
        self._progress("evaluating", force=True)
        step, begun = self.position.step, time.perf_counter()
        self.model.eval()
        losses = {data.name: self._validation_loss(data) for data in self.parts.validation}
        self.model.train()
        for name, loss in losses.items():
            if not math.isfinite(loss):
                raise RunFailedError(
                    f"{LOSS_PREFIX}{name} must be finite; got {loss} at step {step} in {self.run_dir}.",
                    hint="lower peak_lr or lengthen the warm-up",
                )
        scores = self._task_scores() if self.spec.tasks is not None and step in milestones(self.spec) else None
        penalty = self.anchor.penalty(self.watchers.anchor_strength(step)) if self.anchor is not None else None
        seconds = time.perf_counter() - begun
        self.position = replace(self.position, eval_seconds=self.position.eval_seconds + seconds)
        if self.main:
            self._log_evaluation(losses, scores, None if penalty is None else float(penalty), seconds)
        interventions = self.watchers.evaluated(step, losses, self.parts.data.tokens_by_source(step), scores)
        for intervention in interventions:
            if self.main:
                logger.warning("%s", describe(intervention))
                self.log.event(step, intervention.action, describe(intervention))
        if interventions:
            self._obey_watchers()

    @torch.no_grad()
    def _validation_loss(self, data: ValidationData) -> float:
        """Mean over tokens, float64. Every process runs as many windows as the others; repeats of the last are cut."""
        parts = self.parts
        share = math.ceil(data.num_windows / self.accelerator.num_processes)
        mine = np.minimum(np.arange(share) + self.rank * share, data.num_windows - 1)
        means, counts = [], []
        for numbers in np.split(mine, range(parts.forward_size, share, parts.forward_size)):
            rows = self._to_device(data.read(numbers))
            counted = num_predicted(rows, parts.eos_token_id)
            losses = token_losses(self.model, rows, parts.eos_token_id)
            means.append(losses.sum(dim=1) / counted.clamp(min=1))
            counts.append(counted)
        every = self._gather(torch.stack([torch.cat(means).double(), torch.cat(counts)], dim=1)).reshape(-1, 2)
        means_of_all, counts_of_all = every[: data.num_windows].T
        return float(np.average(means_of_all, weights=counts_of_all))

    def _task_scores(self) -> dict[str, float]:
        """Scores of the benchmarks on the main process, which has the whole model; the others wait."""
        parts, settings, state = self.parts, self.spec.tasks, self.parts.full_state()
        assert settings is not None

        def scores() -> dict[str, float]:
            model = parts.standalone(parts.plain_state(state))
            return evaluate_tasks(model, parts.tokenizer, settings, batch_size=parts.forward_size)

        return distributed.on_main(scores, self.accelerator)

    def _obey_watchers(self) -> None:
        """Take the rates and the mixture that the monitor's actions so far make of those of the spec."""
        self.rates, ratios = self.watchers.rates(), self.watchers.replay_ratios()
        self.parts.data.set_replay(ratios)
        self.log.follow(self.rates, ratios)

    def export(self) -> None:
        """Write the weights as a model directory in the type of the base model; adapters merged, and by themselves."""
        self._progress("exporting", force=True)
        state, tokenizer, dtype = self.parts.full_state(), self.parts.tokenizer, stored_dtype(self.spec.model)
        if not self.main:
            return
        directory = self.run_dir / "export" / f"step-{self.position.step}"
        card = model_card(self.spec, self.parts, self.position.step, self.log)
        export_model(directory, self.parts.unwrapped, self.parts.plain_state(state), tokenizer, card, dtype=dtype)
        if self.parts.adapted:
            from executor.adapters import export_adapter

            export_adapter(directory / "adapter", self.parts.unwrapped, state)

    def save(self) -> None:
        """Write a checkpoint, after the log that it counts on."""
        metrics_bytes = distributed.on_main(self.log.sync, self.accelerator)
        self.position = replace(
            self.meter.stamp(self.position), metrics_bytes=metrics_bytes, watched=self.watchers.state()
        )
        self.checkpoints.save(self.model, self.optimizer, self.position)

    def finish(self) -> None:
        """Write the result, which marks the run complete, and drop the checkpoints."""
        distributed.on_main(self._write_result, self.accelerator)
        self.accelerator.end_training()

    def _write_result(self) -> None:
        self.position = self.meter.stamp(self.position)
        if self.watchers.stopped:  # the curve ends here, whatever was planned
            steps = self.position.step
            self.log.follow(self.rates[:steps], self.watchers.replay_ratios()[:steps])
            self.log.write_curve()
        found = run_result(self.spec, self.parts, self.position, self.log, self.watchers)
        write_json(self.run_dir / "result.json", found | self.meter.cost())
        self.checkpoints.remove()
        self._progress("done", force=True)

    def _log_step(self, lr: float, found: Step, seconds: float, applied: bool) -> None:
        step, spec = self.position.step, self.spec
        values = {
            "step": step,
            "lr": lr,
            "train_loss": found.loss,
            "grad_norm": found.grad_norm,
            "tokens": step * spec.batch_tokens,
            "tokens_by_source": self.parts.data.tokens_by_source(step),
            **({} if applied else {"left_out": True}),
            **({"domain_weights": self.watchers.weights.weights} if self.watchers.weights is not None else {}),
            **self.meter.line(spec.batch_tokens, seconds, found.data_seconds),
        }
        self.log.step(**values)
        self.trackers.log(step, values)
        self._progress("training", loss=found.loss)

    def _log_evaluation(
        self, losses: dict[str, float], scores: dict[str, float] | None, penalty: float | None, seconds: float
    ) -> None:
        step = self.position.step
        first = (self.log.losses(0) or losses) if self.spec.phase == "cpt" else None
        more = readings(losses, first, self.bytes_per_token)
        more |= {"task_scores": scores} if scores is not None else {}
        more |= {"anchor_penalty": penalty} if penalty is not None else {}
        self.log.evaluation(step, losses, seconds, **more)
        self.trackers.log(step, {"loss": losses, **more})
        found = ", ".join(f"{LOSS_PREFIX}{name} {loss:.4f}" for name, loss in losses.items())
        logger.info("step %d of %d: %s", step, self.spec.total_steps, found)

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

    def _to_device(self, rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(rows).to(self.accelerator.device)


def _whole(norm: torch.Tensor) -> torch.Tensor:
    """The gradient norm over all shards (a DTensor under FSDP2)."""
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm
