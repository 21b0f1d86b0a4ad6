"""Structure distance (Splice, arXiv 2201.00424): how far the self-similarities of two images' parts are apart.

The parts are the tokens of a DINO ViT, described by the keys of its last layer. PIE-Bench's code gives the network
images on 0 … 255, where the network expects 0 … 1, and resizes without antialiasing. That is one of the two ways here;
their numbers have different scales.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from eval.metrics.metric import Metric
from eval.metrics.vits import IMAGENET, last_keys, vision_transformer

STRUCTURE = Metric("structure×10³", 2, False, 1e3)
Way = Literal["unit-antialias", "255-noantialias"]
LONGEST = 480 / 224  # of the longer side, for the shorter one; the official code's Resize(224, max_size=480)
CHUNK = 8  # images at once
SMALLEST = 1e-8  # product of two lengths, in a cosine


@dataclass(frozen=True, eq=False)
class Structure:
    """The network of a structure distance.

    Args:
        name: network and size, for protocol strings; see `protocol`.
        network: of timm.
        size: length of an image's shorter side when it enters the network.
        device: where it is.
        random: whether its weights are random.
    """

    name: str
    network: Any
    size: int
    device: str = "cpu"
    random: bool = False

    def protocol(self, way: Way) -> str:
        """For protocol strings."""
        return f"structure/{self.name}-last-keys/bilinear{self.size}-{way}"

    @torch.no_grad()
    def __call__(self, a: Tensor, b: Tensor, way: Way) -> Tensor:
        """Distances of pairs of images.

        Args:
            a: uint8 (n, 3, h, w).
            b: the same shape.
            way: images on 0 … 1, resized with antialiasing; or the official code's, on 0 … 255 and without it.

        Returns:
            float64 (n,), 0 for equal images.
        """
        found = []
        for pair in zip(a.split(CHUNK), b.split(CHUNK), strict=True):
            both = self.similarities(torch.cat(pair), way)
            one, other = both.tensor_split(2)
            found.append((one - other).square().mean(dim=(1, 2)).double().cpu())
        return torch.cat(found)

    def similarities(self, images: Tensor, way: Way) -> Tensor:
        """Cosines between the tokens of each image, uint8 (n, 3, h, w) → (n, tokens, tokens)."""
        keys = last_keys(self.network, self.prepare(images, way))
        lengths = keys.norm(dim=2)
        return keys @ keys.mT / (lengths[:, :, None] * lengths[:, None]).clamp(min=SMALLEST)

    def prepare(self, images: Tensor, way: Way) -> Tensor:
        """Images as they enter the network: uint8 (n, 3, h, w) → float32 (n, 3, h', w')."""
        unit = way == "unit-antialias"
        x = images.to(self.device).float() / (255 if unit else 1)
        size = resized(x.shape[2], x.shape[3], self.size)
        if size != tuple(x.shape[2:]):
            x = F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=unit)
        mean, std = (x.new_tensor(values)[:, None, None] for values in IMAGENET)
        return (x - mean) / std


def resized(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width where the shorter side becomes `size`, unless the longer one is more than 15/7 of it."""
    short, long = sorted((height, width))
    longest = int(size * LONGEST)
    new_short, new_long = size, int(size * long / short)
    if new_long > longest:
        new_short, new_long = int(longest * new_short / new_long), longest
    return (new_short, new_long) if height <= width else (new_long, new_short)


def structure_network(path: str, model: str = "vit_base_patch8_224.dino", device: str = "cpu") -> Structure:
    """The network of PIE-Bench's structure distance, from its weights.

    Args:
        path: dino_vitbase8_pretrain.pth, or another place of the weights; see `vits.vision_transformer`.
        model: timm's name.
        device: where it runs.

    Raises:
        ValueError: see `vits.vision_transformer`.
    """
    vit = vision_transformer(path, model, device=device)
    return Structure(vit.name, vit.network, 224, device, vit.random)
