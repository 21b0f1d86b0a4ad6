"""What a method sees of a network: (x, level) → x0 and eps, with the levels it was trained on.

Networks differ in what they predict and in how many channels they return. Here these differences end.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from cyclediff.diffusion.conditioning import OF_UNETS, Abilities, Conditioning, joined, take
from cyclediff.diffusion.levels import Level, Prediction
from cyclediff.diffusion.prompt import Prompt
from cyclediff.diffusion.schedule import Schedule
from cyclediff.diffusion.steps import truth

Network = Callable[..., Tensor]  # (x_t, t) → output; a text-conditional one: (x_t, t, context, edit) → output
Parametrization = Literal["epsilon", "v_prediction", "flow"]


class Denoiser(Protocol):
    """One network under one condition."""

    @property
    def schedule(self) -> Schedule:
        """The levels that the network was trained on."""
        ...

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        """Predict x0 and eps of a state x (n, c, h, w) at one level."""
        ...


@runtime_checkable
class VarianceDenoiser(Denoiser, Protocol):
    """A denoiser that also predicts the variance of a step."""

    def with_variance(self, x: Tensor, level: Level) -> tuple[Prediction, Tensor]:
        """(prediction, fraction), the fraction in the shape of x.

        The variance of the step is beta^fraction beta_tilde^(1 - fraction), a learned value between DDPM's two fixed
        ones (arXiv 2102.09672, Eq. 15). The fraction is about 0 … 1, but not clamped.
        """
        ...


@dataclass(frozen=True, eq=False)
class NetworkDenoiser:
    """A network that predicts eps, v or a flow.

    Args:
        network: (x_t, t) → its output, in the shape of x_t.
        schedule: its levels.
        parametrization: what its output is, see `prediction_from`.
    """

    network: Network
    schedule: Schedule
    parametrization: Parametrization = "epsilon"

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        """See `Denoiser`."""
        return prediction_from(self.network(x, self.schedule.time(level, x)), x, level, self.parametrization)


@dataclass(frozen=True, eq=False)
class LearnedVarianceDenoiser:
    """A network with twice the channels: eps, then the variance as a number in [-1, 1] (`learn_sigma`)."""

    network: Network
    schedule: Schedule

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        """Without the variance; only ILVR uses that."""
        eps = self.network(x, self.schedule.time(level, x))[:, : x.shape[1]]
        return prediction_from(eps, x, level, "epsilon")

    def with_variance(self, x: Tensor, level: Level) -> tuple[Prediction, Tensor]:
        """See `VarianceDenoiser`."""
        eps, v = self.network(x, self.schedule.time(level, x)).chunk(2, dim=1)
        return prediction_from(eps, x, level, "epsilon"), (v + 1) / 2


@dataclass(frozen=True, eq=False)
class X0Denoiser:
    """A network that predicts x0; at low noise its prediction is blended with x, see `blend_x0`.

    Args:
        network: (x_t, t) → x0, in the shape of x_t.
        schedule: its levels.
        x0_error: see `blend_x0`.
    """

    network: Network
    schedule: Schedule
    x0_error: float

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        """See `Denoiser`."""
        alpha_bar = torch.full((1, 1, 1, 1), level.a**2, dtype=torch.float64, device=x.device)
        x0_hat = blend_x0(x, self.network(x, self.schedule.time(level, x)), alpha_bar, self.x0_error)
        return truth(x, x0_hat, level)


def prediction_from(out: Tensor, x: Tensor, level: Level, parametrization: Parametrization) -> Prediction:
    """x0 and eps from the output of a network for x = a x0 + b eps, (n, c, h, w).

    "epsilon": the output is eps. "v_prediction": a eps - b x0 (arXiv 2202.00512), with a^2 + b^2 = 1. "flow": eps - x0,
    with a + b = 1 (arXiv 2209.03003). The last two give both without a division, also where a or b is 0.

    Raises:
        ValueError: if eps shall give x0 where x has no signal.
    """
    if parametrization == "v_prediction":
        return Prediction(level.a * x - level.b * out, level.b * x + level.a * out)
    if parametrization == "flow":
        return Prediction(x - level.b * out, x + level.a * out)
    if level.a == 0:
        raise ValueError(
            "the first level of the sampler has no signal, and a network that predicts noise cannot give x0 there; "
            "choose fewer timesteps"
        )
    return Prediction((x - level.b * out) / level.a, out)


@dataclass(frozen=True)
class NetworkBatch:
    """One batch of a network that evaluates some images under guided prompts.

    Args:
        xt: (r, c, h, w), the images under the empty prompt, then the images under their own.
        context: of r rows, the embedded prompts.
        unconditional: the images of the first part, in order.
        conditional: the images of the second part, in order.
    """

    xt: Tensor
    context: Conditioning
    unconditional: list[int]
    conditional: list[int]


@dataclass(frozen=True, eq=False)
class GuidedDenoiser:
    """A text-conditional network under one prompt per image, with classifier-free guidance (arXiv 2207.12598, Eq. 6).

    out = out_empty + scale (out_prompt - out_empty). An image with scale 1 is not evaluated under the empty prompt, and
    one with scale 0 not under its own. A network that is given the scale is evaluated under the images' prompts alone.

    Args:
        network: (x_t, t, context, edit) → its output, in the shape of x_t; `edit` (or None) reaches its attention.
        schedule: its levels.
        parametrization: what its output is, see `prediction_from`.
        context: of n rows, the embedded prompts. A batch of fewer images takes the first ones.
        empty: of one row, the embedded empty prompt.
        scales: guidance scale of each image.
        prompts: the prompts themselves, for attention control.
        network_id: equal for all conditions of one loaded network, different for others; see `paired_evaluation`.
        region: bool (n, 1, h, w), where an edit may change each image; None for everywhere. Methods that take a region
            keep the source elsewhere.
        abilities: what a method may ask of the network.
    """

    network: Network
    schedule: Schedule
    parametrization: Parametrization
    context: Conditioning
    empty: Conditioning
    scales: tuple[float, ...]
    prompts: tuple[Prompt, ...]
    network_id: str
    region: Tensor | None = None
    abilities: Abilities = OF_UNETS
    _contexts: dict[int, Conditioning] = field(default_factory=dict, repr=False)

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        """See `Denoiser`."""
        batch = self.batch(x)
        out = self.network(batch.xt, self.schedule.time(level, batch.xt), batch.context, None)
        return self.combine(out, batch, x, level)

    def some(self, images: list[int]) -> "GuidedDenoiser":
        """The denoiser of some of its images, in the order given."""
        scales, prompts = (tuple(each[i] for i in images) for each in (self.scales, self.prompts))
        region = None if self.region is None else take(self.region, images)
        context = self.context.rows(images)
        return replace(self, context=context, scales=scales, prompts=prompts, region=region, _contexts={})

    def batch(self, xt: Tensor) -> NetworkBatch:
        """What the network must evaluate for images (n, c, h, w)."""
        scales, given = self.scales[: len(xt)], self.abilities.reads_scale
        unconditional = [i for i, scale in enumerate(scales) if scale != 1 and not given]
        conditional = [i for i, scale in enumerate(scales) if scale != 0 or given]
        if len(xt) not in self._contexts:  # one value for all steps, see ControlledAttention
            own = self.context.rows(conditional)
            if given:
                own = replace(own, scales=torch.tensor(scales, device=xt.device))
            parts = [self.empty.repeated(len(unconditional))] if unconditional else []
            self._contexts[len(xt)] = joined([*parts, own])
        images = torch.cat((take(xt, unconditional), take(xt, conditional)))
        return NetworkBatch(images, self._contexts[len(xt)], unconditional, conditional)

    def combine(self, out: Tensor, batch: NetworkBatch, xt: Tensor, level: Level) -> Prediction:
        """The guided prediction for xt, (n, c, h, w), from what the network made of `batch`, (r, c, h, w)."""
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
        return prediction_from(guided, xt, level, self.parametrization)


def _complete(part: Tensor, images: list[int], other: Tensor, others: list[int], xt: Tensor) -> Tensor:
    """One part of the network's output for all images: from the other part where an image has only that."""
    rows = dict(zip(others, other, strict=True)) | dict(zip(images, part, strict=True))
    return torch.stack([rows[i] for i in range(len(xt))])


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
