"""Learn the weights of the domain sources: python -m executor.reweight --spec spec.json --run-dir DIR.

DoReMi (Xie et al. 2023, arXiv:2305.10429, algorithm 1) over the domain sources; general replay keeps its share.
DIR/reference is trained with the spec's own weights; DIR/proxy is trained to be nowhere far worse than the reference,
which tells how much each domain has to teach; DIR/weights.json holds the weights found and DIR/spec.json the spec with
them, ready for `python -m executor.train --run-dir DIR`. Stopped or failed, the same command goes on where it was.
Exit codes: those of executor.train.
"""

from __future__ import annotations

import argparse
import logging
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cptplan.errors import RunFailedError, StorageError
from cptplan.files import read_json, write_json
from cptplan.run_options import Reweight
from cptplan.run_spec import RunSpec, read_run_spec, write_run_spec
from executor.command import run_command
from executor.run_dir import check_spec_hash

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

logger = logging.getLogger(__name__)


class DomainWeights:
    """Weights of the domains while a proxy trains, and their average over its steps.

    With the excess lambda_i of step t, step size eta, smoothing c and k domains:
    alpha_i <- alpha_i exp(eta lambda_i), then alpha <- (1 - c) alpha / sum(alpha) + c / k, from alpha = 1 / k.
    A domain without tokens in the step has lambda_i = 0.
    Reference: Xie et al. 2023, arXiv:2305.10429, algorithm 1; deviation: the loss of step t is weighted with the alpha
               of step t - 1, so that one forward pass gives both the excess and the gradient.
    """

    def __init__(self, settings: Reweight, names: Sequence[str], state: Mapping[str, Any] | None = None) -> None:
        """Start from equal weights, or go on from a state.

        Args:      names: domain sources in the spec's order.
        """
        self._step_size, self._smoothing, self._names = settings.step_size, settings.smoothing, tuple(names)
        self._weights, self._sums, self._steps = np.full(len(names), 1 / len(names)), np.zeros(len(names)), 0
        if state is not None:
            self._weights, self._sums = (np.array([state[key][name] for name in names]) for key in ("weights", "sums"))
            self._steps = int(state["steps"])

    def update(self, excess: Mapping[str, float]) -> None:
        """Take in one step.

        Args:      excess: for each domain that has tokens in the step, the mean over them of
                   max(loss - loss of the reference, 0), nats per token, finite.
        """
        grown = self._step_size * np.array([excess.get(name, 0.0) for name in self._names])
        # the largest is taken off, which normalising undoes, and none may vanish: it could never come back
        weights = np.maximum(self._weights * np.exp(grown - grown.max()), np.finfo(np.float64).tiny)
        self._weights = (1 - self._smoothing) * weights / weights.sum() + self._smoothing / len(weights)
        self._sums = self._sums + self._weights
        self._steps += 1

    @property
    def weights(self) -> dict[str, float]:
        """Share of each domain after the last step, in the spec's order; they sum to 1."""
        return self._named(self._weights)

    @property
    def average(self) -> dict[str, float]:
        """Mean share over all steps so far, which is what DoReMi learns; equal before the first."""
        return self._named(self._sums / self._steps) if self._steps else self.weights

    def state(self) -> dict[str, Any]:
        """All that is needed to go on, as JSON values."""
        return {"weights": self.weights, "sums": self._named(self._sums), "steps": self._steps}

    def _named(self, values: FloatArray) -> dict[str, float]:
        return dict(zip(self._names, values.tolist(), strict=True))


def row_weights(sources: IntArray, domain_names: Sequence[str], weights: Mapping[str, float]) -> FloatArray:
    """Weights of the sequences of a step that make its loss rho mean_general + (1 - rho) sum_i alpha_i mean_i.

    rho is the share of general sequences in the step, mean_i the mean loss of those of domain i. Domains without a
    sequence are left out and the others' alpha scaled to a sum of 1.
    Args:      sources: of every sequence of the whole step, 0 for general and 1, 2, .. for domain_names in their order,
               shape (rows,). weights: alpha of each domain, > 0.
    Returns:   what each sequence's mean token loss counts, sum 1, shape (rows,).
    """
    counts = np.bincount(sources, minlength=len(domain_names) + 1)
    shares = np.where(counts[1:] > 0, [weights[name] for name in domain_names], 0.0)
    domains = len(sources) - counts[0]
    if domains:
        shares = shares / shares.sum() * domains
    return np.concatenate([counts[:1], shares])[sources] / counts[sources] / len(sources)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and say what went wrong, if anything, in one line and a hint."""
    parser = argparse.ArgumentParser(prog="python -m executor.reweight", description=__doc__.splitlines()[0])
    parser.add_argument("--spec", required=True, type=Path, help="run spec whose domain sources are to be weighed")
    parser.add_argument("--run-dir", required=True, type=Path, help="directory for the two runs and what they found")
    parser.add_argument("--processes", type=int, default=1, help="processes of each run; default 1")
    options = parser.parse_args(arguments)
    codes: list[int] = []

    def work() -> None:
        codes.append(learn(read_run_spec(options.spec), options.run_dir, Runner(options.processes)))

    return run_command(work, options.run_dir) or codes[0]


class Runner:
    """Trains one run at a time in a process of its own, and passes on the signals that stop or save a run."""

    def __init__(self, processes: int) -> None:
        """Begin to listen for signals.

        Args:      processes: of each run; with more than one, torchrun starts them.
        """
        launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}")
        self._command = (sys.executable, *(launcher if processes > 1 else ()), "-m", "executor.train", "--run-dir")
        self._child: subprocess.Popen[bytes] | None = None
        self._asked = 0
        for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._pass_on)

    def _pass_on(self, number: int, _frame: object) -> None:
        self._asked = self._asked or number
        if self._child is not None:
            # torchrun passes SIGTERM on to its processes, and SIGUSR1 would end it alone; to the trainer all are one
            self._child.send_signal(signal.SIGTERM)

    def train(self, run_dir: Path) -> int:
        """Bring a run directory to completion.

        Returns:   exit code of the trainer; 128 + signal if one came, also when the run was complete just then.
        """
        if self._asked:
            return 128 + self._asked
        self._child = subprocess.Popen([*self._command, str(run_dir)])
        code = self._child.wait()
        if self._asked:
            return 128 + self._asked
        return 128 - code if code < 0 else code


def learn(spec: RunSpec, run_dir: Path, runner: Runner) -> int:
    """Train reference and proxy and write the weights found, as far as they are not there yet.

    The reference that the spec may name is not used: the one trained here is.
    Returns:   0, or the exit code of the run that did not end well.
    Raises:    ConfigError if the spec has not two domains; StorageError if the directory belongs to another spec;
               RunFailedError if the proxy says nothing of weights.
    """
    reference_dir, proxy_dir = run_dir / "reference", run_dir / "proxy"
    _check_free(run_dir, spec)
    settings = spec.reweight or Reweight(reference="")
    # drawn evenly, as in the paper: how often a domain is seen must not decide how fast its weight grows
    even = _weigh(spec, {source.name: 1.0 for source in spec.sources})
    _change(even, reweight=settings)  # says now what it would say after the first run
    if code := _complete(_change(spec, name=f"{spec.name}-reference", reweight=None), reference_dir, runner):
        return code
    export = (reference_dir / read_json(reference_dir / "result.json")["exports"][-1]).resolve()
    settings = settings.model_copy(update={"reference": str(export)})
    if code := _complete(_change(even, name=f"{spec.name}-proxy", reweight=settings), proxy_dir, runner):
        return code
    found = read_json(proxy_dir / "result.json")
    if "domain_weights" not in found:
        raise RunFailedError(
            f"proxy must record its domain_weights; got none in {proxy_dir / 'result.json'}.",
            hint="remove DIR/proxy and run the same command again",
        )
    average, last = found["domain_weights"]["average"], found["domain_weights"]["last"]
    record = {"schema_version": 1, "spec_hash": spec.hash, "weights": average, "last": last, "steps": found["steps"]}
    write_json(run_dir / "weights.json", record)
    write_run_spec(run_dir / "spec.json", _change(_weigh(spec, average), reweight=None))
    logger.info("weights of the domains: %s", ", ".join(f"{name} {weight:.4f}" for name, weight in average.items()))
    return 0


def _check_free(run_dir: Path, spec: RunSpec) -> None:
    """Raise StorageError if the directory holds the weights, or is the run, of another spec."""
    weights, own = run_dir / "weights.json", run_dir / "spec.json"
    if weights.exists():
        check_spec_hash(read_json(weights).get("spec_hash"), spec.hash, weights)
    elif own.exists():
        raise StorageError(
            f"run directory must have no spec.json yet, as the one with the learnt weights goes there; got {own}.",
            hint="take another --run-dir",
        )


def _complete(spec: RunSpec, run_dir: Path, runner: Runner) -> int:
    """Train one of the two runs and return its exit code."""
    path = run_dir / "spec.json"
    if path.exists():
        check_spec_hash(read_run_spec(path).hash, spec.hash, path)
    else:
        write_run_spec(path, spec)
    if (run_dir / "result.json").exists():
        return 0
    logger.info("training %s", run_dir)
    return runner.train(run_dir)


def _weigh(spec: RunSpec, weights: Mapping[str, float]) -> RunSpec:
    sources = [
        source.model_copy(update={"weight": weights[source.name]}) if source.role == "domain" else source
        for source in spec.sources
    ]
    return _change(spec, sources=tuple(sources))


def _change(spec: RunSpec, **changes: Any) -> RunSpec:
    return RunSpec(**{**dict(spec), **changes})


if __name__ == "__main__":
    sys.exit(main())
