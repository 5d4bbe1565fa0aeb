"""What a target wants to know besides the run: `--option key=value` on the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field

from cptplan.contract import Contract
from cptplan.errors import ConfigError

Count = Annotated[int, Field(gt=0)]
# sbatch reads "#SBATCH --account=x" lines as words, with quoting rules of its own: so one plain word
Word = Annotated[str, Field(pattern=r"^[\w.,:@+/-]+$")]
DnsName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$")]
Text = Annotated[str, Field(min_length=1)]


class TargetOptions(Contract):
    """Options of a target; most have none."""


class SlurmOptions(TargetOptions):
    """What a cluster wants to know."""

    time_limit: Word = "24:00:00"
    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    cpus_per_node: Count | None = None
    """None takes 8 for each accelerator, or 1 for each process on CPUs."""


class SkyOptions(TargetOptions):
    """Where SkyPilot rents and where the run is kept while machines come and go."""

    bucket: DnsName | None = None
    """Bucket that keeps the run directory; made if it is not there. One node only: nodes cache apart."""
    volume: DnsName | None = None
    """SkyPilot volume in place of a bucket; all nodes share it."""
    accelerator: Word | None = None
    """SkyPilot's name of the hardware, when it is not known here."""
    infra: Text | None = None
    """Such as aws, gcp/us-central1 or k8s; None takes the cheapest."""
    image: Text | None = None
    """Such as docker:org/image:tag, with cptplan installed; None installs `package`."""
    package: Text = "cptplan[train]"
    """What pip installs on each machine: a name, a wheel's address, or git+https://..."""
    spot: bool = True


class KubernetesOptions(TargetOptions):
    """Where the cluster keeps the project and what runs it."""

    image: Text
    """Container image with cptplan and its train extra."""
    claim: DnsName
    """PersistentVolumeClaim (ReadWriteMany for several nodes) that holds the project directory."""
    sub_path: Text | None = None
    """Directory of the project on the volume; None is its root."""
    namespace: DnsName | None = None
    queue: DnsName | None = None
    """Kueue queue."""
    gpu_resource: Word = "nvidia.com/gpu"
    cpus_per_node: Count | None = None
    max_restarts: Annotated[int, Field(ge=0)] = 3
    """Restarts after failures of the run's own; disruptions are not counted."""


class TitanOptions(TargetOptions):
    """Which of torchtitan's own models this is."""

    flavor: Text
    """Such as 8B: one of the module's list, with the shapes of the model."""


OPTIONS: Mapping[str, type[TargetOptions]] = {
    "slurm": SlurmOptions,
    "skypilot": SkyOptions,
    "kubernetes": KubernetesOptions,
    "torchtitan": TitanOptions,
}


def parse_options(target: str, pairs: Sequence[str]) -> TargetOptions:
    """Options of a target from key=value pairs.

    Raises:    ConfigError for a pair without =, a key that the target does not have, a value it cannot take.
    """
    values: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"--option must be key=value; got {pair!r}.", hint="for example --option partition=gpu")
        values[key] = value
    return OPTIONS.get(target, TargetOptions).parse(values, f"--option of target {target}")
