"""Published checkpoints → models: their weights in diffusers networks. Each is loaded once per process."""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cyclediff.diffusion.denoiser import EpsDenoiser, LearnedVarianceDenoiser
from cyclediff.diffusion.schedule import alpha_bar_from_betas, linear_betas
from cyclediff.errors import UserError
from cyclediff.models import adm, ddpm
from cyclediff.models.adm import AttentionOrder
from cyclediff.models.checkpoint import read_checkpoint
from cyclediff.models.classifier import DomainClassifier
from cyclediff.models.classifier import names as classifier_names
from cyclediff.models.inference import for_inference
from cyclediff.models.pixel import PixelModel
from cyclediff.models.weights import load_converted

Shape = tuple[tuple[str, Any], ...]  # arguments of a builder, hashable
Execution = tuple[str, str, str | None]  # device, dtype and compile mode, see `for_inference`


def load_adm(
    path: str,
    learn_sigma: bool,
    attention_order: AttentionOrder,
    ema: bool = True,
    device: str = "cpu",
    dtype: str = "float32",
    compile_mode: str | None = None,
    **shape: Any,
) -> PixelModel:
    """A guided-diffusion (ADM) checkpoint as a model with the linear schedule of 1000 steps.

    Args:
        path: the file.
        learn_sigma: whether the network predicts a variance.
        attention_order: "legacy" or "new", see `adm.split_qkv`.
        ema: take the moving average where the file holds a network and its average.
        device: where it runs.
        dtype: of its evaluation, see `for_inference`.
        compile_mode: see `for_inference`.
        shape: of the network, see `adm.build`.

    Raises:
        UserError: if the file is not of this architecture.
    """
    return _load_adm(path, learn_sigma, attention_order, ema, (device, dtype, compile_mode), _frozen(shape))


@cache
def _load_adm(
    path: str, learn_sigma: bool, order: AttentionOrder, ema: bool, execution: Execution, frozen: Shape
) -> PixelModel:
    shape = dict(frozen)
    state = read_checkpoint(Path(path), ema)
    channels = 6 if learn_sigma else 3
    last = state.get("out.2.weight")
    if last is not None and "input_blocks.0.0.weight" in state and last.shape[0] != channels:
        raise UserError(
            f"{path} gives {last.shape[0]} channels and learn_sigma={str(learn_sigma).lower()} expects {channels}; set "
            f"learn_sigma={str(not learn_sigma).lower()} in the model's configuration"
        )
    with torch.device("meta"):
        unet = adm.build(out_channels=channels, **shape)
    split = partial(adm.split_qkv, head_channels=shape["num_head_channels"], order=order)
    load_converted(unet, state, adm.names(unet.config, unet.state_dict()), path, split)
    kind = LearnedVarianceDenoiser if learn_sigma else EpsDenoiser
    return PixelModel(
        kind(for_inference(unet, lambda xt, t: unet(xt, t).sample, *execution), alpha_bar_from_betas(linear_betas())),
        shape["image_size"],
    )


def load_ddpm(
    path: str,
    ema: bool = True,
    device: str = "cpu",
    dtype: str = "float32",
    compile_mode: str | None = None,
    **shape: Any,
) -> PixelModel:
    """A DDPM checkpoint, as SDEdit and EGSDE use them, as a model with the linear schedule of 1000 steps.

    Args:
        path: the file.
        ema: take the moving average where the file holds a network and its average.
        device: where it runs.
        dtype: of its evaluation, see `for_inference`.
        compile_mode: see `for_inference`.
        shape: of the network, see `ddpm.build`.

    Raises:
        UserError: if the file is not of this architecture.
    """
    return _load_ddpm(path, ema, (device, dtype, compile_mode), _frozen(shape))


@cache
def _load_ddpm(path: str, ema: bool, execution: Execution, frozen: Shape) -> PixelModel:
    shape = dict(frozen)
    state = read_checkpoint(Path(path), ema)
    with torch.device("meta"):
        unet = ddpm.build(**shape)
    load_converted(unet, state, ddpm.names(len(shape["ch_mult"]), unet.state_dict()), path)
    return PixelModel(
        EpsDenoiser(
            for_inference(unet, lambda xt, t: unet(xt, t).sample, *execution), alpha_bar_from_betas(linear_betas())
        ),
        shape["image_size"],
    )


def load_classifier(
    path: str, attention_order: AttentionOrder, device: str = "cpu", **shape: Any
) -> Callable[[Tensor, Tensor], Tensor]:
    """EGSDE's domain-specific extractor from its released checkpoint: (x_t, t) → features.

    Args:
        path: the file.
        attention_order: "legacy" or "new", see `adm.split_qkv`.
        device: where it runs.
        shape: of the network, see `DomainClassifier`.

    Raises:
        UserError: if the file is not of this architecture.
    """
    return _load_classifier(path, attention_order, device, _frozen(shape))


@cache
def _load_classifier(
    path: str, order: AttentionOrder, device: str, frozen: Shape
) -> Callable[[Tensor, Tensor], Tensor]:
    shape = dict(frozen)
    state = read_checkpoint(Path(path))
    with torch.device("meta"):
        network = DomainClassifier(**shape)
    split = partial(adm.split_qkv, head_channels=shape["num_head_channels"], order=order)
    load_converted(network, state, classifier_names(network), path, split)
    return for_inference(network, network.features, device)


@cache
def load_diffusers(
    path: str,
    device: str = "cpu",
    dtype: str = "float32",
    compile_mode: str | None = None,
    revision: str | None = None,
) -> PixelModel:
    """An unconditional pixel-space diffusers folder or hub id (UNet2DModel and scheduler) as a model.

    Args:
        path: a folder as DDPMPipeline or DDIMPipeline saves it, or an id such as google/ddpm-ema-celebahq-256.
        device: where it runs.
        dtype: of its evaluation, see `for_inference`.
        compile_mode: see `for_inference`.
        revision: commit, branch or tag of a hub id; None for its main branch. A folder has none.

    Raises:
        UserError: if it is not there, or is another kind of network.
    """
    from diffusers.models.unets.unet_2d import UNet2DModel
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    layouts = [("scheduler", "unet"), ("", "")]  # the second: of the oldest repositories
    if Path(path).is_dir():
        layouts = [layout for layout in layouts if (Path(path) / layout[1] / "config.json").is_file()]
    config: Any = None
    reason = "no config.json of a network"
    for scheduler_folder, unet_folder in layouts:
        try:
            config = DDPMScheduler.load_config(path, subfolder=scheduler_folder, revision=revision)
            unet: Any = UNet2DModel.from_pretrained(path, subfolder=unet_folder, revision=revision)
            break
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).strip().splitlines()[0][:200]
    else:
        raise UserError(f"{path} is no diffusers folder or hub id of an unconditional network ({reason})")
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
    network = for_inference(unet, lambda xt, t: unet(xt, t).sample, device, dtype, compile_mode)
    return PixelModel(kind(network, alpha_bar), unet.config.sample_size)


def _frozen(shape: dict[str, Any]) -> Shape:
    return tuple((key, tuple(value) if isinstance(value, list) else value) for key, value in sorted(shape.items()))


def _betas(config: Any, betas: Tensor) -> Tensor:
    """The scheduler's betas in float64; computed from its configuration where that is possible."""
    if config.get("beta_schedule") == "linear" and config.get("trained_betas") is None:
        return linear_betas(config["num_train_timesteps"], config["beta_start"], config["beta_end"])
    return betas.double()
