"""ILVR (arXiv 2108.02938): sample the target model, and take the low frequencies from the source image."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from cyclediff.diffusion.denoiser import Denoiser
from cyclediff.diffusion.levels import Level
from cyclediff.diffusion.lowpass import lowpass
from cyclediff.diffusion.noise import NoiseSource
from cyclediff.diffusion.schedule import count_respaced
from cyclediff.diffusion.steps import ddpm_sigma, posterior_step, q_sample, transitions
from cyclediff.diffusion.variance import Variance, predict_with_sigma


@dataclass(frozen=True)
class ILVR:
    """ILVR with ancestral sampling, as in the official code.

    Args:
        timesteps: in the respacing notation of `respaced_timesteps`, for example "100".
        down_N: factor of the low-pass filter; the larger, the less of the source is kept.
        range_t: steps with an index (counted from the clean end, 0 is the last) above it are conditioned.
        variance: of a step: the network's own ("learned"), or DDPM's fixed "small" or "large".
        clip_denoised: clamp x0_hat to [-1, 1]; for pixel-space models.
        name: the stem of its file in conf/method.
    """

    timesteps: str
    down_N: int
    range_t: int = 0
    variance: Variance = "learned"
    clip_denoised: bool = True
    name: str = "ilvr"
    needs = frozenset({"target"})
    conditions = frozenset({"none"})
    starts_at = None
    inverts = False
    reconstructs = None
    takes_region = False

    @property
    def num_steps(self) -> int:
        """What the notation of `timesteps` asks for."""
        return count_respaced(self.timesteps)

    def __post_init__(self):
        if self.variance not in ("learned", "small", "large"):
            raise ValueError(f"variance must be learned, small or large; got {self.variance!r}")
        if self.down_N < 1:
            raise ValueError(f"down_N must be at least 1; got {self.down_N}")
        if self.range_t < 0:
            raise ValueError(f"range_t must be at least 0 (0 conditions all steps but the last); got {self.range_t}")

    def __call__(self, x0: Tensor, source: Denoiser | None, target: Denoiser, noise: NoiseSource) -> Tensor:
        """Translate x0 (n, c, h, w)."""
        levels = target.schedule.levels(self.timesteps, "respaced")
        return ilvr(x0, target, levels, self.down_N, self.range_t, noise, self.variance, self.clip_denoised)


def ilvr(
    reference: Tensor,
    target: Denoiser,
    levels: Sequence[Level],
    down_N: int,
    range_t: int,
    noise: NoiseSource,
    variance: Variance = "learned",
    clip_denoised: bool = True,
) -> Tensor:
    """Algorithm 1 of the paper: x_{t-1} ← x_{t-1} - phi_N(x_{t-1}) + phi_N(y).

    As in the official code, y is the reference noised to level t; the paper has t - 1.

    Args:
        reference: the source image (n, c, h, w).
        target: denoiser of the target domain; a VarianceDenoiser where `variance` is "learned".
        levels: from noisy to clean.
        down_N: factor of the low-pass filter.
        range_t: steps with an index above it are conditioned.
        noise: source of randomness; one draw for x_T, then in each step one for it and one for y if it is conditioned.
        variance: of a step.
        clip_denoised: clamp x0_hat to [-1, 1].

    Returns:
        Same shape as reference, not clamped.

    Raises:
        ValueError: if the network has no learned variance to use.
    """
    x = noise.randn_like(reference)
    steps = transitions(levels)
    for step, (t, s) in enumerate(steps):
        index = len(steps) - 1 - step
        seen, sigma = predict_with_sigma(x, target, t, s, variance)
        x0_hat = seen.x0.clamp(-1, 1) if clip_denoised else seen.x0
        x = posterior_step(x, x0_hat, t, s, ddpm_sigma(t, s, "small"), 0.0)
        if index > 0:
            x = x + sigma * noise.randn_like(x)
        if index > range_t:
            y = q_sample(reference, t, noise.randn_like(x))
            x = x + lowpass(y - x, down_N, "cubic")
    return x
