"""SDEdit (arXiv 2108.01073): add noise to the source, denoise it with the target model."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from cyclediff.denoiser import Denoiser
from cyclediff.method import NoiseSource
from cyclediff.schedule import spaced_timesteps
from cyclediff.steps import batch_of, ddpm_sigma, ddpm_step, q_sample, transitions


@dataclass(frozen=True)
class SDEdit:
    """SDEdit with ancestral (VP-SDE) sampling, as in the official code.

    Args:
        T: number of timesteps of the sampler.
        t0: how many of them, from the clean end, are run: realism against faithfulness (section 3).
        repeats: how often the result is noised and denoised again (the official sample_step).
        variance: DDPM's fixed variance, "small" or "large".
        name: the stem of its file in conf/method.
    """

    T: int
    t0: int
    repeats: int = 1
    variance: Literal["small", "large"] = "small"
    name: str = "sdedit"
    uses: ClassVar[frozenset[str]] = frozenset({"target"})

    def __post_init__(self):
        if not 1 <= self.t0 <= self.T:
            raise ValueError(f"t0 must be between 1 and T = {self.T}; got {self.t0}")
        if self.repeats < 1:
            raise ValueError(f"repeats must be at least 1; got {self.repeats}")
        if self.variance not in ("small", "large"):
            raise ValueError(f"variance must be small or large; got {self.variance!r}")

    def __call__(self, x0: Tensor, source: Denoiser | None, target: Denoiser, noise: NoiseSource) -> Tensor:
        """Translate x0 (n, c, h, w)."""
        timesteps = spaced_timesteps(len(target.alpha_bar), self.T)[-self.t0 :]
        for _ in range(self.repeats):
            x0 = sdedit(x0, target, timesteps, noise, self.variance)
        return x0


def sdedit(
    guide: Tensor,
    target: Denoiser,
    timesteps: Tensor,
    noise: NoiseSource,
    variance: Literal["small", "large"] = "small",
    mask: Tensor | None = None,
) -> Tensor:
    """One noising and denoising of `guide` (Algorithm 2 of the paper).

    Args:
        guide: (n, c, h, w).
        target: denoiser of the target domain.
        timesteps: int64, decreasing.
        noise: source of randomness; len(timesteps) draws.
        variance: DDPM's fixed variance, "small" or "large".
        mask: bool, broadcastable to guide; True keeps the guide. After each step from level t the kept pixels are the
            guide at level t (not at the level reached), with the noise of the start, as the official code has it.

    Returns:
        Same shape as guide, not clamped; kept pixels hold the noise of the last level.
    """
    e = noise.randn_like(guide)
    x = q_sample(guide, target.alpha_bar[timesteps[0]].item(), e)
    for t, alpha_bar, alpha_bar_prev in transitions(target.alpha_bar, timesteps):
        z = noise.randn_like(x) if t != timesteps[-1] else 0.0
        eps = target(x, batch_of(t, x))
        x = ddpm_step(x, eps, alpha_bar, alpha_bar_prev, ddpm_sigma(alpha_bar, alpha_bar_prev, variance), z)
        if mask is not None:
            x = torch.where(mask, q_sample(guide, alpha_bar, e), x)
    return x
