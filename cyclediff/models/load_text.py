"""A text-to-image folder or hub id in diffusers' layout → a model."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from cyclediff.attention_layers import install
from cyclediff.diffusion.noise import Noise
from cyclediff.errors import UserError
from cyclediff.models.inference import require_known
from cyclediff.models.parts import (
    Repository,
    load_config,
    load_part,
    one_sentence,
    quietly,
    require_absent,
    whole_number,
)
from cyclediff.models.scheduler import read_scheduler
from cyclediff.models.text_to_image import TextModel, caller, layout_for

PROBES = ("a cat", "a dog")
LENGTH_UNKNOWN = 10**9  # transformers gives a larger one where a tokenizer does not state it
CONDITIONS = (
    "class_embed_type",
    "num_class_embeds",
    "addition_embed_type",
    "encoder_hid_dim_type",
    "time_cond_proj_dim",
)
WHOLE_CLIP = (
    "vision_model.",
    "visual_projection.",
    "text_projection.",
    "logit_scale",
    "text_model.embeddings.position_ids",
)
PIPELINES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "LDMTextToImagePipeline")
_LOADED: dict[tuple[str, str, str | None, str | None], TextModel] = {}


def load_text_to_image(
    path: str,
    device: str = "cpu",
    dtype: str = "float32",
    revision: str | None = None,
    variant: str | None = None,
) -> TextModel:
    """Stable Diffusion 1 or 2, or latent diffusion's text-to-image model, as diffusers packages them.

    Weights are always read in float32 and then cast. A float32 model is loaded once per process, until `TextModel.cast`
    changes it. Other types are loaded at each call.

    Args:
        path: a folder, or a hub id such as CompVis/stable-diffusion-v1-4.
        device: where it runs.
        dtype: of the networks: float32, float16 or bfloat16; latents and coefficients are always float32 or more.
        revision: commit, branch or tag of a hub id; None for its main branch. A folder has none.
        variant: of the files of weights, such as fp16; None for those without a variant.

    Raises:
        UserError: if it is not there, is another kind of model, has no safetensors, or a part of it is incomplete, left
            over or does not fit the others.
    """
    require_known(dtype)
    if dtype != "float32":
        return _load(Repository(path, revision, variant), device).cast(dtype)
    key = path, device, revision, variant
    if key not in _LOADED or _LOADED[key].unet.dtype != torch.float32:
        _LOADED[key] = _load(Repository(path, revision, variant), device)
    return _LOADED[key]


def _load(repository: Repository, device: str) -> TextModel:
    with one_sentence(repository, "folder of a text-to-image model"), quietly():
        load = _latent_diffusion if _pipeline(repository) == "LDMTextToImagePipeline" else _stable_diffusion
        unet, vae, text_encoder, tokenizer, length = load(repository)
        training = read_scheduler(load_config(DDIMScheduler, repository, "scheduler"), repository.path)
        size = _checked_size(unet, vae, text_encoder, repository)
        layout = layout_for(torch.device(device))
        for part in (unet, vae, text_encoder):
            part.eval().requires_grad_(False).to(device)
        unet.to(memory_format=layout)
        vae.to(memory_format=layout)
        install(unet)
        model = TextModel(
            caller(unet, torch.float32, layout), training.schedule, training.parametrization, unet, vae, tokenizer,
            text_encoder, length, size,
        )  # fmt: skip
        _evaluate_once(model, repository)
        return model


def _pipeline(repository: Repository) -> str:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    index: Any = DiffusionPipeline.load_config(repository.path, **repository.hub)
    name = index.get("_class_name") if isinstance(index, dict) else None
    if name not in PIPELINES:
        named = f"a {name}" if name else "of no class"
        raise UserError(f"{repository.path} is {named}; the models here are one of {', '.join(PIPELINES)}")
    return name


def _stable_diffusion(repository: Repository) -> tuple[Any, ...]:
    from transformers import CLIPTextModel, CLIPTokenizerFast  # pyright: ignore[reportAttributeAccessIssue]

    _require_padding(repository)
    tokenizer = CLIPTokenizerFast.from_pretrained(repository.path, subfolder="tokenizer", **repository.hub)
    text_encoder = load_part(CLIPTextModel, repository, "text_encoder", WHOLE_CLIP, class_named=False)
    positions, words = text_encoder.config.max_position_embeddings, text_encoder.config.vocab_size
    length = tokenizer.model_max_length if tokenizer.model_max_length < LENGTH_UNKNOWN else positions
    _require_tokenizer(tokenizer, length, positions, words, repository)
    return *_networks(repository, "vae"), text_encoder, tokenizer, length


def _latent_diffusion(repository: Repository) -> tuple[Any, ...]:
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertModel
    from transformers import BertTokenizerFast  # pyright: ignore[reportAttributeAccessIssue]

    _require_padding(repository)
    tokenizer = BertTokenizerFast.from_pretrained(repository.path, subfolder="tokenizer", **repository.hub)
    text_encoder = load_part(LDMBertModel, repository, "bert", class_named=False)
    length, words = text_encoder.config.max_position_embeddings, text_encoder.config.vocab_size
    _require_tokenizer(tokenizer, length, length, words, repository)
    return *_networks(repository, "vqvae"), text_encoder, tokenizer, length


def _networks(repository: Repository, codec: str) -> tuple[Any, Any]:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    where = f"{repository.path}/unet"
    config = load_config(UNet2DConditionModel, repository, "unet")
    require_absent(config, CONDITIONS, where, "choose a model like Stable Diffusion 1 or 2")
    whole_number(config, "sample_size", where)
    return load_part(UNet2DConditionModel, repository, "unet"), load_part(AutoencoderKL, repository, codec)


def _checked_size(unet: Any, vae: Any, text_encoder: Any, repository: Repository) -> int:
    """Height and width of the images that the model was trained on.

    Raises:
        UserError: if the parts do not belong together.
    """
    channels = vae.config.latent_channels
    if unet.config.in_channels != channels:
        raise UserError(
            f"{repository.path} reads {unet.config.in_channels} channels where its codec has {channels}: it is an "
            "inpainting or upscaling model; choose a plain text-to-image model"
        )
    if unet.config.out_channels != channels or vae.config.get("shift_factor") is not None:
        raise UserError(
            f"{repository.path} has a network of {unet.config.out_channels} channels and a codec with {channels} and "
            f"the shift {vae.config.get('shift_factor')}; the models here have as many, and no shift"
        )
    if any(vae.config.get(key) is not None for key in ("latents_mean", "latents_std")):
        raise UserError(f"{repository.path} has a codec with latents_mean or latents_std; the models here have none")
    width, read = text_encoder.config.hidden_size, unet.config.cross_attention_dim
    if read != width:
        raise UserError(
            f"{repository.path}/unet reads texts of {read} numbers a token, and its text encoder gives {width}; get "
            "the parts that belong together"
        )
    sample = whole_number(unet.config, "sample_size", f"{repository.path}/unet")
    return sample * 2 ** (len(vae.config.block_out_channels) - 1)


def _require_padding(repository: Repository) -> None:
    """Require the file that says with which token texts are padded; without it transformers takes another one."""
    file = Path(repository.path, "tokenizer", "tokenizer_config.json")
    if repository.is_folder and file.parent.is_dir() and not file.is_file():
        raise UserError(f"{file} is not there, and it says how texts are padded; get the tokenizer's files again")


def _require_tokenizer(tokenizer: Any, length: int, positions: int, words: int, repository: Repository) -> None:
    """Require that a tokenizer has its words, and belongs to its text encoder."""
    where = f"{repository.path}/tokenizer"
    cat, dog = (tokenizer(text).input_ids for text in PROBES)
    if cat == dog:
        raise UserError(f"{where} makes the same tokens of {PROBES[0]!r} and {PROBES[1]!r}; get its files again")
    numbers = list(tokenizer.get_vocab().values())
    if len(set(numbers)) < len(numbers):
        raise UserError(f"{where} gives several words one number; get its files again")
    if length > positions or max(numbers) >= words:
        raise UserError(
            f"{where} makes up to {length} tokens of {max(numbers) + 1} kinds, and the text encoder reads {positions} "
            f"of {words}; get the tokenizer that belongs to it"
        )
    model: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    lost = _never_made(model, tokenizer.get_added_vocab()) if model["type"] == "BPE" else words - len(numbers)
    if lost > 0:
        raise UserError(f"{where} never makes {lost} of the text encoder's {words} tokens; get its files again")


def _never_made(model: Mapping[str, Any], added: Collection[str]) -> int:
    """How many tokens of byte pair encoding are neither a letter nor made by a merge: 0 where its files are whole."""
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    made, end = {"".join(pair) for pair in pairs} | set(added), model["end_of_word_suffix"] or ""
    return sum(len(token.removesuffix(end)) > 1 and token not in made for token in model["vocab"])


@torch.no_grad()
def _evaluate_once(model: TextModel, repository: Repository) -> None:
    """Evaluate every part on a small input, so that what does not fit is found now."""
    factor, noise = 2 ** (len(model.vae.config.block_out_channels) - 1), Noise(0, ["probe"])
    side = factor * 2 ** (len(model.unet.config.block_out_channels) - 1)
    x0 = model.encode(torch.zeros(1, 3, side, side, device=model.unet.device), noise)
    seen = model.condition(PROBES[:1])(x0, model.schedule.at(model.schedule.num_train // 2))
    if not (seen.x0.isfinite().all() and model.decode(x0).isfinite().all()):
        raise UserError(f"{repository.path} gives NaN or Inf for a grey image; get it again")
