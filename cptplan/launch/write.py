"""Write the launch directory of a run: its spec, what it reads, scripts that start or resume it, how to use them."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cptplan.errors import ConfigError, StorageError, suggest
from cptplan.files import read_json, write_json, write_text
from cptplan.launch.cluster import dns_name, jobset, sky_run_dir, sky_task
from cptplan.launch.fsdp import accelerate_config, fsdp_environment, fsdp_settings
from cptplan.launch.manifest import Manifest, build_manifest
from cptplan.launch.options import OPTIONS, KubernetesOptions, SkyOptions, SlurmOptions, TargetOptions, parse_options
from cptplan.launch.recipe import Recipe, batch_of, check_losses, decay_of, shard_name
from cptplan.launch.recipes import TRAINERS, RecipeFiles, build_recipe
from cptplan.launch.render import render, yaml_text
from cptplan.price.hardware import Hardware
from cptplan.price.memory import Strategy
from cptplan.price.model_shape import FAMILIES
from cptplan.run_spec import RunSpec, read_run_spec, write_run_spec

_RECIPE = (("recipe.sh.j2", "launch.sh"), ("NOTES.md.j2", "NOTES.md"))
_SEQUENCES = ("sequences.py.j2", "sequences.py")
TARGETS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "local": (("torchrun.sh.j2", "launch.sh"),),
    "accelerate": (("accelerate.sh.j2", "launch.sh"),),
    "torchrun": (("torchrun.sh.j2", "launch.sh"),),
    "slurm": (("submit.sh.j2", "launch.sh"), ("job.sbatch.j2", "job.sbatch")),
    "skypilot": (("sky.sh.j2", "launch.sh"), ("torchrun.sh.j2", "node.sh")),
    "kubernetes": (("kubernetes.sh.j2", "launch.sh"), ("torchrun.sh.j2", "node.sh")),
    "llama-factory": (*_RECIPE, _SEQUENCES),
    "deepspeed": (*_RECIPE, _SEQUENCES),
    "axolotl": (*_RECIPE, _SEQUENCES),
    "nemo-automodel": _RECIPE,
    "torchtitan": (*_RECIPE, _SEQUENCES, ("planned_run.py.j2", "planned_run.py")),
}
"""Known targets: templates and the files they become."""

CPUS_PER_GPU = 8  # assumed: cores that clouds sell with one accelerator; only one process reads data


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchFiles:
    """What was written."""

    target: str
    directory: Path
    script: Path
    """Start it with bash; running it again resumes."""
    run_dir: Path
    files: tuple[Path, ...]
    manifest: Manifest


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """All that the files of a target are made of."""

    target: str
    spec: RunSpec
    hardware: Hardware
    num_processes: int
    num_nodes: int
    directory: Path
    project: Path
    sharded: bool
    layer_class: str | None
    options: TargetOptions

    @property
    def per_node(self) -> int:
        """Processes of one node."""
        return self.num_processes // self.num_nodes

    @property
    def fsdp(self) -> dict[str, Any] | None:
        """fsdp_config of the bundled trainer; None copies the model to each device."""
        return fsdp_settings(self.layer_class) if self.sharded else None


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
    options: TargetOptions | None = None,
    allow_loss_of: Sequence[str] = (),
) -> LaunchFiles:
    """Write out/<target>/{run/spec.json, manifest.json, launch.sh, README.md, ..}.

    Args:      target: one of TARGETS. num_processes: devices of all nodes together. strategy: fsdp shards the model
               over the devices, ddp copies it; CPUs always copy. project_dir: where relative paths of the spec start,
               None is the current directory. python: interpreter, None is this one for local and python3 elsewhere.
               options: of the target, see options.py. allow_loss_of: what a recipe for another trainer may drop.
    Returns:   the paths. The scripts refer to each other and to the project by relative paths.
    Raises:    ConfigError for an unknown target, counts that do not divide, or what the target cannot express;
               DataError for shards that are missing; StorageError if the directory holds a started run of another spec.
    """
    check_target(target)
    project = (project_dir or Path.cwd()).resolve()
    _check(target, spec, hardware, num_processes, num_nodes)
    sharded = strategy == "fsdp" and hardware.kind == "gpu" and num_processes > 1
    plan = _Plan(
        target=target,
        spec=spec,
        hardware=hardware,
        num_processes=num_processes,
        num_nodes=num_nodes,
        directory=(out / target).resolve(),
        project=project,
        sharded=sharded,
        layer_class=find_layer_class(spec, project) if sharded else None,
        options=options if options is not None else parse_options(target, ()),
    )
    _check_options(plan)
    _check_unstarted(plan.directory / "run", spec)
    manifest = build_manifest(spec, project)
    texts = _target_texts(plan)
    recipe = _recipe_files(plan, allow_loss_of)
    texts |= recipe.texts if recipe is not None else {}
    values = _values(plan, python or (sys.executable if target == "local" else "python3"), recipe)
    for template, name in (*TARGETS[target], ("README.md.j2", "README.md")):
        texts[name] = render(template, values)
    return _write_files(plan, texts, manifest)


def _target_texts(plan: _Plan) -> dict[str, str]:
    """Configuration files of a target that runs the bundled trainer, by name."""
    place: dict[str, Any] = {
        "hardware": plan.hardware,
        "num_nodes": plan.num_nodes,
        "per_node": plan.per_node,
        "directory": plan.directory,
        "project": plan.project,
    }
    match plan.target, plan.options:
        case "accelerate", _:
            config = accelerate_config(
                num_processes=plan.num_processes,
                num_nodes=plan.num_nodes,
                precision=plan.spec.precision,
                settings=plan.fsdp,
            )
            return {"accelerate.yaml": yaml_text(config)}
        case "skypilot", SkyOptions() as sky:
            task = sky_task(plan.spec, sky, **place)
            return {"task.yaml": yaml_text(task)}
        case "kubernetes", KubernetesOptions() as kubernetes:
            cpus = kubernetes.cpus_per_node or _cpus(plan)
            document = jobset(plan.spec, kubernetes, cpus_per_node=cpus, **place)
            return {"jobset.yaml": yaml_text(document)}
        case _:
            return {}


def _recipe_files(plan: _Plan, allowed: Sequence[str]) -> RecipeFiles | None:
    """The files of a recipe for another trainer; None for a target that runs the bundled one, which loses nothing."""
    if plan.target not in TRAINERS:
        check_losses(plan.target, set(), allowed)
        return None
    model = plan.spec.model.path
    if model is None:
        raise ConfigError(
            f"model must have a path for target {plan.target}; got a configuration to start from scratch.",
            hint="take target accelerate, torchrun or slurm",
        )
    recipe = Recipe(
        target=plan.target,
        spec=plan.spec,
        here=os.path.relpath(plan.directory, plan.project),
        model=model,
        model_type=_model_type(plan.spec, plan.project),
        layer_class=plan.layer_class,
        num_processes=plan.num_processes,
        num_nodes=plan.num_nodes,
        sharded=plan.sharded,
        decay=decay_of(plan.spec, plan.target),
        batch=batch_of(plan.spec, plan.num_processes),
        options=plan.options,
    )
    return build_recipe(recipe, plan.project, allowed)


def _values(plan: _Plan, python: str, recipe: RecipeFiles | None) -> dict[str, Any]:
    """What the templates say."""
    cpus = (plan.options.cpus_per_node if isinstance(plan.options, SlurmOptions) else None) or _cpus(plan)
    shards = [("train", number, source.name, source.path) for number, source in enumerate(plan.spec.sources)]
    shards += [("validation", n, chosen.name, chosen.path) for n, chosen in enumerate(plan.spec.validation)]
    return {
        "target": plan.target,
        "spec": plan.spec,
        "hardware": plan.hardware,
        "num_processes": plan.num_processes,
        "num_nodes": plan.num_nodes,
        "processes_per_node": plan.per_node,
        "cpus_per_process": max(cpus // plan.per_node, 1),
        "sharded": plan.sharded,
        "layer_class": plan.layer_class,
        "environment": _environment(plan),
        "project": os.path.relpath(plan.project, plan.directory),
        "python": python,
        "options": plan.options,
        "dns_name": dns_name(plan.spec.name),
        "run_dir": sky_run_dir(plan.spec),
        "shards": [(split, shard_name(split, number, name), path) for split, number, name, path in shards],
        "trainer": recipe.trainer if recipe is not None else None,
        "lost": recipe.lost_lines if recipe is not None else [],
        "area_change": recipe.area_change if recipe is not None else 0.0,
        "same_rates": recipe is not None and recipe.same_rates,
        "notes": recipe.notes if recipe is not None else (),
    }


def _write_files(plan: _Plan, texts: Mapping[str, str], manifest: Manifest) -> LaunchFiles:
    run_dir, script = plan.directory / "run", plan.directory / "launch.sh"
    write_run_spec(run_dir / "spec.json", plan.spec)
    write_json(plan.directory / "manifest.json", manifest.to_json())
    for name, text in texts.items():
        write_text(plan.directory / name, text)
    script.chmod(0o755)
    files = (run_dir / "spec.json", *(plan.directory / name for name in ("manifest.json", *texts)))
    return LaunchFiles(
        target=plan.target, directory=plan.directory, script=script, run_dir=run_dir, files=files, manifest=manifest
    )


def find_layer_class(spec: RunSpec, project_dir: Path) -> str | None:
    """The decoder layer to shard by, from the model's type; None when it is not known here (a hub id, a new type)."""
    family = FAMILIES.get(str(_model_type(spec, project_dir)))
    return family.layer_class if family else None


def _model_type(spec: RunSpec, project_dir: Path) -> str | None:
    config: Any = spec.model.config
    if config is None:
        path = project_dir / str(spec.model.path) / "config.json"
        config = read_json(path) if path.is_file() else {}
    found = config.get("model_type") if isinstance(config, dict) else None
    return found if isinstance(found, str) else None


def _cpus(plan: _Plan) -> int:
    return plan.per_node * (CPUS_PER_GPU if plan.hardware.kind == "gpu" else 1)


def check_target(target: str) -> None:
    """Raise ConfigError for a target that is not one of TARGETS."""
    if target not in TARGETS:
        hint = suggest(target, TARGETS) or f"known: {', '.join(TARGETS)}"
        raise ConfigError(f"launch target must be known; got {target!r}.", hint=hint)


def _check(target: str, spec: RunSpec, hardware: Hardware, num_processes: int, num_nodes: int) -> None:
    """Raise ConfigError unless the run can be started so."""
    if num_nodes < 1 or num_processes < 1 or num_processes % num_nodes:
        raise ConfigError(
            f"num_processes must be a positive multiple of num_nodes; got {num_processes} and {num_nodes}.",
            hint="count the processes of all nodes together",
        )
    if target == "local" and num_nodes > 1:
        raise ConfigError(f"num_nodes must be 1 for local; got {num_nodes}.", hint="take target torchrun or slurm")
    if hardware.kind == "cpu" and (target == "accelerate" or target in TRAINERS):
        raise ConfigError(
            f"hardware must be an accelerator for target {target}; got {hardware.name}: on CPUs it would start "
            "unconnected runs, or none.",
            hint="take target local or torchrun",
        )
    if spec.sequences_per_step % num_processes:
        raise ConfigError(
            f"batch_tokens must be a multiple of seq_len x num_processes; got {spec.batch_tokens} for seq_len "
            f"{spec.seq_len} and {num_processes} processes.",
            hint="change the number of devices, or plan another batch_tokens",
        )


def _check_options(plan: _Plan) -> None:
    kind = OPTIONS.get(plan.target, TargetOptions)
    if type(plan.options) is not kind:
        raise ConfigError(
            f"options must be {kind.__name__} for target {plan.target}; got {type(plan.options).__name__}.",
            hint="make them with parse_options",
        )


def _check_unstarted(run_dir: Path, spec: RunSpec) -> None:
    """Raise StorageError if the directory holds a started run of another spec: its checkpoints would be orphaned."""
    path = run_dir / "spec.json"
    started = path.exists() and any(entry.name != "spec.json" for entry in run_dir.iterdir())
    if started and read_run_spec(path).hash != spec.hash:
        raise StorageError(
            f"launch directory must belong to one run spec; got a started run of another in {run_dir}.",
            hint="choose another --out, or remove the directory if the old run is not wanted",
        )


def _environment(plan: _Plan) -> dict[str, str]:
    """Variables by which accelerate knows what to do when torchrun or srun starts the processes."""
    if plan.hardware.kind == "cpu":
        return {"ACCELERATE_USE_CPU": "true"}
    precision = {"ACCELERATE_MIXED_PRECISION": "bf16" if plan.spec.precision == "bf16" else "no"}
    return precision | (fsdp_environment(plan.fsdp) if plan.fsdp is not None else {})
