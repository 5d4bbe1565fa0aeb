"""What holds a run near the weights it started from: frozen parts, and a pull back to the start (L2 or EWC)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial, Replicate
from transformers.modeling_layers import GradientCheckpointingLayer

from cptplan.errors import ConfigError, DataError, suggest


def freeze(model: nn.Module, patterns: Sequence[str]) -> int:
    """Stop the training of the parameters whose names match; before the optimizer is built and the model wrapped.

    A tied parameter has two names and is frozen by either.
    Args:      patterns: of names of parameters, with * and ?, upper and lower case told apart.
    Returns:   num_params that are frozen now.
    Raises:    ConfigError if a pattern matches nothing, or if nothing is left to train.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    for pattern in patterns:
        matching = [parameter for name, parameter in named.items() if fnmatchcase(name, pattern)]
        if not matching:
            raise ConfigError(
                f"freeze must match the name of a parameter; got {pattern!r}.",
                hint=suggest(pattern, named) or f"names look like {next(iter(named))!r}; * stands for any part",
            )
        for parameter in matching:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in named.values()):
        raise ConfigError(
            f"freeze must leave a parameter to train; got {', '.join(patterns)}, which match all.",
            hint="drop a pattern",
        )
    return sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)


class Anchor:
    """The pull back to the start: the gradient of strength / 2 x sum of F (theta - theta_0)^2, in nats per token.

    F is 1 (L2) until measure_fisher was called (EWC). Made after accelerate has wrapped the model, so that all it holds
    is sharded as the parameters are, and before a checkpoint is loaded, because the start is meant: a resumed run
    makes the same anchor again. It holds one more copy of the trained weights, and with the Fisher information two.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        """Remember where the trainable ones among the parameters are now."""
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.start = [parameter.detach().clone() for parameter in self.parameters]
        self.fisher: list[Tensor] | None = None

    def measure_fisher(
        self, model: nn.Module, sequences: Iterable[Tensor], token_losses: Callable[[nn.Module, Tensor], Tensor]
    ) -> None:
        """Measure the diagonal empirical Fisher information per token: F = mean over sequences of T (d L / d theta)^2.

        L is the mean loss of the T tokens of one sequence. What is wanted is E[g^2] for the gradient g of one token's
        loss; L has the mean of T of them, whose square is E[g^2] / T if they are independent and of mean 0, hence
        the T. With F so scaled, strength 1 is the second-order estimate of what the general loss rises by, in nats per
        token, and strength is how many nats per token of domain loss one nat of it is worth. It is an approximation:
        tokens of a sequence depend on one another, and their gradients have mean 0 only where the loss is at its
        minimum; elsewhere F is too large by T times the square of the mean. The labels are those of the data, not
        samples of the model: the empirical Fisher, whose limits are known (Kunstner et al. 2019, arXiv:1905.12558).

        Called by all processes with the same sequences: DDP's mean and FSDP2's are then the gradient of one sequence.
        Dropout is off (but in a layer that is recomputed and drops out in its own forward, as those of OPT); modes are
        left as they were, and no gradients are left behind.
        Args:      model: the wrapped one. sequences: token ids, each of shape (1, seq_len + 1), on the device.
                   token_losses: (model, sequence) -> losses of its tokens, nats, shape (1, seq_len).
        Raises:    DataError if there is no sequence.
        Reference: Kirkpatrick et al. 2017, arXiv:1612.00796, eq. 3; deviations: F per token, so that strength does not
                   depend on how much general data was read, and empirical.
        """
        modes = {module: module.training for module in model.modules()}
        model.eval()
        for module in modes:
            if isinstance(module, GradientCheckpointingLayer):
                module.training = (
                    True  # its own flag, not that of the parts of it that drop out: else nothing is recomputed
                )
        total, number = [torch.zeros_like(_local(parameter)) for parameter in self.parameters], 0
        for sequence in sequences:
            losses = token_losses(model, sequence)
            losses.mean().backward()
            for parameter, squares in zip(self.parameters, total, strict=True):
                if parameter.grad is not None:
                    gradient = _local(parameter.grad)
                    squares.addcmul_(gradient, gradient, value=losses.numel())
                    parameter.grad = None
            number += 1
        for module, mode in modes.items():
            module.training = mode
        if not number:
            raise DataError(
                "the general source must hold a sequence to measure the Fisher information on; got none.",
                hint="add general data, or take kind l2",
            )
        self.fisher = [squares.div_(number) for squares in total]

    @torch.no_grad()
    def add_gradient(self, strength: float) -> None:
        """Add the pull, strength x F (theta - theta_0), to the gradients: after the last backward, before clipping.

        A parameter without a gradient is left out; the optimizer leaves it where it is, too.
        """
        # one tensor at a time: together they would need another copy of the weights
        for number, (parameter, start) in enumerate(zip(self.parameters, self.start, strict=True)):
            if parameter.grad is not None:
                gradient, moved = _local(parameter.grad), _local(parameter) - _local(start)
                if self.fisher is None:
                    gradient.add_(moved, alpha=strength)
                else:
                    gradient.addcmul_(self.fisher[number], moved, value=strength)

    @torch.no_grad()
    def penalty(self, strength: float) -> Tensor:
        """The penalty, strength / 2 x sum of F (theta - theta_0)^2, nats per token, shape (); for the log.

        Called by all processes: under FSDP2 each adds its shard.
        """
        total = torch.zeros((), dtype=self.start[0].dtype, device=self.start[0].device)
        for number, (parameter, start) in enumerate(zip(self.parameters, self.start, strict=True)):
            squares = (_local(parameter) - _local(start)).square_()
            total += (squares if self.fisher is None else squares.mul_(self.fisher[number])).sum()
        return strength / 2 * _over_shards(total, self.start[0])


def _local(tensor: Tensor) -> Tensor:
    """The shard of this process, which shares its memory (all that is done here goes element by element)."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _over_shards(total: Tensor, like: Tensor) -> Tensor:
    """The sum of all processes' parts, when each has the part of its shard of a tensor like this one."""
    if not isinstance(like, DTensor):
        return total
    placements = [Replicate() if placement.is_replicate() else Partial() for placement in like.placements]
    return DTensor.from_local(total, like.device_mesh, placements, run_check=False).full_tensor()
