"""A text-to-image folder or hub id in diffusers' layout → a model."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from cyclediff.attention_layers import install
from cyclediff.diffusion.noise import Noise
from cyclediff.errors import UserError
from cyclediff.models import flux, sd3, sdxl, single_file
from cyclediff.models.backbone import Loaded
from cyclediff.models.inference import require_known
from cyclediff.models.lora import merge_lora
from cyclediff.models.parts import Repository, one_sentence, quietly
from cyclediff.models.single_file import is_single_file, read_single_file
from cyclediff.models.stable_diffusion import load_latent_diffusion, load_stable_diffusion
from cyclediff.models.text_to_image import TextModel, caller, layout_for
from cyclediff.models.tokenizers import PROBES

PIPELINES: dict[str, Callable[[Repository, Mapping[str, Any]], Loaded]] = {
    "StableDiffusionPipeline": lambda repository, _: load_stable_diffusion(repository),
    "StableDiffusionImg2ImgPipeline": lambda repository, _: load_stable_diffusion(repository),
    "LDMTextToImagePipeline": lambda repository, _: load_latent_diffusion(repository),
    "StableDiffusionXLPipeline": sdxl.load,
    "StableDiffusionXLImg2ImgPipeline": sdxl.load,
    "StableDiffusion3Pipeline": sd3.load,
    "StableDiffusion3Img2ImgPipeline": sd3.load,
    "FluxPipeline": flux.load,
    "FluxImg2ImgPipeline": flux.load,
}
CONFIGS = ("stable-diffusion-v1-5/stable-diffusion-v1-5", "stabilityai/stable-diffusion-xl-base-1.0")
_LOADED: dict[tuple[str | None, ...], TextModel] = {}


def load_text_to_image(
    path: str,
    device: str = "cpu",
    dtype: str = "float32",
    revision: str | None = None,
    variant: str | None = None,
    config: str | None = None,
    lora: str | None = None,
) -> TextModel:
    """Stable Diffusion 1, 2, XL, 3 or 3.5, FLUX.1, or latent diffusion's model of texts, as diffusers packages them.

    Weights are always read in float32 and then cast. A float32 model is loaded once per process, until `TextModel.cast`
    changes it. Other types are loaded at each call.

    Args:
        path: a folder, a hub id such as CompVis/stable-diffusion-v1-4, or a file of Stable Diffusion 1, 2 or XL.
        device: where it runs.
        dtype: of the networks: float32, float16 or bfloat16; latents and coefficients are always float32 or more.
        revision: commit, branch or tag of a hub id; None for its main branch. A folder has none.
        variant: of the files of weights, such as fp16; None for those without a variant.
        config: of a file, a folder or hub id of the same kind, with the configurations and tokenizers; its weights are
            not read. A folder of weights has its own.
        lora: a file whose LoRA is added to the network, see `merge_lora`.

    Raises:
        UserError: if it is not there, is another kind of model, has no safetensors, or a part of it is incomplete, left
            over or does not fit the others.
    """
    require_known(dtype)
    if dtype != "float32":
        return _load(_repository(path, revision, variant, config), device, lora).cast(dtype)
    key = path, device, revision, variant, config, lora
    if key not in _LOADED or _LOADED[key].module.dtype != torch.float32:
        _LOADED[key] = _load(_repository(path, revision, variant, config), device, lora)
    return _LOADED[key]


def _repository(path: str, revision: str | None, variant: str | None, config: str | None) -> Repository:
    if not is_single_file(path):
        if config is not None:
            raise UserError(f"task.model.config is for single files, and {path} has its own; leave it out")
        return Repository(path, revision, variant)
    if config is None:
        raise UserError(
            f"{path} is one file, without a configuration and a tokenizer; name a folder or hub id of its kind that "
            f"has them: task.model.config=FOLDER, such as {' or '.join(CONFIGS)}"
        )
    if variant is not None:
        raise UserError(f"{path} is one file, which has no variants; leave variant out")
    return Repository(config, file=read_single_file(path))


def _load(repository: Repository, device: str, lora: str | None) -> TextModel:
    with one_sentence(repository, "folder of a text-to-image model"), quietly():
        index = _index(repository)
        loaded = PIPELINES[index["_class_name"]](repository, index)
        if lora is not None:
            merge_lora(loaded.module, lora)
        model = _placed(loaded, torch.device(device))
        _evaluate_once(model, repository)
        return model.for_size(model.size)


def _index(repository: Repository) -> Mapping[str, Any]:
    """The index of a model that can be loaded here."""
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    index: Any = DiffusionPipeline.load_config(repository.path, **repository.hub)
    name = index.get("_class_name") if isinstance(index, dict) else None
    if name not in PIPELINES:
        named = f"a {name}" if name else "of no class"
        raise UserError(f"{repository.path} is {named}; the models here are one of {', '.join(PIPELINES)}")
    if repository.file is not None and name not in single_file.PIPELINES:
        raise UserError(f"{repository.path} is a {name}; single files are read of Stable Diffusion 1, 2 and XL only")
    return index


def _placed(loaded: Loaded, device: torch.device) -> TextModel:
    """The parts on their device, ready to be evaluated."""
    module, vae, encoders, backbone, training, size = loaded
    layout = layout_for(device)
    for part in (module, vae, *(encoder.network for encoder in encoders)):
        part.eval().requires_grad_(False).to(device)
    module.to(memory_format=layout)
    vae.to(memory_format=layout)
    if backbone.abilities.attention:
        install(module)
    network = caller(module, torch.float32, layout, backbone.evaluate)
    return TextModel(
        network, training.schedule, training.parametrization, module, vae, encoders, backbone, size, training.dynamic
    )


@torch.no_grad()
def _evaluate_once(model: TextModel, repository: Repository) -> None:
    """Evaluate every part on a small input, so that what does not fit is found now."""
    halved = len(model.module.config.get("block_out_channels") or ())  # by a UNet
    side = model.multiple * 2 ** max(0, halved - 1)
    x0 = model.encode(torch.zeros(1, 3, side, side, device=model.module.device), Noise(0, ["probe"]))
    seen = model.condition(PROBES[:1])(x0, model.schedule.at(model.schedule.num_train // 2))
    if not (seen.x0.isfinite().all() and model.decode(x0).isfinite().all()):
        raise UserError(f"{repository.path} gives NaN or Inf for a grey image; get it again")
