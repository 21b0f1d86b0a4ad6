"""Learned perceptual similarity (LPIPS 0.1, arXiv 1801.03924), through its authors' package `lpips`.

The package brings the weights of its linear layers; those of the backbone are a local file of torchvision's.
"""

import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from eval.metrics.features import file_digest
from eval.metrics.metric import Metric
from eval.random_mark import is_random
from eval.weight_files import require_finite, require_weights_file

LPIPS = Metric("LPIPS", 3, False)
BACKGROUND_LPIPS = Metric("background LPIPS×10³", 2, False, 1e3)
CHUNK = 8  # pairs at once: VGG keeps a gigabyte of eight at 512×512
SMALLEST = {"alex": 31, "vgg": 16, "squeeze": 17}  # height and width that still reach the last layer


@dataclass(frozen=True, eq=False)
class Lpips:
    """A network that estimates how different two images look to people.

    Args:
        protocol: package version, backbone and digest of its file, for protocol strings: "lpips-alex-0.1-1a2b3c4d".
        network: pairs (n, 3, h, w) in [-1, 1] → (n, 1, 1, 1).
        smallest: height and width that images must have at least.
        device: where the network is.
        random: whether the backbone's weights are random.
    """

    protocol: str
    network: Any
    smallest: int
    device: str = "cpu"
    random: bool = False

    @torch.no_grad()
    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Distances of pairs of images, uint8 (n, 3, h, w) each → float64 (n,) on the CPU, 0 for equal ones.

        Raises:
            ValueError: if the images are too small.
        """
        height, width = a.shape[-2:]
        if min(height, width) < self.smallest:
            raise ValueError(
                f"{self.protocol} needs images of {self.smallest}×{self.smallest} pixels at least; got "
                f"{height}×{width}; leave LPIPS out, or take another backbone"
            )
        found = []
        # cuDNN's default for convolutions is TF32, with which two machines differ in the fourth digit
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            for pair in zip(a.split(CHUNK), b.split(CHUNK), strict=True):
                x, y = (side.to(self.device).float() / 127.5 - 1 for side in pair)
                found.append(self.network(x, y).flatten().double().cpu())
        return torch.cat(found)


@cache
def lpips_network(path: str, net: Literal["alex", "vgg", "squeeze"] = "alex", device: str = "cpu") -> Lpips:
    """LPIPS with a backbone from a local file; nothing is downloaded.

    Args:
        path: torchvision's weights of AlexNet, VGG16 or SqueezeNet 1.1, whole or without their classifier:
            alexnet-owt-7be5be79.pth, vgg16-397923af.pth, squeezenet1_1-b8a52dc0.pth.
        net: which of them it is. Papers report "alex" unless they say otherwise.
        device: where it runs.

    Raises:
        ValueError: if the package is not installed, or there are no such weights.
    """
    try:
        import lpips
    except ImportError as error:
        raise ValueError("LPIPS needs its package; install it: pip install 'cyclediff[lpips]'") from error
    if net not in SMALLEST:
        raise ValueError(f"LPIPS has the backbones {', '.join(SMALLEST)}; got {net}")
    state = _read(path)
    with warnings.catch_warnings(action="ignore"), torch.random.fork_rng(devices=[]):  # it draws what is then replaced
        network: Any = lpips.LPIPS(net=net, version="0.1", pnet_rand=True, verbose=False)
    _fit(network.net, state, path, net)
    random = is_random(state.values())
    protocol = f"{'RANDOM-' if random else ''}lpips-{net}-0.1-{file_digest(Path(path))}"
    return Lpips(protocol, network.to(device).eval().requires_grad_(False), SMALLEST[net], device, random)


def _read(path: str) -> dict[str, Tensor]:
    if not Path(path).is_file():
        raise ValueError(f"there is no file {path}; give torchvision's weights of the backbone")
    require_weights_file(Path(path))
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(f"{path} is damaged or holds no weights; get it again") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds other things than tensors; give a state dict of torchvision")
    require_finite(state, path)
    return state


def _fit(backbone: Any, state: dict[str, Tensor], path: str, net: str) -> None:
    """Load the weights; what torchvision calls features, the package calls slices, with the same numbers."""
    places = {f"features.{key.partition('.')[2]}": key for key in backbone.state_dict()}
    found = {key: value for key, value in state.items() if not key.startswith("classifier.")}
    own = {places[key]: value for key, value in found.items() if key in places}
    shapes = {key: value.shape for key, value in backbone.state_dict().items()}
    if found.keys() != places.keys() or {key: value.shape for key, value in own.items()} != shapes:
        raise ValueError(
            f"the weights in {path} are not those of torchvision's {net} backbone; choose its file or its net"
        )
    backbone.load_state_dict(own)
