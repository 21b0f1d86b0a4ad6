"""What a translation costs: network evaluations, and the time inside them."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from cyclediff.denoiser import Denoiser


class Meter:
    """Counts the evaluations of the denoisers it has wrapped.

    `seconds` is meaningful on the CPU only: elsewhere a call returns before its work is done.

    Args:
        after_each: called after every evaluation.
    """

    def __init__(self, after_each: Callable[[], None]):
        self.rows = 0
        self.calls = 0
        self.seconds = 0.0
        self.after_each = after_each

    def wrap(self, denoiser: Denoiser) -> "MeteredDenoiser":
        """The same denoiser, counted here."""
        return MeteredDenoiser(denoiser, self)


@dataclass(frozen=True, eq=False)
class MeteredDenoiser:
    """A denoiser that reports its evaluations to a meter."""

    denoiser: Denoiser
    meter: Meter

    @property
    def alpha_bar(self) -> Tensor:
        """The wrapped denoiser's schedule."""
        return self.denoiser.alpha_bar

    def __call__(self, xt: Tensor, t: Tensor) -> Tensor:
        """Evaluate the wrapped denoiser."""
        began = time.perf_counter()
        eps = self.denoiser(xt, t)
        self.meter.seconds += time.perf_counter() - began
        self.meter.rows += xt.shape[0]
        self.meter.calls += 1
        self.meter.after_each()
        return eps
