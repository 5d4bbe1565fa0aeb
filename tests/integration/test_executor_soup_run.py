"""The soup command on tiny models that lie on disk: what it measures, chooses, exports and refuses."""

from __future__ import annotations

import json
import re

import executor_runs as runs
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM

from executor.export import export_model
from executor.model import tied_names
from executor.soup import main

MIXTRAL = {
    "model_type": "mixtral",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 16,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "vocab_size": runs.VOCAB,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def build(config, seed=0):
    torch.manual_seed(seed)
    values = dict(config)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(values.pop("model_type"), **values))


def save(directory, model):
    tied = tied_names(model)
    export_model(directory, model, {k: v for k, v in model.state_dict().items() if k not in tied}, None)
    runs.write_tokenizer(directory)
    return directory


def load(directory):
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)


def windows(root, name, count=32):
    return torch.from_numpy(runs.validation_windows(root, name, count))


def loss(model, rows):
    """Written out, to check the command's own."""
    with torch.no_grad():
        logits = model.eval()(input_ids=rows[:, :-1]).logits
    return float(cross_entropy(logits.flatten(0, 1).double(), rows[:, 1:].flatten()))


def overshoot(root, config):
    """A base, and beside it a model that has gone eight times as far as training on the domain went."""
    model = build(config)
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save(root / "base", model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rows = windows(root, "domain", 60)
    for _ in range(20):
        logits = model(input_ids=rows[:, :-1]).logits
        cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(8 * parameter - 7 * base[name])
    save(root / "adapted", model)


def command(root, *more, out="out"):
    sets = [f"--validation={name}={root / name}" for name in ("general", "domain")]
    size = ["--seq-len", str(runs.SEQ_LEN), "--num-tokens", str(32 * runs.SEQ_LEN)]
    return main([*sets, *size, *more, "--out", str(root / out)])


def sweep(root, *more, weights="domain=1", out="out"):
    models = ["--base", str(root / "base"), "--adapted", str(root / "adapted")]
    return command(root, *models, "--weights", weights, *more, out=out)


def result(root, out="out"):
    return json.loads((root / out / "soup.json").read_text())


@pytest.fixture
def root(tmp_path):
    runs.write_corpora(tmp_path)
    return tmp_path


@pytest.mark.parametrize("config", [runs.LLAMA, runs.GPT2, MIXTRAL], ids=lambda config: config["model_type"])
def test_sweep_finds_the_best_share_and_exports_it(root, config, caplog):
    overshoot(root, config)
    with caplog.at_level("INFO"):
        assert sweep(root, "--coefficients", "0,0.125,1") == 0
    found = result(root)
    assert found["chosen"] == 0.125
    assert found["weights"] == {"general": 0.0, "domain": 1.0}
    assert found["eval_tokens"] == {"general": 32 * runs.SEQ_LEN, "domain": 32 * runs.SEQ_LEN}
    base, middle, _ = found["table"]
    assert base["score"] == 0.0
    assert middle["score"] == middle["losses"]["domain"] - base["losses"]["domain"] < -0.5
    exported = load(root / "out" / "model")
    for name in ("general", "domain"):
        # fp32 logits against the same in other batches
        assert middle["losses"][name] == pytest.approx(loss(exported, windows(root, name)), abs=1e-5)
        assert base["losses"][name] == pytest.approx(loss(load(root / "base"), windows(root, name)), abs=1e-5)
    ends = (load(root / name).parameters() for name in ("base", "adapted"))
    mean = [0.875 * a + 0.125 * b for a, b in zip(*ends, strict=True)]
    for parameter, wanted in zip(exported.parameters(), mean, strict=True):
        torch.testing.assert_close(parameter, wanted, atol=1e-6, rtol=1e-6)
    assert f"coefficient 0.125: loss_general {middle['losses']['general']:.4f}" in caplog.text
    assert "coefficient 0.125 is the best" in caplog.text


def test_sweep_keeps_the_base_where_nothing_is_better(root):
    overshoot(root, runs.LLAMA)
    rows = windows(root, "general")
    assert sweep(root, "--coefficients", "1", weights="general=1,domain=0") == 0
    found = result(root)
    assert [each["coefficient"] for each in found["table"]] == [0.0, 1.0]
    assert found["chosen"] == 0.0
    assert loss(load(root / "out" / "model"), rows) == loss(load(root / "base"), rows)


def test_losses_are_those_of_the_trainer(root):
    spec = runs.make_spec(root, eval_steps=(9,), keep_steps=(9,))
    run = runs.write_run(root / "run", spec)
    assert runs.train(run) == 0
    measured = {
        line["step"]: {name: line[f"loss_{name}"] for name in ("general", "domain")}
        for line in runs.metrics(run)
        if "loss_general" in line
    }
    exports = [run / "export" / f"step-{step}" for step in (9, 24)]
    sizes = ["--seq-len", str(runs.SEQ_LEN), "--num-tokens", str(33 * runs.SEQ_LEN)]
    sets = [f"--validation={name}={root / name}" for name in ("general", "domain")]
    assert main(["--average", *map(str, exports), *sets, *sizes, "--out", str(root / "out")]) == 0
    found = result(root)
    for step, each in zip((9, 24), found["table"], strict=True):
        assert each["model"] == str(run / "export" / f"step-{step}")
        assert each["losses"] == pytest.approx(measured[step], abs=1e-6)  # fp32 in batches of another size
    average = load(root / "out" / "model")
    assert found["average"]["domain"] == pytest.approx(loss(average, windows(root, "domain", 33)), abs=1e-5)
    first, last = (load(path) for path in exports)
    for parameter, a, b in zip(average.parameters(), first.parameters(), last.parameters(), strict=True):
        torch.testing.assert_close(parameter, (a + b) / 2, atol=1e-7, rtol=1e-6)


def test_average_without_validation_and_of_equal_models_is_that_model(root):
    save(root / "base", build(runs.GPT2))
    same = [str(root / "base")] * 2
    assert main(["--average", *same, "--seq-len", "8", "--out", str(root / "out")]) == 0
    assert result(root)["average"] == {}
    for a, b in zip(load(root / "out" / "model").parameters(), load(root / "base").parameters(), strict=True):
        assert torch.equal(a, b)


def test_base_in_shards_with_names_of_a_body_in_bf16_meets_its_export(root):
    overshoot(root, runs.GPT2)
    wanted = load(root / "adapted")
    weights = load_file(root / "base" / "model.safetensors")
    (root / "base" / "model.safetensors").unlink()
    bare = {name.removeprefix("transformer."): tensor.bfloat16() for name, tensor in weights.items()}
    bare["h.0.attn.bias"] = torch.ones(1, 1, 64, 64)  # a mask that old files hold and no model wants
    names = sorted(bare)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: bare[name] for name in held}, root / "base" / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, held in parts.items() for name in held}}
    (root / "base" / "model.safetensors.index.json").write_text(json.dumps(index))
    config = json.loads((root / "base" / "config.json").read_text())
    (root / "base" / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16", "torch_dtype": "bfloat16"}))
    assert sweep(root, "--coefficients", "0,1", "--batch-size", "3") == 0
    last = result(root)["table"][-1]
    assert last["losses"]["domain"] == pytest.approx(loss(wanted, windows(root, "domain")), abs=1e-5)
    stored = load_file(root / "out" / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}  # as the base


def test_isolated_documents_are_measured_one_by_one(root):
    model = build(runs.LLAMA)
    save(root / "base", model)
    same = [str(root / "base")] * 2
    assert command(root, "--average", *same, "--isolate-documents", "--num-tokens", str(8 * runs.SEQ_LEN)) == 0
    total = count = 0.0
    for row in windows(root, "domain", 8).tolist():
        document: list[int] = []
        for token in row:
            if document and document[-1] == 0:
                document = []  # the end of text closed one; nothing foretells the first token of the next
            document.append(token)
            if len(document) > 1:
                with torch.no_grad():
                    logits = model.eval()(input_ids=torch.tensor([document[:-1]])).logits[0, -1]
                total += float(cross_entropy(logits.double(), torch.tensor(token)))
                count += 1
    assert count < 8 * runs.SEQ_LEN
    assert result(root)["average"]["domain"] == pytest.approx(total / count, abs=1e-5)


def break_config(root):
    path = root / "adapted" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rope_parameters": {"rope_theta": 1.0}}))


def break_weights(root):
    path = root / "adapted" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (
            lambda root: save(root / "adapted", build({**runs.LLAMA, "intermediate_size": 16})),
            [],
            "got intermediate_size 64 in",
        ),
        (break_config, [], "models must have the same configuration; got rope_parameters"),
        (break_weights, [], "weights must be readable"),
        (lambda root: (root / "adapted" / "config.json").unlink(), [], "must hold config.json; got none"),
        (lambda root: (root / "base" / "model.safetensors").unlink(), [], r"must hold \*.safetensors; got none"),
        (None, ["--seq-len", "65"], "seq_len must be at most max_position_embeddings; got 65 and 64"),
        (None, ["--num-tokens", "0"], "num_tokens must be greater than 0; got 0"),
        (None, ["--num-tokens", "3"], "must hold at least one window of 17 tokens"),
        (None, ["--validation", "general"], "validation must be name=directory"),
        (None, ["--validation", "general=elsewhere"], "each name once; got general=elsewhere"),
        (None, ["--validation", "law=nowhere"], "file must exist; got no nowhere"),
        (None, ["--validation", "big=big"], "vocabulary must fit the model's 64 embeddings; got 65 in big"),
    ],
)
def test_bad_input_gets_one_line(root, capsys, monkeypatch, change, arguments, message):
    monkeypatch.chdir(root)
    runs.write_shard(root / "big", "validation", runs.toy_tokens(1000, rule=1, seed=0), vocab_size=65)
    for name in ("base", "adapted"):
        save(root / name, build(runs.LLAMA))
    if change is not None:
        change(root)
    models = ["--base", str(root / "base"), "--adapted", str(root / "adapted"), "--weights", "domain=1"]
    sets = [f"--validation={name}={root / name}" for name in ("general", "domain")]
    sizes = ["--seq-len", str(runs.SEQ_LEN), "--num-tokens", str(32 * runs.SEQ_LEN)]
    assert main([*models, *sets, *sizes, *arguments, "--out", "out"]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert len(error.splitlines()) == 2
    assert not (root / "out" / "soup.json").exists()


def test_out_must_not_replace_a_model_that_is_averaged(root, capsys):
    save(root / "out" / "model", build(runs.LLAMA))
    (root / "base").symlink_to(root / "out" / "model")
    (root / "adapted").symlink_to(root / "out" / "model")
    assert sweep(root) == 2
    assert "out must not hold a model to average" in capsys.readouterr().err


def test_weights_that_are_not_finite_fail_the_command(root, capsys):
    model = build(runs.LLAMA)
    save(root / "base", model)
    with torch.no_grad():
        model.get_input_embeddings().weight[1:].fill_(float("nan"))
    save(root / "adapted", model)
    assert sweep(root) == 5
    assert "must be finite; got nan" in capsys.readouterr().err
