"""A LoRA (arXiv 2106.09685) added to the weights of a network: W + (alpha / r) B A.

Read are files that diffusers' training scripts and `save_lora_weights` write: `unet.` or `transformer.`, the name of a
layer, `.lora_A.weight` (r, in) and `.lora_B.weight` (out, r). Without metadata alpha is r, as diffusers has it.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from cyclediff.errors import UserError
from eval.weight_files import disguise, require_finite

PREFIXES = ("unet.", "transformer.")
DOWN, UP = ".lora_A.weight", ".lora_B.weight"
METADATA = "lora_adapter_metadata"  # of diffusers
CHANGING = ("use_dora", "use_rslora", "alpha_pattern", "rank_pattern", "lora_bias")  # not known here
ADVICE = "merge it with diffusers (load_lora_weights, fuse_lora, save_pretrained) and name that folder"


@torch.no_grad()
def merge_lora(network: nn.Module, path: str) -> None:
    """Add a LoRA to a network's weights, in place.

    Args:
        network: of diffusers, in float32.
        path: a .safetensors file.

    Raises:
        UserError: if it is none, or any of its tensors does not fit.
    """
    state, alpha = _read(path)
    modules, layers = dict(network.named_modules()), {}
    for key, value in state.items():
        end = next((end for end in (DOWN, UP) if key.endswith(end)), None)
        prefix = next((prefix for prefix in PREFIXES if key.startswith(prefix)), None)
        name = key.removeprefix(prefix or "").removesuffix(end or "")
        if end is None or prefix is None or name not in modules:
            raise UserError(f"{path} holds {key}, which is no {DOWN} or {UP} of this network; {ADVICE}")
        layers.setdefault(name, {})[end] = value.float()
    for name, pair in layers.items():
        weight = getattr(modules[name], "weight", None)
        if pair.keys() != {DOWN, UP} or not isinstance(weight, Tensor):
            raise UserError(f"{path} holds half of {name}, or a layer without weights; get it again")
        down, up = pair[DOWN], pair[UP]
        if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1] or (len(up), down.shape[1]) != weight.shape:
            raise UserError(
                f"{path} has {tuple(up.shape)} times {tuple(down.shape)} for {name}, whose weights are "
                f"{tuple(weight.shape)}; it is for another model, or not of linear layers: {ADVICE}"
            )
        scale = 1.0 if alpha is None else alpha / len(down)
        weight += (scale * up @ down).to(weight)


def _read(path: str) -> tuple[dict[str, Tensor], float | None]:
    """The tensors of a file, and alpha where it states one."""
    file = Path(path)
    if file.suffix != ".safetensors" or not file.is_file():
        raise UserError(f"{path} is no .safetensors file; task.model.lora names the file of a LoRA")
    if found := disguise(file):
        raise UserError(f"{path} {found}")
    try:
        with safe_open(file, "pt") as content:
            state = {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118
            stated = json.loads((content.metadata() or {}).get(METADATA, "{}"))
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path} is truncated or damaged; get it again") from error
    if not state:
        raise UserError(f"{path} holds no tensors; get it again")
    try:
        require_finite(state, path)
    except ValueError as error:
        raise UserError(str(error)) from error
    settings: dict[str, Any] = {key.partition(".")[2]: value for key, value in stated.items()}
    if changed := [key for key in CHANGING if settings.get(key)]:
        raise UserError(f"{path} was trained with {', '.join(changed)}, which is not known here; {ADVICE}")
    return state, settings.get("lora_alpha")
