"""Feature extractors: each owns its network, its resize and its normalisation, and says so in the protocol string."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

BATCH = 32
MARK = torch.tensor([ord(letter) / 1024 for letter in "RANDOM WEIGHTS"])  # scripts/make_random_checkpoints.py writes it


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
    def __call__(self, paths: Sequence[Path]) -> Tensor:
        """Features of image files, float64 (n, d) on the CPU."""
        found = []
        for start in range(0, len(paths), BATCH):
            batch = torch.stack([self._read(path) for path in paths[start : start + BATCH]])
            found.append(self.network(batch.to(self.device)).double().cpu())
        return torch.cat(found)

    def _read(self, path: Path) -> Tensor:
        with Image.open(path) as image:
            return self.read(image.convert("RGB"))


def cached(extractor: Extractor, paths: Sequence[Path], cache: Path | None) -> Tensor:
    """Features of a reference set, kept in `cache` under a name made of extractor, file names and contents."""
    if cache is None:
        return extractor(paths)
    digest = hashlib.sha256(extractor.protocol.encode())
    for path in paths:
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    file = cache / f"features-{digest.hexdigest()[:16]}.pt"
    if file.exists():
        found: Any = torch.load(file, weights_only=True)
        return found
    features = extractor(paths)
    temporary = file.with_suffix(".tmp")
    torch.save(features, temporary)
    temporary.replace(file)
    return features


def carries_mark(tensors: Iterable[Tensor]) -> bool:
    """Whether weights are random: one of their vectors then begins with the mark."""
    return any(value.dim() == 1 and value[: len(MARK)].float().cpu().equal(MARK) for value in tensors)


def file_digest(*paths: Path) -> str:
    """First 8 hexadecimal digits of the sha256 of files, one after another, for protocol strings."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()[:8]
