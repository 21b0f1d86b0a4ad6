"""A metric from outside of this project: a number of each result and its source."""

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from eval.metrics.metric import Metric


@dataclass(frozen=True)
class OwnMetric:
    """A column that is a mean over images.

    Args:
        column: its header, digits and direction.
        protocol: how the numbers are made, with a version: sharpness/1.
        score: (results, sources), uint8 (n, 3, h, w) each → (n,); NaN where an image has no number.
    """

    column: Metric
    protocol: str
    score: Callable[[Tensor, Tensor], Tensor]

    @property
    def full_protocol(self) -> str:
        """The protocol with a hash of the code: numbers of two versions of a metric never share a column."""
        file = inspect.getsourcefile(inspect.unwrap(self.score))
        code = hashlib.sha256(Path(file).read_bytes()).hexdigest()[:8] if file else "unknown"
        return f"{self.protocol}/code-{code}/per-image-mean/vs-source"

    def values(self, images: Tensor, sources: Tensor) -> Tensor:
        """The scores, float64 (n,).

        Raises:
            ValueError: if the function does not give a finite number, or NaN, for each image.
        """
        found = torch.as_tensor(self.score(images, sources), dtype=torch.float64).cpu()
        if found.shape != (len(images),) or found.isinf().any():
            shape = tuple(found.shape)
            raise ValueError(
                f"the metric {self.protocol} must give {len(images)} finite numbers or NaN for as many images; got "
                f"{'Inf' if shape == (len(images),) else f'the shape {shape}'}"
            )
        return found
