"""FLUX.1 dev and schnell from a folder in diffusers' layout."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cyclediff.diffusion.conditioning import Abilities, Conditioning
from cyclediff.diffusion.schedule import FlowSchedule
from cyclediff.errors import UserError
from cyclediff.models.backbone import Backbone, Loaded, TextEncoder
from cyclediff.models.codec import load_codec, require_parts, require_width, scheduler_config
from cyclediff.models.parts import Repository, load_part
from cyclediff.models.scheduler import read_scheduler
from cyclediff.models.tokenizers import load_clip, load_t5

PARTS = {
    "transformer": "FluxTransformer2DModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel",
    "text_encoder_2": "T5EncoderModel", "tokenizer": "CLIPTokenizer", "tokenizer_2": "T5Tokenizer",
}  # fmt: skip
ABILITIES = Abilities(attention=False, reads_scale=True)
PATCH = 2  # side of a token in latents
SAMPLE_SIZE = 128  # latents of a side; no file states it, diffusers' pipelines have it as their default
T5_LENGTH = 512  # max_sequence_length of diffusers' pipelines
SCHNELL_T5_LENGTH = 256  # what schnell was trained with


def embed(encoders: Sequence[TextEncoder], text: str) -> Conditioning:
    """T5's hidden states, and the pooled vector of CLIP."""
    clip, t5 = encoders
    return Conditioning(t5(text)[0], clip(text).pooler_output)


def evaluate(transformer: Any, xt: Tensor, t: Tensor, context: Conditioning, edit: Any) -> Tensor:
    """The transformer on 2×2 latents a token, see `Evaluate`; its times are sigma, and t is 1000 sigma."""
    assert edit is None
    height, width = (side // PATCH for side in xt.shape[-2:])
    sides = (torch.arange(side, device=xt.device) for side in (height, width))
    rows, columns = torch.meshgrid(*sides, indexing="ij")
    places = torch.stack((torch.zeros_like(rows), rows, columns), dim=-1).flatten(0, 1).float()
    out = transformer(
        F.pixel_unshuffle(xt, PATCH).flatten(2).transpose(1, 2), encoder_hidden_states=context.tokens,
        pooled_projections=context.pooled, timestep=t / 1000,
        guidance=context.scales if transformer.config.guidance_embeds else None,
        img_ids=places, txt_ids=torch.zeros(context.tokens.shape[1], 3, device=xt.device),
    ).sample  # fmt: skip
    return F.pixel_shuffle(out.transpose(1, 2).unflatten(2, (height, width)), PATCH)


def load(repository: Repository, index: Mapping[str, Any]) -> Loaded:
    """FLUX.1 dev or schnell, or a model trained from them.

    Raises:
        UserError: if a part is missing, incomplete, or does not fit the others.
    """
    from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

    require_parts(repository, index, PARTS)
    where = f"{repository.path}/transformer"
    transformer = load_part(FluxTransformer2DModel, repository, "transformer")
    guided = bool(transformer.config.guidance_embeds)
    clip, t5 = load_clip(repository), load_t5(repository, "_2", T5_LENGTH if guided else SCHNELL_T5_LENGTH)
    vae = load_codec(repository, shifted=True)
    config, channels = transformer.config, PATCH**2 * vae.config.latent_channels
    if not config.in_channels == transformer.out_channels == channels:
        raise UserError(
            f"{where} reads {config.in_channels} channels and gives {transformer.out_channels}, where 2×2 latents have "
            f"{channels}: it is a model for filling, depth or the like; choose FLUX.1 dev or schnell"
        )
    widths: list[Any] = [encoder.network.config for encoder in (clip, t5)]
    require_width(where, config.pooled_projection_dim, widths[0].hidden_size, "numbers a prompt")
    require_width(where, config.joint_attention_dim, widths[1].d_model)
    training = read_scheduler(scheduler_config(repository), repository.path, dynamic=True)
    if not isinstance(training.schedule, FlowSchedule):
        raise UserError(f"{repository.path} has a scheduler of diffusion models, and FLUX is a flow; get it again")
    if (steps := training.schedule.num_train) != 1000:
        raise UserError(f"{repository.path} has {steps} timesteps, and FLUX has 1000; get it again")
    training = replace(training, schedule=replace(training.schedule, double_shift=False))
    backbone = Backbone(
        "FLUX.1 dev" if guided else "FLUX.1 schnell", embed, evaluate, ABILITIES,
        patch=PATCH, ignores_scale=not guided,
    )  # fmt: skip
    size = SAMPLE_SIZE * 2 ** (len(vae.config.block_out_channels) - 1)
    return Loaded(transformer, vae, (clip, t5), backbone, training, size)
