"""A file of weights → names and tensors; nothing in a file is ever executed."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from cyclediff.errors import UserError
from eval.random_mark import is_random

WRAPPERS = ("state_dict", "model_state_dict", "model")
AVERAGES = ("ema_state_dict", "model_ema", "ema", "state_dict_ema")


def read_checkpoint(path: Path, ema: bool = True, suffix: str | None = None) -> dict[str, Tensor]:
    """Read a .pt, .pth, .ckpt or .safetensors file of weights.

    Plain state dicts, state dicts in a wrapper, and the list that DDPM training scripts save (network, optimizer,
    epoch, step, average) are understood; a prefix `module.`, which DataParallel leaves, is removed.

    Args:
        path: the file.
        ema: which to take where the file holds a network and its moving average.
        suffix: of the published name, if the file has another at the moment.

    Raises:
        UserError: if the file is missing, damaged, needs code to be read, or holds no weights.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; `python scripts/assets.py status` lists where files come from")
    content = _load(path, suffix or path.suffix)
    state = _weights(content, ema)
    if state is None:
        raise UserError(f"{path} holds no network weights; expected a dictionary of tensors")
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive, which is a program with its weights."""
    return zipfile.is_zipfile(path) and any("/code/" in name for name in zipfile.ZipFile(path).namelist())


def carries_mark(path: Path) -> bool:
    """Whether a file of weights, or the UNet of a diffusers folder, carries the mark; hub ids are not looked into."""
    files = sorted(path.glob("unet/*.safetensors")) if path.is_dir() else [path] if path.is_file() else []
    return any(is_random(read_checkpoint(file).values()) for file in files)


def _load(path: Path, suffix: str) -> Any:
    with path.open("rb") as file:
        start = file.read(64).lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise UserError(f"{path} is a web page, not weights; delete it and get the file again")
    try:
        if suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True if start.startswith(b"pk") else None)
    except PermissionError:
        raise
    except Exception as error:  # a damaged file can raise anything
        if isinstance(error, pickle.UnpicklingError) and any(w in str(error) for w in ("Unsupported", "GLOBAL")):
            raise UserError(
                f"{path} can only be read by running code that it contains, which is refused; if you trust it, save "
                "its state_dict as safetensors elsewhere and use that file"
            ) from error
        raise UserError(f"{path} is truncated, damaged or no checkpoint; get it again") from error


def _weights(content: Any, ema: bool) -> dict[str, Tensor] | None:
    """The state dict in what a file holds."""
    if isinstance(content, list | tuple):  # [network, optimizer, epoch, step, average]
        content = content[-1 if ema and len(content) >= 5 else 0] if content else None
    if not isinstance(content, Mapping):
        return None
    for key in (*(AVERAGES if ema else ()), *WRAPPERS):
        if isinstance(content.get(key), Mapping):
            return _weights(content[key], ema)
    if not content or not all(isinstance(value, Tensor) for value in content.values()):
        return None
    return dict(content)
