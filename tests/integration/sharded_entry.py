"""The trainer with FSDP2 on CPUs, where accelerate would leave it out: python sharded_entry.py --run-dir DIR.

Everything else is the real thing: accelerate reads FSDP_* and PARALLELISM_CONFIG_* as a launcher sets them.
"""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import DistributedType

from executor import distributed, train


def shard_on_cpu() -> None:
    """Let accelerate take gloo's processes for those of GPUs, the only ones that it shards models over."""

    def sharded(**settings: Any) -> Accelerator:
        handlers = [handler.to_kwargs() for handler in settings["kwargs_handlers"] if hasattr(handler, "timeout")]
        PartialState(cpu=True, **(handlers[0] if handlers else {}))
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        return Accelerator(**settings)

    distributed.Accelerator = sharded


if __name__ == "__main__":
    shard_on_cpu()
    train._leave(train.main())
