"""Which part of the images this process has, where torchrun started several."""

import atexit
import os
from typing import Any

import torch.distributed as dist


def start() -> None:
    """Join the processes that torchrun started, if it started any; they exchange results on the CPU."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("gloo")
        atexit.register(dist.destroy_process_group)  # else its threads can abort the interpreter as it ends


def rank() -> int:
    """Number of this process; 0 if it is the only one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gather(part: Any) -> list[Any]:
    """The part of every process, in the order of ranks."""
    if world() == 1:
        return [part]
    parts: list[Any] = [None] * world()
    dist.all_gather_object(parts, part)
    return parts


def from_first(value: Any) -> Any:
    """The first process's value, on every process."""
    if world() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
