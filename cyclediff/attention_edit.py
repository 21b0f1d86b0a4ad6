"""What Prompt-to-Prompt (arXiv 2208.01626) does in one evaluation of the network; see `cyclediff.attention_control`."""

from dataclasses import dataclass, fields, replace

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

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "AttentionEdit":
        """The same edit on a device and in a type. It is optional, and saves a transfer in each layer."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        moved = {n: v.to(device, dtype if v.is_floating_point() else v.dtype) for n, v in tensors.items()}
        return replace(self, **moved)

    def edits_self(self, queries: int) -> bool:
        """Whether self attention is replaced in layers with this many positions."""
        return queries <= self.max_queries

    def cross(self, maps: Tensor) -> Tensor:
        """Mix the edited rows of cross-attention maps (rows, heads, q, length) with their base rows; a new tensor.

        Raises:
            ValueError: if the maps have another number of token positions than the plan.
        """
        return maps.index_copy(0, self.edited.to(maps.device), self.mixed(maps))

    def mixed(self, maps: Tensor) -> Tensor:
        """Only the edited rows of `cross`, (e, heads, q, length)."""
        if maps.shape[-1] != self.mapper.shape[-1]:
            raise ValueError(
                f"the network sees {maps.shape[-1]} token positions; the plan was made for {self.mapper.shape[-1]}: "
                "give plan(length=...) the tokenizer's length"
            )
        keep, equal, alpha = (x.to(maps)[:, None, None, :] for x in (self.keep, self.equalizer, self.alpha))
        base, own = maps[self.base.to(maps.device)], maps[self.edited.to(maps.device)]
        mapped = (base.flatten(1, 2) @ self.mapper.to(maps)).view_as(own)
        new = (mapped + own * keep) * equal
        return new * alpha + own * (1 - alpha)

    def self_attention(self, maps: Tensor) -> Tensor:
        """Self-attention maps (rows, heads, q, q) with the edited rows' replaced; `maps` itself if q is too large."""
        return self.follow(maps) if self.edits_self(maps.shape[2]) else maps

    def follow(self, x: Tensor) -> Tensor:
        """X (rows, …) with each edited row replaced by its base row, a new tensor."""
        return x.index_copy(0, self.edited.to(x.device), x[self.base.to(x.device)])
