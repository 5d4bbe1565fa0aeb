"""Nothing from a config reaches a shell unquoted: hostile strings in every field, scripts really run with stand-ins."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
import yaml
from launch_examples import OPTIONS, calls, make_mixed_spec, write, write_model, write_shards, write_stand_ins

from cptplan.errors import ConfigError
from cptplan.launch import TARGETS, parse_options
from cptplan.run_spec import read_run_spec

RECIPES = ("llama-factory", "deepspeed", "axolotl", "nemo-automodel", "torchtitan")
# a newline is the last: it may stand in a directory's name, too
HOSTILE = [
    'it\'s a "quoted" dir',
    "$(touch OWNED)",
    "`touch OWNED`",
    "a; touch OWNED",
    "a && touch OWNED #",
    "${HOME} $PATH $$",
    "-rf --help",
    "*?[a]{b,c}~!",
    "größe-数据-🦎",
    "back\\slash\\",
    "{{ 7 * 7 }} {% raw %}",
    "line\ntouch OWNED\n",
]
WITH_DOLLAR = {name for name in HOSTILE if "$" in name}


def hostile_project(tmp_path, name):
    """A project whose directory, shards, model, sources and interpreter all have the name in theirs."""
    project = tmp_path / name / "project"
    write_shards(project / name, "general", "code", "law")
    write_model(project / f"m{name}", pad_token="<pad>")
    os.rename(project / f"m{name}" / "model", project / f"{name}-model")
    spec = make_mixed_spec(
        model={"path": f"{name}-model"},
        sources=[{"name": f"{name}{n}", "role": role, "path": f"{name}/{n}"}
                 for n, role in (("general", "general"), ("code", "domain"), ("law", "domain"))],
        validation=[{"name": f"{name}{n}", "path": f"{name}/{n}", "num_tokens": 512} for n in ("general", "code")],
        precision="fp32",
    )  # fmt: skip
    return project, spec


def run(launch, tmp_path, **environment):
    """Run the launch script from elsewhere; what it creates would be seen there and in the project."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    done = subprocess.run(["bash", launch.script], cwd=elsewhere, env={**os.environ, **environment}, text=True,
                          capture_output=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("OWNED"))
    return done.stdout


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("target", [t for t in TARGETS if t not in RECIPES])
def test_bundled_trainer_gets_the_very_paths(target, name, tmp_path):
    project, spec = hostile_project(tmp_path, name)
    commands = write_stand_ins(tmp_path / "bin", ["my python", "sky", "kubectl", "srun"])
    # what Slurm does: a copy of the job, run elsewhere
    (commands / "sbatch").write_text('#!/usr/bin/env bash\nSLURM_SUBMIT_DIR="$PWD" exec bash "$PWD/${!#}"\n')
    (commands / "scontrol").write_text("#!/usr/bin/env bash\necho node-1\n")
    for command in ("sbatch", "scontrol"):
        (commands / command).chmod(0o755)
    python = commands / "my python"
    launch = write(target, project, spec, num_processes=2, python=str(python))
    assert read_run_spec(launch.run_dir / "spec.json") == spec
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node-1", "SLURM_CPUS_PER_TASK": "8"}
    run(launch, tmp_path, PATH=f"{commands}:{os.environ['PATH']}", **slurm)
    run_dir = str(launch.run_dir)
    if target in ("local", "torchrun", "accelerate"):
        assert calls(python)[-2:] == ["--run-dir", run_dir]
        assert "executor.train" in calls(python)
    elif target == "slurm":
        assert calls(commands / "srun")[:3] == ["--kill-on-bad-exit=1", "bash", "-c"]
    elif target == "skypilot":
        assert calls(commands / "sky")[-1] == str(launch.directory / "task.yaml")
        task = yaml.safe_load((launch.directory / "task.yaml").read_text())
        for kept in (launch.directory, project / name / "code", project / f"{name}-model"):
            assert task["file_mounts"][str(kept)] == str(kept)
        run_in_shell(task["run"], launch, tmp_path, commands)
    else:
        assert calls(commands / "kubectl")[-1] == str(launch.directory / "jobset.yaml")
        document = yaml.safe_load((launch.directory / "jobset.yaml").read_text())
        pod = document["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
        command = pod["containers"][0]["command"]
        assert command[0] == "bash"
        assert command[1].replace("$$", "$") == str(launch.directory / "node.sh")
        assert pod["containers"][0]["volumeMounts"][0]["mountPath"] == str(project)


def run_in_shell(script, launch, tmp_path, commands):
    """What SkyPilot would run on the machine, up to the script of the node."""
    node = launch.directory / "node.sh"
    node.write_text('#!/usr/bin/env bash\nprintf "%s" "$HEAD_ADDRESS" > "${BASH_SOURCE[0]}.head"\n')
    subprocess.run(["bash", "-c", script], cwd=tmp_path / "elsewhere", check=True,
                   env={**os.environ, "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"})  # fmt: skip
    assert node.with_name("node.sh.head").read_text() == "10.0.0.1"
    assert not list(tmp_path.rglob("OWNED"))


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("target", RECIPES)
def test_recipe_gets_the_very_paths(target, name, tmp_path):
    project, spec = hostile_project(tmp_path, name)
    commands = write_stand_ins(tmp_path / "bin", ["its python"])
    mine = commands / "my python"  # writes the data
    mine.write_text('#!/usr/bin/env bash\nprintf "%s\\0" "$@" >> "$0.args"; printf "%s\\0" --end-- >> "$0.args"\n')
    mine.chmod(0o755)
    options = {"num_processes": 2, "python": "/nowhere/python"}
    if name in WITH_DOLLAR:
        with pytest.raises(ConfigError, match="must be without"):
            write(target, project, spec, **options)
        return
    launch = write(target, project, spec, **options)
    run(launch, tmp_path, PYTHON=str(commands / "its python"), CPTPLAN_PYTHON=str(mine))
    assert (launch.directory / "data").is_dir()
    data = "\0".join(calls(mine)).split("--end--")
    if target == "nemo-automodel":
        assert [call.strip("\0").split("\0")[-1] for call in data[:-1]] == [
            f"{name}/{n}" for n in ("general", "code", "law", "general", "code")
        ]
    else:
        assert data[0].split("\0")[:2] == [str(launch.directory / "sequences.py"), str(launch.run_dir / "spec.json")]
    files = {"axolotl": "axolotl.yaml", "nemo-automodel": "automodel.yaml"}
    started = calls(commands / "its python")
    if target == "torchtitan":
        assert started[-4:] == ["--module", "planned_run", "--config", "planned_run"]
        assert json.loads((launch.directory / "settings.json").read_text())["model"] == f"{name}-model"
        return
    config = launch.directory / files.get(target, "llama_factory.yaml")
    assert started[-1] == str(config)
    assert f"{name}-model" in str_values(yaml.safe_load(config.read_text()))


def str_values(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [text for item in value for text in str_values(item)]
    return [value]


@pytest.mark.parametrize("name", [*HOSTILE, "a b", ""])
@pytest.mark.parametrize(
    ("target", "key"),
    [*(("slurm", key) for key in ("time_limit", "partition", "account", "qos")), ("skypilot", "bucket"),
     ("skypilot", "volume"), ("skypilot", "accelerator"), ("kubernetes", "claim"), ("kubernetes", "namespace"),
     ("kubernetes", "queue"), ("kubernetes", "gpu_resource")],
)  # fmt: skip
def test_option_that_must_be_a_word_is_refused(target, key, name):
    if target == "slurm" and name == "-rf --help":
        name = "-rf\n--help"
    with pytest.raises(ConfigError, match=f"^{key} must match"):
        parse_options(target, [*OPTIONS.get(target, ()), f"{key}={name}"])


@pytest.mark.parametrize("name", HOSTILE)
def test_option_of_free_text_stays_one_string(name, tmp_path):
    write_shards(tmp_path / "tokens", "code")
    launch = write("skypilot", tmp_path, option=[f"package={name}", f"infra={name}"])
    task = yaml.safe_load((launch.directory / "task.yaml").read_text())
    assert task["resources"]["infra"] == name
    commands = write_stand_ins(tmp_path / "bin", ["python3"])
    subprocess.run(["bash", "-c", task["setup"]], check=True, cwd=tmp_path,
                   env={**os.environ, "PATH": f"{commands}:{os.environ['PATH']}"})  # fmt: skip
    assert calls(commands / "python3") == ["-m", "pip", "install", "--", name]
    launch = write("kubernetes", tmp_path, option=[f"image={name}", f"sub_path={name}"])
    document = yaml.safe_load((launch.directory / "jobset.yaml").read_text())
    container = document["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]
    assert (container["image"], container["volumeMounts"][0]["subPath"]) == (name, name)
    assert not list(tmp_path.rglob("OWNED"))


def test_secrets_go_by_name_alone(tmp_path):
    write_shards(tmp_path / "tokens", "code")
    commands = write_stand_ins(tmp_path / "bin", ["sky"])
    secret = {"HF_TOKEN": "hf_secret", "WANDB_API_KEY": "wandb secret"}
    os.environ.update(secret)
    try:
        launches = [write(target, tmp_path) for target in ("skypilot", "kubernetes", "slurm")]
    finally:
        for name in secret:
            del os.environ[name]
    for launch in launches:
        assert not any(value in path.read_text() for path in launch.files for value in secret.values())
    run(launches[0], tmp_path, PATH=f"{commands}:{os.environ['PATH']}", **secret)
    assert calls(commands / "sky") == [
        "jobs", "launch", "--name", "final-1", "--secret", "HF_TOKEN", "--secret", "WANDB_API_KEY",
        str(launches[0].directory / "task.yaml"),
    ]  # fmt: skip
