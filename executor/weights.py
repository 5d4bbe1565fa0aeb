"""Weighted sums of whole models, one tensor at a time, read from their files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PreTrainedModel

from cptplan.errors import ModelError
from cptplan.files import read_json
from executor.frozen import load_frozen
from executor.model import LOAD_ERRORS, tied_names

# none of these changes what a model computes for given tokens, and a hub directory and its export differ in them
WITHOUT_EFFECT = {
    *("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"),
    *("rope_theta", "rope_scaling"),  # rope_parameters says what these say
    *("bos_token_id", "eos_token_id", "pad_token_id"),
}
SAME_MODEL = "average checkpoints of one model"


def interpolate(
    states: Sequence[Mapping[str, torch.Tensor]], weights: Sequence[float]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Weighted sum of models, one tensor after the other: sum over i of weights[i] x states[i], in float32.

    Args:      states: weights by name; a state may read a tensor only when asked for it. weights: one per state, 1
               together for a mean.
    Raises:    ModelError if a name is not in all states, or a tensor has another shape in one.
    """
    first = states[0]
    for number, state in enumerate(states[1:], start=2):
        if different := sorted(first.keys() ^ state.keys()):
            raise ModelError(
                f"models must have the same weights; got {different[0]} in only one of models 1 and {number}.",
                hint=SAME_MODEL,
            )
    for name in first:
        tensors = [state[name] for state in states]
        shapes = [tuple(tensor.shape) for tensor in tensors]
        if len(set(shapes)) > 1:
            found = ", ".join(str(shape) for shape in shapes)
            raise ModelError(f"models must have weights of the same shapes; got {found} for {name}.", hint=SAME_MODEL)
        total = torch.zeros(shapes[0], dtype=torch.float32)
        for tensor, weight in zip(tensors, weights, strict=True):
            total.add_(tensor.to("cpu", torch.float32), alpha=weight)
        yield name, total


class StoredWeights(Mapping[str, torch.Tensor]):
    """The weights in the files of a model directory, under the names that the loaded model has for them."""

    def __init__(self, directory: Path, names: Iterable[str], prefix: str) -> None:
        """Find the names in the files; those that no file holds are left out.

        Args:      names: of the loaded model. prefix: of its body, which some files leave out.
        Raises:    ModelError if a file cannot be read.
        """
        wanted = set(names)
        self._places: dict[str, tuple[Any, str]] = {}
        for path in _weight_files(directory):
            try:
                handle = safe_open(path, framework="pt")
            except (OSError, SafetensorError) as error:
                raise ModelError(f"weights must be readable; got {error} in {path}.", hint="copy them again") from error
            for key in handle.keys():  # noqa: SIM118 - the handle is no mapping
                name = key if key in wanted else prefix + key
                if name in wanted:
                    self._places[name] = (handle, key)

    def __getitem__(self, name: str) -> torch.Tensor:
        handle, key = self._places[name]
        tensor: torch.Tensor = handle.get_tensor(key)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _weight_files(directory: Path) -> list[Path]:
    index = directory / "model.safetensors.index.json"
    names = set(read_json(index)["weight_map"].values()) if index.is_file() else {"model.safetensors"}
    return [directory / name for name in sorted(names)]


def open_weights(directory: Path, model: PreTrainedModel) -> Mapping[str, torch.Tensor]:
    """The weights of a directory under the names of a loaded model, tied ones once.

    Where the files have another layout than the model in memory (such as experts one by one), it is loaded as a whole.
    """
    tied = tied_names(model)
    names = [name for name in model.state_dict() if name not in tied]
    stored = StoredWeights(directory, names, f"{model.base_model_prefix}.")
    if len(stored) == len(names):
        return stored
    whole = load_frozen(directory)[0].state_dict()
    return {name: tensor for name, tensor in whole.items() if name not in tied}


def _settings(directory: Path) -> dict[str, Any]:
    if not (directory / "config.json").is_file():
        raise ModelError(f"model directory must hold config.json; got none in {directory}.", hint="check the path")
    try:
        settings: dict[str, Any] = AutoConfig.from_pretrained(directory).to_dict()
    except LOAD_ERRORS as error:
        reason = str(error).strip().split("\n")[0]
        raise ModelError(f"model must load; got {reason} for {directory}.", hint="check its config.json") from error
    return settings


def check_alike(directories: Sequence[Path]) -> None:
    """Refuse models that are not checkpoints of one.

    Raises:    ModelError naming a directory without a model, or the first setting that differs.
    """
    first, *others = (_settings(directory) for directory in directories)
    for directory, other in zip(directories[1:], others, strict=True):
        for key in sorted((first.keys() | other.keys()) - WITHOUT_EFFECT):
            if first.get(key) != other.get(key):
                raise ModelError(
                    f"models must have the same configuration; got {key} {first.get(key)} in {directories[0]} and "
                    f"{other.get(key)} in {directory}.",
                    hint=SAME_MODEL,
                )
