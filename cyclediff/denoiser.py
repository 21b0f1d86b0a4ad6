"""What a method sees of a network: (x_t, t) → eps, with the schedule it was trained on.

Differences between networks (what they predict, how many channels they return) end here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

Network = Callable[[Tensor, Tensor], Tensor]


class Denoiser(Protocol):
    """One network under one condition."""

    @property
    def alpha_bar(self) -> Tensor:
        """(num_train,) float64 on the CPU: the schedule that the network was trained on."""
        ...

    def __call__(self, xt: Tensor, t: Tensor) -> Tensor:
        """Predict the noise in xt, (n, c, h, w) → same shape; t is int64 (n,)."""
        ...


@runtime_checkable
class VarianceDenoiser(Denoiser, Protocol):
    """A denoiser that also knows how uncertain it is."""

    def with_variance(self, xt: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(eps, fraction), each in the shape of xt.

        The variance of the step is beta^fraction beta_tilde^(1 - fraction), a learned point between DDPM's two fixed
        choices (arXiv 2102.09672, Eq. 15); the fraction is about 0 … 1, but not clamped.
        """
        ...


@dataclass(frozen=True, eq=False)
class EpsDenoiser:
    """A network that predicts eps."""

    network: Network
    alpha_bar: Tensor

    def __call__(self, xt: Tensor, t: Tensor) -> Tensor:
        """Predict eps."""
        return self.network(xt, t)


@dataclass(frozen=True, eq=False)
class LearnedVarianceDenoiser:
    """A network with twice the channels: eps, then the variance as a number in [-1, 1] (`learn_sigma`)."""

    network: Network
    alpha_bar: Tensor

    def __call__(self, xt: Tensor, t: Tensor) -> Tensor:
        """Predict eps; the variance is dropped, as all methods here but ILVR do."""
        return self.network(xt, t)[:, : xt.shape[1]]

    def with_variance(self, xt: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Predict eps and the variance."""
        eps, v = self.network(xt, t).chunk(2, dim=1)
        return eps, (v + 1) / 2


@dataclass(frozen=True, eq=False)
class X0Denoiser:
    """A network that predicts x0, blended with the noisy image itself where that is the better estimate.

    eps = (x_t - sqrt(alpha_bar) x0_hat) / sqrt(1 - alpha_bar)   (arXiv 2006.11239, Eq. 4 solved for eps).
    """

    network: Network
    alpha_bar: Tensor
    x0_error: float

    def __call__(self, xt: Tensor, t: Tensor) -> Tensor:
        """Predict eps."""
        alpha_bar = self.alpha_bar[t.cpu()].to(xt.device)[:, None, None, None]
        x0_hat = blend_x0(xt, self.network(xt, t), alpha_bar, self.x0_error)
        return (xt - alpha_bar.sqrt().to(xt) * x0_hat) / (1 - alpha_bar).sqrt().to(xt)


def blend_x0(xt: Tensor, x0_hat: Tensor, alpha_bar: Tensor, x0_error: float) -> Tensor:
    """Mean of two estimates of x0, weighted by their precisions.

    A network of limited width knows x0 to an error `x0_error` at best, but x_t / sqrt(alpha_bar) knows it to sigma =
    sqrt(1 / alpha_bar - 1), which is smaller at the last few timesteps. Without the blend, eps there would be the
    network's error divided by sigma, up to 100 times the error: DDIB's inversion begins at these timesteps.

    Args:
        xt: (n, c, h, w).
        x0_hat: the network's prediction, same shape.
        alpha_bar: float64, broadcastable to xt.
        x0_error: root mean squared error of the network at low noise, in units of x0.
    """
    sigma2 = 1 / alpha_bar - 1
    trust = sigma2 / (sigma2 + x0_error**2)
    return (1 - trust).to(xt) * alpha_bar.rsqrt().to(xt) * xt + trust.to(xt) * x0_hat
