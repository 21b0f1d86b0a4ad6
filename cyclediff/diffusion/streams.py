"""The noise of some images of a batch, where the others go another way."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cyclediff.diffusion.noise import NoiseSource


@dataclass(frozen=True)
class Streams:
    """A source of noise for each image, so that an image draws as if it were alone."""

    each: Sequence[NoiseSource]

    @classmethod
    def of(cls, noise: NoiseSource, n: int) -> "Streams":
        """The streams of n images of one source."""
        return cls([noise.rows(i, i + 1) for i in range(n)])

    def some(self, rows: Sequence[int]) -> "Streams":
        """Those of some of the images."""
        return Streams([self.each[i] for i in rows])

    def randn_like(self, x: Tensor) -> Tensor:
        """See `NoiseSource`."""
        return torch.cat([noise.randn_like(row) for noise, row in zip(self.each, x.split(1), strict=True)])

    def rows(self, start: int, stop: int) -> "Streams":
        """See `NoiseSource`."""
        return Streams(self.each[start:stop])
