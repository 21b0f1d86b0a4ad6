"""Cross-attention maps of one evaluation of a network, without an edit."""

import torch
from torch import Tensor

PLACES = ("down", "up")  # parts of the network whose maps count; officially all but the middle


class AttentionMaps:
    """Takes the maps of some rows of a batch, and changes nothing.

    It goes to the network in the place of an edit, and has what `ControlledAttention` asks of one.

    Args:
        rows: of the batch, int64 (e,).
        queries: number of positions of the layers that count.
    """

    edits_cross = False

    def __init__(self, rows: Tensor, queries: int):
        self.base, self.edited = rows[:0], rows
        self.maps = self
        self.queries = queries
        self._sum: Tensor | None = None
        self._heads = 0
        self._seen: list[int] = []

    def to(self, dtype: torch.dtype) -> "AttentionMaps":
        """Itself: it has nothing that maps are mixed with."""
        return self

    def edits_self(self, queries: int) -> bool:
        """Never."""
        return False

    def wants(self, place: str, queries: int) -> bool:
        """Whether a layer's maps count."""
        self._seen += [queries] if place in PLACES else []
        return place in PLACES and queries == self.queries

    def mixed(self, base: Tensor, own: Tensor) -> Tensor:
        """The maps of the rows, (e, heads, q, tokens), as they are."""
        return own

    def add(self, base: Tensor, edited: Tensor) -> None:
        """Take the maps of a layer, (e, heads, q, tokens)."""
        of_layer = edited.float().sum(dim=1)
        self._sum = of_layer if self._sum is None else self._sum + of_layer
        self._heads += edited.shape[1]

    def mean(self) -> Tensor:
        """Their mean over layers and heads, (e, q, tokens).

        Raises:
            ValueError: if no layer had as many positions.
        """
        if self._sum is None:
            there = ", ".join(map(str, sorted(set(self._seen)))) or "none at all"
            raise ValueError(
                f"masks of attention need cross-attention layers with {self.queries} positions; this network has "
                f"{there}, so set method.queries to one of them, or method.masks to noise"
            )
        return self._sum / self._heads
