"""What a run is made of, opened and checked in order: processes, data, model, optimizer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from accelerate import Accelerator
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cptplan.errors import DataError
from cptplan.run_options import Anchor as AnchorSettings
from cptplan.run_spec import ModelSource, RunSpec
from executor import distributed
from executor.corpus.pack import open_shard
from executor.corpus.verify import require_one_tokenizer, verify_shard
from executor.data import TokenSource, TrainingData, ValidationData, open_validation
from executor.isolation import check_isolation
from executor.model import Loading, check_vocabulary, count_params, load_model, num_used_params, tied_names
from executor.objective import token_losses
from executor.regularize import Anchor, freeze
from executor.tasks import check_tasks


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of one run on one process."""

    accelerator: Accelerator
    share: int
    """Sequences of one step on this process."""
    forward_size: int
    """Sequences of one forward pass."""
    data: TrainingData
    validation: tuple[ValidationData, ...]
    eos_token_id: int | None
    """Of isolated documents; None when a token sees all of its row."""
    tokenizer: PreTrainedTokenizerBase | None
    model: torch.nn.Module
    """Wrapped for its processes."""
    optimizer: torch.optim.Optimizer
    tied: frozenset[str]
    num_params: int
    num_params_total: int
    num_params_used: int
    """Parameters that each token goes through: all but the embeddings, the output layer with them."""
    reference: PreTrainedModel | None
    """Frozen, for reweighting."""
    adapted: bool
    """Whether adapters are trained in place of the weights."""

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """What is trained."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    @property
    def unwrapped(self) -> PreTrainedModel:
        """The model itself, sharded under FSDP2."""
        return cast(PreTrainedModel, self.accelerator.unwrap_model(self.model))

    @property
    def tokenizer_hash(self) -> str | None:
        """Of the tokenizer that packed the shards; None where they do not say."""
        return next((source.index.tokenizer_hash for source in self.data.sources.values()), None) or None

    def bytes_per_token(self) -> dict[str, float]:
        """Of the text of every validation set."""
        decode = self.tokenizer.decode if self.tokenizer is not None else None
        return {held.name: held.bytes_per_token(decode) for held in self.validation}

    def full_state(self) -> dict[str, torch.Tensor]:
        """All weights as the trained model names them, each under one name, on the main process; else empty.

        Called by all processes.
        """
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_model_state_dict(self.model, options=options)
        return {name: tensor for name, tensor in state.items() if name not in self.tied}

    def plain_state(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The same with adapters merged: the weights of a model without them."""
        if not self.adapted:
            return state
        from executor.adapters import merged_state  # imported here: most runs need not wait for peft

        return merged_state(self.unwrapped, state)

    def standalone(self, plain: dict[str, torch.Tensor]) -> PreTrainedModel:
        """A model of its own with these weights, whole on the device of this process."""
        model = type(self.unwrapped)(self.unwrapped.config)
        model.load_state_dict(plain, strict=False)
        model.tie_weights()
        return model.eval().to(self.accelerator.device)

    def anchor(self, spec: RunSpec) -> Anchor | None:
        """The pull back to the weights as they are now: to be made before a checkpoint changes them."""
        kind = spec.anchor.kind if spec.anchor is not None else ("ewc" if "ewc" in spec.actions else None)
        if kind is None:
            return None
        anchor = Anchor(self.parameters)
        if kind == "ewc":
            number = (spec.anchor or AnchorSettings(kind="ewc", strength=1.0)).fisher_sequences
            rows = self.data.sources[0].read(np.arange(number), spec.seq_len)
            sequences = torch.from_numpy(rows).to(self.accelerator.device).split(1)
            anchor.measure_fisher(self.model, sequences, lambda model, row: token_losses(model, row, self.eos_token_id))
        return anchor


def open_parts(spec: RunSpec, run_dir: Path, *, fresh: bool) -> Parts:
    """Open and check everything that a run needs.

    Args:      run_dir: where trackers may write. fresh: whether the run begins: then every shard is read once as a
               whole and compared with its checksum.
    Raises:    CptplanError of the part that does not fit, in the order in which people can mend them.
    """
    accelerator = distributed.open_accelerator(spec, run_dir)
    share = distributed.sequences_per_process(spec, accelerator.num_processes)
    forward_size = distributed.sequences_per_forward(spec, share)
    data = TrainingData(spec)
    validation = tuple(open_validation(chosen, spec.seq_len) for chosen in spec.validation)
    _check_shards(spec, data, validation)
    if distributed.share_from_main(fresh, accelerator):
        _verify_shards(spec, accelerator)
    model, tokenizer = load_model(spec)
    if (tasks := spec.tasks) is not None:
        distributed.on_main(lambda: check_tasks(tasks, tokenizer), accelerator)
    shards = (*data.sources.values(), *validation)
    check_vocabulary(model, tokenizer, {shard.name: shard.index.vocab_size for shard in shards})
    num_params_total, num_params = count_params(model)
    num_params_used = num_used_params(model)
    eos_token_id = _eos_token_id(shards) if spec.isolate_documents else None
    freeze(model, spec.freeze)
    if spec.lora is not None:
        from executor.adapters import apply_lora

        torch.manual_seed(spec.seed)
        model = apply_lora(model, spec.lora)
    tied = tied_names(model)
    wrapped, optimizer = distributed.prepare(accelerator, model, spec)
    if eos_token_id is not None:
        check_isolation(wrapped, eos_token_id, spec.seq_len)
    return Parts(
        accelerator=accelerator,
        share=share,
        forward_size=forward_size,
        data=data,
        validation=validation,
        eos_token_id=eos_token_id,
        tokenizer=tokenizer,
        model=wrapped,
        optimizer=optimizer,
        tied=tied,
        num_params=num_params,
        num_params_total=num_params_total,
        num_params_used=num_params_used,
        reference=_reference(spec, accelerator.device),
        adapted=spec.lora is not None,
    )


def _check_shards(spec: RunSpec, data: TrainingData, validation: tuple[ValidationData, ...]) -> None:
    named = {source.name: source.index for source in data.sources.values()}
    require_one_tokenizer({**{f"{held.name} (validation)": held.index for held in validation}, **named})


def _verify_shards(spec: RunSpec, accelerator: Accelerator) -> None:
    distributed.spread(
        [source.path for source in spec.sources],
        lambda path: verify_shard(open_shard(Path(path), "train")),
        accelerator,
    )
    distributed.spread(
        [held.path for held in spec.validation],
        lambda path: verify_shard(open_shard(Path(path), "validation")),
        accelerator,
    )


def _eos_token_id(shards: Iterable[TokenSource | ValidationData]) -> int:
    """The end of text that all shards share.

    Raises:    DataError if they do not.
    """
    found = {shard.name: shard.index.eos_token_id for shard in shards}
    if len(set(found.values())) > 1:
        raise DataError(
            f"shards must share one end-of-text token to isolate documents; got {found}.",
            hint="pack the corpora again with one tokenizer",
        )
    return next(iter(found.values()))


def _reference(spec: RunSpec, device: torch.device) -> PreTrainedModel | None:
    if spec.reweight is None:
        return None
    source = ModelSource(path=spec.reweight.reference, trust_remote_code=spec.model.trust_remote_code)
    loading = Loading(model=source, seq_len=spec.seq_len, attention=spec.attention, precision=spec.precision)
    model, _ = load_model(loading)
    return model.eval().requires_grad_(False).to(device)
