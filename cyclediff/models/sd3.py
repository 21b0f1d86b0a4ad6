"""Stable Diffusion 3 and 3.5 from a folder in diffusers' layout (arXiv 2403.03206)."""

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cyclediff.diffusion.conditioning import Abilities, Conditioning
from cyclediff.errors import UserError
from cyclediff.models.backbone import Backbone, Loaded, TextEncoder
from cyclediff.models.codec import load_codec, require_parts, require_width, scheduler_config
from cyclediff.models.parts import Repository, load_part, whole_number
from cyclediff.models.scheduler import read_scheduler
from cyclediff.models.tokenizers import load_clip, load_t5

PARTS = {
    "transformer": "SD3Transformer2DModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModelWithProjection",
    "text_encoder_2": "CLIPTextModelWithProjection", "tokenizer": "CLIPTokenizer", "tokenizer_2": "CLIPTokenizer",
}  # fmt: skip
T5 = {"text_encoder_3": "T5EncoderModel", "tokenizer_3": "T5Tokenizer"}
ABILITIES = Abilities(attention=False)
T5_LENGTH = 256  # max_sequence_length of diffusers' pipelines


def embed(width: int, encoders: Sequence[TextEncoder], text: str) -> Conditioning:
    """Both CLIPs' last but one hidden states side by side, padded to T5's width, then T5's; and both projected vectors.

    Args:
        width: of T5's hidden states.
        encoders: both CLIPs, and T5 if it is there. Without it its tokens are zeros, as in diffusers' pipelines.
        text: the prompt.
    """
    first, second = (encoder(text, output_hidden_states=True) for encoder in encoders[:2])
    clip = torch.cat((first.hidden_states[-2], second.hidden_states[-2]), dim=-1)
    clip = F.pad(clip, (0, width - clip.shape[-1]))
    t5 = encoders[2](text)[0] if len(encoders) > 2 else clip.new_zeros(1, T5_LENGTH, width)
    return Conditioning(torch.cat((clip, t5), dim=1), torch.cat((first[0], second[0]), dim=-1))


def evaluate(transformer: Any, xt: Tensor, t: Tensor, context: Conditioning, edit: Any) -> Tensor:
    """The transformer, see `Evaluate`; its times are 1000 sigma."""
    assert edit is None
    return transformer(xt, encoder_hidden_states=context.tokens, pooled_projections=context.pooled, timestep=t).sample


def load(repository: Repository, index: Mapping[str, Any]) -> Loaded:
    """Stable Diffusion 3 or 3.5.

    Raises:
        UserError: if a part is missing, incomplete, or does not fit the others.
    """
    from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel

    has_t5 = any((index.get(part) or [None])[-1] is not None for part in T5)
    require_parts(repository, index, PARTS | T5 if has_t5 else PARTS)
    clips = load_clip(repository, projected=True), load_clip(repository, "_2", projected=True)
    encoders = (*clips, load_t5(repository, "_3", T5_LENGTH)) if has_t5 else clips
    if not has_t5:
        warnings.warn(
            f"{repository.path} has no T5 (text_encoder_3); its tokens are zeros, and long or detailed texts are "
            "followed less closely",
            stacklevel=1,
        )
    where = f"{repository.path}/transformer"
    transformer = load_part(SD3Transformer2DModel, repository, "transformer")
    vae = load_codec(repository, shifted=True)
    config, channels = transformer.config, vae.config.latent_channels
    if not config.in_channels == transformer.out_channels == channels:
        raise UserError(
            f"{where} reads {config.in_channels} channels and gives {transformer.out_channels}, where the codec has "
            f"{channels}; choose a plain text-to-image model"
        )
    configs: list[Any] = [encoder.network.config for encoder in encoders]
    both, pooled = (sum(getattr(c, name) for c in configs[:2]) for name in ("hidden_size", "projection_dim"))
    require_width(where, config.pooled_projection_dim, pooled, "numbers a prompt")
    if both > config.joint_attention_dim:
        read = config.joint_attention_dim
        raise UserError(f"{where} reads texts of {read} numbers a token, fewer than the {both} of both CLIPs")
    if has_t5:
        require_width(where, config.joint_attention_dim, configs[2].d_model)
    multiple = config.patch_size * 2 ** (len(vae.config.block_out_channels) - 1)
    backbone = Backbone(
        "Stable Diffusion 3", partial(embed, config.joint_attention_dim), evaluate, ABILITIES,
        patch=config.patch_size, largest=config.pos_embed_max_size * multiple,
    )  # fmt: skip
    size = whole_number(config, "sample_size", where) * multiple // config.patch_size
    training = read_scheduler(scheduler_config(repository), repository.path)
    return Loaded(transformer, vae, encoders, backbone, training, size)
