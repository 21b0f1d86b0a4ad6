"""What CLIP is shown of an image, and how well that fits a text, as DiffuseIT (arXiv 2209.15264) does it.

An image is shown whole, or in random cuts. Images are in [0, 1], not clamped. A gradient flows from CLIP's features to
the image.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, rotate

from cyclediff.diffusion.noise import NoiseSource

DEGREES = 10.0
SCALE = (0.8, 1.0)  # of a cut's area to the image's
RATIO = (0.9, 1.1)  # of its width to its height
TRIES = 10  # for a cut that fits; then the largest one in the middle
NUMBERS = 2 * TRIES + 4  # uniform numbers of a cut
UNUSED_TEMPLATE = "a photo of many {}."  # of OpenAI's 80; the official code has the other 79


class ImageTower(Protocol):
    """A CLIP's encoder of images."""

    @property
    def size(self) -> int:
        """Height and width of what it reads."""
        ...

    def images(self, views: Tensor) -> Tensor:
        """Features (n, d) of any length, of (n, 3, size, size) in [0, 1]; it normalises them itself."""
        ...


class Clip(ImageTower, Protocol):
    """A CLIP."""

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Features of texts, (n, d), of the length that CLIP gives them."""
        ...


class Embedded(NamedTuple):
    """Features of the texts of each image, in every template: (n, templates, d)."""

    source: Tensor
    target: Tensor


def embed(clip: Clip, texts: Sequence[tuple[str, str]]) -> Embedded:
    """Features of source and target texts in OpenAI's templates; each text is embedded once."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    def features(text: str) -> Tensor:
        filled = (template(text) for template in OPENAI_IMAGENET_TEMPLATES)
        return clip.texts([line for line in filled if line != UNUSED_TEMPLATE.format(text)])

    known = {text: features(text) for text in dict.fromkeys(text for pair in texts for text in pair)}
    return Embedded(*(torch.stack([known[pair[side]] for pair in texts]) for side in (0, 1)))


def unit(features: Tensor) -> Tensor:
    """Features (..., d), divided by their norms."""
    return F.normalize(features, dim=-1, eps=0)


def target_embedding(target: Tensor, source: Tensor, image: Tensor) -> Tensor:
    """Where an image's features should point: unit(T - 0.4 S + 0.2 I).

    Args:
        target: features of the target text in every template, as CLIP gives them, (..., templates, d).
        source: the same of the source text.
        image: features of the source image, (n, d).

    Returns:
        (n, d).
    """
    T, S = (unit(texts.mean(dim=-2)) for texts in (target, source))
    return unit(T - 0.4 * S + 0.2 * unit(image))


def whole(images: Tensor, size: int) -> Tensor:
    """The middle of images (n, c, h, w), their shorter side resized: (n, c, size, size). Without antialiasing."""
    short, long = sorted(images.shape[2:])
    other = int(size * long / short)
    shape = (size, other) if images.shape[2] <= images.shape[3] else (other, size)
    return center_crop(_resize(images, shape), [size, size])


def draw_cuts(noise: NoiseSource, images: Tensor, count: int) -> Tensor:
    """Random cuts, `count` of each image: turned by up to 10°, then 0.8 to 1 of the area at a ratio of 0.9 to 1.1.

    Args:
        noise: one draw.
        images: (n, c, h, w).
        count: of cuts.

    Returns:
        float64 (n, count, 6): angle in degrees, top, left, height, width, and 1 for mirrored.
    """
    height, width = images.shape[2:]
    drawn = noise.randn_like(images.new_empty(len(images), count, NUMBERS)).double().cpu()
    u = torch.special.ndtr(drawn)  # uniform in [0, 1]
    area = height * width * (SCALE[0] + (SCALE[1] - SCALE[0]) * u[..., :TRIES])
    ratio = (math.log(RATIO[0]) + math.log(RATIO[1] / RATIO[0]) * u[..., TRIES : 2 * TRIES]).exp()
    heights, widths = (area / ratio).sqrt().round(), (area * ratio).sqrt().round()
    fits = (heights <= height) & (widths <= width)
    first = fits.int().argmax(dim=2, keepdim=True)
    largest = min(width, height * RATIO[1]), min(height, width / RATIO[0])
    found = fits.any(dim=2)
    h = torch.where(found, heights.gather(2, first)[..., 0], round(largest[1]))
    w = torch.where(found, widths.gather(2, first)[..., 0], round(largest[0]))
    angle, y, x, mirrored = u[..., 2 * TRIES :].unbind(dim=2)
    top, left = (
        torch.where(found, (place * (room + 1)).floor().minimum(room), (room / 2).floor())
        for place, room in ((y, height - h), (x, width - w))
    )
    return torch.stack((DEGREES * (2 * angle - 1), top, left, h, w, (mirrored < 0.5).double()), dim=2)


def cut(images: Tensor, cuts: Tensor, size: int) -> Tensor:
    """Cuts of images, (n · count, c, size, size), those of one image together.

    Args:
        images: (n, c, h, w).
        cuts: (n, count, 6), see `draw_cuts`.
        size: height and width of a cut when it is shown. It is not antialiased.
    """
    made = []
    for image, rows in zip(images.split(1), cuts.tolist(), strict=True):
        for angle, top, left, height, width, mirrored in rows:
            turned = rotate(image, angle, InterpolationMode.NEAREST)
            top, left, height, width = (int(number) for number in (top, left, height, width))
            view = _resize(turned[:, :, top : top + height, left : left + width], (size, size))
            made.append(view.flip(3) if mirrored else view)
    return torch.cat(made)


def agreement(
    towers: Sequence[ImageTower], targets: Sequence[Tensor], images: Tensor, cuts: Sequence[Tensor] | None = None
) -> Tensor:
    """How well images fit their targets, (n,): the mean over towers of the cosine, up to 1.

    Where a gradient is wanted, that of each tower is taken at once, so that memory holds one tower's graph at a time.
    It has no gradient of its own.

    Args:
        towers: of one or more CLIPs.
        targets: of each tower, (n, d), see `target_embedding`.
        images: (n, 3, h, w) in [0, 1].
        cuts: of each tower, (n, count, 6); the features of cuts are averaged after they are divided by their norms, and
            the mean, as in the official code, is not. None shows whole images.
    """

    def of(index: int, images: Tensor) -> Tensor:
        tower, target = towers[index], targets[index]
        if cuts is None:
            features = unit(tower.images(whole(images, tower.size)))
        else:
            shown = cut(images, cuts[index], tower.size)
            features = unit(tower.images(shown)).unflatten(0, (len(images), -1)).mean(dim=1)
        return (features * target).sum(dim=1)

    towers_of = range(len(towers))
    if not (torch.is_grad_enabled() and images.requires_grad):
        return torch.stack([of(index, images) for index in towers_of]).mean(dim=0)
    value, slope = images.new_zeros(len(images)), torch.zeros_like(images)
    for index in towers_of:
        leaf = images.detach().requires_grad_()
        cosines = of(index, leaf)
        value = value + cosines.detach() / len(towers)
        slope = slope + torch.autograd.grad(cosines.sum(), leaf)[0] / len(towers)
    return value + ((images - images.detach()) * slope).sum(dim=(1, 2, 3))


def _resize(images: Tensor, shape: tuple[int, int]) -> Tensor:
    return F.interpolate(images, shape, mode="bilinear", align_corners=False, antialias=False)
