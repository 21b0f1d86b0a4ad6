"""A text-to-image latent diffusion model: codec, text encoder and network behind the interface of all models."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from cyclediff.diffusion.denoiser import GuidedDenoiser, Network, Parametrization
from cyclediff.diffusion.noise import NoiseSource
from cyclediff.diffusion.prompt import Prompt
from cyclediff.diffusion.schedule import Schedule
from cyclediff.models.inference import DTYPES, require_known

_NUMBERS = count()


def _new_id() -> str:
    return f"text-to-image {next(_NUMBERS)}"


@dataclass(frozen=True, eq=False)
class TextModel:
    """A latent diffusion model under prompts (arXiv 2112.10752).

    Args:
        network: (x_t, t, context, edit) → output, float32.
        schedule: its noise levels.
        parametrization: what its output is, see `prediction_from`.
        unet: the network itself, diffusers' UNet2DConditionModel; `network` evaluates it.
        vae: diffusers' AutoencoderKL; its configuration holds the scaling factor.
        tokenizer: of transformers, one of those that know which letters a token stands for (`is_fast`).
        text_encoder: ids (n, l) → last hidden state (n, l, d), first in what it returns.
        length: tokens of a prompt, padded.
        size: height and width of the images it was trained on.
        network_id: of its denoisers; new for each loaded or cast model.
    """

    network: Network
    schedule: Schedule
    parametrization: Parametrization
    unet: Any
    vae: Any
    tokenizer: Any
    text_encoder: nn.Module
    length: int
    size: int
    network_id: str = field(default_factory=_new_id)
    _embedded: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def multiple(self) -> int:
        """Of which height and width of an image must be multiples: pixels in one latent."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def cast(self, dtype: str) -> "TextModel":
        """This model with its networks in another type, without a second copy of them.

        The networks are cast in place, so `self` must not be used afterwards. From float32 the result equals a model
        loaded in `dtype`, to the last bit.

        Args:
            dtype: float32, float16 or bfloat16.

        Raises:
            UserError: if there is no such type.
        """
        require_known(dtype)
        for part in (self.unet, self.vae, self.text_encoder):
            nn.Module.to(part, DTYPES[dtype])  # diffusers' own `to` prints a remark about modules that it has none of
        network = caller(self.unet, DTYPES[dtype], layout_for(self.unet.device))
        return replace(self, network=network, network_id=_new_id(), _embedded={})

    def encode(self, image: Tensor, noise: NoiseSource) -> Tensor:
        """x0 of images (n, 3, h, w) in [-1, 1]: scaled samples of the codec's posterior, as in the official code.

        Draws once, in the shape of x0.
        """
        posterior = self.vae.encode(image.to(self.vae.dtype)).latent_dist
        mean, std = posterior.mean.float(), posterior.std.float()
        return self.vae.config.scaling_factor * (mean + std * noise.randn_like(mean))

    def decode(self, x0: Tensor) -> Tensor:
        """Images (n, 3, h, w) of latents, clamped to [-1, 1]."""
        latents = (x0 / self.vae.config.scaling_factor).to(self.vae.dtype)
        return self.vae.decode(latents).sample.float().clamp(-1, 1)

    def condition(
        self, prompts: Sequence[str] | None = None, guidance_scale: float | Sequence[float] = 1.0
    ) -> GuidedDenoiser:
        """The denoiser under one prompt per image.

        Args:
            prompts: one per image.
            guidance_scale: of classifier-free guidance, one for all images or one per image.

        Raises:
            ValueError: if there are no prompts.
        """
        if prompts is None:
            raise ValueError("a text-to-image model needs prompts; choose an editing task, or an unconditional model")
        scales = [guidance_scale] * len(prompts) if isinstance(guidance_scale, int | float) else guidance_scale
        every = self._embed(["", *prompts])
        tokens = {text: read_prompt(self.tokenizer, text, self.length) for text in dict.fromkeys(prompts)}
        return GuidedDenoiser(
            self.network, self.schedule, self.parametrization, every[1:], every[:1], tuple(map(float, scales)),
            tuple(tokens[text] for text in prompts), self.network_id,
        )  # fmt: skip

    def _embed(self, texts: Sequence[str]) -> Tensor:
        """The embedded texts, (n, l, d) float32; each text is encoded once."""
        device = next(self.text_encoder.parameters()).device
        for text in dict.fromkeys(texts):
            if text not in self._embedded:
                self.warn_of_cut(text)
                ids = self.tokenizer(
                    [text], padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
                ).input_ids
                self._embedded[text] = self.text_encoder(ids.to(device))[0].float()
        return torch.cat([self._embedded[text] for text in texts])

    def warn_of_cut(self, text: str) -> None:
        """Warn of a text that has more tokens than the model reads."""
        found = self.tokenizer(text, return_offsets_mapping=True, verbose=False)  # verbose: remarks of transformers
        spans = found.offset_mapping[1:-1]
        if len(spans) > self.length - 2:
            cut = text[spans[self.length - 2][0] :]
            message = f"the model reads {self.length - 2} of the {len(spans)} tokens of {text!r}; what is cut: {cut!r}"
            warnings.warn(message, stacklevel=1)  # at this line, so that a text is shown once, whoever asks


def read_prompt(tokenizer: Any, text: str, length: int) -> Prompt:
    """A text and its tokens, of which there are at most `length`."""
    found = tokenizer(text, max_length=length, truncation=True, return_offsets_mapping=True)
    return Prompt(text, tuple(found.input_ids), tuple(found.offset_mapping))


def layout_for(device: torch.device) -> torch.memory_format:
    """The memory layout in which text-to-image networks are evaluated on a device."""
    return torch.channels_last if device.type == "cpu" else torch.contiguous_format


def caller(unet: nn.Module, dtype: torch.dtype, layout: torch.memory_format) -> Callable[..., Tensor]:
    """A text-conditional network as a function of float32 tensors, evaluated in `dtype` and `layout`.

    The context is cast once and kept while it is the same tensor, so that attention can keep its keys and values.
    """
    last: list[tuple[Tensor, Tensor]] = []  # the last context, and the same in `dtype`

    def call(xt: Tensor, t: Tensor, context: Tensor, edit: Any = None) -> Tensor:
        sample = xt.to(dtype).contiguous(memory_format=layout)
        if not last or last[0][0] is not context:
            last[:] = [(context, context.to(dtype))]
        more = {} if edit is None else {"cross_attention_kwargs": {"edit": edit.to(dtype)}}
        with torch.inference_mode(not torch.is_grad_enabled()):
            out = unet(sample, t, last[0][1], **more).sample.float()
        return out.clone(memory_format=torch.contiguous_format)  # outside, so that it may meet autograd later

    return call
