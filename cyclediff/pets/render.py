"""The renderer of pets: one vector of factors → a cat, or the dog that is its ground truth.

Shapes are signed distance functions (negative inside) in head coordinates (unit: about twice the head's half-width,
y down, tilted with the head); a shape's coverage of a pixel is its distance divided by the pixel's width, so edges are
anti-aliased at every resolution. Colours are OKLCH (Ottosson 2020), in which hue moves nothing but hue.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SPECIES = ("cat", "dog")


@dataclass(frozen=True)
class Factor:
    """One degree of freedom: its name, range and whether the ends of the range are the same picture."""

    name: str
    low: float
    high: float
    circular: bool = False


FACTORS = (
    Factor("x", -0.22, 0.22),  # head centre, in half-widths of the image
    Factor("y", -0.10, 0.20),
    Factor("size", 0.82, 1.14),
    Factor("tilt", -0.40, 0.40),  # radians
    Factor("fur_hue", 0.0, 1.0, circular=True),  # hues in turns
    Factor("fur_lightness", 0.0, 1.0),
    Factor("background_hue", 0.0, 1.0, circular=True),
    Factor("background_lightness", 0.0, 1.0),
    Factor("eye_hue", 0.0, 1.0, circular=True),
    Factor("gaze", -1.0, 1.0),  # -1: the picture's left
)


def sample_factors(n: int, generator: torch.Generator) -> Tensor:
    """Draw `n` factor vectors, each factor uniform in its range; float32 (n, len(FACTORS))."""
    low = torch.tensor([f.low for f in FACTORS])
    high = torch.tensor([f.high for f in FACTORS])
    return low + (high - low) * torch.rand(n, len(FACTORS), generator=generator)


def render(factors: Tensor, species: str, size: int = 64) -> Tensor:
    """Draw one animal per factor vector.

    Args:
        factors: (n, len(FACTORS)), in the order and ranges of `FACTORS`.
        species: "cat" or "dog".
        size: height and width of the picture in pixels.

    Returns:
        float32 (n, 3, size, size) sRGB in [-1, 1].

    Raises:
        ValueError: if the species is not one of `SPECIES`.
    """
    if species not in SPECIES:
        raise ValueError(f"species must be one of {', '.join(SPECIES)}; got {species!r}")
    canvas = _Canvas(factors, size)
    _background(canvas)
    _shoulders(canvas)
    (_cat if species == "cat" else _dog)(canvas)
    return canvas.pixels.clamp(0, 1) * 2 - 1


class _Canvas:
    """Pixels painted so far, the factors as (n, 1, 1), and pixel coordinates in the frames of image, body and head."""

    def __init__(self, factors: Tensor, resolution: int):
        columns = (column[:, None, None].float() for column in factors.unbind(1))
        self.x, self.y, self.size, self.tilt, *colours, self.gaze = columns
        self.fur_hue, self.fur_lightness, self.wall_hue, self.wall_lightness, self.eye_hue = colours
        axis = (torch.arange(resolution) + 0.5) / resolution * 2 - 1
        self.v, self.u = torch.meshgrid(axis, axis, indexing="ij")
        dx, dy = (self.u - self.x) / self.size, (self.v - self.y) / self.size
        cos, sin = torch.cos(self.tilt), torch.sin(self.tilt)
        self.body = (dx, dy)
        self.head = (cos * dx + sin * dy, cos * dy - sin * dx)
        self.pixel = 2 / resolution / self.size
        self.pixels = torch.zeros(factors.shape[0], 3, resolution, resolution)

    def paint(self, distance: Tensor, colour: Tensor, opacity: float = 1.0) -> None:
        """Lay `colour` over the pixels whose signed `distance` (in head units) to a shape is negative."""
        alpha = (0.5 - distance / self.pixel).clamp(0, 1)[:, None] * opacity
        self.pixels = self.pixels + (colour - self.pixels) * alpha

    def fur(self, lighter: Tensor | float = 0.0, chroma: float = 1.0) -> Tensor:
        """The animal's colour, lighter by a little or with a share of its chroma."""
        return _oklch(0.56 + 0.26 * self.fur_lightness + lighter, 0.085 * chroma, self.fur_hue)


def _background(c: _Canvas) -> None:
    base = 0.52 + 0.32 * c.wall_lightness
    c.pixels = _oklch(base - 0.05 * c.v, 0.055, c.wall_hue).expand_as(c.pixels)
    medallion = torch.hypot(c.u, c.v + 0.05) - 0.86
    alpha = (0.5 - medallion * c.u.shape[-1] / 2).clamp(0, 1)
    c.pixels = c.pixels + (_oklch(base + 0.06, 0.05, c.wall_hue) - c.pixels) * alpha


def _shoulders(c: _Canvas) -> None:
    body = _ellipse(c.body, (0, 1.12), (0.56, 0.72))
    c.paint(body, c.fur(-0.07))
    c.paint(_ellipse(c.body, (0, 1.25), (0.28, 0.62)), c.fur(0.09, 0.5))
    collar = torch.maximum(body, (torch.hypot(c.body[0], c.body[1] + 0.35) - 0.98).abs() - 0.055)
    c.paint(collar, _colour(0.58, 0.13, c.eye_hue))
    c.paint(_ellipse(c.body, (0, 0.69), (0.075, 0.075)), _colour(0.84, 0.13, 0.25))


def _cat(c: _Canvas) -> None:
    pink = _colour(0.74, 0.10, 0.03)
    for side in (-1, 1):
        outer = [(side * 0.49, -0.70), (side * 0.54, -0.10), (side * 0.08, -0.42)]
        inner = [(side * 0.45, -0.56), (side * 0.46, -0.26), (side * 0.20, -0.40)]
        c.paint(_triangle(c.head, outer) - 0.04, c.fur(-0.03))
        c.paint(_triangle(c.head, inner) - 0.02, pink)
    skull = _ellipse(c.head, (0, 0), (0.55, 0.47))
    cheeks = torch.minimum(*(_ellipse(c.head, (s * 0.28, 0.17), (0.33, 0.27)) for s in (-1, 1)))
    c.paint(_smooth_union(skull, cheeks, 0.12), _shaded(c))
    for x, top, bottom in ((0.0, -0.46, -0.26), (-0.13, -0.44, -0.29), (0.13, -0.44, -0.29)):
        c.paint(_capsule(c.head, (x, top), (x * 0.8, bottom), 0.026), c.fur(-0.17))
    for side in (-1, 1):
        for y in (0.10, 0.18):
            c.paint(_capsule(c.head, (side * 0.60, y), (side * 0.42, y + 0.015), 0.022), c.fur(-0.14))
    muzzle = torch.minimum(*(_ellipse(c.head, (s * 0.10, 0.25), (0.145, 0.125)) for s in (-1, 1)))
    c.paint(muzzle, c.fur(0.13, 0.4))
    _eyes(c, pupil=(0.045, 0.105))
    ink = _colour(0.30, 0.03, 0.08)
    for side in (-1, 1):
        c.paint(_arc(c.head, (side * 0.068, 0.245), 0.068, 0.014), ink)
        for tilt in (-0.03, 0.06):
            start, end = (side * 0.20, 0.25 + tilt * 0.5), (side * 0.66, 0.24 + tilt * 2.2)
            c.paint(_capsule(c.head, start, end, 0.009), _colour(0.97, 0.0, 0.0), 0.85)
    c.paint(_triangle(c.head, [(-0.055, 0.150), (0.055, 0.150), (0.0, 0.205)]) - 0.025, pink)


def _dog(c: _Canvas) -> None:
    head = _smooth_union(_ellipse(c.head, (0, -0.06), (0.46, 0.44)), _ellipse(c.head, (0, 0.22), (0.36, 0.30)), 0.12)
    c.paint(head, _shaded(c))
    c.paint(_ellipse(c.head, (0, -0.26), (0.085, 0.26)), c.fur(0.13, 0.4))
    c.paint(_ellipse(c.head, (0.215, -0.05), (0.185, 0.205)), c.fur(-0.13))
    for side in (-1, 1):
        ear = _smooth_union(
            _capsule(c.head, (side * 0.34, -0.40), (side * 0.53, -0.22), 0.11),
            _ellipse(c.head, (side * 0.56, 0.06), (0.15, 0.32)),
            0.10,
        )
        c.paint(ear, c.fur(-0.16))
    c.paint(_ellipse(c.head, (0, 0.25), (0.265, 0.215)), c.fur(0.13, 0.4))
    c.paint(_capsule(c.head, (0, 0.36), (0, 0.49), 0.078), _colour(0.66, 0.14, 0.05))
    _eyes(c, pupil=(0.075, 0.082))
    ink = _colour(0.27, 0.02, 0.08)
    for side in (-1, 1):
        c.paint(_arc(c.head, (side * 0.085, 0.28), 0.085, 0.017), ink)
    c.paint(_capsule(c.head, (0, 0.18), (0, 0.28), 0.017), ink)
    c.paint(_ellipse(c.head, (0, 0.145), (0.118, 0.085)), ink)
    c.paint(_ellipse(c.head, (-0.035, 0.115), (0.035, 0.020)), _colour(0.80, 0.0, 0.0))


def _eyes(c: _Canvas, pupil: tuple[float, float]) -> None:
    white = _colour(0.98, 0.0, 0.0)
    ink = _colour(0.22, 0.02, 0.08)
    shift = 0.062 * c.gaze
    for side in (-1, 1):
        at = (c.head[0] - side * 0.215, c.head[1] + 0.03)
        gazed = (at[0] - shift, at[1])
        rim = _ellipse(at, (0, 0), (0.163, 0.168))
        c.paint(rim, ink)
        c.paint(_ellipse(at, (0, 0), (0.140, 0.145)), white)
        iris = torch.maximum(_ellipse(gazed, (0, 0), (0.112, 0.118)), rim + 0.02)
        c.paint(iris, _colour(0.66, 0.14, c.eye_hue))
        c.paint(torch.maximum(_ellipse(gazed, (0, 0), pupil), rim + 0.02), ink)
        c.paint(_ellipse(gazed, (-0.042, -0.050), (0.034, 0.034)), white)


def _shaded(c: _Canvas) -> Tensor:
    """Fur that is lit from above."""
    return c.fur(-0.07 * c.head[1])


def _colour(lightness: float, chroma: float, hue: Tensor | float) -> Tensor:
    return _oklch(torch.full((1, 1, 1), lightness), chroma, torch.as_tensor(hue).reshape(-1, 1, 1))


def _oklch(lightness: Tensor, chroma: float, hue: Tensor) -> Tensor:
    """OKLCH (n, h, w) with hue in turns → sRGB in [0, 1] (n, 3, h, w) (Ottosson 2020, the inverses of M2 and M1)."""
    a, b = chroma * torch.cos(2 * math.pi * hue), chroma * torch.sin(2 * math.pi * hue)
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    red = 4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short
    green = -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short
    blue = -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short
    linear = torch.stack(torch.broadcast_tensors(red, green, blue), dim=-3).clamp(0, 1)
    return torch.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear.clamp(min=1e-8) ** (1 / 2.4) - 0.055)


Point = tuple[float, float]
Plane = tuple[Tensor, Tensor]


def _ellipse(p: Plane, centre: Point, radii: Point) -> Tensor:
    """Distance to an ellipse, to first order at its edge (f / |grad f|)."""
    x, y = p[0] - centre[0], p[1] - centre[1]
    k0 = torch.hypot(x / radii[0], y / radii[1])
    k1 = torch.hypot(x / radii[0] ** 2, y / radii[1] ** 2)
    return k0 * (k0 - 1) / k1.clamp(min=1e-6)


def _capsule(p: Plane, a: Point, b: Point, radius: float) -> Tensor:
    """Distance to a line segment with round ends."""
    ax, ay = p[0] - a[0], p[1] - a[1]
    bx, by = b[0] - a[0], b[1] - a[1]
    along = ((ax * bx + ay * by) / (bx * bx + by * by)).clamp(0, 1)
    return torch.hypot(ax - bx * along, ay - by * along) - radius


def _arc(p: Plane, centre: Point, radius: float, thickness: float) -> Tensor:
    """Distance to the lower half of a ring: half a smile."""
    x, y = p[0] - centre[0], p[1] - centre[1]
    ring = (torch.hypot(x, y) - radius).abs() - thickness
    ends = torch.hypot(x.abs() - radius, y) - thickness
    return torch.where(y > 0, ring, ends)


def _triangle(p: Plane, corners: Sequence[Point]) -> Tensor:
    """Exact distance to a triangle: nearest edge, negative where the point lies on the inner side of all three."""
    edges = [(corners[i], corners[(i + 1) % 3]) for i in range(3)]
    outside = torch.stack([_capsule(p, a, b, 0.0) for a, b in edges]).amin(0)
    sides = torch.stack([(b[0] - a[0]) * (p[1] - a[1]) - (b[1] - a[1]) * (p[0] - a[0]) for a, b in edges])
    inside = (sides > 0).all(0) | (sides < 0).all(0)
    return torch.where(inside, -outside, outside)


def _smooth_union(a: Tensor, b: Tensor, radius: float) -> Tensor:
    """Union of two shapes with a fillet of about `radius`."""
    h = (0.5 + 0.5 * (b - a) / radius).clamp(0, 1)
    return b + (a - b) * h - radius * h * (1 - h)
