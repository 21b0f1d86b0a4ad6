"""EGSDE (arXiv 2207.06635): SDEdit guided by two energies: leave the source domain, keep the structure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cyclediff.diffusion.denoiser import Denoiser
from cyclediff.diffusion.energies import gradient
from cyclediff.diffusion.levels import Level
from cyclediff.diffusion.lowpass import lowpass
from cyclediff.diffusion.noise import NoiseSource
from cyclediff.diffusion.steps import beta, ddpm_sigma, ddpm_step, q_sample, transitions

Extractor = Callable[[Tensor, Tensor], Tensor]
Similarity = Literal["cosine", "neg_l2"]


@dataclass(frozen=True)
class EGSDE:
    """EGSDE with ancestral (VP-SDE) sampling, as in the official code.

    Args:
        T: number of timesteps of the sampler.
        t0: how many of them, from the clean end, are run (M in the paper, t in the code).
        lambda_s: weight of the energy of domain-specific features (ls).
        lambda_i: weight of the energy of domain-independent features (li).
        down_N: factor of the low-pass filter that is the domain-independent extractor.
        extractor: the domain-specific one: (x_t, t) → features (n, c, h, w) of a noise-aware domain classifier.
        similarity_s: of domain-specific features: "cosine" or "neg_l2" (s1).
        similarity_i: of domain-independent features: "cosine" or "neg_l2" (s2).
        repeats: how often the result is noised and denoised again (sample_step).
        variance: DDPM's fixed variance, "small" or "large".
        name: the stem of its file in conf/method.
    """

    T: int
    t0: int
    lambda_s: float
    lambda_i: float
    down_N: int
    extractor: Extractor
    similarity_s: Similarity = "cosine"
    similarity_i: Similarity = "neg_l2"
    repeats: int = 1
    variance: Literal["small", "large"] = "small"
    name: str = "egsde"
    needs = frozenset({"target", "extractor"})
    conditions = frozenset({"none"})
    starts_at = "t0"
    inverts = False
    reconstructs = None
    takes_region = False

    @property
    def num_steps(self) -> int:
        """T."""
        return self.T

    def __post_init__(self):
        if not 1 <= self.t0 <= self.T:
            raise ValueError(f"t0 must be between 1 and T = {self.T}; got {self.t0}")
        if self.down_N < 1:
            raise ValueError(f"down_N must be at least 1; got {self.down_N}")
        if self.repeats < 1:
            raise ValueError(f"repeats must be at least 1; got {self.repeats}")
        if self.variance not in ("small", "large"):
            raise ValueError(f"variance must be small or large; got {self.variance!r}")
        for key in ("similarity_s", "similarity_i"):
            if getattr(self, key) not in ("cosine", "neg_l2"):
                raise ValueError(f"{key} must be cosine or neg_l2; got {getattr(self, key)!r}")

    def __call__(self, x0: Tensor, source: Denoiser | None, target: Denoiser, noise: NoiseSource) -> Tensor:
        """Translate x0 (n, c, h, w)."""
        levels = target.schedule.levels(self.T)[-self.t0 - 1 :]
        y = x0
        for _ in range(self.repeats):
            y = egsde(y, x0, target, levels, self.energy, noise, self.variance)
        return y

    def energy(self, y: Tensor, xt: Tensor, t: Level) -> Tensor:
        """lambda_s E_s + lambda_i E_i of each image, (n,): Eq. 9 with the paper's similarities."""
        specific = domain_energy(y, xt, t, self.extractor, self.similarity_s)
        return self.lambda_s * specific + self.lambda_i * structure_energy(y, xt, self.down_N, self.similarity_i)


def egsde(
    y0: Tensor,
    x0: Tensor,
    target: Denoiser,
    levels: Sequence[Level],
    energy: Callable[[Tensor, Tensor, Level], Tensor],
    noise: NoiseSource,
    variance: Literal["small", "large"] = "small",
) -> Tensor:
    """One noising of y0 and guided denoising (Algorithm 1 of the paper).

    As in the official code, the gradient is taken at y before the step and weighted with beta / sqrt(1 - beta), and the
    source is noised with the noise of the start.

    Args:
        y0: where to start (n, c, h, w): the source, or the last repeat's result.
        x0: the source image, same shape.
        target: denoiser of the target domain.
        levels: from noisy to clean.
        energy: (y, x_t, t) → (n,), differentiable in y.
        noise: source of randomness; a draw for each step.
        variance: DDPM's fixed variance.

    Returns:
        Same shape, not clamped.
    """
    e = noise.randn_like(x0)
    y, steps = q_sample(y0, levels[0], e), transitions(levels)
    for step, (t, s) in enumerate(steps):
        seen = target(y, t)
        slope = gradient(energy, y, q_sample(x0, t, e), t)
        z = noise.randn_like(y) if step < len(steps) - 1 else 0.0
        y = ddpm_step(seen, t, s, ddpm_sigma(t, s, variance), z) - beta(t, s) / (t.a / s.a) * slope
    return y


def domain_energy(y: Tensor, xt: Tensor, t: Level, extractor: Extractor, similarity: Similarity) -> Tensor:
    """E_s, (n,): the similarity of domain-specific features, which a translation should make small (Eq. 7)."""
    time = torch.full((len(y),), int(t.t), device=y.device)
    with torch.no_grad():
        kept = extractor(xt, time)
    return _similarity(extractor(y, time), kept, similarity)


def structure_energy(y: Tensor, xt: Tensor, down_N: int, similarity: Similarity) -> Tensor:
    """E_i, (n,): minus the similarity of low-passed images, which a translation should keep large (Eq. 8)."""
    if similarity == "neg_l2":
        return lowpass(y - xt, down_N, "linear").square().sum(dim=(1, 2, 3))
    return -_similarity(lowpass(y, down_N, "linear"), lowpass(xt, down_N, "linear"), similarity)


def _similarity(a: Tensor, b: Tensor, similarity: Similarity) -> Tensor:
    if similarity == "neg_l2":
        return -(a - b).square().sum(dim=(1, 2, 3))
    return F.cosine_similarity(a, b, dim=1).mean(dim=(1, 2))
