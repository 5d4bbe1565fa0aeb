"""A run on rented or shared machines: a SkyPilot task and a Kubernetes JobSet, as plain values.

Kubernetes: a JobSet and not a PyTorchJob. It is built on the cluster's own Job, whose podFailurePolicy tells a machine
that is taken away (restart, not counted) from a run that fails; Kueue queues it; and the PyTorchJob's successor in
Kubeflow, the TrainJob, is run as one.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Any

from cptplan.errors import ConfigError
from cptplan.launch.options import KubernetesOptions, SkyOptions
from cptplan.price.hardware import Hardware
from cptplan.run_spec import RunSpec

SKY_ACCELERATORS = {
    "h100-sxm": "H100", "h200-sxm": "H200", "a100-80gb": "A100-80GB", "a100-40gb": "A100", "l40s": "L40S",
    "mi300x": "MI300X", "b200": "B200", "rtx4090": "RTX4090",
}  # fmt: skip
"""SkyPilot's names of the hardware (its catalogue, 0.14)."""
SKY_RUNS = "/cptplan-runs"
GRACE_SECONDS = 120  # assumed: torchrun itself kills 30 seconds after it passed SIGTERM on


def sky_run_dir(spec: RunSpec) -> str:
    """Where the run is kept on every machine: of its own, however many runs share the bucket."""
    return f"{SKY_RUNS}/{spec.name}-{spec.hash}"


def sky_task(
    spec: RunSpec,
    options: SkyOptions,
    *,
    hardware: Hardware,
    num_nodes: int,
    per_node: int,
    directory: Path,
    project: Path,
) -> dict[str, Any]:
    """A task for `sky jobs launch`, which starts it again elsewhere when a spot machine is taken away.

    Data, model and launch directory go to the same paths on the machine; the run directory is in a bucket or volume.
    Raises:    ConfigError without either, for several nodes with a bucket (each caches for itself), or hardware that
               SkyPilot has no known name for.
    """
    if (options.bucket is None) == (options.volume is None):
        got = "neither" if options.bucket is None else "both"
        raise ConfigError(
            f"skypilot must have either bucket or volume; got {got}.",
            hint="--option bucket=NAME keeps the run while machines come and go; it is made if it is not there",
        )
    if options.bucket is not None and num_nodes > 1:
        raise ConfigError(
            f"num_nodes must be 1 for skypilot with a bucket; got {num_nodes}: nodes would not see each other's part "
            "of a checkpoint in time.",
            hint="give a volume that all nodes share: --option volume=NAME",
        )
    resources: dict[str, Any] = {"use_spot": options.spot, "job_recovery": {"max_restarts_on_errors": 3}}
    if hardware.kind == "gpu":
        name = options.accelerator or SKY_ACCELERATORS.get(hardware.name)
        if name is None:
            raise ConfigError(
                f"accelerator must be told for {hardware.name}, which SkyPilot has no known name for.",
                hint="--option accelerator=NAME, of sky show-gpus",
            )
        resources["accelerators"] = f"{name}:{per_node}"
    if options.infra is not None:
        resources["infra"] = options.infra
    if options.image is not None:
        resources["image_id"] = options.image
    task: dict[str, Any] = {
        "name": dns_name(spec.name),
        "num_nodes": num_nodes,
        "resources": resources,
        "file_mounts": {path: path for path in _places(spec, directory, project)},
    }
    if options.bucket is not None:
        task["file_mounts"][SKY_RUNS] = {"name": options.bucket, "mode": "MOUNT_CACHED"}
    else:
        task["volumes"] = {SKY_RUNS: options.volume}
    if options.image is None:
        task["setup"] = f"python3 -m pip install -- {shlex.quote(options.package)}\n"
    head = 'HEAD_ADDRESS="$(printf \'%s\\n\' "$SKYPILOT_NODE_IPS" | sed -n 1p)"\nexport HEAD_ADDRESS\n'
    task["run"] = f"{head}exec bash {shlex.quote(str(directory / 'node.sh'))}\n"
    return task


def jobset(
    spec: RunSpec, options: KubernetesOptions, *, hardware: Hardware, num_nodes: int, per_node: int, directory: Path,
    project: Path, cpus_per_node: int,
) -> dict[str, Any]:  # fmt: skip
    """A JobSet with one pod on each node; the project directory is a volume at the same path in all.

    Raises:    ConfigError if the run reads a path outside the project.
    """
    for path in _places(spec, directory, project):
        if not Path(path).is_relative_to(project):
            raise ConfigError(
                f"paths must lie in the project directory, the volume of the pods; got {path}, outside {project}.",
                hint="start cptplan in the directory that holds data and model, or copy them there",
            )
    name = dns_name(spec.name)
    requests = {"cpu": str(cpus_per_node)}
    limits = {options.gpu_resource: str(per_node)} if hardware.kind == "gpu" else {}
    mount: dict[str, Any] = {"name": "project", "mountPath": str(project)}
    if options.sub_path is not None:
        mount["subPath"] = options.sub_path
    container = {
        "name": "trainer",
        "image": options.image,
        "command": ["bash", _literal(str(directory / "node.sh"))],
        # the pod of index 0; JobSet makes the name resolve
        "env": [{"name": "HEAD_ADDRESS", "value": f"{name}-node-0-0.{name}"}],
        # HF_TOKEN, WANDB_API_KEY and the like, if the cluster has such a secret; none is in this file
        "envFrom": [{"secretRef": {"name": "cptplan", "optional": True}}],
        "resources": {"requests": {**requests, **limits}, "limits": limits},
        "volumeMounts": [mount, {"name": "shared-memory", "mountPath": "/dev/shm"}],
    }
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "containers": [container],
        "volumes": [
            {"name": "project", "persistentVolumeClaim": {"claimName": options.claim}},
            {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
        ],
    }
    job = {
        "completionMode": "Indexed",
        "completions": num_nodes,
        "parallelism": num_nodes,
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [{"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]
        },
        "template": {"spec": pod},
    }
    metadata: dict[str, Any] = {"name": name}
    if options.namespace is not None:
        metadata["namespace"] = options.namespace
    if options.queue is not None:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": options.queue}
    taken_away = {
        "name": "taken-away",
        "action": "RestartJobSetAndIgnoreMaxRestarts",
        "onJobFailureReasons": ["PodFailurePolicy"],
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "failurePolicy": {"maxRestarts": options.max_restarts, "rules": [taken_away]},
            "replicatedJobs": [{"name": "node", "replicas": 1, "template": {"spec": job}}],
        },
    }


def dns_name(name: str) -> str:
    """A name that DNS takes for a service (RFC 1035, lower case), short enough for what is put behind it."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower())
    return (plain if plain[0].isalpha() else f"run-{plain}")[:40].strip("-")


def _places(spec: RunSpec, directory: Path, project: Path) -> list[str]:
    """Absolute paths of all that a run reads: launch directory, shards, model, tokenizer and what options name."""
    named: list[str | Path] = [directory]
    named += [source.path for source in spec.sources] + [chosen.path for chosen in spec.validation]
    named += [path for path in (spec.model.path, spec.model.tokenizer) if path and (project / path).exists()]
    named += [spec.reweight.reference] if spec.reweight is not None else []
    named += [spec.tasks.include_path] if spec.tasks is not None and spec.tasks.include_path else []
    return list(dict.fromkeys(os.path.normpath(project / path) for path in named))


def _literal(text: str) -> str:
    """Text that Kubernetes leaves alone: it puts variables in for $(NAME), and $$ is one $."""
    return text.replace("$", "$$")
