"""Where a GPU would be waited for, counted without one: tensors of a made-up CUDA device go through the real code.

A *crossing* is a tensor that goes from one device to another. A *synchronisation* asks the device for a number, so that
Python waits until it is there. In a sampler's loop there should be none of either.
"""

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from rich.table import Table
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import cyclediff.pets
from cyclediff.attention_control import AttentionControl
from cyclediff.attention_layers import install
from cyclediff.diffusion.conditioning import Conditioning
from cyclediff.diffusion.prompt import Prompt
from cyclediff.models.text_to_image import caller

aten = torch.ops.aten
CUDA = torch.device("cuda", 0)
ASKING = {aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default}  # item(), x[mask], equal
MOVING = {aten._to_copy.default, aten.copy_.default}
ROOT = Path(__file__).parents[1]
WEIGHTS = Path(cyclediff.pets.__file__).parent / "weights"


@dataclass
class Counts:
    """What was counted.

    Args:
        operations: how many operations there were.
        crossings: where a tensor went from one device to another, a line of code each time.
        waits: where a number was asked for.
    """

    operations: int = 0
    crossings: list[str] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)


class _Counting(TorchDispatchMode):
    def __init__(self, counts: Counts):
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        leaves = tree_leaves((args, kwargs))
        tensors = [x for x in leaves if isinstance(x, Tensor)]
        if not any(isinstance(x, FakeTensor) for x in tensors) and CUDA.type not in map(_type, leaves):
            with unset_fake_temporarily():  # the CPU's own numbers are real
                return func(*args, **(kwargs or {}))
        self.counts.operations += 1
        before = {x.device.type for x in tensors}
        if func in ASKING and "cuda" in before:
            self.counts.waits.append(_line())
            if func is aten._local_scalar_dense.default:  # the made-up tensor has no number
                return True if args[0].dtype == torch.bool else 1
            if func is aten.equal.default:
                return True
        out = func(*args, **(kwargs or {}))
        after = {x.device.type for x in tree_leaves(out) if isinstance(x, Tensor)}
        if func in MOVING and len(before | after) > 1:
            self.counts.crossings.append(_line())
        return out


def _line() -> str:
    """The line of this project that is being run."""
    frames = [f for f in traceback.extract_stack() if ROOT in Path(f.filename).parents and f.filename != __file__]
    own = [frame for frame in frames if ".venv" not in frame.filename]
    return f"{Path(own[-1].filename).relative_to(ROOT)}:{own[-1].lineno}: {own[-1].line}"


def _type(x: Any) -> str | None:
    return x.type if isinstance(x, torch.device) else None


@contextmanager
def made_up_gpu() -> Iterator[Counts]:
    """Inside, device="cuda" exists, tensors have shapes without numbers, and what happens to them is counted."""
    counts = Counts()
    with FakeTensorMode(allow_non_fake_inputs=True), _Counting(counts):
        yield counts


def to_made_up(network: nn.Module) -> nn.Module:
    """Move a network there, in place; within `made_up_gpu` only."""
    for module in network.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = torch.empty(parameter.shape, dtype=parameter.dtype, device=CUDA)
                module._parameters[name] = nn.Parameter(fake, requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=CUDA)
    return network


def rows_of_syncs(table: Table) -> None:
    """What one evaluation of the text-to-image network of pets asks of a GPU, with attention control."""
    config: Any = UNet2DConditionModel.load_config(WEIGHTS / "text_to_image" / "unet")
    unet: Any = UNet2DConditionModel.from_config(config)
    install(unet.half())
    words = (0, 1, 2, 3), ((0, 0), (0, 1), (2, 5), (0, 0))
    cat, dog = Prompt("a cat", *words), Prompt("a dog", *words)
    with made_up_gpu() as counts:
        call = caller(to_made_up(unet), torch.float16, torch.contiguous_format)
        x, t, context = (
            torch.randn(s, device=CUDA) for s in ((4, 4, 16, 16), (4,), (4, 16, unet.config.cross_attention_dim))
        )
        context = Conditioning(context)
        plan, found = AttentionControl().plan([cat], [dog], 16, 10, CUDA), []
        for step in range(2):
            before = len(counts.crossings), len(counts.waits), counts.operations
            call(x, t, context, plan.at(step, [2], [3], [0]))
            after = len(counts.crossings), len(counts.waits), counts.operations
            found.append([b - a for a, b in zip(before, after, strict=True)])
    crossings, waits, operations = found[1]
    title = "pets in words, one step with attention control: copies to the device"
    table.add_row(title, f"{crossings} of {operations} operations", "0")
    table.add_row("  how often the device is waited for", f"{waits}", "0")
