"""The generator of Splice (arXiv 2201.00424): the skip network of Deep Image Prior (arXiv 1711.10925)."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

GAIN, SPREAD = 0.02, 0.02  # of the official initialisation: Xavier's, and of BatchNorm's weights around 1
SLOPE = 0.2  # of LeakyReLU


class Join(nn.Module):
    """Two branches on one input, their maps cut to the smaller size around the middle, side by side."""

    def __init__(self, skip: nn.Module, deep: nn.Module):
        super().__init__()
        self.add_module("0", skip)
        self.add_module("1", deep)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) → (n, skip + deep, h, w)."""
        maps = [branch(x) for branch in self.children()]
        height, width = (min(one.shape[axis] for one in maps) for axis in (2, 3))
        cut = []
        for one in maps:
            top, left = (one.shape[2] - height) // 2, (one.shape[3] - width) // 2
            cut.append(one[:, :, top : top + height, left : left + width])
        return torch.cat(cut, dim=1)


@dataclass(frozen=True)
class SkipNets:
    """Skip networks of one shape; calling it makes one with new weights, under the official names of tensors.

    Args:
        down: channels of each level on the way down.
        up: the same on the way up.
        skip: channels that each level hands across.
    """

    down: Sequence[int] = (16, 32, 64, 128, 128)
    up: Sequence[int] = (16, 32, 64, 128, 128)
    skip: Sequence[int] = (4, 4, 4, 4, 4)

    def __post_init__(self):
        if not len(self.down) == len(self.up) == len(self.skip) or not self.down:
            raise ValueError(
                "generator.down, up and skip must each have a number for every level; got "
                f"{len(self.down)}, {len(self.up)} and {len(self.skip)}"
            )
        if min(*self.down, *self.up, *self.skip) < 1:
            raise ValueError(f"generator.down, up and skip must be at least 1; got {self.down}, {self.up}, {self.skip}")

    def __call__(self, rng: torch.Generator) -> nn.Module:
        """A network: images (n, 3, h, w) in [0, 1] → the same shape and range.

        It is meant for train mode, also where it gives the result: BatchNorm then takes the image's own statistics.

        Args:
            rng: what its weights are drawn from, on the CPU.
        """
        with torch.device("meta"):  # else torch would draw weights from its global random state
            network = _level(3, self.down, self.up, self.skip)
            network.add_module("9", nn.Sequential(nn.Conv2d(self.up[0], 3, 1)))
        network.add_module("10", nn.Sigmoid())
        network.to_empty(device="cpu")
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_normal_(module.weight, GAIN, generator=rng)
                nn.init.constant_(module.get_parameter("bias"), 0.0)
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
                nn.init.normal_(module.weight, 1.0, SPREAD, generator=rng)
        return network


def _level(channels: int, down: Sequence[int], up: Sequence[int], skip: Sequence[int]) -> nn.Sequential:
    """A level and all below it; its parts are counted from 1, as in the official code."""
    deep = [*_convolution(channels, down[0], 3, stride=2), *_convolution(down[0], down[0], 3)]
    above = down[0]
    if len(down) > 1:
        deep.append(_level(down[0], down[1:], up[1:], skip[1:]))
        above = up[1]
    deep.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
    across = _convolution(channels, skip[0], 1)
    return _numbered(
        Join(_numbered(*across), _numbered(*deep)),
        nn.BatchNorm2d(skip[0] + above),
        *_convolution(skip[0] + above, up[0], 3),
        *_convolution(up[0], up[0], 1),
    )


def _convolution(channels: int, out: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2)
    return [nn.Sequential(convolution), nn.BatchNorm2d(out), nn.LeakyReLU(SLOPE)]


def _numbered(*parts: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict((str(index), part) for index, part in enumerate(parts, start=1)))
