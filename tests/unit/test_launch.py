"""Launch directories: what the scripts say, that bash and accelerate take them, and what is refused."""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest
from launch_examples import CPU, GPU, make_mixed_spec, make_spec, write, write_model, write_shards

from cptplan.errors import ConfigError, DataError, StorageError
from cptplan.files import hash_file, read_json
from cptplan.launch import TARGETS, parse_options
from cptplan.run_spec import read_run_spec

RECIPES = ("llama-factory", "deepspeed", "axolotl", "nemo-automodel", "torchtitan")


@pytest.fixture(autouse=True)
def project(tmp_path):
    write_shards(tmp_path / "tokens", "general", "code", "law")
    write_model(tmp_path, pad_token="<pad>")
    return tmp_path


CASES = [
    ("local", {}),
    ("local", {"num_processes": 2}),
    ("local", {"hardware": GPU, "num_processes": 8}),
    ("accelerate", {"num_processes": 8}),
    ("accelerate", {"num_processes": 16, "num_nodes": 2}),
    ("accelerate", {}),
    ("torchrun", {"num_processes": 8, "strategy": "ddp"}),
    ("torchrun", {"num_processes": 16, "num_nodes": 2}),
    ("slurm", {"num_processes": 16, "num_nodes": 2, "option": ["partition=gpu", "account=lab", "qos=high"]}),
    ("slurm", {"hardware": CPU, "num_processes": 2}),
    ("skypilot", {"num_processes": 8}),
    ("skypilot", {"num_processes": 8, "option": ["image=docker:org/image:1", "infra=aws", "spot=false"]}),
    ("kubernetes", {"num_processes": 16, "num_nodes": 2, "option": ["queue=training", "namespace=lab"]}),
    ("kubernetes", {"hardware": CPU}),
    *((target, {"num_processes": n, "num_nodes": nodes}) for target in RECIPES for n, nodes in ((1, 1), (16, 2))),
]
EXTRA_FILES = {
    "slurm": {"job.sbatch"},
    "accelerate": {"accelerate.yaml"},
    "skypilot": {"task.yaml", "node.sh"},
    "kubernetes": {"jobset.yaml", "node.sh"},
    "llama-factory": {"llama_factory.yaml", "accelerate.yaml", "sequences.py", "NOTES.md"},
    "deepspeed": {"llama_factory.yaml", "accelerate.yaml", "sequences.py", "NOTES.md"},
    "axolotl": {"axolotl.yaml", "sequences.py", "NOTES.md"},
    "nemo-automodel": {"automodel.yaml", "NOTES.md"},
    "torchtitan": {"settings.json", "planned_run.py", "sequences.py", "NOTES.md"},
}


def spec_for(target):
    # axolotl holds weights in bf16 where it computes in it, which is refused
    return make_mixed_spec(precision="fp32" if target == "axolotl" else "bf16") if target in RECIPES else make_spec()


@pytest.mark.parametrize(("target", "changes"), CASES)
def test_files_are_written_and_bash_takes_the_scripts(target, changes, tmp_path):
    spec = spec_for(target)
    launch = write(target, tmp_path, spec, **changes)
    assert launch.directory == tmp_path / "launch" / target
    names = {str(path.relative_to(launch.directory)) for path in launch.files}
    assert names == {"run/spec.json", "manifest.json", "launch.sh", "README.md", *EXTRA_FILES.get(target, ())}
    assert os.access(launch.script, os.X_OK)
    assert read_run_spec(launch.run_dir / "spec.json") == spec
    for path in launch.files:
        if target not in ("skypilot", "kubernetes") or path.suffix != ".yaml":  # other machines know no here
            assert str(tmp_path) not in path.read_text()  # the project can be moved
        if path.suffix in (".sh", ".sbatch"):
            text = path.read_text()
            assert text.startswith("#!/usr/bin/env bash\n")
            assert "\nset -euo pipefail\n" in text
            subprocess.run(["bash", "-n", path], check=True)
            if shutil.which("shellcheck"):
                subprocess.run(["shellcheck", "-s", "bash", path], check=True)
        if path.suffix == ".py":
            compile(path.read_text(), path.name, "exec")


def test_manifest_names_every_shard_with_its_hash(tmp_path):
    launch = write("local", tmp_path, make_mixed_spec())
    manifest = read_json(launch.directory / "manifest.json")
    assert manifest["spec_hash"] == make_mixed_spec().hash
    assert manifest["tokenizer_hash"] == "abc"
    found = [(shard["use"], shard["name"], shard["path"]) for shard in manifest["shards"]]
    assert found == [
        *(("train", name, f"tokens/{name}/train.bin") for name in ("general", "code", "law")),
        *(("validation", name, f"tokens/{name}/validation.bin") for name in ("general", "code")),
    ]
    for shard in manifest["shards"]:
        assert shard["sha256"] == hash_file(tmp_path / shard["path"])
        assert (shard["num_tokens"], shard["num_documents"], shard["dtype"]) == (2000, 3, "uint16")


def test_shard_that_is_missing_cut_or_of_another_tokenizer_is_refused(tmp_path):
    tokens = tmp_path / "tokens" / "code" / "train.bin"
    content = tokens.read_bytes()
    tokens.write_bytes(content[:-2])
    with pytest.raises(DataError, match="as long as its index says, 4000 bytes; got 3998"):
        write("local", tmp_path)
    tokens.unlink()
    with pytest.raises(DataError, match=r"token shard must be there; got no .*code/train\.bin"):
        write("local", tmp_path)
    tokens.write_bytes(content)
    write_shards(tmp_path / "tokens", "law", tokenizer_hash="other")
    with pytest.raises(DataError, match="one tokenizer; got abc, other"):
        write("local", tmp_path, make_mixed_spec())
    assert not (tmp_path / "launch").exists()


def test_every_target_is_tried():
    assert {target for target, _ in CASES} == set(TARGETS)


def test_local_on_cpu_never_asks_for_fsdp(tmp_path):
    text = write("local", tmp_path, num_processes=2).script.read_text()
    assert "export ACCELERATE_USE_CPU=true\n" in text
    assert '--standalone \\\n  --nproc-per-node 2 \\\n  -m executor.train --run-dir "$run_dir"' in text
    assert "FSDP" not in text


def test_local_alone_needs_no_launcher(tmp_path):
    text = write("local", tmp_path).script.read_text()
    assert text.endswith('exec "$python" -m executor.train --run-dir "$run_dir"\n')
    assert "default_python='/opt/my env/python'\n" in text
    assert 'cd -- "$here/"../..\n' in text


def exports(text):
    return dict(re.findall(r"^export (\w+)=(\S+)$", text, flags=re.MULTILINE))


def test_torchrun_sets_what_accelerate_reads(tmp_path, monkeypatch):
    utils = pytest.importorskip("accelerate.utils")
    found = exports(write("torchrun", tmp_path, num_processes=8).script.read_text())
    assert found["ACCELERATE_USE_FSDP"] == "true"
    assert found["ACCELERATE_MIXED_PRECISION"] == "bf16"
    for name in [name for name in os.environ if name.startswith(("FSDP_", "ACCELERATE_"))]:
        monkeypatch.delenv(name)
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    plugin = utils.FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.transformer_cls_names_to_wrap == ["Qwen3DecoderLayer"]
    assert plugin.state_dict_type.name == "SHARDED_STATE_DICT"
    assert plugin.activation_checkpointing is False
    assert plugin.cpu_ram_efficient_loading is True


@pytest.mark.parametrize(("spec_precision", "precision"), [("bf16", "bf16"), ("fp32", "no")])
@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"num_processes": 16, "num_nodes": 2}, "FSDP"),
        ({"num_processes": 2, "strategy": "ddp"}, "MULTI_GPU"),
        ({}, "NO"),
    ],
)
def test_accelerate_file_is_taken_by_its_own_loader(changes, kind, spec_precision, precision, tmp_path):
    config_args = pytest.importorskip("accelerate.commands.config.config_args")
    launch = write("accelerate", tmp_path, make_spec(precision=spec_precision), **changes)
    loaded = config_args.load_config_from_file(str(launch.directory / "accelerate.yaml"))
    assert loaded.distributed_type == kind
    assert loaded.num_processes == changes.get("num_processes", 1)
    assert loaded.num_machines == changes.get("num_nodes", 1)
    assert loaded.mixed_precision == precision
    assert loaded.use_cpu is False
    assert bool(loaded.fsdp_config) == (kind == "FSDP")
    if kind == "FSDP":
        assert loaded.fsdp_config["fsdp_transformer_layer_cls_to_wrap"] == "Qwen3DecoderLayer"


def test_accelerate_on_nodes_needs_rank_and_address(tmp_path):
    launch = write("accelerate", tmp_path, num_processes=16, num_nodes=2, python="true")
    clean = {"PATH": os.environ["PATH"]}
    failed = subprocess.run(["bash", launch.script], capture_output=True, text=True, check=False, env=clean)
    assert failed.returncode != 0
    assert "MACHINE_RANK" in failed.stderr
    given = {**clean, "MACHINE_RANK": "1", "MAIN_PROCESS_IP": "10.0.0.1"}
    subprocess.run(["bash", launch.script], check=True, env=given)


def test_slurm_job_expands_the_rank_only_inside_the_task(tmp_path):
    launch = write("slurm", tmp_path, num_processes=16, num_nodes=2)
    job = (launch.directory / "job.sbatch").read_text()
    for line in ("--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--cpus-per-task=8", "--requeue"):
        assert f"\n#SBATCH {line}\n" in job
    task = re.search(r"srun [^']*'([^']*)'", job)
    assert task is not None
    assert 'RANK="$SLURM_PROCID" LOCAL_RANK="$SLURM_LOCALID" WORLD_SIZE=16 LOCAL_WORLD_SIZE=8' in task[1]
    code = "\n".join(line for line in job.splitlines() if not line.startswith("#"))
    assert code.count("SLURM_PROCID") == task[1].count("SLURM_PROCID") == 1


def test_slurm_options_arrive(tmp_path):
    options = ["time_limit=2-00:00:00", "partition=gpu", "account=lab", "cpus_per_node=16", "qos=low"]
    job = (write("slurm", tmp_path, num_processes=8, option=options).directory / "job.sbatch").read_text()
    for line in ("--time=2-00:00:00", "--partition=gpu", "--account=lab", "--cpus-per-task=2", "--qos=low"):
        assert f"\n#SBATCH {line}\n" in job


def test_layer_class_comes_from_a_model_directory(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text('{"model_type": "gpt2"}')
    text = write("torchrun", tmp_path, make_spec(model={"path": "base"}), num_processes=2).script.read_text()
    assert exports(text)["FSDP_TRANSFORMER_CLS_TO_WRAP"] == "GPT2Block"


@pytest.mark.parametrize("model", [{"path": "some/hub-id"}, {"config": {"model_type": "brand_new"}}], ids=str)
def test_layer_class_unknown_is_left_to_the_model(model, tmp_path):
    launch = write("torchrun", tmp_path, make_spec(model=model), num_processes=2)
    assert "FSDP_TRANSFORMER_CLS_TO_WRAP" not in exports(launch.script.read_text())
    assert "_no_split_modules" in (launch.directory / "README.md").read_text()


@pytest.mark.parametrize(
    ("target", "changes", "match"),
    [
        ("slrum", {}, "did you mean 'slurm'"),
        ("torchrun", {"num_processes": 3, "num_nodes": 2}, "multiple of num_nodes"),
        ("torchrun", {"num_processes": 0}, "positive multiple"),
        ("torchrun", {"num_processes": 3}, "batch_tokens must be a multiple"),
        ("local", {"num_processes": 2, "num_nodes": 2}, "num_nodes must be 1"),
        ("accelerate", {"hardware": CPU}, "must be an accelerator"),
        ("axolotl", {"hardware": CPU}, "must be an accelerator for target axolotl"),
        ("slurm", {"options": parse_options("local", [])}, "options must be SlurmOptions for target slurm"),
        ("skypilot", {"options": parse_options("skypilot", [])}, "either bucket or volume; got neither"),
        ("skypilot", {"option": ["volume=v"]}, "either bucket or volume; got both"),
        ("skypilot", {"num_processes": 2, "num_nodes": 2}, "num_nodes must be 1 for skypilot with a bucket"),
        ("accelerate", {"allow_loss_of": ["anchor"]}, "must name what accelerate loses of this run; got 'anchor'"),
    ],
)
def test_launch_that_cannot_work_is_refused(target, changes, match, tmp_path):
    with pytest.raises(ConfigError, match=match):
        write(target, tmp_path, **changes)
    assert not (tmp_path / "launch").exists()


def test_started_run_of_another_spec_is_kept(tmp_path):
    launch = write("local", tmp_path)
    write("local", tmp_path, make_spec(seed=1))  # not started: replaced
    (launch.run_dir / "metrics.jsonl").touch()
    write("local", tmp_path, make_spec(seed=1))  # the same spec: written again
    with pytest.raises(StorageError, match="started run of another"):
        write("local", tmp_path, make_spec(seed=2))
    assert read_run_spec(launch.run_dir / "spec.json").seed == 1
