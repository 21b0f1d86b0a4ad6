"""Stable Diffusion 1 and 2, and latent diffusion's text-to-image model, from a folder in diffusers' layout."""

from collections.abc import Sequence
from typing import Any

from cyclediff.diffusion.conditioning import Conditioning
from cyclediff.models.backbone import Backbone, Loaded, TextEncoder
from cyclediff.models.codec import load_codec, require_channels, require_width, scheduler_config
from cyclediff.models.parts import Repository, load_config, load_part, require_absent, whole_number
from cyclediff.models.scheduler import read_scheduler
from cyclediff.models.text_to_image import evaluate_unet
from cyclediff.models.tokenizers import load_clip, require_padding, require_tokenizer

CONDITIONS = (
    "class_embed_type",
    "num_class_embeds",
    "addition_embed_type",
    "encoder_hid_dim_type",
    "time_cond_proj_dim",
)


def embed(encoders: Sequence[TextEncoder], text: str) -> Conditioning:
    """The last hidden state of the text encoder, which is first in what it returns."""
    return Conditioning(encoders[0](text)[0])


BACKBONE = Backbone("Stable Diffusion 1 or 2", embed, evaluate_unet)


def load_stable_diffusion(repository: Repository) -> Loaded:
    """Stable Diffusion 1 or 2.

    Raises:
        UserError: if a part is missing, incomplete, or does not fit the others.
    """
    return _loaded(repository, load_clip(repository), "vae")


def load_latent_diffusion(repository: Repository) -> Loaded:
    """Latent diffusion's text-to-image model, see `load_stable_diffusion`."""
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertModel
    from transformers import BertTokenizerFast  # pyright: ignore[reportAttributeAccessIssue]

    require_padding(repository)
    tokenizer = BertTokenizerFast.from_pretrained(repository.path, subfolder="tokenizer", **repository.hub)
    network = load_part(LDMBertModel, repository, "bert", class_named=False)
    length, words = network.config.max_position_embeddings, network.config.vocab_size
    require_tokenizer(tokenizer, length, length, words, f"{repository.path}/tokenizer")
    return _loaded(repository, TextEncoder(tokenizer, network, length), "vqvae")


def _loaded(repository: Repository, encoder: TextEncoder, codec: str) -> Loaded:
    unet = load_unet(repository, CONDITIONS)
    vae = load_codec(repository, codec)
    training = read_scheduler(scheduler_config(repository), repository.path)
    require_channels(unet, vae, repository)
    hidden: Any = encoder.network.config
    require_width(f"{repository.path}/unet", unet.config.cross_attention_dim, hidden.hidden_size)
    sample = whole_number(unet.config, "sample_size", f"{repository.path}/unet")
    return Loaded(unet, vae, (encoder,), BACKBONE, training, sample * 2 ** (len(vae.config.block_out_channels) - 1))


def load_unet(repository: Repository, refused: Sequence[str]) -> Any:
    """A UNet with cross attention; `refused` are settings of conditions that it must not have.

    Raises:
        UserError: if it needs a condition that is not given here, or its weights do not fit.
    """
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    where = f"{repository.path}/unet"
    config = load_config(UNet2DConditionModel, repository, "unet")
    require_absent(config, refused, where, "choose a model like Stable Diffusion 1 or 2")
    whole_number(config, "sample_size", where)
    return load_part(UNet2DConditionModel, repository, "unet")
