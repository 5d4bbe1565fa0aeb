"""A real Slurm of one node on this machine, for tests: munged, slurmctld and slurmd in a directory of their own.

    python tests/slurm_cluster.py /tmp/cluster     # starts it, says what to export, stops it when Enter is pressed

Needs root and the Debian packages slurm-wlm and munge. Everything is in the directory, so that a Slurm of the machine's
own is left alone.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel", "squeue")
START_SECONDS = 30
# slurm-wlm 22.05 without cgroups and without accounting
CONFIG = """ClusterName=test
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={directory}/munge.socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd.pid
SlurmctldLogFile={directory}/slurmctld.log
SlurmdLogFile={directory}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
KillWait=10
SlurmctldPort={controller_port}
SlurmdPort={daemon_port}
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """What a cluster needs and is not here."""
    absent = [name for name in NEEDED if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    return absent + (["root"] if os.geteuid() else [])


@contextmanager
def cluster(directory: Path) -> Iterator[dict[str, str]]:
    """A running cluster; what to put into the environment of sbatch and its like."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("state", "spool"):
        (directory / name).mkdir(exist_ok=True)
    directory.chmod(0o755)  # munged refuses a socket where others may write
    config = directory / "slurm.conf"
    host, ports = socket.gethostname().split(".")[0], [_free_port(), _free_port()]
    config.write_text(CONFIG.format(host=host, directory=directory, controller_port=ports[0], daemon_port=ports[1],
                                    cpus=os.cpu_count()))  # fmt: skip
    environment = {"SLURM_CONF": str(config), "PATH": f"{os.environ['PATH']}:/usr/sbin"}
    started: list[subprocess.Popen[bytes]] = []
    try:
        started.append(_start_munge(directory))
        started += [_start(daemon, "-D", environment=environment) for daemon in ("slurmctld", "slurmd")]
        _wait_until_idle(environment, started)
        yield environment
    finally:
        for process in reversed(started):
            process.send_signal(signal.SIGTERM)
        for process in reversed(started):
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _start(*command: str, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    nowhere = subprocess.DEVNULL
    return subprocess.Popen(command, env={**os.environ, **environment}, stdout=nowhere, stderr=nowhere)


def _start_munge(directory: Path) -> subprocess.Popen[bytes]:
    key = directory / "munge.key"
    if not key.exists():
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
    names = {"socket": "munge.socket", "key-file": "munge.key", "pid-file": "munge.pid", "seed-file": "munge.seed",
             "log-file": "munge.log"}  # fmt: skip
    options = [f"--{option}={directory / name}" for option, name in names.items()]
    munge = _start(
        "munged", "--foreground", "--force", *options, environment={"PATH": f"{os.environ['PATH']}:/usr/sbin"}
    )
    limit = time.monotonic() + START_SECONDS
    while not (directory / "munge.socket").exists():
        assert munge.poll() is None, "munged does not start"
        assert time.monotonic() < limit, "munged makes no socket"
        time.sleep(0.05)
    return munge


def _wait_until_idle(environment: dict[str, str], started: list[subprocess.Popen[bytes]]) -> None:
    limit, said = time.monotonic() + START_SECONDS, ""
    while time.monotonic() < limit:
        assert all(process.poll() is None for process in started), "a daemon of Slurm does not start"
        done = subprocess.run(["sinfo", "-h", "-o", "%T"], env={**os.environ, **environment}, capture_output=True,
                              text=True, check=False)  # fmt: skip
        said = done.stdout + done.stderr
        if done.stdout.strip() == "idle":
            return
        time.sleep(0.2)
    raise AssertionError(f"the node does not come up: {said}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    if missing():
        sys.exit(f"error: Slurm must be here; got no {', '.join(missing())}. hint: apt-get install slurm-wlm munge")
    with cluster(Path(sys.argv[1]).resolve()) as found:
        input(f"export SLURM_CONF={found['SLURM_CONF']}\nEnter stops it. ")
