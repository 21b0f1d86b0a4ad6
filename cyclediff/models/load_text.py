"""A text-to-image folder or hub id in diffusers' layout → a model."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from cyclediff.attention_control import install
from cyclediff.diffusion.denoiser import Prediction
from cyclediff.diffusion.schedule import alpha_bar_from_betas, linear_betas, scaled_linear_betas
from cyclediff.errors import UserError
from cyclediff.models.inference import require_known
from cyclediff.models.text_to_image import TextModel, caller, layout_for

SETTINGS = {"use_safetensors": True, "torch_dtype": torch.float32}
PREDICTIONS = ("epsilon", "v_prediction")
SAFE = (
    "DiffusionPipeline.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER) with a diffusers that you trust writes them"
)
_LOADED: dict[tuple[str, str, str | None], TextModel] = {}


def load_text_to_image(
    path: str, device: str = "cpu", dtype: str = "float32", revision: str | None = None
) -> TextModel:
    """Stable Diffusion 1 or 2, or latent diffusion's text-to-image model, as diffusers packages them.

    Weights are always read in float32 and then cast. A float32 model is loaded once per process, until `TextModel.cast`
    changes it. Other types are loaded at each call.

    Args:
        path: a folder, or a hub id such as CompVis/stable-diffusion-v1-4.
        device: where it runs.
        dtype: of the networks: float32, float16 or bfloat16; latents and coefficients are always float32 or more.
        revision: commit, branch or tag of a hub id; None for its main branch. A folder has none.

    Raises:
        UserError: if it is not there, is another kind of model, or has no safetensors.
    """
    require_known(dtype)
    if dtype != "float32":
        return _load(path, device, revision).cast(dtype)
    key = path, device, revision
    if key not in _LOADED or _LOADED[key].unet.dtype != torch.float32:
        _LOADED[key] = _load(path, device, revision)
    return _LOADED[key]


def _load(path: str, device: str, revision: str | None) -> TextModel:
    hub: dict[str, Any] = {"revision": revision} if revision else {}
    with _friendly_errors(path), _quietly():
        latent_diffusion = _index(path, hub)["_class_name"] == "LDMTextToImagePipeline"
        load = _latent_diffusion if latent_diffusion else _stable_diffusion
        unet, vae, text_encoder, tokenizer, length, config = load(path, hub)
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise UserError(f"{path} predicts {prediction}; the models here predict one of {', '.join(PREDICTIONS)}")
    if unet.config.in_channels != vae.config.latent_channels:
        raise UserError(
            f"{path} reads {unet.config.in_channels} channels where its codec has {vae.config.latent_channels}: it is "
            "an inpainting or upscaling model; choose a plain text-to-image model"
        )
    layout = layout_for(torch.device(device))
    for part in (unet, vae, text_encoder):
        part.eval().requires_grad_(False).to(device)
    unet.to(memory_format=layout)
    vae.to(memory_format=layout)
    install(unet)
    size = unet.config.sample_size * 2 ** (len(vae.config.block_out_channels) - 1)
    return TextModel(
        caller(unet, torch.float32, layout), _alpha_bar(config), cast(Prediction, prediction), unet, vae, tokenizer,
        text_encoder, length, size,
    )  # fmt: skip


@contextmanager
def _friendly_errors(path: str) -> Iterator[None]:
    """Turn the libraries' errors into one sentence that says what to do."""
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
            f"{path} is no folder here and could not be downloaded from the hub; check the name and the connection, or "
            f"name a folder: task.model.path=FOLDER ({reason.split('.')[0]})"
        ) from error


def _index(path: str, hub: dict[str, Any]) -> dict[str, Any]:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    index: Any = DiffusionPipeline.load_config(path, **hub)
    known = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "LDMTextToImagePipeline")
    if index["_class_name"] not in known:
        raise UserError(f"{path} is a {index['_class_name']}; the models here are one of {', '.join(known)}")
    return index


def _stable_diffusion(path: str, hub: dict[str, Any]) -> tuple[Any, ...]:
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(path, subfolder="tokenizer", **hub)
    text_encoder = CLIPTextModel.from_pretrained(path, subfolder="text_encoder", **SETTINGS, **hub)
    length = tokenizer.model_max_length
    return *_networks(path, "vae", hub, text_encoder), tokenizer, length, _scheduler(path, hub)


def _latent_diffusion(path: str, hub: dict[str, Any]) -> tuple[Any, ...]:
    from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertModel
    from transformers import BertTokenizer

    tokenizer = BertTokenizer.from_pretrained(path, subfolder="tokenizer", **hub)
    text_encoder = LDMBertModel.from_pretrained(path, subfolder="bert", **SETTINGS, **hub)
    length = text_encoder.config.max_position_embeddings
    return *_networks(path, "vqvae", hub, text_encoder), tokenizer, length, _scheduler(path, hub)


def _networks(path: str, codec: str, hub: dict[str, Any], text_encoder: Any) -> tuple[Any, Any, Any]:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    settings: dict[str, Any] = {**SETTINGS, **hub, "low_cpu_mem_usage": False}  # True needs the package accelerate
    unet = UNet2DConditionModel.from_pretrained(path, subfolder="unet", **settings)
    return unet, AutoencoderKL.from_pretrained(path, subfolder=codec, **settings), text_encoder


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the progress bars and log messages of the libraries."""
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


def _scheduler(path: str, hub: dict[str, Any]) -> Any:
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    config: Any = DDIMScheduler.load_config(path, subfolder="scheduler", **hub)
    return config[0] if isinstance(config, tuple) else config


def _alpha_bar(config: Any) -> Tensor:
    """The scheduler's alpha_bar in float64; computed from its configuration where that is possible."""
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    known = {"linear": linear_betas, "scaled_linear": scaled_linear_betas}.get(config.get("beta_schedule"))
    if known is None or config.get("trained_betas") is not None:
        scheduler: Any = DDPMScheduler.from_config(config)
        return alpha_bar_from_betas(scheduler.betas)
    return alpha_bar_from_betas(known(config["num_train_timesteps"], config["beta_start"], config["beta_end"]))
