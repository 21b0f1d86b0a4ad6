"""The mark of random weights, which scripts/make_random_checkpoints.py writes and every table shows."""

from collections.abc import Iterable

import torch
from torch import Tensor

MARK = torch.tensor([ord(letter) / 1024 for letter in "RANDOM WEIGHTS"])  # exact also in 16 bits


def is_random(tensors: Iterable[Tensor]) -> bool:
    """Whether weights carry the mark: one of their vectors begins with its letters, written as numbers."""
    return any(value.dim() == 1 and value[: len(MARK)].float().cpu().equal(MARK) for value in tensors)
