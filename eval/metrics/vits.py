"""Vision transformers of timm as networks of features: their weights, and their names in protocol strings."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eval.metrics.features import Extractor, file_digest
from eval.random_mark import is_random
from eval.weight_files import require_finite, require_weights_file

HUB = "hf-hub:"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True, eq=False)
class VisionTransformer:
    """A vision transformer with a CLS token.

    Args:
        name: with the digest of its weights, for protocol strings: "vit_base_patch8_224.dino-1a2b3c4d".
        network: of timm, without a classifier.
        device: where it is.
        random: whether its weights are random.
    """

    name: str
    network: Any
    device: str
    random: bool


@cache
def vision_transformer(path: str, model: str, size: int = 224, device: str = "cpu") -> VisionTransformer:
    """A vision transformer of timm for images of one size, in float32.

    Args:
        path: a file of weights under timm's names, DINO's or DINOv2's, in .safetensors, .pth or .pt; or "hf-hub:" and
            the id of a repository of timm's form, of which model.safetensors is downloaded once.
        model: timm's name: vit_base_patch8_224.dino, vit_large_patch14_dinov2.lvd142m.
        size: height and width of what it sees. Where it was trained on another size, its positions are interpolated as
            timm does it.
        device: where it runs.

    Raises:
        ValueError: if there are no such weights, or they do not fit.
    """
    import timm
    from timm.models.vision_transformer import checkpoint_filter_fn

    if not timm.is_model(model.partition(".")[0]):
        raise ValueError(f"timm has no network {model}; give one of its names, such as vit_base_patch8_224.dino")
    file = _file(path)
    state = _read(file)
    network: Any = timm.create_model(model, pretrained=False, num_classes=0, img_size=size, dynamic_img_size=True)
    own = {key: value.shape for key, value in network.state_dict().items()}
    state = {key: value for key, value in state.items() if not key.startswith(("head.", "fc."))}
    try:
        found = {key: value for key, value in checkpoint_filter_fn(state, network).items() if key != "mask_token"}
    except (KeyError, RuntimeError, ValueError, AttributeError, IndexError) as error:
        raise ValueError(f"{file} does not fit {model}; choose the model that these weights are of") from error
    wrong = sorted(own.keys() ^ found.keys()) or [key for key in own if own[key] != found[key].shape]
    if wrong:
        raise ValueError(
            f"{file} does not fit {model}: {len(wrong)} tensors are missing, unknown or of another shape ({wrong[0]}, "
            "…); choose the model that these weights are of"
        )
    require_finite(found, file)
    network.load_state_dict(found)
    random = is_random(state.values())
    network = network.float().eval().requires_grad_(False).to(device)
    return VisionTransformer(f"{'RANDOM-' * random}{model}-{file_digest(file)}", network, device, random)


def cls_features(path: str, model: str, size: int = 224, shorter: int | None = None, device: str = "cpu") -> Extractor:
    """The CLS token behind the last norm; pictures are resized by PIL's bicubic filter and normalised as ImageNet's.

    Args:
        path: see `vision_transformer`.
        model: see `vision_transformer`.
        size: height and width of what the network sees.
        shorter: the picture's shorter side becomes so long, and the centred square of `size` is cut out of it. None
            resizes the whole picture to a square, whatever its shape, as dgm-eval does.
        device: where it runs.

    Raises:
        ValueError: see `vision_transformer`.
    """
    vit = vision_transformer(path, model, size, device)
    how = f"pil-bicubic{size}" if shorter is None else f"pil-bicubic{shorter}-center{size}"

    def read(picture: Image.Image) -> Tensor:
        picture = picture.convert("RGB")
        if shorter is None:
            picture = picture.resize((size, size), Image.Resampling.BICUBIC)
        else:
            share = shorter / min(picture.size)
            width, height = (round(side * share) for side in picture.size)
            left, top = (width - size) // 2, (height - size) // 2
            picture = picture.resize((width, height), Image.Resampling.BICUBIC)
            picture = picture.crop((left, top, left + size, top + size))
        mean, std = (torch.tensor(values)[:, None, None] for values in IMAGENET)
        return (torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255 - mean) / std

    return Extractor(f"{vit.name}-cls/{how}", read, lambda batch: _cls(vit.network, batch), device, vit.random)


def _cls(network: Any, prepared: Tensor) -> Tensor:
    return network.forward_features(prepared)[:, 0]


def last_keys(network: Any, prepared: Tensor) -> Tensor:
    """The keys of the last block's attention, of all heads together: (n, 3, h, w) → (n, tokens, d), CLS token first.

    Nothing behind these keys is computed. What is beyond the last whole patch is cut off, as a convolution does.
    """
    patch = network.patch_embed.patch_size[0]
    height, width = (side // patch * patch for side in prepared.shape[2:])
    prepared = prepared[..., :height, :width]
    x = network.norm_pre(network.patch_drop(network._pos_embed(network.patch_embed(prepared))))
    *blocks, last = network.blocks
    for block in blocks:
        x = block(x)
    qkv, d = last.attn.qkv, x.shape[-1]
    bias = None if qkv.bias is None else qkv.bias[d : 2 * d]
    return torch.nn.functional.linear(last.norm1(x), qkv.weight[d : 2 * d], bias)


def _file(path: str) -> Path:
    if not path.startswith(HUB):
        if not Path(path).is_file():
            raise ValueError(f"there is no file {path}; give a file of weights, or {HUB} and the id of a repository")
        require_weights_file(Path(path))
        return Path(path)
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(path.removeprefix(HUB), "model.safetensors"))
    except (OSError, ValueError) as error:  # not there, no network, no such name
        reason = " ".join(str(error).split())[:160]
        raise ValueError(
            f"{path} is not in the hub's cache and cannot be downloaded ({reason}); give a file of its weights"
        ) from error


def _read(file: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        content: Any = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(f"{file} is damaged or holds no weights; get it again") from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{file} holds other things than tensors; give a state dict of the network")
    return content
