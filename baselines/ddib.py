"""DDIB, dual diffusion implicit bridges (arXiv 2203.08382): invert with the source's ODE, sample with the target's."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cyclediff.denoiser import Denoiser
from cyclediff.method import NoiseSource
from cyclediff.schedule import respaced_timesteps
from cyclediff.steps import batch_of, ddim_step, predict_eps, predict_x0, transitions


@dataclass(frozen=True)
class DDIB:
    """DDIB with DDIM at eta 0 as the ODE solver, as in the official code.

    Args:
        timesteps: in the respacing notation of `respaced_timesteps`, for example "100".
        clip_denoised: clamp x0_hat to [-1, 1] while decoding; for pixel-space models.
        name: the stem of its file in conf/method.
    """

    timesteps: str
    clip_denoised: bool
    name: str = "ddib"
    uses: ClassVar[frozenset[str]] = frozenset({"source", "target"})

    def __call__(self, x0: Tensor, source: Denoiser, target: Denoiser, noise: NoiseSource) -> Tensor:
        """Translate x0 (n, c, h, w); draws no noise."""
        latent = invert(x0, source, respaced_timesteps(len(source.alpha_bar), self.timesteps))
        return sample(latent, target, respaced_timesteps(len(target.alpha_bar), self.timesteps), self.clip_denoised)


def invert(x0: Tensor, source: Denoiser, timesteps: Tensor) -> Tensor:
    """The latent of x0: DDIM's ODE from the clean end up (Algorithm 1, first line).

    As in the official code the clean image is taken as the state at the first noise level, and the last step goes to
    alpha_bar = 0, so the latent is the last predicted eps.
    """
    x = x0
    ascending = timesteps.flip(0)
    levels = source.alpha_bar[ascending].tolist()
    for t, alpha_bar, alpha_bar_next in zip(ascending.tolist(), levels, [*levels[1:], 0.0], strict=True):
        x = ddim_step(x, source(x, batch_of(t, x)), alpha_bar, alpha_bar_next)
    return x


def sample(latent: Tensor, target: Denoiser, timesteps: Tensor, clip_denoised: bool = False) -> Tensor:
    """DDIM's ODE from a latent down to the image; eps follows x0_hat where that is clamped (Algorithm 1, last line)."""
    x = latent
    for t, alpha_bar, alpha_bar_prev in transitions(target.alpha_bar, timesteps):
        eps = target(x, batch_of(t, x))
        if clip_denoised:
            eps = predict_eps(x, predict_x0(x, eps, alpha_bar).clamp(-1, 1), alpha_bar)
        x = ddim_step(x, eps, alpha_bar, alpha_bar_prev)
    return x
