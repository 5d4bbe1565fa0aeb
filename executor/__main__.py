"""`python -m executor COMMAND ...`: the trainer and its tools, each a process of its own, planner or not."""

from __future__ import annotations

import runpy
import sys

COMMANDS = {
    "train": (
        "executor.train",
        "train one run: a directory with spec.json (also under accelerate launch and torchrun)",
    ),
    "corpus": ("executor.corpus", "from documents to token shards"),
    "megatron": ("executor.corpus.megatron", "a token shard as Megatron-LM's .bin and .idx"),
    "reweight": ("executor.reweight", "learn the shares of several domains from a reference and a proxy run (DoReMi)"),
    "synthesize": ("executor.synthesize", "sample replay text from the frozen base model"),
    "soup": ("executor.soup", "average the weights of a base and an adapted model, or of several checkpoints"),
}

USAGE = """usage: python -m executor COMMAND [options]

{commands}

python -m executor COMMAND --help says more. A run needs no planner: pack a corpus, write spec.json (docs/executor.md),
and start python -m executor train --run-dir DIR; torchrun -m executor.train --run-dir DIR takes several devices.
"""


def main(arguments: list[str]) -> int:
    """Run a command, or say which there are. Returns the exit code, unless the command ends the process itself."""
    usage = USAGE.format(commands="\n".join(f"  {name:12}{about}" for name, (_, about) in COMMANDS.items()))
    if not arguments or arguments[0] in ("-h", "--help"):
        (sys.stdout if arguments else sys.stderr).write(usage)
        return 0 if arguments else 2
    name = arguments[0]
    if name not in COMMANDS:
        from cptplan.errors import suggest

        hint = suggest(name, COMMANDS) or f"one of {', '.join(COMMANDS)}"
        sys.stderr.write(f"error: COMMAND must be known; got {name}.\nhint: {hint}\n")
        return 2
    sys.argv = [f"python -m executor {name}", *arguments[1:]]
    runpy.run_module(COMMANDS[name][0], run_name="__main__", alter_sys=False)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
