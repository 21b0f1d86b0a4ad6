"""Weights into networks: every tensor is used and none is left over, or the file is refused."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from cyclediff.errors import UserError
from eval.weight_files import require_finite

Names = Mapping[str, tuple[str, ...]]  # a checkpoint's name of a tensor → the network's names of its parts
Split = Callable[[Tensor], Sequence[Tensor]]
SHOWN = 3


def load_weights(network: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Load a state dict under the network's own names, as float32.

    Raises:
        UserError: if a tensor is missing, unknown, of another shape or not finite.
    """
    load_converted(network, state, {key: (key,) for key in network.state_dict()}, origin)


def load_converted(
    network: nn.Module, state: Mapping[str, Tensor], names: Names, origin: str, split: Split | None = None
) -> None:
    """Load a state dict under its official names, as float32.

    Args:
        network: may be on the meta device; its parameters are replaced.
        state: official name → tensor.
        names: official name → the network's name, or names of the parts that `split` makes of the tensor.
        origin: the file, for messages.
        split: cuts a tensor that the network holds in parts.

    Raises:
        UserError: if a tensor is missing, unexpected, of another shape or not finite; names the first three of each.
    """
    own = network.state_dict()
    wanted = wanted_shapes(network, names)
    faults = {
        "missing": wanted.keys() - state.keys(),
        "unexpected": state.keys() - wanted.keys(),
        "of another shape": {k for k in wanted.keys() & state.keys() if plain_shape(state[k].shape) != wanted[k]},
    }
    found = [
        f"{len(keys)} {what} ({', '.join(_with_shapes(key, state, wanted, what) for key in sorted(keys)[:SHOWN])}"
        f"{', …' if len(keys) > SHOWN else ''})"
        for what, keys in faults.items()
        if keys
    ]
    if found:
        kind = recognise(state)
        hint = f"it looks like {kind}" if kind else "it is no known network"
        raise UserError(
            f"{origin} does not fit this configuration: {'; '.join(found)}; {hint}, choose the model that matches it"
        )
    try:
        require_finite(state, origin)
    except ValueError as error:
        raise UserError(str(error)) from error
    for key, parts in names.items():
        if own[parts[0]].is_floating_point() and not state[key].is_floating_point():
            raise UserError(
                f"{origin} holds whole numbers ({str(state[key].dtype).removeprefix('torch.')}) in {key}, so it is "
                "quantised or damaged; get the file with float32, float16 or bfloat16"
            )
    converted = {}
    for key, parts in names.items():
        values = split(state[key]) if split and len(parts) > 1 else [state[key]]
        for part, value in zip(parts, values, strict=True):
            converted[part] = value.reshape(own[part].shape).to(torch.float32, copy=True)  # not a view of the file
    network.load_state_dict(converted, assign=True)


def wanted_shapes(network: nn.Module, names: Names) -> dict[str, tuple[int, ...]]:
    """Official name → shape, without trailing ones, of every tensor that a network needs."""
    own = network.state_dict()
    assert sorted(own) == sorted(part for parts in names.values() for part in parts)
    return {key: _shape(own, parts) for key, parts in names.items()}


def recognise(state: Mapping[str, Tensor]) -> str | None:
    """What network a state dict most likely is of, in words; None if unknown."""

    def channels(key: str, axis: int) -> int:
        return state[key].shape[axis] if key in state and state[key].dim() > axis else 0

    width = channels("input_blocks.0.0.weight", 0)
    if "I2Iout.0.weight" in state:
        return f"EGSDE's domain classifier of width {width}"
    if "out.2.c_proj.weight" in state:
        return f"a guided-diffusion classifier of width {width}"
    if width:
        reads, gives = channels("input_blocks.0.0.weight", 1), channels("out.2.weight", 0)
        kind = "class-conditional guided-diffusion (ADM)" if "label_emb.weight" in state else "guided-diffusion (ADM)"
        variance = "with" if gives == 2 * reads else "without"
        return f"a {kind} network of width {width} that reads {reads} channels, {variance} a learned variance"
    if "temb.dense.0.weight" in state:
        return f"a DDPM network (as SDEdit and EGSDE use them) of width {channels('conv_in.weight', 0)}"
    if any(key.startswith("model.diffusion_model.") for key in state):
        return "a latent diffusion (Stable Diffusion) checkpoint"
    if "time_embedding.linear_1.weight" in state:
        return "a diffusers network"
    if "Mixed_5b.branch1x1.conv.weight" in state:
        return "an Inception network"
    return None


def plain_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape without trailing ones, so that a 1×1 convolution and a linear layer have one shape."""
    sizes = list(shape)
    while len(sizes) > 1 and sizes[-1] == 1:
        sizes.pop()
    return tuple(sizes)


def _shape(own: Mapping[str, Tensor], parts: tuple[str, ...]) -> tuple[int, ...]:
    first, *rest = (plain_shape(own[part].shape) for part in parts)
    return (first[0] * len(parts), *first[1:]) if rest else first


def _with_shapes(key: str, state: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]], what: str) -> str:
    return f"{key} {tuple(state[key].shape)} for {wanted[key]}" if what == "of another shape" else key
