"""A diffusion sampler as a differentiable function of its noise: G(z), with z = (x_T, the noise of each step).

The sampler is that of CycleDiffusion's section 4.3 (ChenWu98/unified-generative-zoo, "extended Analytic-DPM"). Its
first steps are white boxes: their noise is in z. The noise of the others is drawn anew at each evaluation.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from cyclediff.diffusion.denoiser import Denoiser, VarianceDenoiser
from cyclediff.diffusion.levels import Level, Prediction
from cyclediff.diffusion.noise import NoiseSource
from cyclediff.diffusion.steps import beta, ddim_sigma, direction, mean, posterior_step, q_sample, transitions, truth

Kind = Literal["ddpm", "ddim"]
Variance = Literal["small", "large", "optimal", "learned"]


@runtime_checkable
class SquareDenoiser(Denoiser, Protocol):
    """A denoiser that also predicts eps^2 (arXiv 2206.07309, "SN-DPM")."""

    def with_square(self, x: Tensor, level: Level) -> tuple[Prediction, Tensor]:
        """(prediction, E[eps^2]), the second in the shape of x; it is at least E[eps]^2 but for the network's error."""
        ...


@dataclass(frozen=True, eq=False)
class WhiteBox:
    """The generator G: codes z (n, white_box_steps, c, h, w) → x0 (n, c, h, w).

    Args:
        denoiser: of the model that is sampled.
        levels: that the sampler visits, from noisy to clean. "respaced" levels are the official "linear" ones.
        white_box_steps: how many of x_T and the steps' noises are in z, from 1 (x_T alone) to `slots`. The published
            number is one less than the number of steps.
        kind: of a step. "ddpm": the posterior's mean (DDPM algorithm 2). "ddim": DDIM Eq. 12, where, as in the official
            code, eps stays as predicted when x0 is clamped.
        eta: stochasticity of "ddim"; "ddpm" has 1.
        variance: of a step's noise. "small": the posterior's, DDIM's sigma^2. "large": of x_t given x_s. "optimal":
            Analytic-DPM's (arXiv 2201.06503) from a `SquareDenoiser`, for each value. "learned": from a
            `VarianceDenoiser`, for "ddpm".
        clamp: clamp the predicted x0 to [-1, 1] in each step, as published. Where it clamps, its gradient is 0.
        clip_pixels: the noise of the last step that has some moves a value by at most this many of 255 on average;
            published: 2 with "ddpm", 1 with "ddim". None for no limit.
        checkpointing: whether the backward pass computes most steps again instead of keeping what the network computed
            in them (arXiv 1604.06174). It keeps 1.5 times the square root of their number at once.
    """

    denoiser: Denoiser
    levels: Sequence[Level]
    white_box_steps: int
    kind: Kind = "ddpm"
    eta: float = 1.0
    variance: Variance = "small"
    clamp: bool = True
    clip_pixels: float | None = 2.0
    checkpointing: bool = True

    def __post_init__(self):
        if self.kind not in ("ddpm", "ddim"):
            raise ValueError(f"kind must be ddpm or ddim; got {self.kind!r}")
        if self.variance not in ("small", "large", "optimal", "learned"):
            raise ValueError(f"variance must be small, large, optimal or learned; got {self.variance!r}")
        if self.kind == "ddpm" and self.eta != 1:
            raise ValueError(f"eta must be 1 with kind ddpm; got {self.eta}, choose kind ddim")
        if not self.eta >= 0:
            raise ValueError(f"eta must be at least 0; got {self.eta}")
        if not 1 <= self.white_box_steps <= self.slots:
            raise ValueError(
                f"white_box_steps must be between 1 (x_T alone) and {self.slots} with {len(self.levels) - 1} steps; "
                f"got {self.white_box_steps}"
            )
        if self.clip_pixels is not None and not self.clip_pixels > 0:
            raise ValueError(f"clip_pixels must be positive, or null for no limit; got {self.clip_pixels}")
        if self.variance == "optimal" and not (isinstance(self.denoiser, SquareDenoiser) and self.eta > 0):
            raise ValueError(
                "the optimal variance needs a network that predicts eps and eps^2, and eta above 0; choose variance "
                "small or large"
            )
        if self.variance == "learned" and not (isinstance(self.denoiser, VarianceDenoiser) and self.kind == "ddpm"):
            raise ValueError(
                "the learned variance needs a network that predicts one (learn_sigma), and kind ddpm; choose variance "
                "small or large"
            )

    @property
    def slots(self) -> int:
        """How many noises the sampler has: x_T, and one of each step that does not end at the clean image."""
        return 1 + sum(s.b > 0 for s in self.levels[1:])

    def __call__(self, z: Tensor, noise: NoiseSource) -> Tensor:
        """x0 of codes, in about [-1, 1] (exactly so where `clamp` is set and the last level is the clean image).

        Args:
            z: (n, white_box_steps, c, h, w).
            noise: of the steps that are no white boxes, one draw each, all drawn before the first step.
        """
        if z.dim() != 5 or z.shape[1] != self.white_box_steps:
            raise ValueError(f"codes must be (n, {self.white_box_steps}, c, h, w); got {tuple(z.shape)}")
        x, *noises = z.unbind(dim=1)
        noises += [noise.randn_like(x) for _ in range(self.slots - self.white_box_steps)]
        steps, start = transitions(self.levels), 0
        if self.checkpointing and torch.is_grad_enabled() and z.requires_grad:
            size = math.ceil(1.5 * math.sqrt(len(steps)))  # 1.5: a little more memory for less time
            while start < len(steps) - size:  # the last segment is needed first, so it is kept
                end = min(start + size, len(steps) - size)
                x = _Recomputed.apply(partial(self._run, steps=steps[start:end]), x, *noises[start:end])
                start = end
        return self._run(x, *noises[start:], steps=steps[start:])

    def encode(self, x0: Tensor, noise: NoiseSource) -> Tensor:
        """DPM-Encoder for this sampler: codes z with which it goes along a path from x0 to noise.

        With all `slots`, G(z) is x0 up to the last step, which is predicted; with fewer, noise is drawn in their place.
        As in the official code of guidance, and unlike that of CycleDiffusion, x_T is drawn at the top level.

        Args:
            x0: images (n, c, h, w) in [-1, 1].
            noise: one draw for x_T, then one for each further code.

        Returns:
            (n, white_box_steps, c, h, w).

        Raises:
            ValueError: if steps without noise shall be encoded.
        """
        if self.eta == 0 and self.white_box_steps > 1:
            raise ValueError("eta 0 has no noise to encode; choose eta above 0, or white_box_steps=1")
        x = q_sample(x0, self.levels[0], noise.randn_like(x0))
        code = [x]
        for t, s in transitions(self.levels)[: self.white_box_steps - 1]:
            drift, sigma = self._step(x, t, s)
            x = posterior_step(x, x0, t, s, ddim_sigma(t, s, self.eta), noise.randn_like(x0))
            code.append((x - drift) / sigma)
        return torch.stack(code, dim=1)

    def _run(self, x: Tensor, *noises: Tensor, steps: Sequence[tuple[Level, Level]]) -> Tensor:
        """Some steps of the sampler; the last one of all has no noise."""
        for step, (t, s) in enumerate(steps):
            drift, sigma = self._step(x, t, s)
            x = drift if s.b == 0 else drift + sigma * noises[step]
        return x

    def _step(self, x: Tensor, t: Level, s: Level) -> tuple[Tensor, Tensor | float]:
        """The mean of x_s, and the standard deviation of its noise, a number or one for each value of x."""
        seen, second = self._predict(x, t)
        x0 = seen.x0.clamp(-1, 1) if self.clamp else seen.x0
        small = ddim_sigma(t, s, self.eta)
        drift = mean(truth(x, x0, t) if self.kind == "ddpm" else Prediction(x0, seen.eps), s, small)
        return drift, 0.0 if s.b == 0 else self._sigma(seen, second, t, s, small)

    def _predict(self, x: Tensor, t: Level) -> tuple[Prediction, Tensor | None]:
        if self.variance == "optimal":
            return cast(SquareDenoiser, self.denoiser).with_square(x, t)
        if self.variance == "learned":
            return cast(VarianceDenoiser, self.denoiser).with_variance(x, t)
        return self.denoiser(x, t), None

    def _sigma(self, seen: Prediction, second: Tensor | None, t: Level, s: Level, small: float) -> Tensor | float:
        limit = math.inf
        if self.clip_pixels is not None and s == self.levels[self.slots - 1]:
            limit = self.clip_pixels * 2 / 255 * math.sqrt(math.pi / 2)
        if second is None:
            return min(small if self.variance == "small" else math.sqrt(beta(t, s)), limit)
        if self.variance == "learned":
            variance = (second * math.log(beta(t, s)) + (1 - second) * math.log(small**2)).exp()
        else:  # the variance of x0 given x_t, as it reaches x_s
            uncertain = ((t.b / t.a) ** 2 * (second - seen.eps**2)).clamp(0, 1)
            variance = small**2 + (s.a - direction(s, small) * t.a / t.b) ** 2 * uncertain
        return variance.clamp(max=limit**2).sqrt()


class _Recomputed(torch.autograd.Function):
    """A function that keeps its arguments only, and is computed again in the backward pass.

    torch.utils.checkpoint calls a Python function for each tensor that would be kept, or has no torch.autograd.grad.
    """

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
        ctx.function = function
        ctx.save_for_backward(*arguments)
        return function(*arguments)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1:]
        given = [t.detach().requires_grad_(need) for t, need in zip(ctx.saved_tensors, needed, strict=True)]
        with torch.enable_grad():
            made = ctx.function(*given)
        found = iter(torch.autograd.grad(made, [t for t in given if t.requires_grad], grads))
        return None, *(next(found) if need else None for need in needed)
