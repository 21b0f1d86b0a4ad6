"""SDEdit (arXiv 2108.01073): add noise to the source, denoise it with the target model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cyclediff.diffusion.denoiser import Denoiser
from cyclediff.diffusion.levels import Level, Prediction
from cyclediff.diffusion.noise import NoiseSource
from cyclediff.diffusion.paired import Control, inside_region, paired_evaluation, plan_control
from cyclediff.diffusion.schedule import Spacing
from cyclediff.diffusion.steps import ddim_step, ddpm_sigma, ddpm_step, q_sample, transitions

Variance = Literal["small", "large", "none"]


@dataclass(frozen=True)
class SDEdit:
    """SDEdit: with ancestral (VP-SDE) sampling as in the official code, or with DDIM as in Stable Diffusion's img2img.

    Args:
        T: number of timesteps of the sampler.
        t0: how many of them, from the clean end, are run: realism against faithfulness (section 3).
        repeats: how often the result is noised and denoised again (the official sample_step).
        variance: DDPM's fixed variance, "small" or "large"; or "none" for DDIM without noise.
        spacing: "uniform" for pixel space, "latent" for latent diffusion (see `DiffusionSchedule`).
        mask: bool (1, h, w) for all images, True where the source is kept (section 4.2); for pixel-space models.
        attention: cross-attention control, for text-to-image models: the attention follows that of a second SDEdit with
            the same noise, under the source prompt.
        name: the stem of its file in conf/method.
    """

    T: int
    t0: int
    repeats: int = 1
    variance: Variance = "small"
    spacing: Spacing = "uniform"
    mask: Tensor | None = None
    attention: Control | None = None
    name: str = "sdedit"
    starts_at = "t0"
    inverts = False
    reconstructs = None
    takes_region = True

    @property
    def needs(self) -> frozenset[str]:
        """The source only for attention control."""
        return frozenset({"source", "target"} if self.attention else {"target"})

    @property
    def conditions(self) -> frozenset[str]:
        """Attention control needs texts."""
        return frozenset({"text"} if self.attention else {"none", "text"})

    @property
    def num_steps(self) -> int:
        """T."""
        return self.T

    def __post_init__(self):
        if not 1 <= self.t0 <= self.T:
            raise ValueError(f"t0 must be between 1 and T = {self.T}; got {self.t0}")
        if self.repeats < 1:
            raise ValueError(f"repeats must be at least 1; got {self.repeats}")
        if self.variance not in ("small", "large", "none"):
            raise ValueError(f"variance must be small, large or none; got {self.variance!r}")

    def __call__(self, x0: Tensor, source: Denoiser | None, target: Denoiser, noise: NoiseSource) -> Tensor:
        """Translate x0 (n, c, h, w)."""
        levels = target.schedule.levels(self.T, self.spacing)[-self.t0 - 1 :]
        mask = None if self.mask is None else self.mask.to(x0.device)
        if mask is not None and mask.shape[-2:] != x0.shape[-2:]:
            height, width = mask.shape[-2:]
            raise ValueError(
                f"the mask is for images of {height}×{width} and x0 has {x0.shape[-2]}×{x0.shape[-1]}; masks are for "
                "pixel-space models"
            )
        x = guide = x0
        for _ in range(self.repeats):
            if self.attention and source is not None:
                x = self._controlled(guide, source, target, levels, noise)
            else:
                x = sdedit(guide, target, levels, noise, self.variance, mask)
            guide = x if mask is None else torch.where(mask, x0, x)
        return x

    def _controlled(
        self, x0: Tensor, source: Denoiser, target: Denoiser, levels: Sequence[Level], noise: NoiseSource
    ) -> Tensor:
        """`sdedit` and a second one under the source prompt, with the same noise; the first follows its attention."""
        steps = transitions(levels)
        plan = plan_control(self.attention, source, target, len(steps))
        evaluate = paired_evaluation(source, target, plan)
        e = noise.randn_like(x0)
        xs = xt = q_sample(x0, levels[0], e)
        for step, (t, s) in enumerate(steps):
            z = noise.randn_like(x0) if step < len(steps) - 1 else 0.0
            both = (_step(seen, t, s, self.variance, z) for seen in evaluate(xs, xt, t, step))
            xs, xt = (inside_region(target, x, q_sample(x0, s, e)) for x in both)
            xt = plan.blend(step, xs, xt) if plan else xt
        return xt


def sdedit(
    guide: Tensor,
    target: Denoiser,
    levels: Sequence[Level],
    noise: NoiseSource,
    variance: Variance = "small",
    mask: Tensor | None = None,
) -> Tensor:
    """One noising and denoising of `guide` (Algorithm 2 of the paper).

    Args:
        guide: (n, c, h, w).
        target: denoiser of the target domain. Outside its region is the guide at each level, with the start's noise.
        levels: from noisy to clean.
        noise: source of randomness; a draw for each step.
        variance: DDPM's fixed variance, "small" or "large"; or "none" for DDIM without noise.
        mask: bool, broadcastable to guide; True keeps the guide. After each step from level t the kept pixels are the
            guide at level t (not at the level reached), with the noise of the start, as the official code has it.

    Returns:
        Same shape as guide, not clamped; kept pixels hold the noise of the last level.
    """
    e = noise.randn_like(guide)
    x, steps = q_sample(guide, levels[0], e), transitions(levels)
    for step, (t, s) in enumerate(steps):
        z = noise.randn_like(x) if step < len(steps) - 1 else 0.0
        x = _step(target(x, t), t, s, variance, z)
        if mask is not None:
            x = torch.where(mask, q_sample(guide, t, e), x)
        x = inside_region(target, x, q_sample(guide, s, e))
    return x


def _step(seen: Prediction, t: Level, s: Level, variance: Variance, z: Tensor | float) -> Tensor:
    if variance == "none":
        return ddim_step(seen, s)
    return ddpm_step(seen, t, s, ddpm_sigma(t, s, variance), z)
