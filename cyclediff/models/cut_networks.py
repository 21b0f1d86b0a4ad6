"""The networks of CUT and FastCUT (arXiv 2007.15651): generator, discriminator, and heads for features of patches.

Names of tensors are those of the official files. Two filters against aliasing (arXiv 1904.11486) are tensors there, and
are the same in every file: [1, 2, 1] before every second pixel is dropped, and [1, 3, 3, 1] after pixels are doubled.
The latter is bilinear interpolation, and is computed so.
"""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cyclediff.errors import UserError
from cyclediff.models.checkpoint import read_checkpoint
from cyclediff.models.state_dicts import choose
from cyclediff.models.weights import load_weights, wanted_shapes

LAYERS = (0, 4, 8, 12, 16)  # of the generator, whose outputs are compared; 0 is the padded image
SMALLEST_NORM = 1e-7
SMALLEST_SIDE = 16  # of an image that the generator reads
Network = TypeVar("Network", bound=nn.Module)


class Down(nn.Module):
    """Half the size: a binomial filter, and every second pixel."""

    filt: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("filt", _filter([1, 2, 1], 16, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) → (n, c, h/2, w/2), rounded up."""
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), self.filt, stride=2, groups=x.shape[1])


class Up(nn.Module):
    """Twice the size, bilinear."""

    filt: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("filt", _filter([1, 3, 3, 1], 16, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) → (n, c, 2h, 2w)."""
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class Block(nn.Module):
    """A residual block."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv_block = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
            nn.ReLU(),
            nn.ReflectionPad2d(1),
            nn.Conv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        return x + self.conv_block(x)


class Generator(nn.Module):
    """The generator `resnet`: an image of one domain → one of the other.

    Args:
        width: channels after the first convolution; official 64 (ngf).
        blocks: residual blocks; official 9.
        antialias: filter before the size is halved (official; no_antialias).
        antialias_up: double the size by a filter; else by a transposed convolution (no_antialias_up).
    """

    def __init__(self, width: int = 64, blocks: int = 9, antialias: bool = True, antialias_up: bool = True):
        super().__init__()
        layers: list[nn.Module] = [nn.ReflectionPad2d(3), nn.Conv2d(3, width, 7), *_normed(width)]
        for channels in (width, 2 * width):
            stride = 1 if antialias else 2
            layers += [nn.Conv2d(channels, 2 * channels, 3, stride, padding=1), *_normed(2 * channels)]
            layers += [Down(2 * channels)] if antialias else []
        layers += [Block(4 * width) for _ in range(blocks)]
        for channels in (4 * width, 2 * width):
            half = channels // 2
            if antialias_up:
                layers += [Up(channels), nn.Conv2d(channels, half, 3, padding=1)]
            else:
                layers += [nn.ConvTranspose2d(channels, half, 3, stride=2, padding=1, output_padding=1)]
            layers += _normed(half)
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(width, 3, 7), nn.Tanh()]
        self.model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, 3, h, w) in [-1, 1], with sides that are multiples of 4 → the same shape and range."""
        return self.model(x)

    def features(self, x: Tensor, layers: Sequence[int] = LAYERS) -> list[Tensor]:
        """What some layers make of images; the layers after the last one are not evaluated."""
        return self._run(x, layers, max(layers) + 1)[1]

    def with_features(self, x: Tensor, layers: Sequence[int] = LAYERS) -> tuple[Tensor, list[Tensor]]:
        """The images that it makes, and what some layers make on the way, in one pass."""
        return self._run(x, layers, len(self.model))

    def feature_widths(self, layers: Sequence[int] = LAYERS) -> list[int]:
        """Channels of some layers' outputs.

        Raises:
            ValueError: if there is no such layer.
        """
        if not all(0 <= layer < len(self.model) for layer in layers):
            raise ValueError(f"the generator has the layers 0 … {len(self.model) - 1}; got {list(layers)}")
        image = next(self.parameters()).new_zeros(1, 3, SMALLEST_SIDE, SMALLEST_SIDE)
        with torch.no_grad():
            return [feature.shape[1] for feature in self.features(image, layers)]

    def _run(self, x: Tensor, layers: Sequence[int], count: int) -> tuple[Tensor, list[Tensor]]:
        found: dict[int, Tensor] = {}
        for index, layer in enumerate(self.model[:count]):
            x = layer(x)
            if index in layers:
                found[index] = x
        return x, [found[layer] for layer in layers]


class Discriminator(nn.Module):
    """The discriminator `basic`: PatchGAN (arXiv 1611.07004), a score for each patch of 70×70 pixels.

    Args:
        width: channels after the first convolution; official 64 (ndf).
        layers: convolutions that halve the size; official 3 (n_layers_D).
        antialias: filter before the size is halved (official; no_antialias).
    """

    def __init__(self, width: int = 64, layers: int = 3, antialias: bool = True):
        super().__init__()
        stride = 1 if antialias else 2
        parts: list[nn.Module] = [nn.Conv2d(3, width, 4, stride, padding=1), nn.LeakyReLU(0.2)]
        parts += [Down(width)] if antialias else []
        channels = width
        for index in range(1, layers + 1):
            wider, halves = width * min(2**index, 8), index < layers
            parts += [nn.Conv2d(channels, wider, 4, stride if halves else 1, padding=1), nn.InstanceNorm2d(wider)]
            parts += [nn.LeakyReLU(0.2), *([Down(wider)] if halves and antialias else [])]
            channels = wider
        self.model = nn.Sequential(*parts, nn.Conv2d(channels, 1, 4, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Images (n, 3, h, w) → scores (n, 1, h', w')."""
        return self.model(x)


class Projections(nn.Module):
    """A head for each layer (`mlp_sample`): features at some positions → vectors of length 1.

    The official code makes its heads at the first evaluation, which several processes and a checkpoint that is resumed
    cannot do. Here they are made from the generator's `feature_widths`.

    Args:
        widths: channels of each layer.
        size: of a vector; official 256 (netF_nc).
    """

    def __init__(self, widths: Sequence[int], size: int = 256):
        super().__init__()
        self.count = len(widths)
        for index, width in enumerate(widths):
            self.add_module(f"mlp_{index}", nn.Sequential(nn.Linear(width, size), nn.ReLU(), nn.Linear(size, size)))

    def forward(self, features: Sequence[Tensor], positions: Sequence[Tensor]) -> list[Tensor]:
        """Features (n, c, h, w) and positions int64 (p,) in the rows of a map, of each layer → (n, p, size) each."""
        found = []
        for index, (feature, chosen) in enumerate(zip(features, positions, strict=True)):
            vectors = self.get_submodule(f"mlp_{index}")(feature.flatten(2)[:, :, chosen].mT)
            found.append(vectors / (vectors.norm(dim=2, keepdim=True) + SMALLEST_NORM))
        return found


def initialise(network: Network, rng: torch.Generator, gain: float = 0.02) -> Network:
    """Draw weights as the official code does: Xavier's normal distribution for convolutions and heads, bias 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.xavier_normal_(module.weight, gain, generator=rng)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network


@cache
def load_generator(
    path: str,
    width: int = 64,
    blocks: int = 9,
    antialias: bool = True,
    antialias_up: bool = True,
    ema: bool = False,
    state_dict: str | None = None,
    device: str = "cpu",
) -> Callable[[Tensor], Tensor]:
    """A generator from a file, such as the official latest_net_G.pth; loaded once per process.

    Args:
        path: the file.
        width: see `Generator`, as the next three.
        blocks: of the generator.
        antialias: of the generator.
        antialias_up: of the generator.
        ema: take the moving average where the file holds a network and its average.
        state_dict: place of the state dict in the file, where `ema` does not say which is meant; see `choose`.
        device: where it runs.

    Returns:
        Images (n, 3, h, w) in [-1, 1] → images of the other domain, same shape and range.

    Raises:
        UserError: if the file is not of this architecture, or its filters are not the known ones.
    """
    with torch.device("meta"):
        network = Generator(width, blocks, antialias, antialias_up)
    names = {key: (key,) for key in network.state_dict()}
    load_weights(
        network, choose(read_checkpoint(Path(path)), wanted_shapes(network, names), ema, state_dict, path), path
    )
    for name, module in network.named_modules():
        if isinstance(module, Down | Up) and not module.filt.allclose(type(module)(len(module.filt)).filt, atol=1e-3):
            raise UserError(
                f"{path} has another filter than the official networks in {name}.filt, so it would give other images; "
                "take a network that was trained with the official antialiasing"
            )
    return network.eval().requires_grad_(False).to(device)  # channels last would be a sixth slower on a CPU


def _normed(channels: int) -> list[nn.Module]:
    return [nn.InstanceNorm2d(channels), nn.ReLU()]


def _filter(row: Sequence[int], total: int, channels: int) -> Tensor:
    """A separable filter for each channel, (channels, 1, k, k)."""
    values = torch.tensor(row, dtype=torch.float32)
    return (values[:, None] * values / total).repeat(channels, 1, 1, 1)
