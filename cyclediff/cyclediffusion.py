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
from typing import NamedTuple

import torch
from torch import Tensor

from cyclediff.diffusion.denoiser import Denoiser
from cyclediff.diffusion.levels import Level, Prediction
from cyclediff.diffusion.noise import NoiseSource
from cyclediff.diffusion.paired import Control, Plan, inside_region, paired_evaluation, plan_control
from cyclediff.diffusion.schedule import Spacing
from cyclediff.diffusion.steps import (
    ddim_sigma,
    ddim_step,
    infer_noise,
    landing_noise,
    posterior_step,
    q_sample,
    transitions,
)
from cyclediff.shared_encoding import Pruning, decode_candidates


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
        spacing: "uniform" for pixel space, "latent" for latent diffusion (see `DiffusionSchedule`).
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
    takes_region = True

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
    def reconstructs(self) -> str | None:
        """Where the last step is encoded, too; refinement makes another image."""
        return None if self.refine_steps else "exact" if self.spacing in ("latent", "leading") else "approximately"

    @property
    def num_steps(self) -> int:
        """T."""
        return self.T

    def __call__(self, x0: Tensor, source: Denoiser, target: Denoiser, noise: NoiseSource) -> Tensor:
        """Translate x0 (n, c, h, w)."""
        counts = source.schedule.num_train, target.schedule.num_train
        if counts[0] != counts[1]:
            raise ValueError(
                "source and target must be trained on the same number of timesteps; "
                f"got {counts[0]} and {counts[1]}, choose models of one schedule"
            )
        path = Path(*(model.schedule.levels(self.T, self.spacing)[-self.T_es - 1 :] for model in (source, target)))
        plan = plan_control(self.attention, source, target, self.T_es)
        x = cyclediffusion(x0, source, target, path, self.eta, noise, self._start(source, self.T_es), plan)
        levels = path.target[-self.refine_steps - 1 :]
        for _ in range(self.refine_iterations if self.refine_steps else 0):
            x = refine(x, target, levels, noise, self._start(target, self.refine_steps))
        return x

    def candidates(
        self,
        x0: Tensor,
        source: Denoiser,
        target: Denoiser,
        noise: NoiseSource,
        candidates: Sequence[tuple[int, int]],
        pruning: Pruning | None = None,
    ) -> Tensor:
        """Translate latents in many ways, see `decode_candidates`; each candidate has its own T_es, none is refined."""
        return decode_candidates(
            x0, source, target, noise, candidates, self.T, self.eta, self.spacing, self.attention, pruning
        )

    def _start(self, model: Denoiser, steps: int) -> Level | None:
        return model.schedule.at(steps - 1) if self.raw_index_start else None


class Path(NamedTuple):
    """The levels of two samplers that run side by side, each from noisy to clean."""

    source: Sequence[Level]
    target: Sequence[Level]


def cyclediffusion(
    x0: Tensor,
    source: Denoiser,
    target: Denoiser,
    path: Path,
    eta: float,
    noise: NoiseSource,
    start: Level | None = None,
    plan: Plan | None = None,
) -> Tensor:
    """Encode with `source` and decode with `target`, step by step: memory does not grow with the number of steps.

    Args:
        x0: (n, c, h, w).
        source: denoiser of the source domain.
        target: denoiser of the target domain.
        path: levels of both; where the last one has noise, the last step is encoded too.
        eta: stochasticity of DDIM, positive.
        noise: source of randomness; a draw for each step.
        start: level at which x_T is drawn, if not the first of the path.
        plan: of attention control.

    Returns:
        The translation, same shape, not clamped. Equal to decode(encode(x0, …), …).
    """
    xs = xt = q_sample(x0, start or path.source[0], noise.randn_like(x0))
    evaluate = paired_evaluation(source, target, plan)
    steps = list(zip(transitions(path.source), transitions(path.target), strict=True))
    for step, ((t, s), (target_t, target_s)) in enumerate(steps):
        sigma = ddim_sigma(t, s, eta)
        if sigma:
            seen_s, seen_t = evaluate(xs, xt, t, step)
            n = noise.randn_like(x0) if step < len(steps) - 1 else landing_noise(xs, x0, t, s, sigma)
            xs, z = _encode_step(xs, x0, seen_s, t, s, sigma, n)
        else:
            seen_t, z = target(xt, target_t), 0.0
        xt = ddim_step(seen_t, target_s, ddim_sigma(target_t, target_s, eta), z)
        if sigma:
            xt = inside_region(target, plan.blend(step, xs, xt) if plan else xt, xs)
    return xt


def encode(
    x0: Tensor,
    source: Denoiser,
    levels: Sequence[Level],
    eta: float,
    noise: NoiseSource,
    start: Level | None = None,
) -> Tensor:
    """DPM-Encoder (Algorithm 1): the code (x_T, z_{T-1}, …, z_1) of x0, and z_0 if the last level has noise.

    Args:
        x0: (n, c, h, w).
        source: denoiser of the source domain.
        levels: from noisy to clean.
        eta: stochasticity of DDIM, positive.
        noise: source of randomness; a draw for each step.
        start: see `cyclediffusion`.

    Returns:
        (n, number of steps, c, h, w), or one more along the second axis.
    """
    xt = q_sample(x0, start or levels[0], noise.randn_like(x0))
    code, steps = [xt], transitions(levels)
    for step, (t, s) in enumerate(steps):
        sigma = ddim_sigma(t, s, eta)
        if sigma:
            n = noise.randn_like(x0) if step < len(steps) - 1 else landing_noise(xt, x0, t, s, sigma)
            xt, z = _encode_step(xt, x0, source(xt, t), t, s, sigma, n)
            code.append(z)
    return torch.stack(code, dim=1)


def decode(code: Tensor, target: Denoiser, levels: Sequence[Level], eta: float) -> Tensor:
    """Run the sampler of `target` with a code in place of its noise (Algorithm 2).

    Args:
        code: as `encode` makes it with the same levels.
        target: denoiser of the target domain.
        levels: from noisy to clean.
        eta: stochasticity of DDIM, positive.

    Returns:
        The image, (n, c, h, w), not clamped.
    """
    xt, *zs = code.unbind(dim=1)
    steps = transitions(levels)
    zs += [0.0] * (len(steps) - len(zs))  # of a last step without noise
    for (t, s), z in zip(steps, zs, strict=True):
        xt = ddim_step(target(xt, t), s, ddim_sigma(t, s, eta), z)
    return xt


def refine(
    x: Tensor, target: Denoiser, levels: Sequence[Level], noise: NoiseSource, start: Level | None = None
) -> Tensor:
    """Noise a translation a little and denoise it with the target model at eta 1 (appendix: SDEdit as the last step).

    Args:
        x: the translation, (n, c, h, w).
        target: denoiser of the target domain.
        levels: from noisy to clean.
        noise: source of randomness; a draw for each step.
        start: level at which x is noised, if not the first.
    """
    x, steps = q_sample(x, start or levels[0], noise.randn_like(x)), transitions(levels)
    for step, (t, s) in enumerate(steps):
        z = noise.randn_like(x) if step < len(steps) - 1 else 0.0
        x = ddim_step(target(x, t), s, ddim_sigma(t, s, 1.0), z)
    return x


def _encode_step(
    xt: Tensor, x0: Tensor, seen: Prediction, t: Level, s: Level, sigma: float, n: Tensor
) -> tuple[Tensor, Tensor]:
    """(x_s, z): Algorithm 1, lines 3 and 4."""
    return posterior_step(xt, x0, t, s, sigma, n), infer_noise(xt, x0, seen, t, s, sigma, n)
