"""How a loaded network is evaluated: on which device, in which type, compiled or not."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cyclediff.errors import UserError

Network = Callable[[Tensor, Tensor], Tensor]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MODES = ("default", "reduce-overhead", "max-autotune")  # of torch.compile; the last two use CUDA graphs


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A network as a run evaluates it, and the exact network to compare it with.

    Args:
        fast: (x_t, t) → (n, c, h, w), float32, computed as the run asks for.
        exact: the same, computed in float32 and not compiled; None where `fast` is that already.
    """

    fast: Network
    exact: Network | None

    def __call__(self, xt: Tensor, t: Tensor) -> Tensor:
        """The network's prediction."""
        return self.fast(xt, t)


def for_inference(
    network: nn.Module, call: Network, device: str, dtype: str = "float32", compile_mode: str | None = None
) -> Evaluation:
    """Freeze a network, move it to its device, and choose the memory layout that is fast there.

    On CPUs convolutions are a fifth faster with channels last (`make bench`). Tensor cores need it for 16 bits.

    Args:
        network: its parameters are moved in place.
        call: evaluates it, (x_t, t) → (n, c, h, w).
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

    def exact(xt: Tensor, t: Tensor) -> Tensor:
        return call(xt.contiguous(memory_format=layout), t).contiguous()

    if dtype == "float32" and compile_mode is None:
        return Evaluation(exact, None)
    compiled = call if compile_mode is None else torch.compile(call, mode=compile_mode)

    def fast(xt: Tensor, t: Tensor) -> Tensor:
        with torch.autocast(torch.device(device).type, DTYPES[dtype], enabled=dtype != "float32"):
            out = compiled(xt.contiguous(memory_format=layout), t)
        return out.to(
            torch.float32, memory_format=torch.contiguous_format, copy=True
        )  # the memory of `out` belongs to a CUDA graph

    return Evaluation(fast, exact)


def require_known(dtype: str, compile_mode: str | None = None) -> None:
    """Check the names of a type and of a mode of torch.compile.

    Raises:
        UserError: if there is no such type or mode.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype}")
    if compile_mode is not None and compile_mode not in MODES:
        raise UserError(f"compile_mode must be null or one of {', '.join(MODES)}; got {compile_mode}")
