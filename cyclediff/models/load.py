"""Published checkpoints → models: their weights in diffusers networks. Each is loaded once per process."""

from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor

from cyclediff.diffusion.denoiser import LearnedVarianceDenoiser, NetworkDenoiser
from cyclediff.diffusion.schedule import DiffusionSchedule, alpha_bar_from_betas, named_betas
from cyclediff.errors import UserError
from cyclediff.models import adm, ddpm
from cyclediff.models.adm import AttentionOrder
from cyclediff.models.checkpoint import StateDict, read_checkpoint
from cyclediff.models.classifier import DomainClassifier
from cyclediff.models.classifier import names as classifier_names
from cyclediff.models.inference import for_inference, sample_of
from cyclediff.models.parts import (
    Repository,
    load_config,
    load_part,
    one_sentence,
    quietly,
    require_absent,
    whole_number,
)
from cyclediff.models.pixel import PixelModel
from cyclediff.models.scheduler import read_scheduler
from cyclediff.models.state_dicts import choose
from cyclediff.models.weights import Names, load_converted, wanted_shapes

PIXEL_PIPELINES = ("DDPMPipeline", "DDIMPipeline", "PNDMPipeline")
Shape = tuple[tuple[str, Any], ...]  # arguments of a builder, hashable
Schedule = tuple[str, int]  # name and number of timesteps, see `named_betas`
Which = tuple[bool, str | None]  # state dict of a file: ema and its name, see `choose`
Execution = tuple[str, str, str | None]  # device, dtype and compile mode, see `for_inference`


def load_adm(
    path: str,
    learn_sigma: bool,
    attention_order: AttentionOrder,
    schedule: str = "linear",
    num_train_timesteps: int = 1000,
    ema: bool = True,
    state_dict: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    compile_mode: str | None = None,
    **shape: Any,
) -> PixelModel:
    """A guided-diffusion (ADM) checkpoint as a model.

    Args:
        path: the file.
        learn_sigma: whether the network predicts a variance.
        attention_order: "legacy" or "new", see `adm.split_qkv`.
        schedule: of the noise in training, see `named_betas`.
        num_train_timesteps: of that schedule.
        ema: take the moving average where the file holds a network and its average.
        state_dict: place of the state dict in the file, where `ema` does not say which is meant; see `choose`.
        device: where it runs.
        dtype: of its evaluation, see `for_inference`.
        compile_mode: see `for_inference`.
        shape: of the network, see `adm.build`.

    Raises:
        UserError: if the file is not of this architecture.
    """
    which, execution = (ema, state_dict), (device, dtype, compile_mode)
    return _load_adm(
        path, learn_sigma, attention_order, (schedule, num_train_timesteps), which, execution, _frozen(shape)
    )


@cache
def _load_adm(
    path: str, learn_sigma: bool, order: AttentionOrder, schedule: Schedule, which: Which, execution: Execution,
    frozen: Shape,
) -> PixelModel:  # fmt: skip
    shape, levels = dict(frozen), _schedule(*schedule)
    channels = 6 if learn_sigma else 3
    with torch.device("meta"):
        unet = adm.build(out_channels=channels, **shape)
    found = read_checkpoint(Path(path))
    names = _names_in(found, unet, adm.names(unet.config, unet.state_dict()))
    state = choose(found, wanted_shapes(unet, names), *which, path)
    last = state.get("out.2.weight")
    if last is not None and "input_blocks.0.0.weight" in state and last.shape[0] != channels:
        raise UserError(
            f"{path} gives {last.shape[0]} channels and learn_sigma={str(learn_sigma).lower()} expects {channels}; set "
            f"learn_sigma={str(not learn_sigma).lower()} in the model's configuration"
        )
    split = partial(adm.split_qkv, head_channels=shape["num_head_channels"], order=order)
    load_converted(unet, state, names, path, split)
    kind = LearnedVarianceDenoiser if learn_sigma else NetworkDenoiser
    network = for_inference(unet, sample_of, *execution)
    return PixelModel(kind(network, levels), shape["image_size"], 2 ** (len(shape["channel_mult"]) - 1))


def load_ddpm(
    path: str,
    schedule: str = "linear",
    num_train_timesteps: int = 1000,
    ema: bool = True,
    state_dict: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    compile_mode: str | None = None,
    **shape: Any,
) -> PixelModel:
    """A DDPM checkpoint, as SDEdit and EGSDE use them, as a model.

    Args:
        path: the file.
        schedule: of the noise in training, see `named_betas`.
        num_train_timesteps: of that schedule.
        ema: take the moving average where the file holds a network and its average.
        state_dict: place of the state dict in the file, see `load_adm`.
        device: where it runs.
        dtype: of its evaluation, see `for_inference`.
        compile_mode: see `for_inference`.
        shape: of the network, see `ddpm.build`.

    Raises:
        UserError: if the file is not of this architecture.
    """
    which, execution = (ema, state_dict), (device, dtype, compile_mode)
    return _load_ddpm(path, (schedule, num_train_timesteps), which, execution, _frozen(shape))


@cache
def _load_ddpm(path: str, schedule: Schedule, which: Which, execution: Execution, frozen: Shape) -> PixelModel:
    shape, levels = dict(frozen), _schedule(*schedule)
    with torch.device("meta"):
        unet = ddpm.build(**shape)
    found = read_checkpoint(Path(path))
    names = _names_in(found, unet, ddpm.names(len(shape["ch_mult"]), unet.state_dict()))
    load_converted(unet, choose(found, wanted_shapes(unet, names), *which, path), names, path)
    network = for_inference(unet, sample_of, *execution)
    return PixelModel(NetworkDenoiser(network, levels), shape["image_size"], 2 ** (len(shape["ch_mult"]) - 1))


def load_classifier(
    path: str,
    attention_order: AttentionOrder,
    ema: bool = True,
    state_dict: str | None = None,
    device: str = "cpu",
    **shape: Any,
) -> Callable[[Tensor, Tensor], Tensor]:
    """EGSDE's domain-specific extractor from its released checkpoint: (x_t, t) → features.

    Args:
        path: the file.
        attention_order: "legacy" or "new", see `adm.split_qkv`.
        ema: take the moving average where the file holds a network and its average.
        state_dict: place of the state dict in the file, see `load_adm`.
        device: where it runs.
        shape: of the network, see `DomainClassifier`.

    Raises:
        UserError: if the file is not of this architecture.
    """
    return _load_classifier(path, attention_order, (ema, state_dict), device, _frozen(shape))


@cache
def _load_classifier(
    path: str, order: AttentionOrder, which: Which, device: str, frozen: Shape
) -> Callable[[Tensor, Tensor], Tensor]:
    shape = dict(frozen)
    with torch.device("meta"):
        network = DomainClassifier(**shape)
    names = classifier_names(network)
    state = choose(read_checkpoint(Path(path)), wanted_shapes(network, names), *which, path)
    split = partial(adm.split_qkv, head_channels=shape["num_head_channels"], order=order)
    load_converted(network, state, names, path, split)
    return for_inference(network, DomainClassifier.features, device)


@cache
def load_diffusers(
    path: str,
    device: str = "cpu",
    dtype: str = "float32",
    compile_mode: str | None = None,
    revision: str | None = None,
    variant: str | None = None,
) -> PixelModel:
    """An unconditional pixel-space diffusers folder or hub id (UNet2DModel and scheduler) as a model.

    Args:
        path: a folder as DDPMPipeline or DDIMPipeline saves it, or an id such as google/ddpm-ema-celebahq-256.
        device: where it runs.
        dtype: of its evaluation, see `for_inference`.
        compile_mode: see `for_inference`.
        revision: commit, branch or tag of a hub id; None for its main branch. A folder has none.
        variant: of the files of weights, such as fp16; None for those without a variant.

    Raises:
        UserError: if it is not there, is another kind of network, or its weights do not fit its configuration.
    """
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    repository = Repository(path, revision, variant)
    with one_sentence(repository, "diffusers folder of an unconditional network"), quietly():
        _require_pixels(repository)
        scheduler_folder, unet_folder = _layout(repository, UNet2DModel)
        where = f"{path}/{unet_folder}".removesuffix("/")
        config = load_config(UNet2DModel, repository, unet_folder)
        require_absent(config, ("class_embed_type", "num_class_embeds"), where, "choose an unconditional network")
        scheduler = load_config(DDPMScheduler, repository, scheduler_folder)
        training = read_scheduler(scheduler, path)
        size = whole_number(config, "sample_size", where)
        unet: Any = load_part(UNet2DModel, repository, unet_folder)
        if unet.config.in_channels != 3 or unet.config.out_channels not in (3, 6):
            raise UserError(
                f"{path} reads {unet.config.in_channels} channels and gives {unet.config.out_channels}; an image has "
                "3, and a learned variance 3 more: choose a pixel-space network"
            )
        learned = unet.config.out_channels == 6
        if learned and training.parametrization != "epsilon":
            raise UserError(
                f"{path} predicts {training.parametrization} with a variance, which is read only of networks that "
                "predict epsilon"
            )
        if learned and scheduler.get("variance_type") == "learned":
            raise UserError(f"{path} predicts a variance of the type learned; the models here know learned_range only")
        network = for_inference(unet, sample_of, device, dtype, compile_mode)
        side = 2 ** (len(unet.config.block_out_channels) - 1)
        plain = NetworkDenoiser(network, training.schedule, training.parametrization)
        model = PixelModel(LearnedVarianceDenoiser(network, training.schedule) if learned else plain, size, side)
        with torch.no_grad():
            exact = network.exact or network
            grey, t = torch.zeros(1, 3, 2 * side, 2 * side, device=device), torch.tensor([0], device=device)
            if not exact(grey, t).isfinite().all():
                raise UserError(f"{path} gives NaN or Inf for a grey image; get it again")
    return model


def _require_pixels(repository: Repository) -> None:
    """Require that a repository that names its pipeline names one without a codec: latents can have 3 channels, too."""
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    try:
        index: Any = DiffusionPipeline.load_config(repository.path, **repository.hub)
    except OSError:  # the oldest repositories have none
        return
    if (name := index.get("_class_name")) not in PIXEL_PIPELINES:
        raise UserError(f"{repository.path} is a {name}; models on pixels are one of {', '.join(PIXEL_PIPELINES)}")


def _layout(repository: Repository, network: Any) -> tuple[str, str]:
    """Folders of scheduler and network; the oldest repositories have both in one."""
    nested = "scheduler", "unet"
    if repository.is_folder:
        return nested if Path(repository.path, "unet", "config.json").is_file() else ("", "")
    try:
        load_config(network, repository, "unet")
    except OSError:
        return "", ""
    return nested


def _names_in(found: Mapping[str, StateDict], unet: UNet2DModel, official: Names) -> Names:
    """The official names or, where a file holds the network's own, as study=train writes it, these."""
    own = {key: (key,) for key in unet.state_dict()}
    return own if found.get("", {}).keys() == own.keys() else official


def _frozen(shape: dict[str, Any]) -> Shape:
    return tuple((key, tuple(value) if isinstance(value, list) else value) for key, value in sorted(shape.items()))


def _schedule(name: str, num_train: int) -> DiffusionSchedule:
    try:
        return DiffusionSchedule(alpha_bar_from_betas(named_betas(name, num_train)))
    except ValueError as error:
        raise UserError(str(error)) from error
