"""A batch's chain of guided sampling, which continues where it was stopped."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from cyclediff.data.images import write_atomically
from cyclediff.diffusion.noise import NoiseSource
from cyclediff.diffusion.white_box import WhiteBox
from cyclediff.guidance import Energy, Guidance, State, draw_code, langevin, result
from cyclediff.runtime import distributed, stop

EVERY = 10  # updates between two states that are kept
ROW = "row."  # of the names of energies in a file


@dataclass(frozen=True, eq=False)
class Chain:
    """What a chain gave.

    Args:
        images: (n, 3, h, w) in [-1, 1].
        z: their codes, (n, white_box_steps, 3, h, w).
        rows: for each update, and for the result, "step" and the energies by name, (n,) each.
    """

    images: Tensor
    z: Tensor
    rows: list[dict[str, Tensor | int]]


def run_chain(
    white_box: WhiteBox,
    guidance: Guidance | None,
    energies: Mapping[str, Energy],
    noise_of: Callable[[int], NoiseSource],
    like: Tensor,
    x0: Tensor | None,
    kept: Path,
) -> Chain:
    """Run a chain to its end.

    Args:
        white_box: the generator.
        guidance: settings; None samples without a chain.
        energies: by name.
        noise_of: see `langevin`; -1 is that of the start.
        like: a tensor in the shape of the images.
        x0: images to start from, (n, 3, h, w) in [-1, 1]; None for noise.
        kept: file of the chain's state, from which it continues; it is removed at the end.

    Raises:
        ValueError: see `langevin`.
        Stopped: if the program was asked to stop and this is its only process; the state is kept.
    """
    state, rows = _kept_state(kept, like.device)
    if state is None:
        start = noise_of(-1)
        z = draw_code(start, like, white_box.white_box_steps) if x0 is None else white_box.encode(x0, start)
        state = State.start(z)
    if guidance is None:
        return Chain(white_box(state.z, noise_of(0)), state.z, [])
    first = state
    for state in langevin(first, guidance, white_box, energies, noise_of):
        rows.append({"step": state.step - 1, **state.energies})
        stopping = stop.requested() and distributed.world() == 1
        if state.step % EVERY == 0 or stopping:
            _keep(kept, state, rows)
        if stopping:
            raise stop.Stopped(
                f"stopped after {state.step} of {guidance.steps} updates; the same command continues there"
            )
    found = result(state, guidance, white_box, energies, noise_of)
    kept.unlink(missing_ok=True)
    return Chain(found.images, found.z, [*rows, {"step": guidance.steps, **found.energies}])


def _keep(path: Path, state: State, rows: list[dict[str, Tensor | int]]) -> None:
    names = [name for name in rows[0] if name != "step"]
    history = {f"{ROW}{name}": torch.stack([torch.as_tensor(row[name]) for row in rows]) for name in names}
    write_atomically(save({**state.tensors(), **history}), path)


def _kept_state(path: Path, device: torch.device) -> tuple[State | None, list[dict[str, Tensor | int]]]:
    """The state of an earlier start; nothing where there is none, or it is damaged."""
    with contextlib.suppress(OSError, SafetensorError, KeyError):
        found = load_file(path, device=str(device))
        history = {name.removeprefix(ROW): found.pop(name) for name in list(found) if name.startswith(ROW)}
        state = State.from_tensors(found)
        return state, [{"step": k, **{name: h[k] for name, h in history.items()}} for k in range(state.step)]
    return None, []
