"""What Prompt-to-Prompt (arXiv 2208.01626) does in one evaluation of the network; see `cyclediff.attention_control`."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cyclediff.local_blend import StepMaps


@dataclass(frozen=True, eq=False)
class AttentionEdit:
    """What happens in one evaluation of the network to e rows of its batch.

    Args:
        base: int64 (e,), the row that each edited row follows.
        edited: int64 (e,).
        mapper: P, float (e, length, length).
        keep: float (e, length).
        equalizer: float (e, length).
        alpha: float (e, length).
        edits_cross: whether any alpha is not 0.
        max_queries: self attention is replaced in layers with at most this many positions; 0 for no layer.
        maps: takes the edited maps, where the latents are blended.
    """

    base: Tensor
    edited: Tensor
    mapper: Tensor
    keep: Tensor
    equalizer: Tensor
    alpha: Tensor
    edits_cross: bool
    max_queries: int
    maps: StepMaps | None = None

    def to(self, dtype: torch.dtype) -> "AttentionEdit":
        """The same edit in a type, so that no layer converts it."""
        names = ("mapper", "keep", "equalizer", "alpha")
        return replace(self, **{name: getattr(self, name).to(dtype) for name in names})

    def edits_self(self, queries: int) -> bool:
        """Whether self attention is replaced in layers with this many positions."""
        return queries <= self.max_queries

    def cross(self, maps: Tensor) -> Tensor:
        """Mix the edited rows of cross-attention maps (rows, heads, q, length) with their base rows; a new tensor.

        Raises:
            ValueError: if the maps have another number of token positions than the plan.
        """
        return maps.index_copy(0, self.edited, self.mixed(maps[self.base], maps[self.edited]))

    def mixed(self, base: Tensor, own: Tensor) -> Tensor:
        """The maps of the edited rows from those of their base rows and their own, (e, heads, q, length) each.

        Raises:
            ValueError: if the maps have another number of token positions than the plan.
        """
        if own.shape[-1] != self.mapper.shape[-1]:
            raise ValueError(
                f"the network sees {own.shape[-1]} token positions; the plan was made for {self.mapper.shape[-1]}: "
                "give plan(length=...) the tokenizer's length"
            )
        keep, equal, alpha = (x.to(own.dtype)[:, None, None, :] for x in (self.keep, self.equalizer, self.alpha))
        mapped = (base.flatten(1, 2) @ self.mapper.to(own.dtype)).view_as(own)
        new = (mapped + own * keep) * equal
        return new * alpha + own * (1 - alpha)

    def self_attention(self, maps: Tensor) -> Tensor:
        """Self-attention maps (rows, heads, q, q) with the edited rows' replaced; `maps` itself if q is too large."""
        return self.follow(maps) if self.edits_self(maps.shape[2]) else maps

    def follow(self, x: Tensor) -> Tensor:
        """X (rows, …) with each edited row replaced by its base row, a new tensor."""
        return x.index_copy(0, self.edited, x[self.base])
