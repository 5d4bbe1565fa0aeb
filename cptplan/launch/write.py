"""Write the launch directory of a run: its spec, a script that starts or resumes it, and how to use them."""

from __future__ import annotations

import io
import os
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import SingleQuotedScalarString

from cptplan.errors import ConfigError, StorageError, suggest
from cptplan.files import read_json, write_text
from cptplan.hardware import Hardware
from cptplan.launch.fsdp import accelerate_config, fsdp_environment, fsdp_settings
from cptplan.memory import Strategy
from cptplan.model_shape import FAMILIES
from cptplan.run_spec import RunSpec, read_run_spec, write_run_spec

TARGETS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "local": (("torchrun.sh.j2", "launch.sh"),),
    "accelerate": (("accelerate.sh.j2", "launch.sh"),),
    "torchrun": (("torchrun.sh.j2", "launch.sh"),),
    "slurm": (("submit.sh.j2", "launch.sh"), ("job.sbatch.j2", "job.sbatch")),
}
"""Known targets: templates and the scripts they become."""

CPUS_PER_GPU = 8  # assumed: cores that clouds sell with one accelerator; only one process reads data


@dataclass(frozen=True, kw_only=True, slots=True)
class SlurmOptions:
    """What a cluster wants to know."""

    time_limit: str = "24:00:00"
    partition: str | None = None
    account: str | None = None
    cpus_per_node: int | None = None
    """None takes 8 for each accelerator, or 1 for each process on CPUs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchFiles:
    """What was written."""

    target: str
    directory: Path
    script: Path
    """Start it with bash; running it again resumes."""
    run_dir: Path
    files: tuple[Path, ...]


def write_launch(
    target: str,
    spec: RunSpec,
    out: Path,
    *,
    hardware: Hardware,
    num_processes: int = 1,
    num_nodes: int = 1,
    strategy: Strategy = "fsdp",
    project_dir: Path | None = None,
    python: str | None = None,
    slurm: SlurmOptions | None = None,
) -> LaunchFiles:
    """Write out/<target>/{run/spec.json, launch.sh, README.md, ..}.

    Args:      target: one of TARGETS. num_processes: devices of all nodes together. strategy: fsdp shards the model
               over the devices, ddp copies it; CPUs always copy. project_dir: where relative paths of the spec start,
               None is the current directory. python: interpreter, None is this one for local and python3 elsewhere.
    Returns:   the paths. The scripts refer to each other and to the project by relative paths.
    Raises:    ConfigError for an unknown target or counts that do not divide; StorageError if the directory holds a
               started run of another spec.
    """
    slurm = slurm or SlurmOptions()
    _check(target, spec, hardware, num_processes, num_nodes, slurm)
    directory = (out / target).resolve()
    project_dir = (project_dir or Path.cwd()).resolve()
    run_dir = directory / "run"
    _check_unstarted(run_dir, spec)
    sharded = strategy == "fsdp" and hardware.kind == "gpu" and num_processes > 1
    layer_class = find_layer_class(spec, project_dir) if sharded else None
    settings = fsdp_settings(layer_class) if sharded else None
    texts: dict[str, str] = {}
    if target == "accelerate":
        config = accelerate_config(
            num_processes=num_processes, num_nodes=num_nodes, precision=spec.precision, settings=settings
        )
        texts["accelerate.yaml"] = _yaml_text(config)
    per_node = num_processes // num_nodes
    values: dict[str, Any] = {
        "target": target,
        "spec": spec,
        "hardware": hardware,
        "num_processes": num_processes,
        "num_nodes": num_nodes,
        "processes_per_node": per_node,
        "sharded": sharded,
        "layer_class": layer_class,
        "environment": _environment(spec, hardware, settings),
        "project": os.path.relpath(project_dir, directory),
        "python": python or (sys.executable if target == "local" else "python3"),
        "slurm": slurm,
        "cpus_per_node": slurm.cpus_per_node or per_node * (CPUS_PER_GPU if hardware.kind == "gpu" else 1),
    }
    for template, name in (*TARGETS[target], ("README.md.j2", "README.md")):
        texts[name] = _render(template, values)
    return _write_files(target, directory, spec, texts)


def _write_files(target: str, directory: Path, spec: RunSpec, texts: Mapping[str, str]) -> LaunchFiles:
    run_dir, script = directory / "run", directory / "launch.sh"
    write_run_spec(run_dir / "spec.json", spec)
    for name, text in texts.items():
        write_text(directory / name, text)
    script.chmod(0o755)
    files = (run_dir / "spec.json", *(directory / name for name in texts))
    return LaunchFiles(target=target, directory=directory, script=script, run_dir=run_dir, files=files)


def find_layer_class(spec: RunSpec, project_dir: Path) -> str | None:
    """The decoder layer to shard by, from the model's type; None when it is not known here (a hub id, a new type)."""
    config = spec.model.config
    if config is None:
        path = project_dir / str(spec.model.path) / "config.json"
        config = read_json(path) if path.is_file() else {}
    family = FAMILIES.get(str(config.get("model_type"))) if isinstance(config, dict) else None
    return family.layer_class if family else None


def check_target(target: str) -> None:
    """Raise ConfigError for a target that is not one of TARGETS."""
    if target not in TARGETS:
        hint = suggest(target, TARGETS) or f"known: {', '.join(TARGETS)}"
        raise ConfigError(f"launch target must be known; got {target!r}.", hint=hint)


def _check(
    target: str, spec: RunSpec, hardware: Hardware, num_processes: int, num_nodes: int, slurm: SlurmOptions
) -> None:
    """Raise ConfigError unless the run can be started so."""
    check_target(target)
    if num_nodes < 1 or num_processes < 1 or num_processes % num_nodes:
        raise ConfigError(
            f"num_processes must be a positive multiple of num_nodes; got {num_processes} and {num_nodes}.",
            hint="count the processes of all nodes together",
        )
    if target == "local" and num_nodes > 1:
        raise ConfigError(f"num_nodes must be 1 for local; got {num_nodes}.", hint="take target torchrun or slurm")
    if target == "accelerate" and hardware.kind == "cpu":
        raise ConfigError(
            f"hardware must be an accelerator for target accelerate; got {hardware.name}: FSDP on CPUs would start "
            "unconnected runs.",
            hint="take target local or torchrun",
        )
    if spec.sequences_per_step % num_processes:
        raise ConfigError(
            f"batch_tokens must be a multiple of seq_len x num_processes; got {spec.batch_tokens} for seq_len "
            f"{spec.seq_len} and {num_processes} processes.",
            hint="change the number of devices, or plan another batch_tokens",
        )
    for name in ("time_limit", "partition", "account"):
        value = getattr(slurm, name)
        if value is not None and not re.fullmatch(r"[\w.,:@+-]+", value):
            raise ConfigError(f"slurm {name} must be one word; got {value!r}.", hint="for example 24:00:00 or gpu")


def _check_unstarted(run_dir: Path, spec: RunSpec) -> None:
    """Raise StorageError if the directory holds a started run of another spec: its checkpoints would be orphaned."""
    path = run_dir / "spec.json"
    started = path.exists() and any(entry.name != "spec.json" for entry in run_dir.iterdir())
    if started and read_run_spec(path).hash != spec.hash:
        raise StorageError(
            f"launch directory must belong to one run spec; got a started run of another in {run_dir}.",
            hint="choose another --out, or remove the directory if the old run is not wanted",
        )


def _environment(spec: RunSpec, hardware: Hardware, settings: Mapping[str, Any] | None) -> dict[str, str]:
    """Variables by which accelerate knows what to do when torchrun starts the processes."""
    if hardware.kind == "cpu":
        return {"ACCELERATE_USE_CPU": "true"}
    precision = {"ACCELERATE_MIXED_PRECISION": "bf16" if spec.precision == "bf16" else "no"}
    return precision | (fsdp_environment(settings) if settings is not None else {})


def _render(template: str, values: Mapping[str, Any]) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # shell and Markdown; what comes from outside goes through sh
    )
    environment.filters["sh"] = lambda value: shlex.quote(str(value))
    return environment.get_template(template).render(**values)


def _yaml_text(value: Mapping[str, Any]) -> str:
    # accelerate reads YAML 1.1, where a bare no is false
    quoted = {k: SingleQuotedScalarString(v) if str(v).lower() == "no" else v for k, v in value.items()}
    stream = io.StringIO()
    YAML().dump(quoted, stream)
    return stream.getvalue()
