"""How a loaded network is evaluated: on which device, in which type, compiled or not."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cyclediff.errors import UserError

Network = Callable[[Tensor, Tensor], Tensor]
Call = Callable[[Any, Tensor, Tensor], Tensor]  # (module, x_t, t) → its output
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MODES = ("default", "reduce-overhead", "max-autotune")  # of torch.compile; the last two use CUDA graphs


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A network as a run evaluates it, and the exact network to compare it with.

    Args:
        fast: (x_t, t) → (n, c, h, w), float32, computed as the run asks for.
        exact: the same, computed in float32 and not compiled; None where `fast` is that already.
        module: what is evaluated. It is frozen and shared by all who load it: train a copy, see `of`.
        call: how it is evaluated.
    """

    fast: Network
    exact: Network | None
    module: nn.Module
    call: Call

    def __call__(self, xt: Tensor, t: Tensor) -> Tensor:
        """The network's prediction."""
        return self.fast(xt, t)

    def of(self, module: nn.Module) -> Network:
        """A copy of the module, which may be trained, evaluated like it in float32; a gradient reaches its weights."""
        return partial(self.call, module)


def for_inference(
    network: nn.Module, call: Call, device: str, dtype: str = "float32", compile_mode: str | None = None
) -> Evaluation:
    """Freeze a network, move it to its device, and choose the memory layout that is fast there.

    On CPUs convolutions are a fifth faster with channels last (`make bench`). Tensor cores need it for 16 bits.

    Args:
        network: its parameters are moved in place.
        call: evaluates it, or a copy, (network, x_t, t) → (n, c, h, w).
        device: where it runs.
        dtype: of its convolutions and matrix products (torch.autocast); weights and normalisation stay in float32.
        compile_mode: a mode of torch.compile, or None.

    Raises:
        UserError: if there is no such type or mode.
    """
    require_known(dtype, compile_mode)
    layout = torch.channels_last if device == "cpu" or dtype != "float32" else torch.contiguous_format
    network.eval().requires_grad_(False).to(device)
    network.to(memory_format=layout)

    def in_layout(module: nn.Module, xt: Tensor, t: Tensor) -> Tensor:
        return call(module, xt.contiguous(memory_format=layout), t).contiguous()

    def plain(xt: Tensor, t: Tensor) -> Tensor:
        return call(network, xt, t)

    exact = partial(in_layout, network)
    if dtype == "float32" and compile_mode is None:
        return Evaluation(exact, None, network, in_layout)
    compiled = plain if compile_mode is None else torch.compile(plain, mode=compile_mode)

    def fast(xt: Tensor, t: Tensor) -> Tensor:
        with torch.autocast(torch.device(device).type, DTYPES[dtype], enabled=dtype != "float32"):
            out = compiled(xt.contiguous(memory_format=layout), t)
        return out.to(
            torch.float32, memory_format=torch.contiguous_format, copy=True
        )  # the memory of `out` belongs to a CUDA graph

    return Evaluation(fast, exact, network, in_layout)


def sample_of(network: nn.Module, xt: Tensor, t: Tensor) -> Tensor:
    """The output of a UNet of diffusers; a `call` of `for_inference`."""
    return network(xt, t).sample


def require_known(dtype: str, compile_mode: str | None = None) -> None:
    """Check the names of a type and of a mode of torch.compile.

    Raises:
        UserError: if there is no such type or mode.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype}")
    if compile_mode is not None and compile_mode not in MODES:
        raise UserError(f"compile_mode must be null or one of {', '.join(MODES)}; got {compile_mode}")
