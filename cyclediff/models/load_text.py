"""A text-to-image folder or hub id in diffusers' layout → a model; each once per process."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from cyclediff.attention_control import install
from cyclediff.diffusion.denoiser import Prediction
from cyclediff.diffusion.schedule import alpha_bar_from_betas, linear_betas, scaled_linear_betas
from cyclediff.errors import UserError
from cyclediff.models.inference import DTYPES, check
from cyclediff.models.text_to_image import TextModel, caller

PREDICTIONS = ("epsilon", "v_prediction")
SAFE = (
    "DiffusionPipeline.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER) with a diffusers that you trust writes them"
)


@cache
def load_text_to_image(path: str, dtype: str = "float32", device: str = "cpu") -> TextModel:
    """Stable Diffusion 1 or 2, or latent diffusion's text-to-image model, as diffusers packages them.

    Args:
        path: a folder, or a hub id such as CompVis/stable-diffusion-v1-4.
        dtype: of the networks: float32, float16 or bfloat16; latents and coefficients are never less than float32.
        device: where it runs.

    Raises:
        UserError: if it is not there, is another kind of model, or has no safetensors.
    """
    check(dtype, compile_mode=None)
    with _telling(path), _quietly():
        latent_diffusion = _index(path)["_class_name"] == "LDMTextToImagePipeline"
        load = _latent_diffusion if latent_diffusion else _stable_diffusion
        settings = {"use_safetensors": True, "torch_dtype": DTYPES[dtype]}
        unet, vae, text_encoder, tokenizer, length, config = load(path, settings)
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise UserError(f"{path} predicts {prediction}; the models here predict one of {', '.join(PREDICTIONS)}")
    if unet.config.in_channels != vae.config.latent_channels:
        raise UserError(
            f"{path} reads {unet.config.in_channels} channels where its codec has {vae.config.latent_channels}: it is "
            "an inpainting or upscaling model; choose a plain text-to-image model"
        )
    layout = torch.channels_last if device == "cpu" else torch.contiguous_format
    for part in (unet, vae, text_encoder):
        part.eval().requires_grad_(False).to(device)
    unet.to(memory_format=layout)
    vae.to(memory_format=layout)
    install(unet)
    size = unet.config.sample_size * 2 ** (len(vae.config.block_out_channels) - 1)
    return TextModel(
        caller(unet, DTYPES[dtype], layout), _alpha_bar(config), cast(Prediction, prediction), vae, tokenizer,
        text_encoder, length, size,
    )  # fmt: skip


@contextmanager
def _telling(path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        if Path(path).is_dir() and "safetensors" in reason:
            raise UserError(f"{path} holds no safetensors for one of its networks; {SAFE}") from error
        if Path(path).is_dir():
            raise UserError(
                f"{path} is no complete folder of a text-to-image model ({reason}); get it again"
            ) from error
        raise UserError(
            f"{path} is no folder here and could not be had from the hub; check the name and the network, or point at "
            f"a folder: task.model.path=FOLDER ({reason.split('.')[0]})"
        ) from error


def _index(path: str) -> dict[str, Any]:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    index: Any = DiffusionPipeline.load_config(path)
    known = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "LDMTextToImagePipeline")
    if index["_class_name"] not in known:
        raise UserError(f"{path} is a {index['_class_name']}; the models here are one of {', '.join(known)}")
    return index


def _stable_diffusion(path: str, settings: dict[str, Any]) -> tuple[Any, ...]:
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(path, subfolder="tokenizer")
    text_encoder = CLIPTextModel.from_pretrained(path, subfolder="text_encoder", **settings)
    return *_networks(path, "vae", settings, text_encoder), tokenizer, tokenizer.model_max_length, _scheduler(path)


def _latent_diffusion(path: str, settings: dict[str, Any]) -> tuple[Any, ...]:
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertModel
    from transformers import BertTokenizer

    tokenizer = BertTokenizer.from_pretrained(path, subfolder="tokenizer")
    text_encoder = LDMBertModel.from_pretrained(path, subfolder="bert", **settings)
    length = text_encoder.config.max_position_embeddings
    return *_networks(path, "vqvae", settings, text_encoder), tokenizer, length, _scheduler(path)


def _networks(path: str, codec: str, settings: dict[str, Any], text_encoder: Any) -> tuple[Any, Any, Any]:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    whole = {**settings, "low_cpu_mem_usage": False}  # the other way needs the package accelerate
    unet = UNet2DConditionModel.from_pretrained(path, subfolder="unet", **whole)
    return unet, AutoencoderKL.from_pretrained(path, subfolder=codec, **whole), text_encoder


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the libraries' progress bars and remarks on how they load."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    levels = diffusers_logging.get_verbosity(), transformers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        diffusers_logging.set_verbosity(levels[0])
        transformers_logging.set_verbosity(levels[1])


def _scheduler(path: str) -> Any:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    config: Any = DDIMScheduler.load_config(path, subfolder="scheduler")
    return config[0] if isinstance(config, tuple) else config


def _alpha_bar(config: Any) -> Tensor:
    """The scheduler's alpha_bar in float64, where its configuration says how its betas came about."""
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    known = {"linear": linear_betas, "scaled_linear": scaled_linear_betas}.get(config.get("beta_schedule"))
    if known is None or config.get("trained_betas") is not None:
        scheduler: Any = DDPMScheduler.from_config(config)
        return alpha_bar_from_betas(scheduler.betas)
    return alpha_bar_from_betas(known(config["num_train_timesteps"], config["beta_start"], config["beta_end"]))
