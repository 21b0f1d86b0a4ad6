"""Noise levels: every model noises as x = a x0 + b eps, with eps ~ N(0, I).

A diffusion model (variance preserving) has a = sqrt(alpha_bar) and b = sqrt(1 - alpha_bar). A rectified flow has
a = 1 - sigma and b = sigma. What is written on (a, b) holds for both.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class Level:
    """How much of an image and of noise a state holds.

    Args:
        a: factor of x0, from 0 (no signal) to 1.
        b: factor of eps, from 0 (no noise) up.
        t: the time that the network is given.
    """

    a: float
    b: float
    t: float


CLEAN = Level(1.0, 0.0, 0.0)  # the image itself; no network is evaluated there
NOISE = Level(0.0, 1.0, float("nan"))  # eps alone; no network was trained there


class Prediction(NamedTuple):
    """What a network makes of a state x = a x0 + b eps: both x0 and eps, whatever it was trained to predict."""

    x0: Tensor
    eps: Tensor
