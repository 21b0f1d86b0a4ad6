"""Edit-friendly DDPM inversion (arXiv 2304.06140): noise maps from states that are drawn independently."""

import math
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from cyclediff.diffusion.denoiser import Denoiser
from cyclediff.diffusion.noise import NoiseSource
from cyclediff.diffusion.paired import Control, plan_control
from cyclediff.diffusion.schedule import Spacing
from cyclediff.diffusion.steps import ddim_sigma
from cyclediff.diffusion.transfer import independent, shared_levels, transfer


@dataclass(frozen=True)
class EditFriendly:
    """Edit-friendly inversion (Algorithm 1): x_t is drawn from q(x_t | x0), and z_t is what the source's step misses.

    The official code encodes all T timesteps; the states of those that are left out reach no result, and are not
    evaluated here.

    Args:
        T: number of timesteps of the sampler.
        t0: how many of them, from the clean end, are run: T minus the official skip.
        eta: stochasticity, above 0 and at most 1. As in the official code a step keeps 1 - eta of DDPM's variance in
            the direction of eps_hat, where DDIM keeps 1 - eta²: so it is DDIM's eta of sqrt(eta). The two are the same
            at 1, the published value. How the rest is scaled cancels between encoding and decoding.
        keep_last: keep the noise map of the last step. The official code sets it to 0, so that source = target does not
            return the image.
        spacing: "latent" as in the official code, see `DiffusionSchedule`.
        attention: cross-attention control (section 4), for text-to-image models. Its parts of steps are parts of all T,
            as in the official code, also where fewer are run.
        name: the stem of its file in conf/method.
    """

    T: int
    t0: int
    eta: float = 1.0
    keep_last: bool = False
    spacing: Spacing = "latent"
    attention: Control | None = None
    name: str = "edit_friendly"
    needs = frozenset({"source", "target"})
    starts_at = "t0"
    inverts = False
    takes_region = True

    def __post_init__(self):
        if not 1 <= self.t0 <= self.T:
            raise ValueError(f"t0 must be between 1 and T = {self.T}; got {self.t0}")
        if not 0 < self.eta <= 1:
            raise ValueError(f"eta must be above 0 and at most 1 (eta = 0 has no noise maps: use ddib); got {self.eta}")

    @property
    def conditions(self) -> frozenset[str]:
        """Attention control needs texts."""
        return frozenset({"text"} if self.attention else {"none", "text"})

    @property
    def reconstructs(self) -> str | None:
        """Without the last noise map, up to the last step's prediction."""
        return "exact" if self.keep_last else "approximately"

    @property
    def num_steps(self) -> int:
        """T."""
        return self.T

    def __call__(self, x0: Tensor, source: Denoiser, target: Denoiser, noise: NoiseSource) -> Tensor:
        """Translate x0 (n, c, h, w)."""
        levels = shared_levels(source, target, self.T, self.spacing)[-self.t0 - 1 :]
        sigma = partial(ddim_sigma, eta=math.sqrt(self.eta))
        plan = plan_control(self.attention, source, target, self.T)
        return transfer(x0, source, target, levels, independent, sigma, noise, keep_last=self.keep_last, plan=plan)
