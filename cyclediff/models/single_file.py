"""One file of Stable Diffusion 1, 2 or XL in the layout of its authors; diffusers' converters give the parts.

Such a file has no configuration and no tokenizer. They come from a folder or hub id in diffusers' layout.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cyclediff.errors import UserError
from cyclediff.models.checkpoint import read_checkpoint

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth")
PIPELINES = (
    "StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
)  # fmt: skip
UNET = "model.diffusion_model."
VAE = "first_stage_model."
CLIPS = ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.")
OPEN_CLIPS = ("cond_stage_model.model.", "conditioner.embedders.1.model.")
OF_TRAINING = (  # a second copy of the network, its noise levels, and what CLIP has beside its text encoder
    "model_ema.", "denoiser.", "betas", "alphas_cumprod", "sqrt_", "log_one_minus_alphas_cumprod", "posterior_",
    "logvar", "lvlb_weights", "global_step",
)  # fmt: skip
UNUSED = ("embeddings.position_ids", "logit_scale", "attn_mask")  # endings
SHOWN = 3


def is_single_file(path: str) -> bool:
    """Whether a path names a file of weights, and no folder or hub id."""
    return Path(path).suffix.lower() in SUFFIXES and not Path(path).is_dir()


@dataclass(frozen=True, eq=False)
class SingleFile:
    """The tensors of a file.

    Args:
        path: the file.
        state: its tensors by their names.
    """

    path: str
    state: Mapping[str, Tensor]

    def part(self, network: Any, folder: str) -> dict[str, Tensor]:
        """What the file holds for a network, by the network's names.

        Args:
            network: as its configuration builds it.
            folder: of diffusers' layout: unet, vae, text_encoder or text_encoder_2.

        Raises:
            UserError: if it holds nothing, or more than is used.
        """
        from diffusers.loaders import single_file_utils as diffusers

        own: list[str]
        convert: Callable[[dict[str, Tensor]], dict[str, Tensor]]
        if folder == "unet":
            own, convert = [UNET], lambda state: diffusers.convert_ldm_unet_checkpoint(state, network.config)
        elif folder == "vae":
            own, convert = [VAE], lambda state: diffusers.convert_ldm_vae_checkpoint(state, network.config)
        else:
            number = 1 if folder.endswith("_2") else 0
            own = [prefix for prefix in (*CLIPS, *OPEN_CLIPS) if self._holds(prefix)]
            own = [prefix for prefix in own if prefix.startswith((f"conditioner.embedders.{number}.", "cond_stage"))]
            convert = lambda state: _text(network, state, own[0])  # noqa: E731
        state = {key: value for key, value in self.state.items() if key.startswith(tuple(own))} if own else {}
        if not state:
            raise UserError(f"{self.path} holds no weights of {folder}; get the whole checkpoint, or name a folder")
        ignored = (*UNUSED, *diffusers.SD_2_TEXT_ENCODER_KEYS_TO_IGNORE)
        state = {key: value.float() for key, value in state.items() if not key.endswith(ignored)}
        converted = convert(dict(state))
        used, held = (sum(value.numel() for value in tensors.values()) for tensors in (converted, state))
        if used != held:
            raise UserError(
                f"{self.path} holds {held} numbers for {folder}, of which diffusers' converter uses {used}; it is "
                "another kind of network than task.model.config says"
            )
        return converted

    def _holds(self, prefix: str) -> bool:
        return any(key.startswith(prefix) for key in self.state)


def _text(network: Any, state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    from diffusers.loaders import single_file_utils as diffusers

    if prefix in CLIPS:
        found = diffusers.convert_ldm_clip_checkpoint(state)
    else:
        found = diffusers.convert_open_clip_checkpoint(network, state, prefix)
    if hasattr(network, "text_model"):
        return found
    return {key.removeprefix("text_model."): value for key, value in found.items()}  # since transformers 5.6


def read_single_file(path: str) -> SingleFile:
    """The tensors of a file; no code in it runs.

    Raises:
        UserError: if it is no checkpoint of Stable Diffusion in the layout of its authors, or holds what is not known.
    """
    groups = read_checkpoint(Path(path))
    state = next((group for group in groups.values() if any(key.startswith(UNET) for key in group)), None)
    if state is None:
        raise UserError(
            f"{path} has no {UNET}*, so it is no whole checkpoint of Stable Diffusion 1, 2 or XL; name a folder in "
            "diffusers' layout"
        )
    known = (UNET, VAE, *CLIPS, *OPEN_CLIPS, *OF_TRAINING)
    if unknown := sorted(key for key in state if not key.startswith(known)):
        shown = f"{', '.join(unknown[:SHOWN])}{', …' * (len(unknown) > SHOWN)}"
        raise UserError(f"{path} holds {len(unknown)} tensors that are not known here ({shown}); name a folder instead")
    return SingleFile(path, state)


def build(cls: Any, config: Mapping[str, Any] | str, hub: Mapping[str, Any], folder: str) -> Any:
    """A network of diffusers (from its configuration) or transformers (from the place of one), without weights.

    Args:
        cls: its class.
        config: diffusers' configuration, or for transformers the folder or hub id.
        hub: arguments for the hub.
        folder: of the part.
    """
    if isinstance(config, str):
        return cls(cls.config_class.from_pretrained(config, subfolder=folder, **hub)).to(torch.float32)
    return cls.from_config(dict(config))
