"""The Inception features of clean-fid and of pytorch-fid, from their published files, through clean-fid's code."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from eval.metrics.features import Extractor, file_digest
from eval.random_mark import is_random
from eval.weight_files import require_finite, require_weights_file

CLEAN_FID = "inception-2015-12-05.pt"
PYTORCH_FID = "pt_inception-2015-12-05-6726825d.pth"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def clean_fid(path: str, device: str = "cpu") -> Extractor:
    """Features as clean-fid's mode "clean" computes them: PIL's bicubic to 299×299 in floats, NVIDIA's TorchScript.

    Args:
        path: of inception-2015-12-05.pt; clean-fid requires this name.
        device: where it runs.

    Raises:
        ValueError: if the file is no such network.
    """
    from cleanfid.inception_torchscript import InceptionV3W
    from cleanfid.resize import build_resizer

    _require_name(path, CLEAN_FID)
    try:
        with warnings.catch_warnings(action="ignore"):  # TorchScript is deprecated, and the published file is one
            network: Any = InceptionV3W(str(Path(path).parent), download=False).to(device).eval()
    except (RuntimeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged or not NVIDIA's TorchScript Inception; get the file again") from error
    require_finite(dict(network.named_parameters()), path)
    resize = build_resizer("clean")
    name, random = _name("inception-2015-12-05", path, network.parameters())

    def read(image: Image.Image) -> Tensor:
        return torch.from_numpy(resize(np.array(image))).permute(2, 0, 1)

    return Extractor(f"{name}/clean-bicubic299", read, network, device, random)


def pytorch_fid(path: str, celeba: bool = False, device: str = "cpu") -> Extractor:
    """Features as pytorch-fid and EGSDE's evaluator compute them: bilinear to 299×299 in the network.

    Args:
        path: of pt_inception-2015-12-05-6726825d.pth.
        celeba: prepare images as EGSDE's evaluator does for male → female only: PIL's bilinear to 256 and to 299, then
            ImageNet's mean and standard deviation, before the network's own scaling.
        device: where it runs.

    Raises:
        ValueError: if the file is no such network.
    """
    _require_name(path, PYTORCH_FID)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        network = _fid_inception()
        network.load_state_dict(state)
        network.fc = torch.nn.Identity()  # features are what the classifier reads
        network.to(device).eval()
    except (RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged or not pytorch-fid's Inception; get the file again") from error
    require_finite(state, path)
    name, random = _name("pt-inception-2015-12-05", path, state.values())
    how = "pil-bilinear256-bilinear299-imagenet" if celeba else "network-bilinear299"
    read = _read_celeba if celeba else _unit
    return Extractor(f"{name}/{how}", _at_299(read), lambda batch: network(2 * batch - 1), device, random)


def _fid_inception() -> torch.nn.Module:
    """Inception of TensorFlow's FID, untrained: torchvision's network with clean-fid's blocks.

    clean-fid builds it too, but only together with a download that it unpickles freely.
    """
    from cleanfid import inception_pytorch as library
    from torchvision.models import inception_v3

    network = inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)
    network.Mixed_5b = library.FIDInceptionA(192, pool_features=32)
    network.Mixed_5c = library.FIDInceptionA(256, pool_features=64)
    network.Mixed_5d = library.FIDInceptionA(288, pool_features=64)
    network.Mixed_6b = library.FIDInceptionC(768, channels_7x7=128)
    network.Mixed_6c = library.FIDInceptionC(768, channels_7x7=160)
    network.Mixed_6d = library.FIDInceptionC(768, channels_7x7=160)
    network.Mixed_6e = library.FIDInceptionC(768, channels_7x7=192)
    network.Mixed_7b = library.FIDInceptionE_1(1280)
    network.Mixed_7c = library.FIDInceptionE_2(2048)
    return network.requires_grad_(False)


def _at_299(read: Any) -> Any:
    """Resize as the network would, but image by image, so that a batch may hold several sizes."""

    def resized(image: Image.Image) -> Tensor:
        return torch.nn.functional.interpolate(read(image)[None], (299, 299), mode="bilinear", align_corners=False)[0]

    return resized


def _unit(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def _read_celeba(image: Image.Image) -> Tensor:
    for size in (256, 299):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    mean, std = (torch.tensor(values)[:, None, None] for values in IMAGENET)
    return (_unit(image) - mean) / std


def _require_name(path: str, name: str) -> None:
    if Path(path).name != name:
        raise ValueError(f"the Inception file must be named {name}, as its library expects; got {path}")
    if not Path(path).is_file():
        raise ValueError(f"{path} does not exist; `python scripts/assets.py status` says where it comes from")
    require_weights_file(Path(path))


def _name(name: str, path: str, tensors: Any) -> tuple[str, bool]:
    """The network's name in protocol strings; random weights carry a mark and get a name of their own."""
    random = is_random(tensors)
    return (f"RANDOM-{name}-{file_digest(Path(path))}" if random else name), random
