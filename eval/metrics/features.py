"""Feature extractors: a network with its resize and its normalisation, all named in the protocol string."""

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

BATCH = 32
THREADS = 4


@dataclass(frozen=True, eq=False)
class Extractor:
    """How images become features.

    Args:
        protocol: network and preprocessing, for protocol strings: "inception-2015-12-05/clean-bicubic299".
        read: a picture → the network's input, (c, h, w), one size for all pictures.
        network: (n, c, h, w) → features (n, d).
        device: where the network is.
        random: whether the network's weights are random.
    """

    protocol: str
    read: Callable[[Image.Image], Tensor]
    network: Callable[[Tensor], Tensor]
    device: str = "cpu"
    random: bool = False

    @torch.no_grad()
    def __call__(self, pictures: Iterable[Image.Image]) -> Tensor:
        """Features of RGB pictures, float64 (n, d) on the CPU; (0, 0) of none."""
        found, pictures = [], iter(pictures)
        with ThreadPoolExecutor(THREADS) as pool:
            while batch := list(pool.map(self.read, islice(pictures, BATCH))):
                found.append(self.network(torch.stack(batch).to(self.device)).double().cpu())
        return torch.cat(found) if found else torch.empty(0, 0, dtype=torch.float64)


def file_digest(*paths: Path) -> str:
    """First 8 hexadecimal digits of the sha256 of files, one after another, for protocol strings."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()[:8]
