"""Frozen parts, and the pull back to the start: Fisher information, gradient and penalty against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev
from torch.nn.functional import cross_entropy
from transformers import AutoConfig, AutoModelForCausalLM

from cptplan.errors import ConfigError, DataError
from executor.regularize import Anchor, freeze

GPT2 = {
    "n_embd": 8,
    "n_layer": 2,
    "n_head": 2,
    "vocab_size": 16,
    "n_positions": 16,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
VOCAB = 5


def gpt2(**changes):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **{**GPT2, **changes}))


def bigram(seed=0):
    """Softmax regression of the next token on the present one: row x of the weight holds the logits after x."""
    torch.manual_seed(seed)
    return nn.Embedding(VOCAB, VOCAB, dtype=torch.float64)


def bigram_losses(model, rows):
    return cross_entropy(model(rows[:, :-1])[0], rows[0, 1:], reduction="none")[None]


def gpt2_losses(model, rows):
    logits = model(input_ids=rows[:, :-1], use_cache=False).logits
    return cross_entropy(logits[0], rows[0, 1:], reduction="none")[None]


def rows_of(number, length, vocab=VOCAB, seed=1):
    return np.random.default_rng(seed).integers(0, vocab, (number, 1, length + 1))


def tensors(rows):
    return [torch.from_numpy(row) for row in rows]


def bigram_fisher(weight, rows):
    """F by hand: the gradient of a mean loss over T tokens is the mean of (softmax - one hot) in the rows of x."""
    total = np.zeros_like(weight)
    for row in rows[:, 0]:
        gradient = np.zeros_like(weight)
        for before, after in zip(row[:-1], row[1:], strict=True):
            odds = np.exp(weight[before])
            gradient[before] += (odds / odds.sum() - np.eye(VOCAB)[after]) / (len(row) - 1)
        total += gradient**2 * (len(row) - 1)
    return total / len(rows)


@pytest.mark.parametrize("length", [1, 7])
def test_fisher_of_softmax_regression_is_the_closed_form(length):
    model, rows = bigram(), rows_of(12, length)
    anchor = Anchor(model.parameters())
    anchor.measure_fisher(model, tensors(rows), bigram_losses)
    expected = bigram_fisher(model.weight.detach().numpy(), rows)
    np.testing.assert_allclose(anchor.fisher[0].numpy(), expected, rtol=1e-12, atol=0)


def test_fisher_of_a_transformer_is_that_of_the_jacobian():
    model, rows = gpt2(attn_pdrop=0, resid_pdrop=0, embd_pdrop=0, attn_implementation="eager"), rows_of(4, 6, vocab=16)
    model.eval()
    anchor = Anchor(model.parameters())
    anchor.measure_fisher(model, tensors(rows), gpt2_losses)
    named = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def losses(values):
        each = [functional_call(model, values, (), {"input_ids": torch.from_numpy(row[:, :-1])}).logits for row in rows]
        return torch.stack([cross_entropy(e[0], torch.from_numpy(r[0, 1:])) for e, r in zip(each, rows, strict=True)])

    for (name, jacobian), fisher in zip(jacrev(losses)(named).items(), anchor.fisher, strict=True):
        # 1e-6 relative to the largest: both are sums in fp32, in other orders
        expected = jacobian.square().mean(dim=0) * 6
        torch.testing.assert_close(fisher, expected, rtol=1e-4, atol=1e-6 * float(expected.max()), msg=name)


def test_fisher_is_per_token_whatever_the_length_when_tokens_are_independent():
    # least squares y = w x + unit noise: per-token loss (y - w x)^2 / 2, Fisher information E[x^2] = 4 + 1
    rng, num_sequences, length = np.random.default_rng(5), 2000, 16
    x, noise = rng.normal(2.0, 1.0, (num_sequences, length)), rng.normal(size=(num_sequences, length))
    x, noise = torch.from_numpy(x), torch.from_numpy(noise)
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        y = model(x[..., None])[..., 0] + noise
    anchor = Anchor(model.parameters())
    numbers = [torch.tensor([[number]]) for number in range(num_sequences)]
    anchor.measure_fisher(model, numbers, lambda net, row: (y[row[0]] - net(x[row[0], :, None])[..., 0]) ** 2 / 2)
    # a mean of 2000 squares of nearly normal numbers: standard error 5 x sqrt(2 / 2000) = 0.16; four of them
    assert float(anchor.fisher[0]) == pytest.approx(5.0, abs=0.64)


def test_penalty_of_strength_1_is_the_rise_of_the_loss_in_nats_per_token():
    # every pair once is what a model with all logits equal says: the loss is at its minimum, the labels are its own
    model = bigram()
    nn.init.zeros_(model.weight)
    pairs = [torch.tensor([[x, y]]) for x in range(VOCAB) for y in range(VOCAB)]
    anchor = Anchor(model.parameters())
    anchor.measure_fisher(model, pairs, bigram_losses)

    @torch.no_grad()
    def general_loss():
        return float(torch.cat([bigram_losses(model, pair) for pair in pairs]).mean())

    before = general_loss()
    with torch.no_grad():
        model.weight[1, 2] += 1e-3
    # of second order: what is left is of third, 1e-3 of it and less
    assert general_loss() - before == pytest.approx(float(anchor.penalty(1.0)), rel=1e-3)


@pytest.mark.parametrize("kind", ["l2", "ewc"])
def test_gradient_is_that_of_the_penalty(kind):
    model, rows = bigram(), rows_of(12, 7)
    anchor = Anchor(model.parameters())
    if kind == "ewc":
        anchor.measure_fisher(model, tensors(rows), bigram_losses)
    start = model.weight.detach().clone()
    with torch.no_grad():
        model.weight += 0.1 * torch.randn_like(model.weight)
    fisher = torch.from_numpy(bigram_fisher(start.numpy(), rows)) if kind == "ewc" else 1.0
    penalty = 0.7 / 2 * (fisher * (model.weight - start) ** 2).sum()
    (bigram_losses(model, tensors(rows)[0]).mean() + penalty).backward()
    together, model.weight.grad = model.weight.grad, None
    bigram_losses(model, tensors(rows)[0]).mean().backward()
    anchor.add_gradient(0.7)
    torch.testing.assert_close(model.weight.grad, together, rtol=1e-12, atol=1e-15)
    assert float(anchor.penalty(0.7)) == pytest.approx(penalty.item(), rel=1e-12)


def test_at_the_start_nothing_pulls():
    model = bigram()
    anchor = Anchor(model.parameters())
    bigram_losses(model, tensors(rows_of(1, 7))[0]).mean().backward()
    before = model.weight.grad.clone()
    anchor.add_gradient(10.0)
    assert torch.equal(model.weight.grad, before)
    assert float(anchor.penalty(10.0)) == 0.0


def test_anchor_leaves_frozen_parameters_and_those_without_gradient_alone():
    model = gpt2()
    freeze(model, ["*wte*"])
    anchor = Anchor(model.parameters())
    assert len(anchor.start) == len(list(model.parameters())) - 1
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    anchor.add_gradient(1.0)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
@pytest.mark.parametrize("recompute", [False, True])
def test_measuring_is_without_dropout_and_leaves_no_trace(recompute):
    model, rows = gpt2(), tensors(rows_of(3, 6, vocab=16))  # dropout of 0.1 throughout
    without = gpt2(attn_pdrop=0, resid_pdrop=0, embd_pdrop=0)
    recomputed = []
    if recompute:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        real = model.transformer.h[0]._gradient_checkpointing_func
        for block in model.transformer.h:
            block._gradient_checkpointing_func = lambda *a, **k: (recomputed.append(1), real(*a, **k))[1]
    model.train()
    model.transformer.h[1].eval()
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    anchor, expected = Anchor(model.parameters()), Anchor(without.parameters())
    anchor.measure_fisher(model, rows, gpt2_losses)
    expected.measure_fisher(without, rows, gpt2_losses)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert len(recomputed) == (2 * len(rows) if recompute else 0)
    for mine, its in zip(anchor.fisher, expected.fisher, strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-10)


def test_measuring_on_nothing_is_refused():
    model = bigram()
    with pytest.raises(DataError, match="must hold a sequence"):
        Anchor(model.parameters()).measure_fisher(model, [], bigram_losses)


@pytest.mark.parametrize(
    ("patterns", "frozen"),
    [
        ([], set()),
        (["transformer.wpe.weight"], {"transformer.wpe.weight"}),
        (["transformer.h.?.ln_1.bias"], {"transformer.h.0.ln_1.bias", "transformer.h.1.ln_1.bias"}),
        (["*.wpe.*", "*ln_f*"], {"transformer.wpe.weight", "transformer.ln_f.weight", "transformer.ln_f.bias"}),
        (["lm_head.weight"], {"transformer.wte.weight"}),  # its other name
    ],
)
def test_freeze_stops_what_matches(patterns, frozen):
    model = gpt2()
    number = freeze(model, patterns)
    parameters = dict(model.named_parameters())
    assert {name for name, parameter in parameters.items() if not parameter.requires_grad} == frozen
    assert number == sum(parameters[name].numel() for name in frozen)


@pytest.mark.parametrize(
    ("patterns", "message", "hint"),
    [
        (["*ln_f*", "transformer.wp.weight"], "got 'transformer.wp.weight'", "did you mean 'transformer.wpe.weight'?"),
        (["nothing"], "got 'nothing'", "names look like 'transformer.wte.weight'"),
        (["*.WPE.*"], "got '*.WPE.*'", "names look like"),
        (["transformer.*"], "got transformer.*, which match all", "drop a pattern"),
    ],
)
def test_freeze_of_nothing_or_all_is_refused(patterns, message, hint):
    with pytest.raises(ConfigError) as caught:
        freeze(gpt2(), patterns)
    assert message in caught.value.message
    assert hint in caught.value.hint
