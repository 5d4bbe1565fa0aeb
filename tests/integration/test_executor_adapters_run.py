"""The pull back to the start, frozen parts and adapters in runs: on two processes as on one, killed and resumed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import executor_runs as runs
import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from transformers import AutoConfig, AutoModelForCausalLM

from cptplan.curves import read_curve
from cptplan.run_options import Anchor as AnchorSettings
from cptplan.run_options import Lora
from cptplan.run_spec import ModelSource, Optimizer
from executor.adapters import apply_lora, merged_state
from executor.distributed import build_optimizer, set_lr
from executor.model import tied_names
from executor.regularize import Anchor, freeze


def torchrun(*arguments: str, **environment: str) -> None:
    """Run a script on two CPU processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    settings = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


ENTRY = f"""
import os, sys
sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
import test_executor_adapters_run as parts

settings = {{"cpu": True}}
if os.environ.get("ACCELERATE_USE_FSDP"):
    settings["fsdp_plugin"] = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", reshard_after_forward=True,
        transformer_cls_names_to_wrap=["LlamaDecoderLayer"], state_dict_type="SHARDED_STATE_DICT")
accelerator = Accelerator(**settings)
if "fsdp_plugin" in settings:  # accelerate never chooses it on a CPU by itself
    for state in (AcceleratorState, PartialState):
        state._shared_state["distributed_type"] = DistributedType.FSDP
    AcceleratorState._shared_state["fsdp_plugin"] = settings["fsdp_plugin"]
    assert accelerator.is_fsdp2
assert accelerator.num_processes == 2
found = {{"pulled": parts.pulled_gradient(accelerator), "adapted": parts.adapted_training(accelerator)}}
if accelerator.is_main_process:
    torch.save(found, sys.argv[1])
accelerator.wait_for_everyone()
sys.stderr.flush()
os._exit(0)  # gloo with FSDP2 sometimes aborts at interpreter exit
"""
ROWS = torch.from_numpy(runs.toy_tokens(8 * 17, rule=1, seed=4).reshape(8, 17).astype("int64"))


def llama():
    values = dict(runs.LLAMA)
    torch.manual_seed(2)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(values.pop("model_type"), **values))


def losses_of(model, rows):
    logits = model(input_ids=rows[:, :-1], use_cache=False).logits
    return cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none").view(len(rows), -1)


def prepare(accelerator, model):
    optimizer = build_optimizer(model, Optimizer())
    return accelerator.prepare(model, optimizer) if accelerator is not None else (model, optimizer)


def backward(accelerator, model, rows):
    """Gradient of the mean loss of all rows, of which each process takes its part."""
    mine = rows if accelerator is None else rows.chunk(2)[accelerator.process_index]
    loss = losses_of(model, mine).mean()
    loss.backward()
    return loss.detach() if accelerator is None else accelerator.reduce(loss.detach(), "mean")


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.clone()


def pulled_gradient(accelerator):
    """Gradients with the pull, by L2 and by EWC, and the penalties, after a step away from the start."""
    model = llama()
    freeze(model, ["*layers.0.mlp*", "*norm*"])  # so that FSDP2 has layers of which only a part is trained
    model, optimizer = prepare(accelerator, model)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    anchors = {kind: Anchor(parameters) for kind in ("l2", "ewc")}
    anchors["ewc"].measure_fisher(model, ROWS[:3].split(1), losses_of)
    with torch.no_grad():
        for parameter in parameters:
            parameter.mul_(1.1)
    found = {}
    for kind, strength in (("l2", 1.0), ("ewc", 1e4)):  # the pull is as large as the gradient of the loss, or larger
        backward(accelerator, model, ROWS)
        anchors[kind].add_gradient(strength)
        found[kind] = [whole(anchors[kind].penalty(strength)), *(whole(parameter.grad) for parameter in parameters)]
        optimizer.zero_grad()
    return found


def adapted_training(accelerator):
    """Losses of 20 steps with adapters, and the merged weights."""
    model = llama()
    torch.manual_seed(3)
    apply_lora(model, Lora(rank=4, alpha=8.0))
    tied = tied_names(model)
    model, optimizer = prepare(accelerator, model)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    losses = []
    for _ in range(20):
        set_lr(optimizer, 1e-2)
        losses.append(backward(accelerator, model, ROWS).item())
        clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    state = {name: tensor for name, tensor in state.items() if name not in tied}
    plain = merged_state(model if accelerator is None else accelerator.unwrap_model(model), state) if state else {}
    return {"losses": losses, "weights": plain}


@pytest.fixture(scope="module")
def alone():
    return {"pulled": pulled_gradient(None), "adapted": adapted_training(None)}


@pytest.mark.parametrize("settings", [{}, {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}], ids=["ddp", "fsdp2"])
def test_two_processes_equal_one(tmp_path, alone, settings):
    (tmp_path / "entry.py").write_text(ENTRY)
    torchrun(str(tmp_path / "entry.py"), str(tmp_path / "found.pt"), **settings)
    found = torch.load(tmp_path / "found.pt")
    for kind, mine in alone["pulled"].items():
        for expected, got in zip(mine, found["pulled"][kind], strict=True):
            # 1e-6: the same sums in another order, fp32
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6, msg=kind)
    assert found["adapted"]["losses"] == pytest.approx(alone["adapted"]["losses"], abs=1e-5)
    assert alone["adapted"]["losses"][-1] < alone["adapted"]["losses"][0] - 0.1
    assert found["adapted"]["weights"].keys() == alone["adapted"]["weights"].keys()
    for name, expected in alone["adapted"]["weights"].items():
        torch.testing.assert_close(found["adapted"]["weights"][name], expected, rtol=0, atol=1e-4, msg=name)


OPTIONS = {
    "lora": {"lora": Lora(rank=4, alpha=8.0, dropout=0.1)},
    "ewc": {"anchor": AnchorSettings(kind="ewc", strength=200.0, fisher_sequences=16)},
    "freeze": {"freeze": ("*layers.0.*",)},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp("adapters")
    runs.write_corpora(path)
    llama().save_pretrained(path / "base")
    runs.write_tokenizer(path / "base")
    return path


@pytest.fixture(scope="module")
def straight(root):
    """A finished run for each option, from a base model on disk, and one without any."""
    base = ModelSource(path=str(root / "base"))
    found = {}
    for name, changes in {"plain": {}, **OPTIONS}.items():
        found[name] = runs.write_run(root / name, runs.make_spec(root, model=base, **changes))
        assert runs.train(found[name]) == 0, runs.said(found[name])
    return found


def weights(directory):
    return load_file(directory / "model.safetensors")


@pytest.mark.parametrize("name", ["lora", "ewc"])
def test_killed_run_resumes_to_the_same_weights(root, straight, name):
    spec = runs.make_spec(root, model=ModelSource(path=str(root / "base")), **OPTIONS[name])
    run_dir = runs.write_run(root / f"{name}-killed", spec)
    process = runs.start(run_dir)
    assert runs.wait_until(lambda: any((run_dir / "checkpoints").glob("step-*8")), process)
    process.kill()
    runs.finish(process)
    assert runs.train(run_dir) == 0
    assert "resumed from" in runs.said(run_dir)
    assert np.array_equal(runs.train_losses(run_dir), runs.train_losses(straight[name]))
    mine, its = (weights(directory / "export" / "step-24") for directory in (run_dir, straight[name]))
    assert mine.keys() == its.keys()
    assert all(torch.equal(mine[key], its[key]) for key in mine)


def test_anchor_holds_the_weights_near_the_start(root, straight):
    start = weights(root / "base")

    def distance(run_dir):
        return sum(float((tensor - start[key]).square().sum()) for key, tensor in weights(run_dir).items())

    moved = {kind: distance(straight[kind] / "export" / "step-24") for kind in ("plain", "ewc")}
    assert 0 < moved["ewc"] < 0.9 * moved["plain"]
    assert runs.train_losses(straight["ewc"])[0] == runs.train_losses(straight["plain"])[0]


def test_frozen_weights_stay_as_they_were(root, straight):
    start, end = weights(root / "base"), weights(straight["freeze"] / "export" / "step-24")
    same = {key for key, tensor in end.items() if torch.equal(tensor, start[key])}
    assert same == {key for key in start if "layers.0." in key}


def test_exports_of_adapters_give_the_logged_loss(root, straight):
    curve, export = read_curve(straight["lora"], "curve"), straight["lora"] / "export" / "step-24"
    windows = torch.from_numpy(runs.validation_windows(root, "domain"))
    base = AutoModelForCausalLM.from_pretrained(root / "base", dtype=torch.float32)
    merged = AutoModelForCausalLM.from_pretrained(export, dtype=torch.float32)
    loss = {"base": losses_of(base.eval(), windows).mean().item()}
    loss["merged"] = losses_of(merged.eval(), windows).mean().item()
    with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):  # peft asks for it by its old name
        adapted = PeftModel.from_pretrained(base, export / "adapter")
    loss["adapter"] = losses_of(adapted.eval(), windows).mean().item()
    assert loss["base"] == pytest.approx(curve.losses["domain"][0], abs=1e-5)
    assert loss["merged"] == pytest.approx(curve.final_loss("domain"), abs=1e-5)
    assert loss["adapter"] == pytest.approx(curve.final_loss("domain"), abs=1e-5)
    assert curve.final_loss("domain") < curve.losses["domain"][0] - 0.1
    assert set(weights(export)) == set(weights(root / "base"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": Lora(rank=4, alpha=8.0, targets=("q_prj",))}, "lora.targets must name linear layers; got 'q_prj'."),
        ({"freeze": ("model.layer.0.*",)}, "freeze must match the name of a parameter; got 'model.layer.0.*'."),
        ({"freeze": ("*",)}, "freeze must leave a parameter to train; got *, which match all."),
    ],
)
def test_names_that_do_not_fit_end_with_exit_code_2_and_one_line(root, changes, message):
    run_dir = runs.write_run(root / f"bad-{message[-12:-1]}", runs.make_spec(root, **changes))
    assert runs.train(run_dir) == 2
    lines = runs.said(run_dir).splitlines()
    assert lines[0] == f"error: {message}"
    assert lines[1].startswith("hint: ")
    assert len(lines) == 2
