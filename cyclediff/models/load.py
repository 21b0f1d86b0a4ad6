"""Any checkpoint → a model: published files under their own names, into diffusers networks."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cyclediff.denoiser import EpsDenoiser, LearnedVarianceDenoiser
from cyclediff.errors import UserError
from cyclediff.models import adm, ddpm
from cyclediff.models.adm import AttentionOrder
from cyclediff.models.checkpoint import read_checkpoint
from cyclediff.models.classifier import DomainClassifier
from cyclediff.models.classifier import names as classifier_names
from cyclediff.models.pixel import PixelModel
from cyclediff.models.weights import load_converted
from cyclediff.schedule import alpha_bar_from_betas, linear_betas


def load_adm(
    path: str,
    image_size: int,
    model_channels: int,
    channel_mult: Sequence[int],
    num_res_blocks: int,
    attention_downsampling: Sequence[int],
    num_head_channels: int,
    learn_sigma: bool,
    attention_order: AttentionOrder,
    ema: bool = True,
    device: str = "cpu",
) -> PixelModel:
    """A guided-diffusion (ADM) checkpoint as a model with the linear schedule of 1000 steps; loaded once per process.

    Args:
        path: the file.
        image_size: height and width in pixels.
        model_channels: base width.
        channel_mult: width of each level in units of the base.
        num_res_blocks: residual blocks per level of the encoder.
        attention_downsampling: downsampling factors at which there is attention (image size / resolution).
        num_head_channels: width of an attention head.
        learn_sigma: whether the network predicts a variance.
        attention_order: "legacy" or "new", see `adm.split_qkv`.
        ema: which to take where the file holds a network and its moving average.
        device: where it runs.

    Raises:
        UserError: if the file is not of this architecture.
    """
    shape = (image_size, model_channels, tuple(channel_mult), num_res_blocks)
    attention = (tuple(attention_downsampling), num_head_channels)
    return _load_adm(path, shape, attention, learn_sigma, attention_order, ema, device)


@cache
def _load_adm(
    path: str, shape: Any, attention: Any, learn_sigma: bool, order: AttentionOrder, ema: bool, device: str
) -> PixelModel:
    state = read_checkpoint(Path(path), ema)
    last = state.get("out.2.weight")
    if last is not None and "input_blocks.0.0.weight" in state and last.shape[0] != (6 if learn_sigma else 3):
        raise UserError(
            f"{path} gives {last.shape[0]} channels and learn_sigma={str(learn_sigma).lower()} expects "
            f"{6 if learn_sigma else 3}; set learn_sigma={str(not learn_sigma).lower()} in the model's configuration"
        )
    with torch.device("meta"):
        unet = adm.build(*shape, *attention, out_channels=6 if learn_sigma else 3)
    split = partial(adm.split_qkv, head_channels=attention[1], order=order)
    load_converted(unet, state, adm.names(unet.config, unet.state_dict()), path, split)
    network = _ready(unet, device)
    kind = LearnedVarianceDenoiser if learn_sigma else EpsDenoiser
    return PixelModel(kind(network, alpha_bar_from_betas(linear_betas())), shape[0])


def load_ddpm(
    path: str,
    image_size: int,
    ch: int,
    ch_mult: Sequence[int],
    num_res_blocks: int,
    attn_resolutions: Sequence[int],
    ema: bool = True,
    device: str = "cpu",
) -> PixelModel:
    """A DDPM checkpoint, as SDEdit and EGSDE use them, as a model with the linear schedule; loaded once per process.

    Args:
        path: the file.
        image_size: height and width in pixels.
        ch: base width.
        ch_mult: width of each level in units of the base.
        num_res_blocks: residual blocks per level of the encoder.
        attn_resolutions: resolutions in pixels at which there is attention.
        ema: which to take where the file holds a network and its moving average.
        device: where it runs.

    Raises:
        UserError: if the file is not of this architecture.
    """
    return _load_ddpm(path, (image_size, ch, tuple(ch_mult), num_res_blocks, tuple(attn_resolutions)), ema, device)


@cache
def _load_ddpm(path: str, shape: Any, ema: bool, device: str) -> PixelModel:
    state = read_checkpoint(Path(path), ema)
    with torch.device("meta"):
        unet = ddpm.build(*shape)
    load_converted(unet, state, ddpm.names(len(shape[2]), unet.state_dict()), path)
    return PixelModel(EpsDenoiser(_ready(unet, device), alpha_bar_from_betas(linear_betas())), shape[0])


@cache
def load_diffusers(path: str, device: str = "cpu") -> PixelModel:
    """An unconditional pixel-space diffusers folder or hub id, UNet2DModel and scheduler; loaded once per process.

    Args:
        path: a folder as DDPMPipeline or DDIMPipeline saves it, or an id such as google/ddpm-ema-celebahq-256.
        device: where it runs.

    Raises:
        UserError: if it is not there, or is another kind of network.
    """
    from diffusers.models.unets.unet_2d import UNet2DModel
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    local = Path(path).is_dir()
    inside = local and (Path(path) / "unet").is_dir()
    try:
        config: Any = DDPMScheduler.load_config(path, subfolder="scheduler" if inside else None)
        unet: Any = UNet2DModel.from_pretrained(path, subfolder="unet" if inside else None)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path} is no diffusers folder or hub id of an unconditional network ({_first_line(error)})"
        ) from error
    config = config[0] if isinstance(config, tuple) else config
    if config.get("prediction_type", "epsilon") != "epsilon":
        raise UserError(f"{path} predicts {config['prediction_type']}; pixel-space models here predict epsilon")
    if unet.config.in_channels != 3:
        raise UserError(
            f"{path} reads {unet.config.in_channels} channels, an image has 3; choose a pixel-space network"
        )
    scheduler: Any = DDPMScheduler.from_config(config)
    alpha_bar = alpha_bar_from_betas(_betas(config, scheduler.betas))
    kind = LearnedVarianceDenoiser if unet.config.out_channels == 6 else EpsDenoiser
    return PixelModel(kind(_ready(unet, device), alpha_bar), unet.config.sample_size)


def load_classifier(
    path: str,
    image_size: int,
    classes: int,
    model_channels: int,
    channel_mult: Sequence[int],
    num_res_blocks: int,
    attention_downsampling: Sequence[int],
    num_head_channels: int,
    attention_order: Literal["legacy", "new"],
    device: str = "cpu",
) -> Callable[[Tensor, Tensor], Tensor]:
    """EGSDE's domain-specific extractor from its released checkpoint: (x_t, t) → features; loaded once per process.

    Args:
        path: the file.
        image_size: height and width in pixels.
        classes: number of domains.
        model_channels: base width.
        channel_mult: width of each level in units of the base.
        num_res_blocks: residual blocks per level.
        attention_downsampling: downsampling factors at which there is attention.
        num_head_channels: width of an attention head.
        attention_order: "legacy" or "new", see `adm.split_qkv`.
        device: where it runs.

    Raises:
        UserError: if the file is not of this architecture.
    """
    shape = (image_size, classes, model_channels, tuple(channel_mult), num_res_blocks)
    return _load_classifier(path, (*shape, tuple(attention_downsampling), num_head_channels), attention_order, device)


@cache
def _load_classifier(path: str, shape: Any, order: AttentionOrder, device: str) -> Callable[[Tensor, Tensor], Tensor]:
    state = read_checkpoint(Path(path))
    with torch.device("meta"):
        network = DomainClassifier(*shape)
    load_converted(
        network, state, classifier_names(network), path, partial(adm.split_qkv, head_channels=shape[-1], order=order)
    )
    return network.eval().requires_grad_(False).to(device).features


def _ready(unet: nn.Module, device: str) -> Callable[[Tensor, Tensor], Tensor]:
    unet.eval().requires_grad_(False).to(device)
    return lambda xt, t: unet(xt, t).sample


def _betas(config: Any, betas: Tensor) -> Tensor:
    """The scheduler's betas in float64, where its configuration says how they came about."""
    if config.get("beta_schedule") == "linear" and config.get("trained_betas") is None:
        return linear_betas(config["num_train_timesteps"], config["beta_start"], config["beta_end"])
    return betas.double()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200]
