"""Documents that share a row: positions, what is predicted, and the test of a model at the start of a run."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, SIZES, draw

from cptplan.errors import ConfigError
from executor import isolation


def slow_positions(rows: np.ndarray, eos: int) -> np.ndarray:
    positions = np.zeros_like(rows)
    for number, row in enumerate(rows):
        for place in range(1, len(row)):
            positions[number, place] = 0 if row[place - 1] == eos else positions[number, place - 1] + 1
    return positions


def test_document_positions_of_rows_known_by_hand():
    rows = torch.tensor([[5, 6, 0, 7, 8, 9], [0, 0, 1, 1, 1, 0], [1, 2, 3, 4, 5, 6]])
    expected = [[0, 1, 2, 0, 1, 2], [0, 0, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]
    assert isolation.document_positions(rows, 0).tolist() == expected


@pytest.mark.parametrize("eos", [0, 3])
def test_document_positions_equal_a_slow_loop(eos):
    rows = np.random.default_rng(0).integers(0, 6, (8, 50))
    found = isolation.document_positions(torch.from_numpy(rows), eos)
    assert found.dtype == torch.int64
    np.testing.assert_array_equal(found.numpy(), slow_positions(rows, eos))


def test_target_after_the_end_of_text_is_not_predicted():
    inputs = torch.tensor([[5, 0, 7], [0, 0, 2]])
    assert isolation.predicted(inputs, 0).tolist() == [[True, False, True], [False, False, True]]


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: SimpleNamespace(module=model)])
def test_rows_are_laid_end_to_end_for_flash_attention_only(wrap):
    rows = torch.tensor([[5, 0, 7], [8, 9, 0]])
    model = SimpleNamespace(config=SimpleNamespace(_attn_implementation="sdpa"))
    found = isolation.isolated_inputs(wrap(model), rows, 0)
    assert found["input_ids"].tolist() == rows.tolist()
    assert found["position_ids"].tolist() == [[0, 1, 0], [0, 1, 2]]
    model.config._attn_implementation = "flash_attention_2"
    flat = isolation.isolated_inputs(wrap(model), rows, 0)
    assert flat["input_ids"].tolist() == [[5, 0, 7, 8, 9, 0]]
    assert flat["position_ids"].tolist() == [[0, 1, 0, 0, 1, 2]]


def test_rows_laid_end_to_end_give_the_same_logits(monkeypatch):
    model = draw(ARCHITECTURES["llama"])
    rows = torch.randint(0, 64, (3, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        apart = model(**isolation.isolated_inputs(model, rows, 0), use_cache=False).logits
        monkeypatch.setattr(model.config, "_attn_implementation_internal", "flash_attention_2")
        flat = isolation.isolated_inputs(model, rows, 0)
        monkeypatch.setattr(model.config, "_attn_implementation_internal", "sdpa")
        together = model(**flat, use_cache=False).logits
    assert together.shape == (1, 60, 64)
    torch.testing.assert_close(together.flatten(0, 1), apart.flatten(0, 1), atol=1e-5, rtol=0)  # fp32, another order


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_check_isolation_accepts(name, dtype):
    model = draw(ARCHITECTURES[name], dtype=dtype).train()
    isolation.check_isolation(model, eos_token_id=0, seq_len=32)
    assert model.training


LEAKING = {
    # gpt_oss gives its masks no positions (transformers 5.23), a recurrent state and a convolution know no documents
    "gpt_oss": {"model_type": "gpt_oss", **SIZES, "num_local_experts": 4, "num_experts_per_tok": 2},
    "mamba": {"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 64, "pad_token_id": 0},
    "lfm2": {"model_type": "lfm2", **SIZES, "layer_types": ["conv", "full_attention"]},
}


@pytest.mark.parametrize("name", LEAKING)
def test_check_isolation_refuses_a_model_whose_documents_leak(name):
    model = draw(LEAKING[name])
    with pytest.raises(
        ConfigError, match="must keep documents apart; got logits of a document that change by"
    ) as error:
        isolation.check_isolation(SimpleModule(model), eos_token_id=63, seq_len=4096)
    assert "\n" not in str(error.value)
    assert f"in {type(model).__name__} with attention" in str(error.value)


class SimpleModule(torch.nn.Module):
    """What DDP does to a model: it hides all but its forward pass."""

    def __init__(self, model):
        super().__init__()
        self.module = model

    def forward(self, **inputs):
        return self.module(**inputs)


def test_check_isolation_refuses_logits_that_are_not_numbers():
    model = draw(ARCHITECTURES["llama"])
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(ConfigError, match="change by nan"):
        isolation.check_isolation(model, eos_token_id=0, seq_len=32)


def test_check_isolation_does_not_compile():
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph

    model = draw(ARCHITECTURES["llama"])
    model.compile(backend=backend)
    isolation.check_isolation(model, eos_token_id=0, seq_len=32)
    assert not compiled
    with torch.no_grad():
        model(input_ids=torch.ones(1, 8, dtype=torch.int64), use_cache=False)
    assert compiled
