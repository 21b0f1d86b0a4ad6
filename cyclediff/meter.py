"""What a translation costs, and whether its networks stay sane: every evaluation passes here."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from cyclediff.denoiser import Denoiser, Network
from cyclediff.errors import UserError


class Meter:
    """Counts the evaluations of the networks behind some denoisers, and stops at the first that is not finite.

    `seconds` is meaningful on the CPU only: elsewhere a call returns before its work is done.

    Args:
        ids: the images of the batch, in its order, for messages.
        after_each: called after every evaluation.
    """

    def __init__(self, ids: Sequence[str], after_each: Callable[[], None]):
        self.ids = ids
        self.rows = 0
        self.calls = 0
        self.seconds = 0.0
        self.after_each = after_each

    def watch(self, denoiser: Denoiser, side: str) -> Any:
        """The same denoiser with its network counted here; `side` is its name in messages."""
        wrapper: Any = denoiser
        return replace(wrapper, network=partial(self._evaluate, wrapper.network, side))

    def _evaluate(self, network: Network, side: str, xt: Tensor, t: Tensor) -> Tensor:
        began = time.perf_counter()
        out = network(xt, t)
        self.seconds += time.perf_counter() - began
        self.rows += xt.shape[0]
        self.calls += 1
        self.after_each()
        if not out.isfinite().all():
            row = int(out.flatten(1).isfinite().all(1).logical_not().nonzero()[0])
            raise UserError(
                f"the {side} network gave NaN or Inf for image {self.ids[row % len(self.ids)]} at timestep "
                f"{int(t[row])}; finished images are kept, check method.* and the weights"
            )
        return out
