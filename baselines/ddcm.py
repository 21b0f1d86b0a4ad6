"""DDCM, the sampler of InfEdit (arXiv 2312.04965): consistency sampling that follows the noise of the source."""

import math
from dataclasses import dataclass

from torch import Tensor

from cyclediff.diffusion.denoiser import Denoiser
from cyclediff.diffusion.levels import NOISE, Level
from cyclediff.diffusion.noise import NoiseSource
from cyclediff.diffusion.schedule import Spacing
from cyclediff.diffusion.transfer import chain, shared_levels, transfer


@dataclass(frozen=True)
class DDCM:
    """DDCM: DDIM steps with sigma_t² = 1 - alpha_{t-1} at eta 1, without InfEdit's attention control.

    It is CycleDiffusion with the largest sigma that a step can have: the source is noised anew in each step, and its
    "consistent noise" is the eps that truly leads to it. The official code applies no guidance, also not to the source,
    if the target's scale is 1 or less; here each prompt has its own scale.

    Args:
        T: number of timesteps of the sampler.
        t0: how many of them, from the clean end, are run: the official strength times T.
        eta: part of the variance at the end of a step that is drawn anew, from 0 to 1. As in the official code it
            scales the variance, where DDIM's eta scales the standard deviation.
        pure_start: start at noise alone, though the first level still has some signal. Only where all steps are run:
            with steps left out, the image is noised, as in the official code.
        spacing: "lcm" for the timesteps of latent consistency models, see `DiffusionSchedule`; a flow has no such.
        name: the stem of its file in conf/method.
    """

    T: int
    t0: int
    eta: float = 1.0
    pure_start: bool = True
    spacing: Spacing = "lcm"
    name: str = "ddcm"
    needs = frozenset({"source", "target"})
    conditions = frozenset({"none", "text"})
    starts_at = "t0"
    inverts = False
    reconstructs = "exact"  # equal networks: no difference arises
    takes_region = True

    def __post_init__(self):
        if not 1 <= self.t0 <= self.T:
            raise ValueError(f"t0 must be between 1 and T = {self.T}; got {self.t0}")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must be between 0 and 1; got {self.eta}")

    @property
    def num_steps(self) -> int:
        """T."""
        return self.T

    def __call__(self, x0: Tensor, source: Denoiser, target: Denoiser, noise: NoiseSource) -> Tensor:
        """Translate x0 (n, c, h, w)."""
        levels = shared_levels(source, target, self.T, self.spacing)[-self.t0 - 1 :]
        start = NOISE if self.pure_start and self.t0 == self.T else None
        return transfer(x0, source, target, levels, chain, self.sigma, noise, start)

    def sigma(self, t: Level, s: Level) -> float:
        """The standard deviation of the noise of a step from t to s."""
        return math.sqrt(self.eta) * s.b
