"""Learning rates over a training, and moving averages of its weights."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def half_cosine(steps: int) -> Callable[[int], float]:
    """Learning rate over a training: a short warm-up, then half a cosine down to 0."""
    warm_up = max(1, min(300, steps // 10))
    return lambda i: min((i + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * i / steps))


def moving_average(decay: float) -> Callable[..., None]:
    """An exponential moving average that is shorter at the start, so that it soon forgets the untrained parameters."""

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        weight = max(1 - decay, 9 / (10 + float(count)))
        for average, parameter in zip(averaged, current, strict=True):
            average.lerp_(parameter, weight)

    return update
