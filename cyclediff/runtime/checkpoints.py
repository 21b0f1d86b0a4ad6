"""What a training keeps between starts: one file, written whole or not at all, that fits its settings or is refused."""

import hashlib
import io
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from cyclediff.errors import UserError
from cyclediff.runtime import distributed
from eval.files import write_atomically

if TYPE_CHECKING:
    from cyclediff.runtime.training import Training

SHOWN = 3  # settings in a message
PROBES = 8  # steps at which the rates of two trainings are compared
OF_GROUPS = ("lr", "betas", "eps", "weight_decay", "momentum")  # settings of an optimiser


def write(state: Mapping[str, Any], file: Path) -> None:
    """Write a checkpoint; random states are those of all processes, and the first one writes.

    Args:
        state: `parts` (network or optimiser by name in groups), `generators`, `settings`, and plain values.
        file: where.

    Raises:
        OSError: if it cannot be written; the old one is still there.
    """
    own = {key: generator.get_state() for key, generator in state["generators"].items()}
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else torch.empty(0, dtype=torch.uint8)
    states = distributed.gather({"generators": own, "cpu": torch.get_rng_state(), "cuda": cuda})
    if not distributed.is_first():
        return
    parts = {key: {name: part.state_dict() for name, part in of.items()} for key, of in state["parts"].items()}
    content = io.BytesIO()
    saved = {**state, "generators": states, "parts": parts, "settings": json.dumps(state["settings"])}
    torch.save(saved, content)
    write_atomically(content.getvalue(), file)


def read(state: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Restore a checkpoint into the parts and generators of `state`, see `write`, and torch's own random states.

    Returns:
        The plain values.

    Raises:
        UserError: if the file is damaged, or belongs to other settings.
    """
    try:
        saved: Any = torch.load(file, map_location="cpu", weights_only=True)
        settings = json.loads(saved["settings"])
    except Exception as error:  # a damaged file can raise anything
        raise UserError(f"{file} is damaged or no checkpoint of a training; delete it to start again") from error
    _require_same(settings, state["settings"], file)
    for key, of in state["parts"].items():
        for name, part in of.items():
            part.load_state_dict(saved["parts"][key][name])
    states = saved["generators"][distributed.rank()]
    for key, generator in state["generators"].items():
        generator.set_state(states["generators"][key])
    torch.set_rng_state(states["cpu"])
    if len(states["cuda"]) and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    return {key: value for key, value in saved.items() if key not in ("parts", "generators", "settings")}


def require_room(folder: Path, parts: Mapping[str, Mapping[str, Any]]) -> None:
    """Require that a second checkpoint of networks and optimisers fits beside the one that it replaces.

    Args:
        folder: of the checkpoint.
        parts: see `write`; two numbers are counted for each parameter of an optimiser, as Adam keeps them.

    Raises:
        UserError: if it does not fit.
    """
    networks = [*parts["networks"].values(), *parts["averages"].values()]
    groups = [group for one in parts["optimizers"].values() for group in one.param_groups]
    size = sum(v.nbytes for network in networks for v in network.state_dict().values())
    size += 2 * sum(p.nbytes for group in groups for p in group["params"])
    free = shutil.disk_usage(folder).free
    if free < 2 * size:
        raise UserError(
            f"{folder} has room for {free / 2**20:.0f} MiB, and two checkpoints of {size / 2**20:.0f} MiB must fit; "
            "make room, or choose another folder"
        )


def whole_settings(training: "Training") -> dict[str, Any]:
    """The settings of a training, with what decides the weights and is not among them."""
    rates = " ".join(f"{training.rate(training.steps * i // PROBES):.6g}" for i in range(PROBES))
    optimizers = {
        name: [{key: group[key] for key in OF_GROUPS if key in group} for group in one.param_groups]
        for name, one in training.optimizers.items()
    }
    own = {
        "training": {"steps": training.steps, "averages": training.averages, "clip": training.clip, "rates": rates},
        "optimizer": optimizers,
        "network": {key: _shapes(network) for key, network in training.networks.items()},
        "processes": distributed.world(),
    }
    return json.loads(json.dumps(dict(training.settings) | own))


def _shapes(network: nn.Module) -> str:
    """Size of a network, and a digest of the names and shapes of its tensors."""
    state = network.state_dict()
    text = " ".join(f"{key}{tuple(value.shape)}" for key, value in state.items())
    return f"{sum(v.numel() for v in state.values())} values, {hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _require_same(settings: Any, wanted: Any, file: Path) -> None:
    before, now = _leaves(settings), _leaves(wanted)
    changed = [key for key in sorted(before | now) if before.get(key, "absent") != now.get(key, "absent")]
    if changed:
        shown = "; ".join(
            f"{key} was {before.get(key, 'absent')}, is {now.get(key, 'absent')}" for key in changed[:SHOWN]
        )
        raise UserError(
            f"{file} belongs to a training with other settings ({shown}{', …' if len(changed) > SHOWN else ''}); "
            "restore them, or delete it to start again"
        )


def _leaves(node: Any, place: str = "") -> dict[str, Any]:
    """Settings by their place in dots."""
    if not isinstance(node, Mapping | list):
        return {place: node}
    entries = node.items() if isinstance(node, Mapping) else enumerate(node)
    found = [_leaves(value, f"{place}.{key}" if place else str(key)) for key, value in entries]
    return {key: value for part in found for key, value in part.items()}
