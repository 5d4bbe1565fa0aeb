"""Guards at the start of a run, the split of a batch, the optimizer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType

from cptplan.errors import ConfigError
from cptplan.run_spec import Optimizer
from executor import distributed


def accelerator(num_processes=1, is_fsdp2=False, kind=DistributedType.NO):
    return SimpleNamespace(num_processes=num_processes, is_fsdp2=is_fsdp2, distributed_type=kind)


def spec(**values):
    return SimpleNamespace(**{"seq_len": 16, "batch_tokens": 192, "sequences_per_step": 12, **values})


def test_check_processes_that_do_not_see_one_another_are_refused(monkeypatch):
    # what accelerate makes of use_cpu with distributed_type FSDP: two runs of one process, both rank 0
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="num_processes must be WORLD_SIZE; got 1 and 2"):
        distributed.check_processes(accelerator(num_processes=1))
    distributed.check_processes(accelerator(num_processes=2, kind=DistributedType.MULTI_CPU))


def test_check_processes_fsdp_asked_for_and_off_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match=r"FSDP must be version 2 and active when asked for; got .*MULTI_CPU"):
        distributed.check_processes(accelerator(num_processes=2, kind=DistributedType.MULTI_CPU))
    distributed.check_processes(accelerator(num_processes=2, is_fsdp2=True, kind=DistributedType.FSDP))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"DP_REPLICATE": 2, "DP_SHARD": 4}, None),
        ({"DP_REPLICATE": 2, "DP_SHARD": 2}, "must be the number of processes; got 2 x 2 for 8"),
        ({"DP_SHARD": 4, "TP": 2}, "must hold dp_replicate_size and dp_shard_size only; got tp_size 2, cp_size 1"),
        ({"DP_SHARD": 4, "CP": 2}, "got tp_size 1, cp_size 2"),
    ],
)
def test_check_parallelism_takes_data_parallel_sizes_that_fit(monkeypatch, sizes, message):
    monkeypatch.setenv("WORLD_SIZE", "8")
    for name, size in sizes.items():
        monkeypatch.setenv(f"PARALLELISM_CONFIG_{name}_SIZE", str(size))
    distributed.check_parallelism()  # not asked for
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    if message is None:
        distributed.check_parallelism()
    else:
        with pytest.raises(ConfigError, match=message):
            distributed.check_parallelism()


def test_sequences_per_process_must_divide_the_batch():
    assert distributed.sequences_per_process(spec(), 4) == 3
    with pytest.raises(ConfigError, match="batch_tokens must be a multiple of seq_len x processes; got 192"):
        distributed.sequences_per_process(spec(), 5)


@pytest.mark.parametrize(
    ("micro_batch_tokens", "size"), [(None, 12), (16, 1), (47, 2), (80, 4), (96, 6), (191, 6), (10**6, 12)]
)
def test_sequences_per_forward_is_the_largest_divisor_that_fits(micro_batch_tokens, size):
    assert distributed.sequences_per_forward(spec(micro_batch_tokens=micro_batch_tokens), 12) == size


def test_sequences_per_forward_without_room_for_one_is_refused():
    with pytest.raises(ConfigError, match="micro_batch_tokens must be at least seq_len; got 15 and 16"):
        distributed.sequences_per_forward(spec(micro_batch_tokens=15), 12)


def test_build_optimizer_decays_matrices_only():
    model = torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.Linear(4, 4), torch.nn.LayerNorm(4))
    decayed, free = distributed.build_optimizer(model, Optimizer(weight_decay=0.3)).param_groups
    assert decayed["weight_decay"] == 0.3
    assert [p.ndim for p in decayed["params"]] == [2, 2]
    assert free["weight_decay"] == 0.0
    assert [p.ndim for p in free["params"]] == [1, 1, 1]
    assert decayed["betas"] == (0.9, 0.95)


def test_set_lr_replaces_a_restored_rate_in_every_group():
    model = torch.nn.Linear(2, 2)
    optimizer = distributed.build_optimizer(model, Optimizer())
    stale = optimizer.state_dict()
    for group in stale["param_groups"]:
        group["lr"] = 1.0
    optimizer.load_state_dict(stale)
    distributed.set_lr(optimizer, 1e-3)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 1e-3]
