"""What a text-conditional network reads of prompts, and what a method may ask of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Abilities:
    """What a method may ask of a text-conditional network. By default what a UNet with cross attention can do.

    Args:
        attention: whether its cross attention can be edited and looked at.
        reads_scale: whether the network is given the guidance scale (FLUX). It is then evaluated once an image, and
            the empty prompt has no part.
    """

    attention: bool = True
    reads_scale: bool = False


OF_UNETS = Abilities()


@dataclass(frozen=True, eq=False)
class Conditioning:
    """What a network reads of some prompts, a row for each.

    Args:
        tokens: (n, l, d), what its attention reads.
        pooled: (n, q), each prompt as one vector; None for networks that read none.
        scales: (n,), the guidance scales that the network is given; None for networks that are given none.
    """

    tokens: Tensor
    pooled: Tensor | None = None
    scales: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def each(self, change: Callable[[Tensor], Tensor]) -> "Conditioning":
        """The same with every tensor changed."""
        tensors = self.tokens, self.pooled, self.scales
        tokens, pooled, scales = (None if x is None else change(x) for x in tensors)
        assert tokens is not None
        return Conditioning(tokens, pooled, scales)

    def to(self, dtype: torch.dtype) -> "Conditioning":
        """The same in a type; scales stay as they are."""
        pooled = None if self.pooled is None else self.pooled.to(dtype)
        return Conditioning(self.tokens.to(dtype), pooled, self.scales)

    def rows(self, images: list[int]) -> "Conditioning":
        """Those of some images."""
        return self.each(lambda x: take(x, images))

    def repeated(self, count: int) -> "Conditioning":
        """One row so many times, without a copy."""
        return self.each(lambda x: x.expand(count, *x.shape[1:]))


def joined(parts: Sequence[Conditioning]) -> Conditioning:
    """The rows of some conditionings of one network, in order."""
    columns = zip(*((part.tokens, part.pooled, part.scales) for part in parts), strict=True)
    tokens, pooled, scales = (
        None if column[0] is None else torch.cat([x for x in column if x is not None]) for column in columns
    )
    assert tokens is not None
    return Conditioning(tokens, pooled, scales)


def take(x: Tensor, images: list[int]) -> Tensor:
    """Some images of a batch, without a copy where these are all. No list is an index: it would go to the device."""
    return x if len(images) == len(x) else torch.stack([x[i] for i in images]) if images else x[:0]
