"""Average weights after training: a base and its adapted model in several shares, or the last checkpoints of a run.

    python -m executor.soup --base DIR --adapted DIR --validation general=SHARDS --validation domain=SHARDS \\
        --weights general=0.4,domain=0.6 --out DIR
    python -m executor.soup --average DIR DIR DIR --validation general=SHARDS --out DIR

Writes <out>/model, a model directory, and last <out>/soup.json with every loss that was measured.
Reference: Wortsman et al. 2022, arXiv:2109.01903 (base and adapted model) and arXiv:2203.05482 (several models).
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cptplan.errors import ConfigError, suggest
from cptplan.files import write_json
from cptplan.run_spec import ModelSource, ValidationSet
from executor.command import run_command
from executor.data import ValidationData, open_validation
from executor.export import export_model
from executor.frozen import load_frozen, validation_losses
from executor.isolation import check_isolation
from executor.model import check_vocabulary, stored_dtype, tied_names
from executor.run_lock import only_one
from executor.weights import check_alike, interpolate, open_weights

logger = logging.getLogger(__name__)

MODEL, RESULT = "model", "soup.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """The model at one share of the adapted weights."""

    coefficient: float
    """theta = (1 - coefficient) x base + coefficient x adapted."""
    losses: dict[str, float]
    """Validation losses, nats per token."""
    score: float
    """Weighted sum of the changes of the losses against the base; less is better."""


def choose(candidates: Iterable[Candidate]) -> Candidate:
    """The candidate of the lowest score; of equal ones the nearest to the base."""
    return min(candidates, key=lambda candidate: (candidate.score, candidate.coefficient))


@dataclass(frozen=True, kw_only=True)
class Averager:
    """One model in memory that takes on weighted sums of several directories, and what they are measured on."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    dtype: torch.dtype
    """Type of the stored weights of the first directory, which an export has too."""
    states: tuple[Mapping[str, torch.Tensor], ...]
    """Weights of every directory."""
    sets: tuple[ValidationData, ...]
    batch_size: int
    isolate_documents: bool

    def mix(self, *weights: float) -> None:
        """Give the model the weighted sum of the directories' weights."""
        places = self.model.state_dict()
        for name, tensor in interpolate(self.states, weights):
            places[name].copy_(tensor)

    def measure(self) -> dict[str, float]:
        """Validation losses of the model as it is now."""
        return validation_losses(
            self.model, self.sets, batch_size=self.batch_size, isolate_documents=self.isolate_documents
        )

    def export(self, directory: Path) -> None:
        """Write the model as it is now."""
        tied = tied_names(self.model)
        state = {name: tensor for name, tensor in self.model.state_dict().items() if name not in tied}
        export_model(directory, self.model, state, self.tokenizer, dtype=self.dtype)


def open_averager(directories: Sequence[Path], options: argparse.Namespace) -> Averager:
    """Load the first model, and open the weights of all and the validation sets.

    Raises:    ConfigError, DataError or ModelError for what does not fit together.
    """
    if (options.out / MODEL).resolve() in [directory.resolve() for directory in directories]:
        raise ConfigError(f"out must not hold a model to average; got {options.out}.", hint="choose another --out")
    check_alike(directories)
    sets = tuple(open_validation(each, options.seq_len) for each in _validation_sets(options))
    model, tokenizer = load_frozen(directories[0], seq_len=options.seq_len)
    check_vocabulary(model, tokenizer, {each.name: each.index.vocab_size for each in sets})
    for each in sets if options.isolate_documents else ():
        check_isolation(model, each.index.eos_token_id, options.seq_len)
    return Averager(
        model=model,
        tokenizer=tokenizer,
        dtype=stored_dtype(ModelSource(path=str(directories[0].absolute()))),
        states=tuple(open_weights(directory, model) for directory in directories),
        sets=sets,
        batch_size=options.batch_size,
        isolate_documents=options.isolate_documents,
    )


def sweep(options: argparse.Namespace) -> None:
    """Measure the shares of the adapted model, and export the best one; the base is measured in any case."""
    coefficients = _coefficients(options.coefficients)
    sets = [each.name for each in _validation_sets(options)]
    weights = _weights(options.weights, sets)
    averager = open_averager((options.base, options.adapted), options)
    candidates: list[Candidate] = []
    for a in coefficients:
        averager.mix(1.0 - a, a)
        losses = averager.measure()
        base = candidates[0].losses if candidates else losses
        score = sum(weights[name] * (losses[name] - base[name]) for name in sets)
        candidates.append(Candidate(coefficient=a, losses=losses, score=score))
        logger.info("coefficient %g: %s, score %+.4f", a, _said(losses), score)
    best = choose(candidates)
    averager.mix(1.0 - best.coefficient, best.coefficient)
    averager.export(options.out / MODEL)
    logger.info("coefficient %g is the best", best.coefficient)
    found = {
        "base": str(options.base),
        "adapted": str(options.adapted),
        "weights": weights,
        "table": [asdict(candidate) for candidate in candidates],
        "chosen": best.coefficient,
    }
    _write_result(options, averager, found)


def average(options: argparse.Namespace) -> None:
    """Export the mean of several models, measured beside each of them."""
    directories: list[Path] = options.average
    averager = open_averager(directories, options)
    table = []
    for place, directory in enumerate(directories):
        averager.mix(*(float(place == other) for other in range(len(directories))))
        losses = averager.measure()
        table.append({"model": str(directory), "losses": losses})
        logger.info("%s: %s", directory, _said(losses))
    averager.mix(*[1.0 / len(directories)] * len(directories))
    mean = averager.measure()
    averager.export(options.out / MODEL)
    logger.info("average: %s", _said(mean))
    _write_result(options, averager, {"table": table, "average": mean})


def _write_result(options: argparse.Namespace, averager: Averager, found: Mapping[str, Any]) -> None:
    measured = {
        "eval_tokens": {each.name: each.num_tokens for each in averager.sets},
        "seq_len": options.seq_len,
        "isolate_documents": options.isolate_documents,
        "model": MODEL,
    }
    write_json(options.out / RESULT, {"schema_version": 1, **found, **measured})


def _said(losses: Mapping[str, float]) -> str:
    return ", ".join(f"loss_{name} {loss:.4f}" for name, loss in losses.items()) or "not measured"


def _coefficients(text: str) -> list[float]:
    """Rising, without repeats, from 0."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = [math.nan]
    if not all(0.0 <= value <= 1.0 for value in values):
        raise ConfigError(f"coefficients must be numbers in [0, 1]; got {text}.", hint="0,0.25,0.5,0.75,1")
    return sorted({0.0, *values})


def _validation_sets(options: argparse.Namespace) -> list[ValidationSet]:
    sets = {}
    for given in options.validation:
        name, _, path = given.partition("=")
        if not name or not path or name in sets:
            raise ConfigError(
                f"validation must be name=directory, each name once; got {given}.", hint="general=data/general"
            )
        sets[name] = ValidationSet.parse({"name": name, "path": path, "num_tokens": options.num_tokens}, "--validation")
    return list(sets.values())


def _weights(text: str, sets: Sequence[str]) -> dict[str, float]:
    """The weight of every set, 1 together; sets that are not named share the rest of 1 equally."""
    given = dict.fromkeys(sets, math.nan)
    for part in text.split(","):
        name, _, raw = part.strip().partition("=")
        if name not in given:
            raise ConfigError(
                f"weights must name a validation set; got {part.strip()}.",
                hint=suggest(name, sets) or f"known: {', '.join(sets)}",
            )
        try:
            given[name] = float(raw)
        except ValueError:
            given[name] = -1.0
        if not 0.0 <= given[name] < math.inf:
            raise ConfigError(f"weights must be numbers >= 0; got {part.strip()}.", hint="general=0.4,domain=0.6")
    unnamed = [name for name, weight in given.items() if math.isnan(weight)]
    rest = max(1.0 - sum(weight for weight in given.values() if not math.isnan(weight)), 0.0)
    given.update({name: rest / len(unnamed) for name in unnamed})
    total = sum(given.values())
    if not total:
        raise ConfigError(f"weights must not all be zero; got {text}.", hint="general=0.4,domain=0.6")
    return {name: weight / total for name, weight in given.items()}


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m executor.soup", description=__doc__.splitlines()[0])
    models = parser.add_mutually_exclusive_group(required=True)
    models.add_argument("--base", type=Path, help="model directory before training")
    models.add_argument("--average", type=Path, nargs="+", help="model directories to average")
    parser.add_argument("--adapted", type=Path, help="model directory after training, with --base")
    parser.add_argument("--validation", action="append", default=[], help="name=directory of shards; repeat it")
    parser.add_argument("--weights", help="what counts, such as general=0.4 (the others share the rest), with --base")
    parser.add_argument("--coefficients", default="0,0.25,0.5,0.75,1", help="shares of the adapted model to measure")
    parser.add_argument("--num-tokens", type=int, default=200_000, help="validation tokens of each set, at most")
    parser.add_argument("--seq-len", type=int, default=1024, help="tokens of a validation window")
    parser.add_argument("--batch-size", type=int, default=8, help="windows of one forward pass")
    parser.add_argument("--isolate-documents", action="store_true", help="let a token see only its own document")
    parser.add_argument("--out", type=Path, required=True, help="directory for the model and soup.json")
    options = parser.parse_args(arguments)
    if options.base and not (options.adapted and options.validation and options.weights):
        parser.error("--base needs --adapted, --validation and --weights")
    if options.average and (options.adapted or options.weights or len(options.average) < 2):
        parser.error("--average takes two or more directories, and neither --adapted nor --weights")
    if min(options.seq_len, options.batch_size) < 1:
        parser.error("--seq-len and --batch-size must be at least 1")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parse(arguments)

    def work() -> None:
        with only_one(options.out / ".lock"):
            (options.out / RESULT).unlink(missing_ok=True)  # it must not describe another model
            sweep(options) if options.base else average(options)

    return run_command(work, options.out)


if __name__ == "__main__":
    sys.exit(main())
