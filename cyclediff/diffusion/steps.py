"""One transition each, in closed form, from level t to the cleaner level s: for diffusion models and rectified flows.

    here            DDIM (arXiv 2010.02502)    rectified flow
    t.a, t.b        sqrt(alpha_t), sqrt(1 - alpha_t)    1 - t, t
    sigma           sigma_t(eta)                        0 is the Euler step of the ODE
    z               eps_t                      noise

Coefficients are Python floats (float64), cast once where they meet a tensor. Images are (n, c, h, w) of any float type.
At the clean level b is 0; there sigma is 0 and a step returns x0_hat.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor

from cyclediff.diffusion.levels import Level, Prediction


def transitions(levels: Sequence[Level]) -> list[tuple[Level, Level]]:
    """The steps of a sampler that visits some levels: where each starts and ends."""
    return list(pairwise(levels))


def q_sample(x0: Tensor, level: Level, noise: Tensor) -> Tensor:
    """x_t ~ q(x_t | x_0), DDPM Eq. 4."""
    return level.a * x0 + level.b * noise


def truth(x: Tensor, x0: Tensor, level: Level) -> Prediction:
    """x0 itself, and the eps that leads from it to x: DDIM Eq. 9 solved for eps."""
    return Prediction(x0, (x - level.a * x0) / level.b)


def ddim_sigma(t: Level, s: Level, eta: float) -> float:
    """sigma_t(eta), DDIM Eq. 16 = eta b_s sqrt(1 - (a_t b_s / (a_s b_t))^2); eta 0 is deterministic and eta 1 is DDPM.

    Raises:
        ValueError: if eta is so large that a step would add more noise than its end may hold.
    """
    kept = t.a * s.b / (s.a * t.b)
    sigma = s.b * math.sqrt(1 - kept**2)
    if eta * sigma > s.b:
        raise ValueError(f"eta must be at most {s.b / sigma:.4f} with these timesteps; got {eta}, and 1 is DDPM")
    return eta * sigma


def ddpm_sigma(t: Level, s: Level, variance: Literal["small", "large"]) -> float:
    """sigma_t of DDPM section 3.2: the posterior's ("small", equal to DDIM's at eta 1) or sqrt(beta_t) ("large")."""
    if variance == "large" and s.b > 0:
        return math.sqrt(beta(t, s))
    return ddim_sigma(t, s, 1.0)


def beta(t: Level, s: Level) -> float:
    """The variance of x_t given x_s; beta_t of a diffusion model."""
    return t.b**2 - (t.a / s.a * s.b) ** 2


def ddim_step(seen: Prediction, s: Level, sigma: float = 0.0, z: Tensor | float = 0.0) -> Tensor:
    """x_s from what a network sees in x_t, DDIM Eq. 12."""
    return mean(seen, s, sigma) + sigma * z


def mean(seen: Prediction, s: Level, sigma: float) -> Tensor:
    """The mean of a step that adds noise of standard deviation `sigma`."""
    return s.a * seen.x0 + direction(s, sigma) * seen.eps


def direction(s: Level, sigma: float) -> float:
    """The factor of eps_hat in a step that adds noise of standard deviation `sigma`, which is at most s.b."""
    return math.sqrt(max(0.0, s.b**2 - sigma**2))


def ddpm_step(seen: Prediction, t: Level, s: Level, sigma: float = 0.0, z: Tensor | float = 0.0) -> Tensor:
    """x_s from what a network sees in x_t, DDPM algorithm 2 line 4: DDPM's mean, with noise of any sigma."""
    return mean(seen, s, ddim_sigma(t, s, 1.0)) + sigma * z


def posterior_step(xt: Tensor, x0: Tensor, t: Level, s: Level, sigma: float, n: Tensor | float) -> Tensor:
    """x_s ~ q(x_s | x_t, x_0), DDIM Eq. 7: a DDIM step with the eps that truly separates x_t from x_0."""
    return ddim_step(truth(xt, x0, t), s, sigma, n)


def mean_difference(one: Prediction, other: Prediction, t: Level, s: Level, sigma: float) -> Tensor:
    """mean(one) - mean(other), for two predictions of one x_t.

    a (x0 - x0') = -b (eps - eps'), so one difference gives both. It is taken of eps, or of x0 where x_t is almost
    noise: there an x0 from eps would divide by a small a.
    """
    kept = direction(s, sigma)
    if t.a > t.b:
        return (kept - s.a * t.b / t.a) * (one.eps - other.eps)
    return (s.a - kept * t.a / t.b) * (one.x0 - other.x0)


def infer_noise(xt: Tensor, x0: Tensor, seen: Prediction, t: Level, s: Level, sigma: float, n: Tensor) -> Tensor:
    """The z with which the network's step from x_t lands on posterior_step(..., n), CycleDiffusion Eq. 6.

    z = (x_s - mean(seen)) / sigma = n + (mean(truth) - mean(seen)) / sigma, where no difference of images is divided
    by a small sigma. sigma must be positive.
    """
    return n + mean_difference(truth(xt, x0, t), seen, t, s, sigma) / sigma


def landing_noise(xt: Tensor, x0: Tensor, t: Level, s: Level, sigma: float) -> Tensor:
    """The n with which posterior_step(..., n) lands on x0 itself: for the last transition of a latent sampler.

    It is not Gaussian, because x0 has no noise of level s, and it is large where sigma is small.
    """
    return (x0 - posterior_step(xt, x0, t, s, sigma, 0.0)) / sigma
