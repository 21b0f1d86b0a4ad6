"""CycleDiffusion (arXiv 2210.05559): translate by carrying a stochastic diffusion model's latent code across models.

The code of an image is z = (x_T, z_{T-1}, …, z_1): the starting point and the noise of every step with which the
*source* model's sampler would have produced the image (DPM-Encoder, Algorithm 1). The *target* model's sampler, run
with the same code, produces the translation (Algorithm 2).

As in the official code, the last step, which adds no noise, is not encoded but predicted, so source = target returns
the image up to that one prediction.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cyclediff.denoiser import Denoiser
from cyclediff.method import NoiseSource
from cyclediff.schedule import spaced_timesteps
from cyclediff.steps import batch_of, ddim_sigma, ddim_step, infer_noise, posterior_step, q_sample, transitions


@dataclass(frozen=True)
class CycleDiffusion:
    """CycleDiffusion between two pixel-space or latent models.

    Args:
        T: number of timesteps of the sampler (the official code's custom_steps).
        T_es: how many of them, from the clean end, are encoded: "early stop", section 4.1 (es_steps).
        eta: stochasticity of DDIM, positive; 1 is DDPM.
        refine_steps: timesteps of the final noising and denoising by the target model at eta 1; 0 for none.
        raw_index_start: take x_T at training timestep T_es - 1 (and the refinement's start at refine_steps - 1), as the
            official code does, instead of at the T_es-th of the T timesteps, as the paper says. The two are equal where
            T is the number of training timesteps, as in every published configuration.
        name: the stem of its file in conf/method.
    """

    T: int
    T_es: int
    eta: float
    refine_steps: int = 0
    raw_index_start: bool = False
    name: str = "cyclediffusion"
    uses: ClassVar[frozenset[str]] = frozenset({"source", "target"})

    def __post_init__(self):
        if not self.eta > 0:
            raise ValueError(f"CycleDiffusion needs eta > 0 (eta = 0 has no noise to encode: use ddib); got {self.eta}")
        if not 1 <= self.T_es <= self.T:
            raise ValueError(f"T_es must be between 1 and T = {self.T}; got {self.T_es}")
        if not 0 <= self.refine_steps < self.T:
            raise ValueError(f"refine_steps must be between 0 and T - 1 = {self.T - 1}; got {self.refine_steps}")

    def __call__(self, x0: Tensor, source: Denoiser, target: Denoiser, noise: NoiseSource) -> Tensor:
        """Translate x0 (n, c, h, w)."""
        if len(source.alpha_bar) != len(target.alpha_bar):
            raise ValueError(
                "source and target must be trained on the same number of timesteps; "
                f"got {len(source.alpha_bar)} and {len(target.alpha_bar)}, choose models of one schedule"
            )
        timesteps = spaced_timesteps(len(target.alpha_bar), self.T)
        x = cyclediffusion(x0, source, target, timesteps[-self.T_es :], self.eta, noise, self._start(self.T_es))
        if self.refine_steps:
            x = refine(x, target, timesteps[-self.refine_steps :], noise, self._start(self.refine_steps))
        return x

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
) -> Tensor:
    """Encode with `source` and decode with `target`, step by step: memory does not grow with the number of steps.

    Args:
        x0: (n, c, h, w).
        source: denoiser of the source domain.
        target: denoiser of the target domain.
        timesteps: int64, decreasing; the last is the one whose step leads to the clean image.
        eta: stochasticity of DDIM, positive.
        noise: source of randomness; len(timesteps) draws.
        start: training timestep at which x_T is drawn, if not the first of `timesteps`.

    Returns:
        The translation, same shape, not clamped. Equal to decode(encode(x0, …), …).
    """
    xs = xt = _draw_start(x0, source, timesteps, noise, start)
    steps = zip(transitions(source.alpha_bar, timesteps), transitions(target.alpha_bar, timesteps), strict=True)
    for (t, ab_s, ab_s_prev), (_, ab_t, ab_t_prev) in steps:
        z = 0.0
        if t != timesteps[-1]:
            xs, z = _encode_step(xs, x0, source, t, ab_s, ab_s_prev, eta, noise.randn_like(x0))
        xt = _decode_step(xt, z, target, t, ab_t, ab_t_prev, eta)
    return xt


def encode(
    x0: Tensor, source: Denoiser, timesteps: Tensor, eta: float, noise: NoiseSource, start: int | None = None
) -> Tensor:
    """DPM-Encoder (Algorithm 1): the code (x_T, z_{T-1}, …, z_1) of x0, (n, len(timesteps), c, h, w)."""
    xt = _draw_start(x0, source, timesteps, noise, start)
    code = [xt]
    for t, alpha_bar, alpha_bar_prev in transitions(source.alpha_bar, timesteps):
        if t != timesteps[-1]:
            xt, z = _encode_step(xt, x0, source, t, alpha_bar, alpha_bar_prev, eta, noise.randn_like(x0))
            code.append(z)
    return torch.stack(code, dim=1)


def decode(code: Tensor, target: Denoiser, timesteps: Tensor, eta: float) -> Tensor:
    """Run the sampler of `target` with a code (n, len(timesteps), c, h, w) in place of its noise (Algorithm 2)."""
    xt, *zs = code.unbind(dim=1)
    for (t, alpha_bar, alpha_bar_prev), z in zip(transitions(target.alpha_bar, timesteps), [*zs, 0.0], strict=True):
        xt = _decode_step(xt, z, target, t, alpha_bar, alpha_bar_prev, eta)
    return xt


def refine(x: Tensor, target: Denoiser, timesteps: Tensor, noise: NoiseSource, start: int | None = None) -> Tensor:
    """Noise a translation a little and denoise it with the target model at eta 1 (appendix: SDEdit as a last touch)."""
    x = _draw_start(x, target, timesteps, noise, start)
    for t, alpha_bar, alpha_bar_prev in transitions(target.alpha_bar, timesteps):
        z = noise.randn_like(x) if t != timesteps[-1] else 0.0
        x = _decode_step(x, z, target, t, alpha_bar, alpha_bar_prev, eta=1.0)
    return x


def _draw_start(x0: Tensor, model: Denoiser, timesteps: Tensor, noise: NoiseSource, start: int | None) -> Tensor:
    level = model.alpha_bar[timesteps[0] if start is None else start].item()
    return q_sample(x0, level, noise.randn_like(x0))


def _encode_step(
    xt: Tensor, x0: Tensor, source: Denoiser, t: int, alpha_bar: float, alpha_bar_prev: float, eta: float, n: Tensor
) -> tuple[Tensor, Tensor]:
    """(x_{t-1}, z): Algorithm 1, lines 3 and 4."""
    sigma = ddim_sigma(alpha_bar, alpha_bar_prev, eta)
    z = infer_noise(xt, x0, source(xt, batch_of(t, xt)), alpha_bar, alpha_bar_prev, sigma, n)
    return posterior_step(xt, x0, alpha_bar, alpha_bar_prev, sigma, n), z


def _decode_step(
    xt: Tensor, z: Tensor | float, target: Denoiser, t: int, alpha_bar: float, alpha_bar_prev: float, eta: float
) -> Tensor:
    """x_{t-1} of the target sampler with z in place of its noise: Algorithm 2, the loop's body."""
    eps = target(xt, batch_of(t, xt))
    return ddim_step(xt, eps, alpha_bar, alpha_bar_prev, ddim_sigma(alpha_bar, alpha_bar_prev, eta), z)
