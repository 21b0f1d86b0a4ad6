"""CycleDiffusion (arXiv 2210.05559): encode an image with one diffusion model, decode it with another.

The code of an image is z = (x_T, z_{T-1}, …, z_1): the starting point and the noise of every step with which the
*source* model's sampler would produce the image (DPM-Encoder, Algorithm 1). The *target* model's sampler, run with the
same code, produces the translation (Algorithm 2).

The last step of a pixel-space sampler adds no noise. As in the official codes it is predicted, not encoded, so source =
target returns the image up to that one prediction. The last step of a latent sampler has noise and is encoded, so
source = target returns the latent itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cyclediff.diffusion.denoiser import Denoiser
from cyclediff.diffusion.paired import Control, Plan, paired_evaluation, plan_control
from cyclediff.diffusion.schedule import Spacing, sampling_path
from cyclediff.diffusion.steps import (
    batch_of,
    ddim_sigma,
    ddim_step,
    infer_noise,
    landing_noise,
    posterior_step,
    q_sample,
    transitions,
)
from cyclediff.method import NoiseSource
from cyclediff.shared_encoding import decode_candidates


@dataclass(frozen=True)
class CycleDiffusion:
    """CycleDiffusion between two pixel-space or latent models.

    Args:
        T: number of timesteps of the sampler (the official code's custom_steps).
        T_es: how many of them, from the clean end, are encoded: "early stop", section 4.1 (es_steps).
        eta: stochasticity of DDIM, positive; 1 is DDPM.
        refine_steps: timesteps of the final noising and denoising by the target model at eta 1; 0 for none.
        refine_iterations: how often that is done (refine_iterations of the official code).
        raw_index_start: start at training timestep T_es - 1 (and refine from refine_steps - 1), as the official code
            does. False starts at the T_es-th of the T timesteps, as the paper says. The two are equal where T is the
            number of training timesteps, as in every published configuration.
        spacing: "uniform" for pixel space, "latent" for latent diffusion (see `sampling_path`).
        attention: cross-attention control (section 4.2), for text-to-image models.
        name: the stem of its file in conf/method.
    """

    T: int
    T_es: int
    eta: float
    refine_steps: int = 0
    refine_iterations: int = 1
    raw_index_start: bool = False
    spacing: Spacing = "uniform"
    attention: Control | None = None
    name: str = "cyclediffusion"
    needs = frozenset({"source", "target"})
    starts_at = "T_es"
    inverts = True

    def __post_init__(self):
        if not self.eta > 0:
            raise ValueError(f"CycleDiffusion needs eta > 0 (eta = 0 has no noise to encode: use ddib); got {self.eta}")
        if not 1 <= self.T_es <= self.T:
            raise ValueError(f"T_es must be between 1 and T = {self.T}; got {self.T_es}")
        if not 0 <= self.refine_steps < self.T:
            raise ValueError(f"refine_steps must be between 0 and T - 1 = {self.T - 1}; got {self.refine_steps}")
        if self.refine_iterations < 1:
            raise ValueError(f"refine_iterations must be 1 or more; got {self.refine_iterations}, try refine_steps=0")

    @property
    def conditions(self) -> frozenset[str]:
        """Attention control needs texts."""
        return frozenset({"text"} if self.attention else {"none", "text"})

    @property
    def num_steps(self) -> int:
        """T."""
        return self.T

    def __call__(self, x0: Tensor, source: Denoiser, target: Denoiser, noise: NoiseSource) -> Tensor:
        """Translate x0 (n, c, h, w)."""
        if len(source.alpha_bar) != len(target.alpha_bar):
            raise ValueError(
                "source and target must be trained on the same number of timesteps; "
                f"got {len(source.alpha_bar)} and {len(target.alpha_bar)}, choose models of one schedule"
            )
        timesteps, end = sampling_path(target.alpha_bar, self.T, self.spacing)
        plan = plan_control(self.attention, source, target, self.T_es)
        encoded = timesteps[-self.T_es :]
        x = cyclediffusion(x0, source, target, encoded, self.eta, noise, self._start(self.T_es), end, plan)
        for _ in range(self.refine_iterations if self.refine_steps else 0):
            x = refine(x, target, timesteps[-self.refine_steps :], noise, self._start(self.refine_steps), end)
        return x

    def candidates(
        self, x0: Tensor, source: Denoiser, target: Denoiser, noise: NoiseSource, candidates: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Translate latents in many ways, see `decode_candidates`; each candidate has its own T_es, none is refined."""
        return decode_candidates(x0, source, target, noise, candidates, self.T, self.eta, self.spacing, self.attention)

    def _start(self, steps: int) -> int | None:
        return steps - 1 if self.raw_index_start else None


def cyclediffusion(
    x0: Tensor,
    source: Denoiser,
    target: Denoiser,
    timesteps: Tensor,
    eta: float,
    noise: NoiseSource,
    start: int | None = None,
    end: float = 1.0,
    plan: Plan | None = None,
) -> Tensor:
    """Encode with `source` and decode with `target`, step by step: memory does not grow with the number of steps.

    Args:
        x0: (n, c, h, w).
        source: denoiser of the source domain.
        target: denoiser of the target domain.
        timesteps: int64, decreasing; the step from the last one ends at `end`.
        eta: stochasticity of DDIM, positive.
        noise: source of randomness; len(timesteps) draws.
        start: training timestep at which x_T is drawn, if not the first of `timesteps`.
        end: alpha_bar where the last step ends; less than 1 encodes it too.
        plan: of attention control.

    Returns:
        The translation, same shape, not clamped. Equal to decode(encode(x0, …), …).
    """
    xs = xt = _draw_start(x0, source, timesteps, noise, start)
    evaluate = paired_evaluation(source, target, plan)
    steps = zip(
        transitions(source.alpha_bar, timesteps, end), transitions(target.alpha_bar, timesteps, end), strict=True
    )
    for step, ((t, ab, ab_prev), (_, target_ab, target_ab_prev)) in enumerate(steps):
        sigma = ddim_sigma(ab, ab_prev, eta)
        if sigma:
            eps_s, eps_t = evaluate(xs, xt, t, step)
            n = noise.randn_like(x0) if t != timesteps[-1] else landing_noise(xs, x0, ab, ab_prev, sigma)
            xs, z = _encode_step(xs, x0, eps_s, ab, ab_prev, sigma, n)
        else:
            eps_t, z = target(xt, batch_of(t, xt)), 0.0
        xt = ddim_step(xt, eps_t, target_ab, target_ab_prev, ddim_sigma(target_ab, target_ab_prev, eta), z)
    return xt


def encode(
    x0: Tensor,
    source: Denoiser,
    timesteps: Tensor,
    eta: float,
    noise: NoiseSource,
    start: int | None = None,
    end: float = 1.0,
) -> Tensor:
    """DPM-Encoder (Algorithm 1): the code (x_T, z_{T-1}, …, z_1) of x0, and z_0 if `end` is less than 1.

    Args:
        x0: (n, c, h, w).
        source: denoiser of the source domain.
        timesteps: int64, decreasing.
        eta: stochasticity of DDIM, positive.
        noise: source of randomness; len(timesteps) draws.
        start: see `cyclediffusion`.
        end: see `cyclediffusion`.

    Returns:
        (n, len(timesteps), c, h, w), or one more along the second axis.
    """
    xt = _draw_start(x0, source, timesteps, noise, start)
    code = [xt]
    for t, ab, ab_prev in transitions(source.alpha_bar, timesteps, end):
        sigma = ddim_sigma(ab, ab_prev, eta)
        if sigma:
            n = noise.randn_like(x0) if t != timesteps[-1] else landing_noise(xt, x0, ab, ab_prev, sigma)
            xt, z = _encode_step(xt, x0, source(xt, batch_of(t, xt)), ab, ab_prev, sigma, n)
            code.append(z)
    return torch.stack(code, dim=1)


def decode(code: Tensor, target: Denoiser, timesteps: Tensor, eta: float, end: float = 1.0) -> Tensor:
    """Run the sampler of `target` with a code in place of its noise (Algorithm 2).

    Args:
        code: as `encode` makes it with the same timesteps and `end`.
        target: denoiser of the target domain.
        timesteps: int64, decreasing.
        eta: stochasticity of DDIM, positive.
        end: alpha_bar where the last step ends.

    Returns:
        The image, (n, c, h, w), not clamped.
    """
    xt, *zs = code.unbind(dim=1)
    zs = zs if end < 1 else [*zs, 0.0]
    for (t, ab, ab_prev), z in zip(transitions(target.alpha_bar, timesteps, end), zs, strict=True):
        xt = ddim_step(xt, target(xt, batch_of(t, xt)), ab, ab_prev, ddim_sigma(ab, ab_prev, eta), z)
    return xt


def refine(
    x: Tensor, target: Denoiser, timesteps: Tensor, noise: NoiseSource, start: int | None = None, end: float = 1.0
) -> Tensor:
    """Noise a translation a little and denoise it with the target model at eta 1 (appendix: SDEdit as the last step).

    Args:
        x: the translation, (n, c, h, w).
        target: denoiser of the target domain.
        timesteps: int64, decreasing.
        noise: source of randomness; len(timesteps) draws.
        start: training timestep at which x is noised, if not the first of `timesteps`.
        end: alpha_bar where the last step ends.
    """
    x = _draw_start(x, target, timesteps, noise, start)
    for t, ab, ab_prev in transitions(target.alpha_bar, timesteps, end):
        z = noise.randn_like(x) if t != timesteps[-1] else 0.0
        x = ddim_step(x, target(x, batch_of(t, x)), ab, ab_prev, ddim_sigma(ab, ab_prev, 1.0), z)
    return x


def _draw_start(x0: Tensor, model: Denoiser, timesteps: Tensor, noise: NoiseSource, start: int | None) -> Tensor:
    level = model.alpha_bar[timesteps[0] if start is None else start].item()
    return q_sample(x0, level, noise.randn_like(x0))


def _encode_step(
    xt: Tensor, x0: Tensor, eps: Tensor, alpha_bar: float, alpha_bar_prev: float, sigma: float, n: Tensor
) -> tuple[Tensor, Tensor]:
    """(x_{t-1}, z): Algorithm 1, lines 3 and 4."""
    z = infer_noise(xt, x0, eps, alpha_bar, alpha_bar_prev, sigma, n)
    return posterior_step(xt, x0, alpha_bar, alpha_bar_prev, sigma, n), z
