"""One transition each, in closed form.

    here               DDPM (arXiv 2006.11239)     DDIM (arXiv 2010.02502)     CycleDiffusion (arXiv 2210.05559)
    alpha_bar          alpha_bar_t                 alpha_t                     alpha_bar_t
    alpha_bar_prev     alpha_bar_{t-1}             alpha_{t-1}                 alpha_bar_{t-1}
    sigma_t            sqrt(beta_tilde_t)          sigma_t(eta)                sigma_t
    z                  z                           eps_t                       eps_t of the latent code

alpha_bar and alpha_bar_prev are Python floats (float64), cast once where they meet a tensor. Images are (n, c, h, w) of
any float type. After the last timestep of a pixel-space sampler alpha_bar_prev is 1; then sigma_t is 0 and the step
returns x0_hat.
"""

import math
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor


def transitions(alpha_bar: Tensor, timesteps: Tensor, end: float = 1.0) -> Iterator[tuple[int, float, float]]:
    """Walk decreasing `timesteps` down to level `end`: (t, alpha_bar, alpha_bar_prev) of each transition.

    Raises:
        ValueError: if a step would start where x_t has no signal, so that no eps gives x0.
    """
    levels = [*alpha_bar[timesteps.cpu()].tolist(), end]
    _require_signal(min(levels))
    yield from zip(timesteps.tolist(), levels[:-1], levels[1:], strict=True)


def _require_signal(alpha_bar: float) -> None:
    if alpha_bar == 0:
        raise ValueError(
            "the last timestep of this model has no signal (zero terminal SNR), so a step cannot start there; choose "
            "fewer timesteps or timesteps=diffusers, so that the sampler starts below it"
        )


def batch_of(t: int, x: Tensor) -> Tensor:
    """Timestep t for every image of x, int64 (n,)."""
    return torch.full((x.shape[0],), t, dtype=torch.int64, device=x.device)


def q_sample(x0: Tensor, alpha_bar: float, noise: Tensor) -> Tensor:
    """x_t ~ q(x_t | x_0), DDPM Eq. 4."""
    return math.sqrt(alpha_bar) * x0 + math.sqrt(1 - alpha_bar) * noise


def predict_x0(xt: Tensor, eps: Tensor, alpha_bar: float) -> Tensor:
    """x0_hat from eps, DDIM Eq. 9.

    Raises:
        ValueError: if there is no signal in x_t.
    """
    _require_signal(alpha_bar)
    return (xt - math.sqrt(1 - alpha_bar) * eps) / math.sqrt(alpha_bar)


def predict_eps(xt: Tensor, x0: Tensor, alpha_bar: float) -> Tensor:
    """The eps that leads from x0 to x_t: DDIM Eq. 9 solved for eps."""
    return (xt - math.sqrt(alpha_bar) * x0) / math.sqrt(1 - alpha_bar)


def ddim_sigma(alpha_bar: float, alpha_bar_prev: float, eta: float) -> float:
    """sigma_t(eta), DDIM Eq. 16; eta 0 is deterministic and eta 1 is DDPM.

    Raises:
        ValueError: if eta is so large that a step would add more noise than its end may hold.
    """
    variance = (1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)
    if eta**2 * variance > 1 - alpha_bar_prev:
        limit = math.sqrt((1 - alpha_bar_prev) / variance)
        raise ValueError(f"eta must be at most {limit:.4f} with these timesteps; got {eta}, and 1 is DDPM")
    return eta * math.sqrt(variance)


def ddim_step(
    xt: Tensor, eps: Tensor, alpha_bar: float, alpha_bar_prev: float, sigma: float = 0.0, z: Tensor | float = 0.0
) -> Tensor:
    """x_{t-1} from x_t, DDIM Eq. 12."""
    x0_hat = predict_x0(xt, eps, alpha_bar)
    return math.sqrt(alpha_bar_prev) * x0_hat + math.sqrt(1 - alpha_bar_prev - sigma**2) * eps + sigma * z


def ddpm_sigma(alpha_bar: float, alpha_bar_prev: float, variance: Literal["small", "large"]) -> float:
    """sigma_t of DDPM section 3.2: the posterior's ("small", equal to DDIM's at eta 1) or sqrt(beta_t) ("large")."""
    beta = 1 - alpha_bar / alpha_bar_prev
    if variance == "large" and alpha_bar_prev < 1:
        return math.sqrt(beta)
    return math.sqrt(beta * (1 - alpha_bar_prev) / (1 - alpha_bar))


def ddpm_step(
    xt: Tensor, eps: Tensor, alpha_bar: float, alpha_bar_prev: float, sigma: float = 0.0, z: Tensor | float = 0.0
) -> Tensor:
    """x_{t-1} from x_t, DDPM algorithm 2 line 4, with beta_t = 1 - alpha_bar / alpha_bar_prev."""
    beta = 1 - alpha_bar / alpha_bar_prev
    return (xt - beta / math.sqrt(1 - alpha_bar) * eps) / math.sqrt(1 - beta) + sigma * z


def posterior_step(
    xt: Tensor, x0: Tensor, alpha_bar: float, alpha_bar_prev: float, sigma: float, n: Tensor | float
) -> Tensor:
    """x_{t-1} ~ q(x_{t-1} | x_t, x_0), DDIM Eq. 7: a DDIM step with the eps that truly separates x_t from x_0."""
    return ddim_step(xt, predict_eps(xt, x0, alpha_bar), alpha_bar, alpha_bar_prev, sigma, n)


def infer_noise(
    xt: Tensor, x0: Tensor, eps: Tensor, alpha_bar: float, alpha_bar_prev: float, sigma: float, n: Tensor
) -> Tensor:
    """The z with which the network's step from x_t lands on posterior_step(..., n), CycleDiffusion Eq. 6.

    z = (x_{t-1} - mean(x_t, eps)) / sigma = n + (mean(x_t, eps_true) - mean(x_t, eps)) / sigma. DDIM's mean is affine
    in eps, so the difference is taken of eps, and no difference of images is divided by a small sigma. sigma must be
    positive.
    """
    slope = math.sqrt(1 - alpha_bar_prev - sigma**2) - math.sqrt(alpha_bar_prev * (1 - alpha_bar) / alpha_bar)
    return n + slope / sigma * (predict_eps(xt, x0, alpha_bar) - eps)


def landing_noise(xt: Tensor, x0: Tensor, alpha_bar: float, alpha_bar_prev: float, sigma: float) -> Tensor:
    """The n with which posterior_step(..., n) lands on x0 itself: for the last transition of a latent sampler.

    It is not Gaussian, because x0 has no noise of level alpha_bar_prev, and it is large where sigma is small.
    """
    return (x0 - posterior_step(xt, x0, alpha_bar, alpha_bar_prev, sigma, 0.0)) / sigma
