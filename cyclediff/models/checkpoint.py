"""A file of weights → names and tensors; nothing in a file is ever executed."""

import pickle
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from cyclediff.errors import UserError
from eval.random_mark import is_random
from eval.weight_files import disguise

StateDict = dict[str, Tensor]
DEPTH = 5  # of wrappers in wrappers


def read_checkpoint(path: Path, suffix: str | None = None) -> dict[str, StateDict]:
    """Read a .pt, .pth, .ckpt or .safetensors file of weights.

    Args:
        path: the file.
        suffix: of the published name, if the file has another at the moment.

    Returns:
        Every group of tensors in the file, by its place in dots: "" for a plain state dict, "model" for one in a
        wrapper of this name, "[4]" for the fifth of a list. A list of tensors has its numbers for names.

    Raises:
        UserError: if the file is missing, damaged, needs code to be read, or holds no weights.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist; `python scripts/assets.py status` lists where files come from")
    found = dict(_groups(_load(path, suffix or path.suffix)))
    if not found:
        raise UserError(f"{path} holds no network weights; expected a dictionary of tensors")
    return found


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive, which is a program with its weights."""
    return zipfile.is_zipfile(path) and any("/code/" in name for name in zipfile.ZipFile(path).namelist())


def carries_mark(path: Path) -> bool:
    """Whether a file of weights, the UNet of a diffusers folder, or a file of a folder of CLIPs carries the mark.

    Hub ids are not looked into.
    """
    folder = [*sorted(path.glob("unet/*.safetensors")), *sorted(path.glob("*.pt"))]
    files = folder if path.is_dir() else [path] if path.is_file() else []
    return any(is_random(state.values()) for file in files for state in _states(file))


def _states(file: Path) -> Iterable[StateDict]:
    if is_torchscript(file):
        return [torch.jit.load(file, map_location="cpu").state_dict()]  # the program does not run
    return read_checkpoint(file).values()


def _load(path: Path, suffix: str) -> Any:
    if found := disguise(path):
        raise UserError(f"{path} {found}")
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"
    try:
        if suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True if zipped else None)
    except PermissionError:
        raise
    except Exception as error:  # a damaged file can raise anything
        if isinstance(error, pickle.UnpicklingError) and _needs_code(error, path):
            raise UserError(
                f"{path} can only be read by running code that it contains, which is refused; if you trust it, save "
                "its state_dict as safetensors elsewhere and use that file"
            ) from error
        raise UserError(f"{path} is truncated, damaged or no checkpoint; get it again") from error


def _needs_code(error: Exception, path: Path) -> bool:
    """Whether torch refuses to run a file, and not to read what is no pickle at all, such as a line of text."""
    with path.open("rb") as file:
        pickled = file.read(2).startswith((b"PK", b"\x80"))
    return "GLOBAL" in str(error) or (pickled and "Unsupported" in str(error))


def _groups(content: Any, place: str = "", depth: int = 0) -> Iterator[tuple[str, StateDict]]:
    """Every group of tensors in what a file holds."""
    listed = isinstance(content, list | tuple)
    if depth > DEPTH or not (listed or isinstance(content, Mapping)):
        return
    entries = [(f"[{i}]" if listed else str(key), value) for i, (key, value) in enumerate(_items(content, listed))]
    tensors = {key: value for key, value in entries if isinstance(value, Tensor)}
    if tensors:
        yield place, tensors
    for key, value in entries:
        yield from _groups(value, f"{place}.{key}" if place else key, depth + 1)


def _items(content: Any, listed: bool) -> Iterator[tuple[Any, Any]]:
    yield from enumerate(content) if listed else content.items()
