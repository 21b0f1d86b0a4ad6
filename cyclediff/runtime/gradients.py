"""One training in several processes: all start at the first one's weights, and take the mean of their gradients."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from cyclediff.runtime import distributed


def share_weights(networks: Iterable[nn.Module]) -> None:
    """Give every process the first one's weights."""
    if distributed.world() == 1:
        return
    distributed.wait_for_all()
    for network in networks:
        for value in network.state_dict().values():
            torch.distributed.broadcast(value, 0)


def average_gradients(parameters: Sequence[Tensor], flags: Sequence[bool]) -> list[bool]:
    """Replace gradients by their mean over all processes; returns which flags any process has set.

    A parameter without a gradient must have none in all processes.
    """
    if distributed.world() == 1:
        return list(flags)
    gradients = [p.grad for p in parameters if p.grad is not None]
    marks = gradients[0].new_tensor([float(flag) for flag in flags])
    whole = torch.cat([*(gradient.flatten() for gradient in gradients), marks])
    torch.distributed.all_reduce(whole)
    *parts, marks = whole.split([*(gradient.numel() for gradient in gradients), len(flags)])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_((part / distributed.world()).view_as(gradient))
    return [mark > 0 for mark in marks.tolist()]
