"""What a batch costs, and whether its networks give finite numbers: every evaluation of a network passes here."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from cyclediff.errors import UserError
from cyclediff.runtime.profiling import Profile

Network = Callable[..., Tensor]  # (x_t, t, …) or (image) → its prediction or features, a row for each of x_t's


class Meter:
    """Counts forward and backward evaluations of networks, and stops at the first result that is not finite.

    An evaluation of one image is one, so a batch of n counts n. A backward is counted when a gradient flows through a
    network's result. `seconds` are of forwards, and mean something on the CPU only: elsewhere a call returns before its
    work is done.

    Args:
        ids: the items of the batch, in its order, for messages.
        after_each: called after every forward.
        profile: measures stages, if there is one.
    """

    def __init__(self, ids: Sequence[str], after_each: Callable[[], None], profile: Profile | None = None):
        self.ids = ids
        self.forwards = 0
        self.backwards = 0
        self.seconds = 0.0
        self.after_each = after_each
        self.profile = profile

    def again(self, ids: Sequence[str]) -> "Meter":
        """A new meter for some of the items."""
        return Meter(ids, self.after_each, self.profile)

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Counts the time inside as a stage of the profile, if there is one."""
        return self.profile.stage(name) if self.profile else nullcontext()

    def watch(self, wrapper: Any, name: str) -> Any:
        """The same denoiser (or model) with its `network` counted here; the name is for messages."""
        return replace(wrapper, network=self.count(wrapper.network, name))

    def count(self, network: Network, name: str) -> Network:
        """The same network, counted here; the name is for messages."""
        return partial(self._evaluate, network, name)

    def _evaluate(self, network: Network, name: str, xt: Tensor, *more: Any) -> Tensor:
        began = time.perf_counter()
        with self.stage(f"{name} network"):
            out = network(xt, *more)
        self.seconds += time.perf_counter() - began
        self.forwards += len(xt)
        if out.requires_grad:
            out.register_hook(partial(self._went_back, len(xt)))
        self.after_each()
        if self.profile:
            self.profile.evaluated()
        if not out.isfinite().all():
            row = int(out.flatten(1).isfinite().all(1).logical_not().nonzero()[0])
            which = (
                f"image {self.ids[row]}" if len(out) == len(self.ids) else f"one of the images {', '.join(self.ids)}"
            )
            when = f" at timestep {int(more[0][row])}" if more else ""
            raise UserError(
                f"the {name} network gave NaN or Inf for {which}{when}; finished images are kept, "
                "check method.* and the weights, and instead of float16 try dtype=bfloat16 or dtype=float32"
            )
        return out

    def _went_back(self, rows: int, gradient: Tensor) -> None:
        self.backwards += rows
