"""What a translation costs, and whether its networks stay sane: every evaluation passes here."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from cyclediff.diffusion.denoiser import Network
from cyclediff.errors import UserError
from cyclediff.runtime.profiling import Profile


class Meter:
    """Counts the evaluations of the networks behind some denoisers, and stops at the first that is not finite.

    `seconds` is meaningful on the CPU only: elsewhere a call returns before its work is done.

    Args:
        ids: the images of the batch, in its order, for messages.
        after_each: called after every evaluation.
        profile: measures stages, if there is one.
    """

    def __init__(self, ids: Sequence[str], after_each: Callable[[], None], profile: Profile | None = None):
        self.ids = ids
        self.rows = 0
        self.calls = 0
        self.seconds = 0.0
        self.after_each = after_each
        self.profile = profile

    def again(self, ids: Sequence[str]) -> "Meter":
        """A new meter for some of the images."""
        return Meter(ids, self.after_each, self.profile)

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Counts the time inside as a stage of the profile, if there is one."""
        return self.profile.stage(name) if self.profile else nullcontext()

    def watch(self, wrapper: Any, side: str) -> Any:
        """The same denoiser (or model) with its network counted here; `side` is the network's name in messages."""
        return replace(wrapper, network=partial(self._evaluate, wrapper.network, side))

    def _evaluate(self, network: Network, side: str, xt: Tensor, t: Tensor, *more: Any) -> Tensor:
        began = time.perf_counter()
        with self.stage(f"{side} network"):
            out = network(xt, t, *more)
        self.seconds += time.perf_counter() - began
        self.rows += xt.shape[0]
        self.calls += 1
        self.after_each()
        if self.profile:
            self.profile.evaluated()
        if not out.isfinite().all():
            row = int(out.flatten(1).isfinite().all(1).logical_not().nonzero()[0])
            which = (
                f"image {self.ids[row]}" if len(out) == len(self.ids) else f"one of the images {', '.join(self.ids)}"
            )
            raise UserError(
                f"the {side} network gave NaN or Inf for {which} at timestep {int(t[row])}; finished images are kept, "
                "check method.* and the weights, and with float16 try model dtype bfloat16 or float32"
            )
        return out
