"""What a method sees of a network: (x_t, t) → eps, with the schedule it was trained on.

Networks differ in what they predict and in how many channels they return. Here these differences end.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from cyclediff.diffusion.prompt import Prompt

Network = Callable[..., Tensor]  # (x_t, t) → prediction; a text-conditional one: (x_t, t, context, edit) → prediction
Prediction = Literal["epsilon", "v_prediction"]


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
    """A denoiser that also predicts the variance of a step."""

    def with_variance(self, xt: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(eps, fraction), each in the shape of xt.

        The variance of the step is beta^fraction beta_tilde^(1 - fraction), a learned value between DDPM's two fixed
        ones (arXiv 2102.09672, Eq. 15). The fraction is about 0 … 1, but not clamped.
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
        """Predict eps, without the variance; only ILVR uses that."""
        return self.network(xt, t)[:, : xt.shape[1]]

    def with_variance(self, xt: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Predict eps and the variance."""
        eps, v = self.network(xt, t).chunk(2, dim=1)
        return eps, (v + 1) / 2


@dataclass(frozen=True, eq=False)
class X0Denoiser:
    """A network that predicts x0; at low noise its prediction is blended with x_t, see `blend_x0`.

    eps = (x_t - sqrt(alpha_bar) x0_hat) / sqrt(1 - alpha_bar)   (arXiv 2006.11239, Eq. 4 solved for eps).

    Args:
        network: (x_t, t) → x0, in the shape of x_t.
        alpha_bar: (num_train,) float64.
        x0_error: see `blend_x0`.
    """

    network: Network
    alpha_bar: Tensor
    x0_error: float

    def __call__(self, xt: Tensor, t: Tensor) -> Tensor:
        """Predict eps."""
        alpha_bar = self.alpha_bar[t.cpu()].to(xt.device)[:, None, None, None]
        x0_hat = blend_x0(xt, self.network(xt, t), alpha_bar, self.x0_error)
        return (xt - alpha_bar.sqrt().to(xt) * x0_hat) / (1 - alpha_bar).sqrt().to(xt)


@dataclass(frozen=True)
class NetworkBatch:
    """One batch of a network that evaluates some images under guided prompts.

    Args:
        xt: (r, c, h, w), the images under the empty prompt, then the images under their own.
        context: (r, l, d), the embedded prompts.
        unconditional: the images of the first part, in order.
        conditional: the images of the second part, in order.
    """

    xt: Tensor
    context: Tensor
    unconditional: list[int]
    conditional: list[int]


@dataclass(frozen=True, eq=False)
class GuidedDenoiser:
    """A text-conditional network under one prompt per image, with classifier-free guidance (arXiv 2207.12598, Eq. 6).

    eps = eps_empty + scale (eps_prompt - eps_empty). An image with scale 1 is not evaluated under the empty prompt, and
    one with scale 0 not under its own.

    Args:
        network: (x_t, t, context, edit) → its prediction, in the shape of x_t; `edit` (or None) reaches its attention.
        alpha_bar: (num_train,) float64.
        prediction: what the network predicts; v is sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0 (arXiv 2202.00512).
        context: (n, l, d), the embedded prompts. A batch of fewer images takes the first ones.
        empty: (1, l, d), the embedded empty prompt.
        scales: guidance scale of each image.
        prompts: the prompts themselves, for attention control.
        network_id: equal for all conditions of one loaded network, different for others; see `paired_evaluation`.
    """

    network: Network
    alpha_bar: Tensor
    prediction: Prediction
    context: Tensor
    empty: Tensor
    scales: tuple[float, ...]
    prompts: tuple[Prompt, ...]
    network_id: str
    _contexts: dict[int, Tensor] = field(default_factory=dict, repr=False)

    def __call__(self, xt: Tensor, t: Tensor) -> Tensor:
        """Predict eps."""
        batch = self.batch(xt)
        out = self.network(batch.xt, t[batch.unconditional + batch.conditional], batch.context, None)
        return self.combine(out, batch, xt, t)

    def batch(self, xt: Tensor) -> NetworkBatch:
        """What the network must evaluate for images (n, c, h, w)."""
        scales = self.scales[: len(xt)]
        unconditional = [i for i, scale in enumerate(scales) if scale != 1]
        conditional = [i for i, scale in enumerate(scales) if scale != 0]
        if len(xt) not in self._contexts:  # one tensor for all steps, see ControlledAttention
            empty = self.empty.expand(len(unconditional), -1, -1)
            self._contexts[len(xt)] = torch.cat((empty, _take(self.context[: len(xt)], conditional)))
        images = torch.cat((_take(xt, unconditional), _take(xt, conditional)))
        return NetworkBatch(images, self._contexts[len(xt)], unconditional, conditional)

    def combine(self, out: Tensor, batch: NetworkBatch, xt: Tensor, t: Tensor) -> Tensor:
        """The guided eps of xt, (n, c, h, w), from what the network made of `batch`, (r, c, h, w)."""
        first, second = batch.unconditional, batch.conditional
        without, under = out[: len(first)], out[len(first) :]
        if first and second:
            if not len(first) == len(second) == len(xt):
                complete = _complete(without, first, under, second, xt), _complete(under, second, without, first, xt)
                without, under = complete
            scales = self.scales[: len(xt)]
            alike = len(set(scales)) == 1
            scale = scales[0] if alike else torch.tensor(scales).to(xt)[:, None, None, None]
            guided = without + scale * (under - without)
        else:
            guided = out
        if self.prediction == "epsilon":
            return guided
        alpha_bar = self.alpha_bar[t.cpu()].to(xt.device)[:, None, None, None]
        return alpha_bar.sqrt().to(xt) * guided + (1 - alpha_bar).sqrt().to(xt) * xt


def _take(x: Tensor, images: list[int]) -> Tensor:
    """Some images of a batch, without a copy where these are all."""
    return x if len(images) == len(x) else x[images]


def _complete(part: Tensor, images: list[int], other: Tensor, others: list[int], xt: Tensor) -> Tensor:
    """One part of the network's output for all images: from the other part where an image has only that."""
    full = torch.empty_like(xt)
    full[others] = other
    full[images] = part
    return full


def blend_x0(xt: Tensor, x0_hat: Tensor, alpha_bar: Tensor, x0_error: float) -> Tensor:
    """Mean of two estimates of x0, weighted by their precisions.

    A small network predicts x0 with an error of `x0_error` at best. x_t / sqrt(alpha_bar) estimates x0 too, with the
    error sigma = sqrt(1 / alpha_bar - 1), which is smaller at the last few timesteps. Without the blend, eps there
    would be the network's error divided by sigma, up to 100 times the error. DDIB's inversion begins there.

    Args:
        xt: (n, c, h, w).
        x0_hat: the network's prediction, same shape.
        alpha_bar: float64, broadcastable to xt.
        x0_error: root mean squared error of the network at low noise, in units of x0.
    """
    sigma2 = 1 / alpha_bar - 1
    trust = sigma2 / (sigma2 + x0_error**2)
    return (1 - trust).to(xt) * alpha_bar.rsqrt().to(xt) * xt + trust.to(xt) * x0_hat
