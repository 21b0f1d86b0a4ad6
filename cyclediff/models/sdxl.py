"""Stable Diffusion XL from a folder in diffusers' layout (arXiv 2307.01952)."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cyclediff.diffusion.conditioning import Abilities, Conditioning
from cyclediff.errors import UserError
from cyclediff.models.backbone import Backbone, Loaded, TextEncoder
from cyclediff.models.codec import load_codec, require_channels, require_parts, require_width, scheduler_config
from cyclediff.models.parts import Repository, whole_number
from cyclediff.models.scheduler import read_scheduler
from cyclediff.models.stable_diffusion import CONDITIONS, load_unet
from cyclediff.models.tokenizers import load_clip

PARTS = {
    "unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel",
    "text_encoder_2": "CLIPTextModelWithProjection", "tokenizer": "CLIPTokenizer", "tokenizer_2": "CLIPTokenizer",
}  # fmt: skip
TIME_IDS = 6  # original height and width, top and left of the crop, target height and width


def embed(encoders: Sequence[TextEncoder], text: str) -> Conditioning:
    """The last but one hidden state of both encoders, side by side, and the second's projected vector."""
    first, second = (encoder(text, output_hidden_states=True) for encoder in encoders)
    return Conditioning(torch.cat((first.hidden_states[-2], second.hidden_states[-2]), dim=-1), second[0])


def evaluate(factor: int, unet: Any, xt: Tensor, t: Tensor, context: Conditioning, edit: Any) -> Tensor:
    """The UNet, given each image's own size and no crop, as diffusers' pipelines do by default.

    Args:
        factor: height and width of a latent in pixels.
        unet: the network.
        xt: see `Evaluate`, as the others.
        t: times.
        context: the prompts.
        edit: of its attention.
    """
    height, width = (factor * side for side in xt.shape[-2:])
    ids = torch.zeros(len(xt), TIME_IDS, device=xt.device)
    ids[:, 0::4], ids[:, 1::4] = height, width  # filled in place: a list would be copied to the device in each step
    added = {"text_embeds": context.pooled, "time_ids": ids}
    more = {} if edit is None else {"cross_attention_kwargs": {"edit": edit}}
    return unet(xt, t, context.tokens, added_cond_kwargs=added, **more).sample


def load(repository: Repository, index: Mapping[str, Any]) -> Loaded:
    """Stable Diffusion XL.

    Raises:
        UserError: if a part is missing, incomplete, or does not fit the others, or it is the refiner.
    """
    if index.get("requires_aesthetics_score"):
        raise UserError(
            f"{repository.path} is SDXL's refiner, which reads aesthetic scores; choose the base model, "
            "stabilityai/stable-diffusion-xl-base-1.0"
        )
    require_parts(repository, index, PARTS)
    encoders = load_clip(repository), load_clip(repository, "_2", projected=True)
    where = f"{repository.path}/unet"
    unet = load_unet(repository, [key for key in CONDITIONS if key != "addition_embed_type"])
    if unet.config.addition_embed_type != "text_time":
        raise UserError(f"{where} has addition_embed_type {unet.config.addition_embed_type}; SDXL's is text_time")
    vae = load_codec(repository)
    require_channels(unet, vae, repository)
    configs: list[Any] = [encoder.network.config for encoder in encoders]
    require_width(where, unet.config.cross_attention_dim, sum(config.hidden_size for config in configs))
    numbers = configs[1].projection_dim + TIME_IDS * unet.config.addition_time_embed_dim
    require_width(where, unet.config.projection_class_embeddings_input_dim, numbers, "numbers a prompt and size")
    if encoders[0].length != encoders[1].length:
        raise UserError(f"{repository.path} has tokenizers of {encoders[0].length} and {encoders[1].length} tokens")
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    vocabularies = [encoder.tokenizer.get_vocab() for encoder in encoders]
    abilities = Abilities(attention=vocabularies[0] == vocabularies[1])
    backbone = Backbone(
        "Stable Diffusion XL", embed, partial(evaluate, factor), abilities,
        zero_empty=index.get("force_zeros_for_empty_prompt", True), float32_vae=bool(vae.config.force_upcast),
    )  # fmt: skip
    training = read_scheduler(scheduler_config(repository), repository.path)
    return Loaded(unet, vae, encoders, backbone, training, whole_number(unet.config, "sample_size", where) * factor)
