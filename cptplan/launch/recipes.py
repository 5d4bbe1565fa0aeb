"""Recipes for other trainers: which there are, what each keeps of a plan, and what its NOTES say.

Which one: llama-factory (per-set validation, FSDP2), deepspeed (the same trainer under ZeRO-3: the bundled trainer
knows FSDP2 and DDP alone), axolotl, nemo-automodel (Megatron token files), torchtitan (Llama 3 and Qwen 3).
All but nemo-automodel read the run's own sequences in their order, so the replay ratio is exact in tokens, ramps too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cptplan.errors import ConfigError
from cptplan.launch.automodel import automodel_files, megatron_rates
from cptplan.launch.hf_recipes import axolotl_files, llama_factory_files, trainer_rates
from cptplan.launch.recipe import (
    AREA_TOLERANCE,
    LOSABLE,
    FloatArray,
    Recipe,
    area_change,
    check_losses,
    pads_with_end_of_text,
    used_features,
)
from cptplan.launch.torchtitan import titan_files, titan_rates


@dataclass(frozen=True, kw_only=True, slots=True)
class Trainer:
    """A trainer that recipes are written for."""

    title: str
    files: Callable[[Recipe], dict[str, str]]
    rates: Callable[[Recipe], FloatArray]
    reads: str
    """sequences: the run's own, in their order; megatron: token files."""
    keeps: frozenset[str] = frozenset()
    """What it can express of LOSABLE."""
    masks_padding: bool = False
    bf16_weights: bool = False
    notes: tuple[str, ...] = ()
    """What it cannot express and does not move the loss, or by less than can be told from seeds."""


_ORDER = "The data are the run's own sequences in their order: replay is exact in tokens at every step, ramps included."
_EVALS = "Validation comes at even steps (each {every}), not at the plan's, which are dense early."
_MASTER = "The starting weights are rounded to bf16 once when loaded, then kept in float32."
_LLAMA_FACTORY = (
    _ORDER,
    _EVALS + " One loss for each set: `eval_general_loss` and so on.",
    _MASTER,
    "Resuming skips the sequences that were read, one by one.",
)

TRAINERS: Mapping[str, Trainer] = {
    "llama-factory": Trainer(
        title="LLaMA-Factory", files=llama_factory_files, rates=trainer_rates, reads="sequences",
        keeps=frozenset({"ramped_replay"}), masks_padding=True, notes=_LLAMA_FACTORY,
    ),
    "deepspeed": Trainer(
        title="LLaMA-Factory under DeepSpeed ZeRO-3", files=llama_factory_files, rates=trainer_rates,
        reads="sequences", keeps=frozenset({"ramped_replay"}), masks_padding=True,
        notes=("The bundled trainer knows FSDP2 and DDP alone; this recipe is for one that knows DeepSpeed.",
               *_LLAMA_FACTORY),
    ),
    "axolotl": Trainer(
        title="axolotl", files=axolotl_files, rates=trainer_rates, reads="sequences",
        keeps=frozenset({"ramped_replay"}), bf16_weights=True,
        notes=(_ORDER, "There is no validation: evaluate what it saves.",
               "Resuming skips the sequences that were read, one by one."),
    ),
    "nemo-automodel": Trainer(
        title="NeMo Automodel", files=automodel_files, rates=megatron_rates, reads="megatron",
        notes=("Sources are mixed by their share of the tokens, over the whole run and not step by step; each is read "
               "in a shuffle of its own.", _EVALS + " One loss for each set."),
    ),
    "torchtitan": Trainer(
        title="torchtitan", files=titan_files, rates=titan_rates, reads="sequences",
        keeps=frozenset({"ramped_replay"}),
        notes=(_ORDER, "There is no validation: evaluate what it saves.",
               "The flavor must have the shapes of the model: torchtitan has a list of its own."),
    ),
}  # fmt: skip
"""Trainers by target."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RecipeFiles:
    """Texts of a recipe by file name, and what its NOTES must say."""

    trainer: Trainer
    texts: Mapping[str, str]
    lost: tuple[str, ...]
    area_change: float
    same_rates: bool
    notes: tuple[str, ...]

    @property
    def lost_lines(self) -> list[str]:
        """One line for each thing that is lost."""
        return [f"`{name}`: {LOSABLE[name]}." for name in self.lost]


def build_recipe(recipe: Recipe, project_dir: Path, allowed: Sequence[str]) -> RecipeFiles:
    """The files of a recipe.

    Args:      project_dir: where relative paths start. allowed: names of what may be lost.
    Raises:    ConfigError for what the trainer cannot express and is not allowed to lose.
    """
    trainer = TRAINERS[recipe.target]
    if "$" in recipe.model + recipe.here:
        raise ConfigError(
            f"paths must be without $ for target {recipe.target}, which would put variables in; got {recipe.model!r} "
            f"and {recipe.here!r}.",
            hint="rename the directory",
        )
    rates = trainer.rates(recipe)
    change = area_change(recipe.spec, rates)
    lost = used_features(recipe.spec) - trainer.keeps
    lost |= {"warmup"} if abs(change) > AREA_TOLERANCE else set()
    lost |= {"end_of_text"} if trainer.masks_padding and pads_with_end_of_text(project_dir / recipe.model) else set()
    lost |= {"float32_weights"} if trainer.bf16_weights and recipe.spec.precision == "bf16" else set()
    return RecipeFiles(
        trainer=trainer,
        texts=trainer.files(recipe),
        lost=check_losses(recipe.target, lost, allowed),
        area_change=change,
        same_rates=bool(np.allclose(rates, recipe.spec.lr(), rtol=1e-9)),
        notes=tuple(note.format(every=recipe.eval_every) for note in trainer.notes),
    )
