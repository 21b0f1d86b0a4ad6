"""The codec of a text-to-image model, and checks that the parts of a folder belong together."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from cyclediff.errors import UserError
from cyclediff.models.parts import Repository, load_config, load_part


def load_codec(repository: Repository, folder: str = "vae", shifted: bool = False) -> Any:
    """The AutoencoderKL of diffusers.

    Args:
        repository: of the model.
        folder: of the codec.
        shifted: whether models of this kind shift their latents.

    Raises:
        UserError: if its weights do not fit, or its latents are scaled in a way that is not known here.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    vae: Any = load_part(AutoencoderKL, repository, folder)
    if any(vae.config.get(key) is not None for key in ("latents_mean", "latents_std")):
        raise UserError(f"{repository.path} has a codec with latents_mean or latents_std; the models here have none")
    shift = vae.config.get("shift_factor")
    if shifted and shift is None:
        raise UserError(f"{repository.path}/{folder}/config.json does not state shift_factor; get the model again")
    return vae


def scheduler_config(repository: Repository) -> dict[str, Any]:
    """The scheduler's configuration, as it is written."""
    return load_config(DDIMScheduler, repository, "scheduler")


def require_channels(unet: Any, vae: Any, repository: Repository) -> None:
    """Require that a UNet reads and gives the latents of a codec without a shift.

    Raises:
        UserError: if it does not.
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


def require_width(where: str, read: int, given: int, what: str = "numbers a token") -> None:
    """Require that a network reads texts as wide as its text encoders give them.

    Raises:
        UserError: if it does not.
    """
    if read != given:
        raise UserError(
            f"{where} reads texts of {read} {what}, and its text encoder gives {given}; get the parts that belong "
            "together"
        )


def require_parts(repository: Repository, index: Mapping[str, Any], parts: Mapping[str, str]) -> None:
    """Require that the model's index names some parts, and that they are there.

    Args:
        repository: of the model.
        index: its model_index.json.
        parts: the class of each, by its folder.

    Raises:
        UserError: if it names none or another class, or a folder is missing.
    """
    for folder, cls in parts.items():
        named = (index.get(folder) or [None, None])[-1]
        if named is None:
            raise UserError(f"{repository.path} has no {folder}, which is a {cls}; get the whole model")
        if named.removesuffix("Fast") != cls:
            raise UserError(f"{repository.path} has a {named} as {folder}; a {cls} belongs there")
        if repository.is_folder and not Path(repository.path, folder).is_dir():
            raise UserError(f"{repository.path}/{folder} is not there; get the whole model again")
