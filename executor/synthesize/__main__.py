"""Synthetic replay: texts sampled from a frozen base model, where there is none of the data that it was trained on.

    python -m executor.synthesize --model DIR --prompts data/general --tokens 1000000 --out DIR

Each text goes on from the first tokens of another place of the general corpus. <out>/synthetic.jsonl is a corpus of
kind files; <out>/synthetic.json comes last and says how it was made. A batch depends on its number and the seed alone,
so a process that was killed and started again writes the same files as one that was not.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cptplan.errors import RunFailedError
from cptplan.files import hash_file, hash_json, read_json
from executor.command import run_command
from executor.run_lock import only_one
from executor.synthesize.generate import Generator, Settings, open_generator
from executor.synthesize.judge import TextFilter
from executor.synthesize.texts import TextFile

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0


def synthesize(model: Path, prompts: Path, settings: Settings, out: Path) -> None:
    """Bring a directory of synthetic texts to completion.

    Raises:    ConfigError, DataError or ModelError for bad input; StorageError if the directory holds other texts;
               RunFailedError if no text is worth keeping, or the disk is full.
    """
    generator = open_generator(model, prompts, settings)
    file = TextFile(
        out=out,
        origin=_origin(model, generator),
        tokenizer=generator.tokenizer,
        judge=TextFilter(settings.tokens),
    )
    if file.is_complete():
        logger.info("%s is complete", out)
        return
    file.resume()
    counts, said = file.counts, time.monotonic()
    while counts.tokens < settings.tokens and counts.batches < generator.num_batches:
        file.add(generator.texts(counts.batches), settings.tokens)
        if time.monotonic() - said >= SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            logger.info("%d of %d tokens in %d texts", counts.tokens, settings.tokens, counts.kept)
    if not counts.kept:
        raise RunFailedError(
            f"model must write texts worth keeping; got {counts.degenerate} degenerate of {counts.generated}.",
            hint="take another model, temperature or top_p",
        )
    if counts.tokens < settings.tokens:
        logger.warning("all places of the prompts are used, and the tokens are fewer than were asked for")
    file.finish({"model": str(model), "prompts": str(prompts)})
    logger.info(
        "%d tokens in %d texts; %d duplicate and %d degenerate ones dropped",
        counts.tokens,
        counts.kept,
        counts.duplicate,
        counts.degenerate,
    )


def _origin(model: Path, generator: Generator) -> dict[str, Any]:
    """All that the texts depend on, wherever it lies."""
    return {
        "config_hash": hash_json(read_json(model / "config.json")),
        "weights_hash": hash_json({path.name: hash_file(path) for path in model.glob("*.safetensors")}),
        "tokenizer_hash": generator.tokenizer.hash,
        "prompts_hash": generator.prompts.content,
        "settings": generator.settings.to_json(),
    }


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m executor.synthesize", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="model directory of the base")
    parser.add_argument("--prompts", type=Path, required=True, help="packed general corpus, or one of plain files")
    parser.add_argument("--tokens", type=int, required=True, help="tokens to write")
    parser.add_argument("--out", type=Path, required=True, help="directory for synthetic.jsonl and synthetic.json")
    parser.add_argument("--batch-size", type=int, default=16, help="texts of one batch")
    parser.add_argument("--prompt-tokens", type=int, default=16, help="tokens of the corpus that each text begins with")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="tokens that the model adds at most")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-p", type=float, default=0.95, help="share of the probability that is sampled from")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32", help="of the weights")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parse(arguments)

    def work() -> None:
        given = {name: getattr(options, name) for name in Settings.model_fields}
        settings = Settings.parse(given, "the command line")
        with only_one(options.out / ".lock"):
            synthesize(options.model, options.prompts, settings, options.out)

    return run_command(work, options.out)


if __name__ == "__main__":
    sys.exit(main())
