"""What a batch costs, and whether its networks give finite numbers: every evaluation of a network passes here."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cyclediff.errors import UserError
from cyclediff.runtime.profiling import Profile

Network = Callable[..., Tensor]  # (x_t, t, …) or (image) → its prediction or features, a row for each of x_t's
READ_EVERY = 16  # evaluations after which their results are looked at, all at once, because a GPU is waited for


class Meter:
    """Counts forward and backward evaluations of networks, and stops where a result is not finite.

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
        self._unread: list[tuple[str, Tensor, Tensor | None]] = []  # network, which rows are finite, their times

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
        self._unread.append((name, out.detach().isfinite().reshape(len(out), -1).all(1), more[0] if more else None))
        if len(self._unread) == READ_EVERY:
            self.require_finite()
        return out

    def require_finite(self) -> None:
        """Look at the results since the last look.

        Raises:
            UserError: if one is not finite: names the network, and the image and timestep of the first such one.
        """
        unread, self._unread = self._unread, []
        if not unread or torch.cat([finite for _, finite, _ in unread]).all():
            return
        name, finite, times = next(call for call in unread if not call[1].all())
        row = int(finite.logical_not().nonzero()[0])
        which = f"image {self.ids[row]}" if len(finite) == len(self.ids) else f"one of the images {', '.join(self.ids)}"
        when = "" if times is None else f" at timestep {int(times[row])}"
        raise UserError(
            f"the {name} network gave NaN or Inf for {which}{when}; finished images are kept, "
            "check method.* and the weights, and instead of float16 try dtype=bfloat16 or dtype=float32"
        )

    def _went_back(self, rows: int, gradient: Tensor) -> None:
        self.backwards += rows
