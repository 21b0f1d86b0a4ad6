"""Learned perceptual similarity (LPIPS 0.1, arXiv 1801.03924), with the parts of its authors' package `lpips`.

The package brings the weights of its linear layers; those of the backbone are a local file of torchvision's. Two rules
for the length of a feature are in use, and a protocol string says which: the package's, and that of torchmetrics.
They differ where features are near 0.
"""

import warnings
from collections.abc import Callable
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
Rule = Literal["lpips", "torchmetrics"]
LENGTHS: dict[str, Callable[[Tensor], Tensor]] = {  # of features, from their sum of squares
    "lpips": lambda squares: squares.sqrt() + 1e-10,
    "torchmetrics": lambda squares: (squares + 1e-8).sqrt(),
}
SMALLEST = {"alex": 31, "vgg": 16, "squeeze": 17}  # height and width that still reach the last layer


@dataclass(frozen=True, eq=False)
class Lpips:
    """A network that estimates how different two images look to people.

    Args:
        protocol: for protocol strings: backbone, version of the linear layers, rule for the length of features, and
            digest of the backbone's file: "lpips-alex-0.1-lpips-norm-1a2b3c4d".
        network: the package's, for its parts.
        length: of features, from their sum of squares.
        smallest: height and width that images must have at least.
        device: where the network is.
        random: whether the backbone's weights are random.
    """

    protocol: str
    network: Any
    length: Callable[[Tensor], Tensor]
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
                found.append(self.distances(x, y).double().cpu())
        return torch.cat(found)

    def distances(self, x: Tensor, y: Tensor) -> Tensor:
        """Distances (n,) of pairs of images (n, 3, h, w) in [-1, 1]."""
        layers = zip(*(self.network.net(self.network.scaling_layer(side)) for side in (x, y)), strict=True)
        total = x.new_zeros(len(x))
        for (a, b), weigh in zip(layers, self.network.lins, strict=True):
            a, b = (side / self.length(side.square().sum(dim=1, keepdim=True)) for side in (a, b))
            total += weigh((a - b).square()).mean(dim=(1, 2, 3))
        return total


@cache
def lpips_network(
    path: str, net: Literal["alex", "vgg", "squeeze"] = "alex", device: str = "cpu", rule: Rule = "lpips"
) -> Lpips:
    """LPIPS with a backbone from a local file; nothing is downloaded.

    Args:
        path: torchvision's weights of AlexNet, VGG16 or SqueezeNet 1.1, whole or without their classifier:
            alexnet-owt-7be5be79.pth, vgg16-397923af.pth, squeezenet1_1-b8a52dc0.pth.
        net: which of them it is. Papers report "alex" unless they say otherwise.
        device: where it runs.
        rule: for the length f of features: of the package, √Σf² + 1e-10, or of torchmetrics, √(Σf² + 1e-8). Numbers
            of code that takes LPIPS from torchmetrics, as PIE-Bench's does, follow the second.

    Raises:
        ValueError: if the package is not installed, there is no such backbone or rule, or there are no such weights.
    """
    try:
        import lpips
    except ImportError as error:
        raise ValueError("LPIPS needs its package; install it: pip install 'cyclediff[lpips]'") from error
    if net not in SMALLEST:
        raise ValueError(f"LPIPS has the backbones {', '.join(SMALLEST)}; got {net}")
    if rule not in LENGTHS:
        raise ValueError(f"LPIPS makes features of length 1 by the rules {', '.join(LENGTHS)}; got {rule}")
    state = _read(path)
    with warnings.catch_warnings(action="ignore"), torch.random.fork_rng(devices=[]):  # it draws what is then replaced
        network: Any = lpips.LPIPS(net=net, version="0.1", pnet_rand=True, verbose=False)
    _fit(network.net, state, path, net)
    random = is_random(state.values())
    protocol = f"{'RANDOM-' if random else ''}lpips-{net}-0.1-{rule}-norm-{file_digest(Path(path))}"
    network = network.to(device).eval().requires_grad_(False)
    return Lpips(protocol, network, LENGTHS[rule], SMALLEST[net], device, random)


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
