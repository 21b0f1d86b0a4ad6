"""A text-to-image latent diffusion model: codec, text encoders and network behind the interface of all models."""

import contextlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from cyclediff.diffusion.conditioning import Abilities, Conditioning, joined
from cyclediff.diffusion.denoiser import GuidedDenoiser, Network, Parametrization
from cyclediff.diffusion.noise import NoiseSource
from cyclediff.diffusion.schedule import DynamicShift, FlowSchedule, Schedule
from cyclediff.errors import UserError
from cyclediff.models.backbone import Backbone, Evaluate, TextEncoder, cast_in_place, read_prompt
from cyclediff.models.inference import DTYPES, require_known

_NUMBERS = count()


def _new_id() -> str:
    return f"text-to-image {next(_NUMBERS)}"


@dataclass(frozen=True, eq=False)
class TextModel:
    """A latent diffusion model under prompts (arXiv 2112.10752).

    Args:
        network: (x_t, t, conditioning, edit) → output, float32.
        schedule: its noise levels.
        parametrization: what its output is, see `prediction_from`.
        module: the network itself, of diffusers; `network` evaluates it.
        vae: diffusers' AutoencoderKL; its configuration holds the scaling factor and the shift.
        encoders: of texts; tokens of the first are those that attention control aligns.
        backbone: which kind of network it is.
        size: height and width of the images it was trained on.
        dynamic: how the levels' shift follows the size of an image, where it does; see `for_size`.
        runs_at: height and width of the images that the levels are for, where they depend on it.
        network_id: of its denoisers; new for each loaded or cast model.
    """

    network: Network
    schedule: Schedule
    parametrization: Parametrization
    module: Any
    vae: Any
    encoders: tuple[TextEncoder, ...]
    backbone: Backbone
    size: int
    dynamic: DynamicShift | None = None
    runs_at: int | None = None
    network_id: str = field(default_factory=_new_id)
    _embedded: dict[str | None, Conditioning] = field(default_factory=dict, repr=False)

    @property
    def factor(self) -> int:
        """Height and width of a latent in pixels."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def multiple(self) -> int:
        """Of which height and width of an image must be multiples: pixels in what the network reads as one token."""
        return self.factor * self.backbone.patch

    @property
    def abilities(self) -> Abilities:
        """What a method may ask of the network."""
        return self.backbone.abilities

    @property
    def tokenizer(self) -> Any:
        """Of the first text encoder."""
        return self.encoders[0].tokenizer

    @property
    def length(self) -> int:
        """Tokens of a prompt, padded, as the first text encoder reads it."""
        return self.encoders[0].length

    def for_size(self, size: int) -> "TextModel":
        """This model for images of a height and width, which the levels of FLUX depend on.

        Raises:
            UserError: if the network cannot work on images as large.
        """
        if self.backbone.largest is not None and size > self.backbone.largest:
            raise UserError(
                f"{self.backbone.name} has positions for images of up to {self.backbone.largest} pixels; got {size}, "
                "choose a smaller task.size"
            )
        if self.dynamic is None or not isinstance(self.schedule, FlowSchedule):
            return self
        shift = self.dynamic.shift((size // self.multiple) ** 2)
        return replace(self, schedule=replace(self.schedule, shift=shift), runs_at=size)

    def cast(self, dtype: str, compile_mode: str | None = None) -> "TextModel":
        """This model with its networks in another type or compiled, without a second copy of them.

        The networks are cast in place, so `self` must not be used afterwards. From float32 the result equals a model
        loaded in `dtype`, to the last bit.

        Args:
            dtype: float32, float16 or bfloat16.
            compile_mode: a mode of torch.compile, or None; steps with attention control are not compiled.

        Raises:
            UserError: if there is no such type or mode.
        """
        require_known(dtype, compile_mode)
        for part in (self.module, self.vae, *(encoder.network for encoder in self.encoders)):
            stays = part is self.vae and dtype == "float16" and self.backbone.float32_vae
            cast_in_place(part, torch.float32 if stays else DTYPES[dtype])
        layout = layout_for(self.module.device, dtype)
        self.module.to(memory_format=layout)
        network = caller(self.module, DTYPES[dtype], layout, self.backbone.evaluate, compile_mode)
        return replace(self, network=network, network_id=_new_id(), _embedded={})

    def encode(self, image: Tensor, noise: NoiseSource) -> Tensor:
        """x0 of images (n, 3, h, w) in [-1, 1]: scaled samples of the codec's posterior, as in the official code.

        Draws once, in the shape of x0.

        Raises:
            ValueError: if the noise levels are for images of another size, see `for_size`.
        """
        if self.runs_at is not None and set(image.shape[-2:]) != {self.runs_at}:
            raise ValueError(
                f"the noise levels of this model are for images of {self.runs_at} pixels, and these are "
                f"{image.shape[-2]}×{image.shape[-1]}; use for_size"
            )
        posterior = self.vae.encode(image.to(self.vae.dtype)).latent_dist
        mean, std = posterior.mean.float(), posterior.std.float()
        return self.vae.config.scaling_factor * (mean + std * noise.randn_like(mean) - self._vae_shift)

    def decode(self, x0: Tensor) -> Tensor:
        """Images (n, 3, h, w) of latents, clamped to [-1, 1]."""
        latents = (x0 / self.vae.config.scaling_factor + self._vae_shift).to(self.vae.dtype)
        return self.vae.decode(latents).sample.float().clamp(-1, 1)

    @property
    def _vae_shift(self) -> float:
        return self.vae.config.get("shift_factor") or 0.0

    def condition(
        self, prompts: Sequence[str] | None = None, guidance_scale: float | Sequence[float] = 1.0
    ) -> GuidedDenoiser:
        """The denoiser under one prompt per image.

        Args:
            prompts: one per image.
            guidance_scale: of classifier-free guidance, or the one that the network is given; one for all images or
                one per image.

        Raises:
            ValueError: if there are no prompts.
        """
        if prompts is None:
            raise ValueError("a text-to-image model needs prompts; choose an editing task, or an unconditional model")
        scales = [guidance_scale] * len(prompts) if isinstance(guidance_scale, int | float) else guidance_scale
        if self.backbone.ignores_scale and any(scale != 1 for scale in scales):
            warnings.warn(f"{self.backbone.name} knows no guidance; its scales do nothing", stacklevel=1)
        tokens = {text: read_prompt(self.tokenizer, text, self.length) for text in dict.fromkeys(prompts)}
        return GuidedDenoiser(
            self.network, self.schedule, self.parametrization, joined([self._embed(text) for text in prompts]),
            self._embed(None), tuple(map(float, scales)), tuple(tokens[text] for text in prompts), self.network_id,
            abilities=self.abilities,
        )  # fmt: skip

    def _embed(self, text: str | None) -> Conditioning:
        """The conditioning of a text, one row in float32, encoded once; None is the empty text of guidance."""
        if text not in self._embedded:
            if text:
                self.warn_of_cut(text)
            found = self.backbone.embed(self.encoders, text or "").to(torch.float32)
            zero = text is None and self.backbone.zero_empty
            self._embedded[text] = found.each(torch.zeros_like) if zero else found
        return self._embedded[text]

    def warn_of_cut(self, text: str) -> None:
        """Warn of a text that has more tokens than the model reads, with the encoder that reads most."""
        max(self.encoders, key=lambda encoder: encoder.length).warn_of_cut(text)


def layout_for(device: torch.device, dtype: str = "float32") -> torch.memory_format:
    """The memory layout that is fast on a device: channels last on CPUs, and for 16 bits on tensor cores."""
    return torch.channels_last if device.type == "cpu" or dtype != "float32" else torch.contiguous_format


def evaluate_unet(unet: Any, xt: Tensor, t: Tensor, context: Conditioning, edit: Any) -> Tensor:
    """A UNet with cross attention, see `Evaluate`."""
    more = {} if edit is None else {"cross_attention_kwargs": {"edit": edit}}
    return unet(xt, t, context.tokens, **more).sample


def caller(
    network: nn.Module, dtype: torch.dtype, layout: torch.memory_format, evaluate: Evaluate = evaluate_unet,
    compile_mode: str | None = None,
) -> Callable[..., Tensor]:  # fmt: skip
    """A text-conditional network as a function of float32 tensors, evaluated in `dtype` and `layout`.

    The conditioning is cast once and kept while it is the same value, so that attention can keep its keys and values.
    """
    last: list[tuple[Conditioning, Conditioning]] = []  # the last conditioning, and the same in `dtype`
    compiled = evaluate if compile_mode is None else torch.compile(evaluate, mode=compile_mode)
    quick = torch.inference_mode if compile_mode is None else torch.no_grad  # inference tensors do not fit CUDA graphs

    def call(xt: Tensor, t: Tensor, context: Conditioning, edit: Any = None) -> Tensor:
        sample = xt.to(dtype).contiguous(memory_format=layout)
        if not last or last[0][0] is not context:
            last[:] = [(context, context.to(dtype))]
        with contextlib.nullcontext() if torch.is_grad_enabled() else quick():
            if edit is None:
                out = compiled(network, sample, t, last[0][1], None).float()
            else:  # what attention control does changes from step to step
                out = evaluate(network, sample, t, last[0][1], edit.to(dtype)).float()
        return out.clone(memory_format=torch.contiguous_format)  # outside, so that it may meet autograd later

    return call
