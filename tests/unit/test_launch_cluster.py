"""SkyPilot tasks and Kubernetes JobSets: what they hold and what is refused (their own loaders are asked elsewhere)."""

from __future__ import annotations

import re

import pytest
import yaml
from launch_examples import make_mixed_spec, make_spec, write, write_model, write_shards

from cptplan.errors import ConfigError
from cptplan.launch import parse_options
from cptplan.launch.cluster import dns_name
from cptplan.price.hardware import find_hardware


@pytest.fixture(autouse=True)
def project(tmp_path):
    write_shards(tmp_path / "tokens", "general", "code", "law")
    write_model(tmp_path)
    return tmp_path


def task(tmp_path, spec=None, **changes):
    return yaml.safe_load((write("skypilot", tmp_path, spec, **changes).directory / "task.yaml").read_text())


def test_sky_task_recovers_on_spot_from_a_bucket(tmp_path):
    spec = make_mixed_spec()
    found = task(tmp_path, spec, num_processes=8)
    assert found["resources"] == {
        "use_spot": True, "accelerators": "H100:8", "job_recovery": {"max_restarts_on_errors": 3},
    }  # fmt: skip
    assert found["file_mounts"]["/cptplan-runs"] == {"name": "runs", "mode": "MOUNT_CACHED"}
    places = [tmp_path / "launch" / "skypilot", *(tmp_path / "tokens" / n for n in ("general", "code", "law")),
              tmp_path / "model"]  # fmt: skip
    assert [key for key in found["file_mounts"] if key != "/cptplan-runs"] == [str(path) for path in places]
    node = (tmp_path / "launch" / "skypilot" / "node.sh").read_text()
    assert f"run_dir=/cptplan-runs/final-1-{spec.hash}\n" in node


def test_sky_task_on_several_nodes_shares_a_volume(tmp_path):
    options = parse_options("skypilot", ["volume=shared", "spot=false", "image=docker:org/image"])
    found = task(tmp_path, num_processes=16, num_nodes=2, options=options)
    assert (found["num_nodes"], found["volumes"]) == (2, {"/cptplan-runs": "shared"})
    assert found["resources"]["use_spot"] is False
    assert found["resources"]["image_id"] == "docker:org/image"
    assert "setup" not in found


def test_sky_accelerator_that_is_not_known_must_be_told(tmp_path):
    other = find_hardware("h100-sxm").model_copy(update={"name": "new-chip"})
    with pytest.raises(ConfigError, match="accelerator must be told for new-chip"):
        task(tmp_path, hardware=other)
    assert task(tmp_path, hardware=other, option=["accelerator=X1"])["resources"]["accelerators"] == "X1:1"


def jobset(tmp_path, spec=None, **changes):
    return yaml.safe_load((write("kubernetes", tmp_path, spec, **changes).directory / "jobset.yaml").read_text())


def test_jobset_has_a_pod_for_each_node_that_finds_the_first(tmp_path):
    found = jobset(tmp_path, num_processes=16, num_nodes=2, option=["queue=training", "cpus_per_node=24"])
    assert found["metadata"] == {"name": "final-1", "labels": {"kueue.x-k8s.io/queue-name": "training"}}
    (job,) = found["spec"]["replicatedJobs"]
    template = job["template"]["spec"]
    assert (template["completions"], template["parallelism"], template["backoffLimit"]) == (2, 2, 0)
    (container,) = template["template"]["spec"]["containers"]
    assert container["env"] == [{"name": "HEAD_ADDRESS", "value": "final-1-node-0-0.final-1"}]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "8"}
    assert container["resources"]["requests"] == {"cpu": "24", "nvidia.com/gpu": "8"}


def test_jobset_counts_failures_and_not_disruptions(tmp_path):
    found = jobset(tmp_path, option=["max_restarts=5"])["spec"]
    assert found["failurePolicy"]["maxRestarts"] == 5
    (rule,) = found["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("RestartJobSetAndIgnoreMaxRestarts", ["PodFailurePolicy"])
    (reason,) = found["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    assert reason == {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}


def test_jobset_that_reads_outside_the_volume_is_refused(tmp_path):
    spec = make_spec(sources=[{"name": "code", "role": "domain", "path": str(tmp_path / "tokens" / "code")}])
    inner = tmp_path / "inner"
    write_shards(inner / "tokens", "code")
    with pytest.raises(ConfigError, match=re.escape(f"got {tmp_path}/tokens/code, outside {inner}")):
        jobset(inner, spec)


@pytest.mark.parametrize(
    ("target", "pairs", "match"),
    [
        ("kubernetes", [], "image must be given"),
        ("kubernetes", ["image=i"], "claim must be given"),
        ("kubernetes", ["image=i", "claim=c", "max_restarts=-1"], "max_restarts must be at least 0"),
        ("skypilot", ["bukket=b"], "did you mean 'bucket'"),
        ("slurm", ["partition"], "--option must be key=value; got 'partition'"),
        ("local", ["partition=gpu"], "keys must be known; got partition in --option of target local"),
    ],
)
def test_option_that_is_wrong_is_refused(target, pairs, match):
    with pytest.raises(ConfigError, match=match):
        parse_options(target, pairs)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("final", "final"), ("Run_1.b", "run-1-b"), ("7b", "run-7b"), ("a" * 60, "a" * 40), ("x" * 39 + "-y", "x" * 39)],
)
def test_dns_name_is_one(name, expected):
    assert dns_name(name) == expected
    assert re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", expected)
