"""An energy that wants images to fit a text, by CLIP on augmented copies.

The augmentations are those of DiffAugment (arXiv 2006.10738) with CycleDiffusion's settings. Each is a function of the
images and of draws that are given. Images are float (n, 3, h, w) around [0, 1] and are never clamped. What is moved in
from outside is 0, black.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cyclediff.diffusion.noise import NoiseSource
from cyclediff.errors import UserError

COPIES = 50  # of each image, published
SHIFT, HOLE = 0.125, 0.5  # of the height: the largest translation, and the side of the square that is cut out
PER_COPY = 7  # draws


@dataclass(frozen=True, eq=False)
class Draws:
    """What is drawn for the copies of some images.

    Args:
        brightness: (n, copies) in [0, 1), as are `saturation` and `contrast`.
        saturation: see `brightness`.
        contrast: see `brightness`.
        shift_rows: (n, copies) int64, from -s to s pixels.
        shift_columns: the same.
        resize: (n,) in [0, 1): one number for all copies of an image, as published.
        cutout_rows: (n, copies) int64, from 0 to h, or to h - 1 where the square has an odd side.
        cutout_columns: the same.
    """

    brightness: Tensor
    saturation: Tensor
    contrast: Tensor
    shift_rows: Tensor
    shift_columns: Tensor
    resize: Tensor
    cutout_rows: Tensor
    cutout_columns: Tensor


def draw(noise: NoiseSource, images: Tensor, copies: int) -> Draws:
    """The draws for images (n, 3, h, w), from one draw of `noise`."""
    height = images.shape[2]
    shift, hole = _part(SHIFT, height), _part(HOLE, height)
    normal = noise.randn_like(images.new_empty(len(images), PER_COPY * copies + 1))
    uniform = torch.special.ndtr(normal.double()).clamp(max=1 - 1e-9)
    resize, rest = uniform[:, 0], uniform[:, 1:].reshape(len(images), PER_COPY, copies)
    brightness, saturation, contrast, *whole = rest.unbind(dim=1)
    rows, columns = (_integer(u, -shift, shift) for u in whole[:2])
    cutout_rows, cutout_columns = (_integer(u, 0, height - hole % 2) for u in whole[2:])
    return Draws(brightness, saturation, contrast, rows, columns, resize, cutout_rows, cutout_columns)


def augment(images: Tensor, draws: Draws) -> Tensor:
    """Augmented copies of images (n, 3, h, w): (n * copies, 3, h, w), the copies of an image side by side."""
    copies = draws.brightness.shape[1]
    x = images.repeat_interleave(copies, dim=0)
    x = brightness(x, draws.brightness.flatten())
    x = saturation(x, draws.saturation.flatten())
    x = contrast(x, draws.contrast.flatten())
    x = translation(x, draws.shift_rows.flatten(), draws.shift_columns.flatten())
    x = torch.cat([resized(part, u) for part, u in zip(x.split(copies), draws.resize.tolist(), strict=True)])
    return cutout(x, draws.cutout_rows.flatten(), draws.cutout_columns.flatten())


def brightness(x: Tensor, u: Tensor) -> Tensor:
    """Add u - 1/2, (n,)."""
    return x + (_each(u, x) - 0.5)


def saturation(x: Tensor, u: Tensor) -> Tensor:
    """Move each pixel from the mean of its channels by the factor 2u, (n,)."""
    middle = x.mean(dim=1, keepdim=True)
    return (x - middle) * (2 * _each(u, x)) + middle


def contrast(x: Tensor, u: Tensor) -> Tensor:
    """Move each value from the image's mean by the factor u + 1/2, (n,)."""
    middle = x.mean(dim=(1, 2, 3), keepdim=True)
    return (x - middle) * (_each(u, x) + 0.5) + middle


def translation(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """out[i, j] = x[i + rows, j + columns] of each image; rows and columns are int64 (n,)."""
    n, _, height, width = x.shape
    i, inside_i = _shifted(rows, height)
    j, inside_j = _shifted(columns, width)
    image = torch.arange(n, device=x.device)[:, None, None]
    moved = x.permute(0, 2, 3, 1)[image, i[:, :, None], j[:, None, :]].permute(0, 3, 1, 2)
    return moved * (inside_i[:, :, None] & inside_j[:, None, :])[:, None].to(x)


def resized(x: Tensor, u: float) -> Tensor:
    """Enlarge by 0.8 + 0.4 u around the middle, in a frame of the same size; bilinear, without antialiasing.

    Images are square. Smaller ones are padded, larger ones cut.
    """
    width = x.shape[3]
    new = int((0.8 + 0.4 * u) * width)
    x = F.interpolate(x, (new, new), mode="bilinear", align_corners=False)
    if new < width:
        first = (width - new) // 2
        return F.pad(x, (first, width - new - first) * 2)
    first = (new - width) // 2
    return x[:, :, first : first + width, first : first + width]


def cutout(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Set a square around (rows, columns) to 0, int64 (n,); at the border only what is left of it inside."""
    hole = _part(HOLE, x.shape[2])
    i, j = (_inside_hole(centre, hole, size) for centre, size in ((rows, x.shape[2]), (columns, x.shape[3])))
    return x * (~(i[:, :, None] & j[:, None, :]))[:, None].to(x)


def _part(ratio: float, size: int) -> int:
    return int(size * ratio + 0.5)


def _integer(u: Tensor, low: int, high: int) -> Tensor:
    return (low + u * (high - low + 1)).floor().long()


def _each(u: Tensor, x: Tensor) -> Tensor:
    return u.to(x)[:, None, None, None]


def _shifted(shift: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Index of each position after a shift, (n, size), and whether it is inside."""
    index = torch.arange(size, device=shift.device) + shift[:, None]
    return index.clamp(0, size - 1), (index >= 0) & (index < size)


def _inside_hole(centre: Tensor, hole: int, size: int) -> Tensor:
    """Whether each position is in the hole, bool (n, size); the hole's positions are clamped to the image."""
    first = centre[:, None] - hole // 2
    position = torch.arange(size, device=centre.device)
    return (position >= first.clamp(0, size - 1)) & (position <= (first + hole - 1).clamp(0, size - 1))


@dataclass(frozen=True, eq=False)
class Clip:
    """A CLIP with the text that it looks for.

    Args:
        network: pictures (n, 3, size, size), normalised → features (n, d), of any length.
        text: features of the text, (d,), of any length.
        size: height and width that the network reads.
        mean: of each channel, for normalisation.
        std: of each channel.
        weight: of this CLIP among several.
    """

    network: Callable[[Tensor], Tensor]
    text: Tensor
    size: int
    mean: Sequence[float]
    std: Sequence[float]
    weight: float = 1.0

    def distance(self, images: Tensor) -> Tensor:
        """1 - cosine of images (n, 3, h, w) in [0, 1] and the text, (n,)."""
        features = self.network(self.prepare(images))
        return 1 - (features / features.norm(dim=1, keepdim=True)) @ (self.text / self.text.norm())

    def prepare(self, images: Tensor) -> Tensor:
        """The network's input: short side to `size` (bicubic, without antialiasing), the middle, normalised."""
        height, width = images.shape[2:]
        if min(height, width) != self.size:
            scale = self.size / min(height, width)
            to = (int(height * scale), int(width * scale))
            images = F.interpolate(images, to, mode="bicubic", align_corners=False)
        top, left = (round((side - self.size) / 2) for side in images.shape[2:])
        images = images[:, :, top : top + self.size, left : left + self.size]
        return (images - images.new_tensor(self.mean)[:, None, None]) / images.new_tensor(self.std)[:, None, None]


@torch.no_grad()
def clip_of(network: Any, tokens: Tensor, weight: float = 1.0) -> Clip:
    """An open_clip network and a tokenized text (1, l), as the energy reads them.

    Raises:
        UserError: if the network's pictures are not prepared as the energy prepares them.
    """
    how = network.visual.preprocess_cfg
    size = how["size"] if isinstance(how["size"], int) else how["size"][0]
    if how["interpolation"] != "bicubic" or how["resize_mode"] != "shortest":
        raise UserError(
            f"this CLIP reads pictures resized by {how['interpolation']}, {how['resize_mode']}, and guidance prepares "
            "them by bicubic, shortest; choose another CLIP"
        )
    text = network.encode_text(tokens)[0].float()
    return Clip(network.encode_image, text, size, how["mean"], how["std"], weight)


@dataclass(frozen=True, eq=False)
class ClipEnergy:
    """sum_m weight_m * the mean over augmented copies of 1 - cos(picture, text).

    Args:
        clips: one or more.
        copies: of each image; published: 50.
    """

    clips: Sequence[Clip]
    copies: int = COPIES

    def __post_init__(self):
        if not self.clips:
            raise UserError("the text energy needs a CLIP; got none")
        if self.copies < 1:
            raise UserError(f"copies must be 1 or more; got {self.copies}")

    def __call__(self, images: Tensor, noise: NoiseSource) -> Tensor:
        """Images (n, 3, h, w) in [0, 1] → (n,); it draws once."""
        return self.of(images, draw(noise, images, self.copies))

    def of(self, images: Tensor, draws: Draws) -> Tensor:
        """The energies under given draws, (n,)."""
        seen = augment(images, draws)
        distances = [clip.weight * clip.distance(seen) for clip in self.clips]
        return torch.stack(distances).sum(0).reshape(len(images), -1).mean(1)
