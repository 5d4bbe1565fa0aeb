"""Benchmarks of lm-eval on the model of a run, through lm-eval's own interface; optional, see the extra `eval`.

A run with tasks equals one without, bit for bit: modes, random numbers and tokenizer are put back as they were.
"""

from __future__ import annotations

import copy
import io
import logging
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cptplan.errors import ConfigError, DataError, suggest
from cptplan.run_options import Tasks
from cptplan.run_spec import RunSpec

MAIN_METRICS = ("acc_norm", "acc", "exact_match", "f1", "mcc", "word_perplexity", "byte_perplexity", "perplexity")


def milestones(spec: RunSpec) -> frozenset[int]:
    """Steps after which the tasks of a run are evaluated: as told, else 0, keep_steps and the last."""
    if spec.tasks is None:
        return frozenset()
    return frozenset(spec.tasks.steps if spec.tasks.steps is not None else (0, *spec.keep_steps, spec.total_steps))


def check_tasks(settings: Tasks, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Find the tasks and fetch their data, so that a run fails at its start and not at a late milestone.

    Raises:    ConfigError if lm-eval is not installed, a task is not known, broken or without a score of its own, or
               there is no tokenizer; DataError if its data cannot be reached.
    """
    if tokenizer is None:
        raise ConfigError("tokenizer must be given for tasks; it is missing in model.", hint="add model.tokenizer")
    _load(settings)


def evaluate_tasks(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, settings: Tasks, *, batch_size: int
) -> dict[str, float]:
    """Score of every task, by its name. For one process, with all of the model's weights on one device.

    The score is the task's main metric after its first filter: the first of MAIN_METRICS that it has, else the first
    that it lists. Perplexities are better when lower, all other scores when higher. lm-eval's fixed seeds hold.
    Args:      batch_size: sequences of one forward pass.
    Raises:    ConfigError or DataError as check_tasks does, or if a task does not run.
    """
    check_tasks(settings, tokenizer)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    with _evaluating(model), _apart():
        try:
            results = simple_evaluate(
                # a copy: lm-eval gives a tokenizer without one a padding token, which an export would write
                model=HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size),
                tasks=_load(settings),
                num_fewshot=settings.num_fewshot,
                limit=settings.limit,
                task_manager=_index(settings.include_path, defaults=False),
                bootstrap_iters=0,
                log_samples=False,
            )
        except RuntimeError:  # of the device, such as its memory: not the task's fault
            raise
        except Exception as error:  # task files run code and templates of their own
            raise ConfigError(
                f"tasks must run; got {_first_line(error)} for {', '.join(settings.names)}.",
                hint="try the task with lm-eval itself, or leave it out",
            ) from error
    return {name: _score(name, results["results"].get(name, {})) for name in settings.names}


@lru_cache(maxsize=1)
def _load(settings: Tasks) -> list[Any]:
    """The tasks and groups of lm-eval that are meant, with their data. Kept, as they are the same at every milestone.

    Raises:    as check_tasks.
    """
    manager, found = _manager(settings), []
    for name in settings.names:
        try:
            with _apart():
                loaded = manager.load([name])
        except OSError as error:
            raise DataError(
                f"data of task {name} must be reachable; got {_first_line(error)}.",
                hint="connect to the hub, or fetch them once where it can be reached and copy HF_HOME",
            ) from error
        except Exception as error:  # as above
            raise ConfigError(
                f"task {name} must load; got {_first_line(error)}.",
                hint="try the task with lm-eval itself, or leave it out",
            ) from error
        group = loaded["groups"].get(name)
        if name not in loaded["tasks"] and (group is None or not group.has_aggregation):
            raise ConfigError(
                f"tasks must have a score of their own; got {name}, which stands for several.",
                hint=f"name them: {', '.join(sorted(loaded['tasks']))}",
            )
        found.append(group or loaded["tasks"][name])
    return found


def _manager(settings: Tasks) -> Any:
    """lm-eval's index of task files, which knows all names.

    Raises:    ConfigError if lm-eval is not installed, include_path is no directory or a name is not known.
    """
    if settings.include_path is not None and not Path(settings.include_path).is_dir():
        raise ConfigError(
            f"include_path must be a directory; got {settings.include_path} in tasks.", hint="check the path"
        )
    own = _index(settings.include_path, defaults=False)
    if set(settings.names) <= set(own.all_subtasks):
        return own
    manager = _index(settings.include_path, defaults=True)
    unknown = [name for name in settings.names if name not in manager.all_tasks]
    if unknown:
        raise ConfigError(
            f"tasks must be known to lm-eval; got {unknown[0]}.",
            hint=suggest(unknown[0], manager.all_tasks) or "lm-eval ls tasks lists them; include_path adds your own",
        )
    return manager


def _index(include_path: str | None, *, defaults: bool) -> Any:
    """Index of the task files of one's own and, if wanted, of lm-eval's (measured: 8 s for its 14 683 names)."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ConfigError(
            f"lm-eval must be installed for tasks; got {_first_line(error)}.", hint="pip install 'cptplan[eval]'"
        ) from error
    with _apart():
        return TaskManager(include_path=include_path, include_defaults=defaults)


def _score(name: str, metrics: Mapping[str, Any]) -> float:
    """The main metric among lm-eval's results of one task, whose keys are metric,filter.

    Raises:    ConfigError if it has no number.
    """
    scores: dict[str, float] = {}
    for key, value in metrics.items():
        metric, comma, _ = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
            scores.setdefault(metric, float(value))
    if not scores:
        raise ConfigError(f"tasks must have a number as score; got none of {name}.", hint="leave it out")
    return scores[next((metric for metric in MAIN_METRICS if metric in scores), next(iter(scores)))]


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _apart() -> Iterator[None]:
    """Keep lm-eval to itself: no progress bars and advice in the run's log, and no random number generator moved."""
    lm_eval = logging.getLogger("lm_eval")
    level, python, numpy = lm_eval.level, random.getstate(), np.random.get_state()  # noqa: NPY002 (seeded there)
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    lm_eval.setLevel(logging.ERROR)
    try:
        with torch.random.fork_rng(devices), redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            yield
    finally:
        lm_eval.setLevel(level)
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}".rstrip(".")
