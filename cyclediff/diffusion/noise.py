"""Noise that belongs to an image, not to a batch, a rank or a process."""

import copy
import hashlib
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class NoiseSource(Protocol):
    """The only randomness that a method may use; `Noise` in a run."""

    def randn_like(self, x: Tensor) -> Tensor:
        """Standard normal noise with the shape, type and device of x (n, ...)."""
        ...

    def rows(self, start: int, stop: int) -> "NoiseSource":
        """The source of the images start … stop - 1 of the batch."""
        ...


class Noise:
    """One random stream per image, keyed by (run seed, image id, trial).

    The k-th draw for an image does not depend on its batch, its place in the batch, the rank or a resume. Streams
    differ between device types: `device="cpu"` gives the same draws everywhere.

    Args:
        seed: the run's seed.
        ids: image ids, in the order of the batch.
        trial: number of the attempt at the same image; one for all ids, or one per id.
        device: where numbers are drawn.
    """

    def __init__(
        self, seed: int, ids: Sequence[str], trial: int | Sequence[int] = 0, device: torch.device | str = "cpu"
    ):
        trials = [trial] * len(ids) if isinstance(trial, int) else trial
        self._device = torch.device(device)
        self._generators = [
            torch.Generator(self._device).manual_seed(_seed_of(f"{seed}/{trial}/{image_id}"))
            for image_id, trial in zip(ids, trials, strict=True)
        ]

    def rows(self, start: int, stop: int) -> "Noise":
        """The streams of the images start … stop - 1 of the batch, shared with this source."""
        part = copy.copy(self)
        part._generators = self._generators[start:stop]
        return part

    def randn_like(self, x: Tensor) -> Tensor:
        """Standard normal noise with the shape, type and device of x (n, ...), drawn in float32.

        Raises:
            ValueError: if x does not hold one image per id.
        """
        if x.shape[0] != len(self._generators):
            raise ValueError(f"noise was made for {len(self._generators)} images; got a batch of {x.shape[0]}")
        pinned = self._device.type == "cpu" and x.device.type == "cuda"  # its copy does not wait for what the GPU does
        drawn = torch.empty(x.shape, device=self._device, pin_memory=pinned)
        for row, generator in zip(drawn, self._generators, strict=True):
            row.normal_(generator=generator)
        return drawn.to(x, non_blocking=pinned)


def _seed_of(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big", signed=True)
