"""How many images make a batch: measured on the device, remembered, and less where memory runs out."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cyclediff.data.images import write_atomically
from cyclediff.errors import UserError

GAIN = 1.05  # a doubling that makes fewer images a second than so many times the last is not worth its memory
LONG = 1.0  # seconds of one evaluation beside which the costs of starting it do not count
ROUNDS = 3
MOST = 256
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")  # in errors of CUDA, MPS and CPUs
FILE = "batch_sizes.json"


def find_batch_size(evaluate: Callable[[int], None], most: int) -> int:
    """Double a batch until memory is out, a doubling gains nothing, or one evaluation takes long anyway.

    Args:
        evaluate: evaluates the networks on so many images, and returns when that is done.
        most: images there are.

    Returns:
        A power of two, or 1.

    Raises:
        UserError: if one image does not fit.
    """
    best, size, speed = 1, 1, 0.0
    while size <= min(most, MOST):
        try:
            evaluate(size)  # what is done once for a size, and memory
            seconds = min(_seconds(evaluate, size) for _ in range(ROUNDS))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            release_memory()
            if size == 1:
                raise no_room() from error
            break
        if size / seconds < GAIN * speed:
            break
        best, speed = size, size / seconds
        if seconds > LONG:
            break
        size *= 2
    return best


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device's memory is full."""
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in OUT_OF_MEMORY)


def release_memory() -> None:
    """Give memory that nothing uses back to the device, so that pieces of another size fit."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def no_room() -> UserError:
    """The sentence where not even one image fits."""
    return UserError(
        "the memory of the device is not enough for one image; finished images are kept, choose dtype=bfloat16, "
        "another device, or end what else runs on it"
    )


def remembered(cache: Path, key: str) -> int | None:
    """The batch size that was found for this key before."""
    size = _sizes(cache).get(key)
    return size if isinstance(size, int) and size > 0 else None


def remember(cache: Path, key: str, size: int) -> None:
    """Note a batch size; a cache that cannot be written is passed over, and the size is measured again next time."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        write_atomically(json.dumps(_sizes(cache) | {key: size}, indent=1).encode(), cache / FILE)
    except (OSError, UserError):
        return


def _sizes(cache: Path) -> dict[str, Any]:
    try:
        found = json.loads((cache / FILE).read_bytes())
    except (OSError, ValueError):  # not there, or damaged
        return {}
    return found if isinstance(found, dict) else {}


def _seconds(evaluate: Callable[[int], None], size: int) -> float:
    began = time.perf_counter()
    evaluate(size)
    return time.perf_counter() - began
