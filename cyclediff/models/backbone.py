"""What differs between text-to-image networks: how texts become a condition, and how the network is called."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cyclediff.diffusion.conditioning import OF_UNETS, Abilities, Conditioning
from cyclediff.diffusion.prompt import Prompt
from cyclediff.models.scheduler import Training

Evaluate = Callable[..., Tensor]  # (network, x_t, t, conditioning, edit) → output, all in the network's type but t


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """A tokenizer and the network that reads its tokens.

    Args:
        tokenizer: of transformers, one of those that know which letters a token stands for (`is_fast`).
        network: of transformers; its first argument are ids (n, l).
        length: tokens of a text, padded.
    """

    tokenizer: Any
    network: nn.Module
    length: int

    def __call__(self, text: str, **settings: Any) -> Any:
        """What the network makes of one text."""
        ids = self.tokenizer(
            [text], padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
        ).input_ids
        return self.network(ids.to(next(self.network.parameters()).device), **settings)

    def warn_of_cut(self, text: str) -> None:
        """Warn of a text that has more tokens than the network reads."""
        found = self.tokenizer(
            text, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False
        )  # verbose: remarks of transformers
        pairs = zip(found.offset_mapping, found.special_tokens_mask, strict=True)
        spans = [span for span, special in pairs if not special]
        room = self.length - (len(found.input_ids) - len(spans))
        if len(spans) > room:
            cut = text[spans[room][0] :]
            message = f"the model reads {room} of the {len(spans)} tokens of {text!r}; what is cut: {cut!r}"
            warnings.warn(message, stacklevel=1)  # at this line, so that a text is shown once, whoever asks


def read_prompt(tokenizer: Any, text: str, length: int) -> Prompt:
    """A text and its tokens, of which there are at most `length`."""
    found = tokenizer(text, max_length=length, truncation=True, return_offsets_mapping=True)
    return Prompt(text, tuple(found.input_ids), tuple(found.offset_mapping))


@dataclass(frozen=True, eq=False)
class Backbone:
    """One kind of text-to-image network.

    Args:
        name: for people.
        embed: (text encoders, text) → its conditioning, one row; its own `scales` are left out.
        evaluate: calls the network, see `Evaluate`.
        abilities: what a method may ask of it.
        zero_empty: whether the empty prompt of guidance is zeros instead of an embedded text.
        patch: side of what the network reads as one token, in latents.
        float32_vae: whether the codec stays in float32 where the networks are float16, whose range it leaves.
        largest: height and width of the largest images; None for no limit.
        ignores_scale: whether the network was trained without guidance and knows no scale (FLUX.1 schnell).
    """

    name: str
    embed: Callable[[Sequence[TextEncoder], str], Conditioning]
    evaluate: Evaluate
    abilities: Abilities = OF_UNETS
    zero_empty: bool = False
    patch: int = 1
    float32_vae: bool = False
    largest: int | None = None
    ignores_scale: bool = False


class Loaded(NamedTuple):
    """The parts of a model in float32, on the CPU.

    Args:
        module: the network.
        vae: the codec, diffusers' AutoencoderKL.
        encoders: of texts.
        backbone: which kind of network it is.
        training: how it was trained.
        size: height and width of the images it was trained on.
    """

    module: Any
    vae: Any
    encoders: tuple[TextEncoder, ...]
    backbone: Backbone
    training: Training
    size: int


def cast_in_place(network: nn.Module, dtype: torch.dtype) -> None:
    """Cast a network; in float16 without the layers that its class keeps in float32 (T5's `wo`), as in loading."""
    names = (getattr(network, "_keep_in_fp32_modules", None) or ()) if dtype == torch.float16 else ()
    kept = [module for name, module in network.named_modules() if name.rpartition(".")[2] in names]
    before = [(parameter, parameter.data) for module in kept for parameter in module.parameters()]
    nn.Module.to(network, dtype)  # diffusers' own `to` prints a remark about modules that it has none of
    for parameter, data in before:
        parameter.data = data
