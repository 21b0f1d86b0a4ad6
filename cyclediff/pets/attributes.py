"""Attributes of pets: the words of captions, as something that an animal has or has not."""

import math

import torch
from torch import Tensor

from cyclediff.pets.captions import TRAITS, Trait
from cyclediff.pets.render import FACTORS

NAMES = {"size": "{}", "fur": "{}_fur", "background": "{}_background", "gaze": "looking_{}"}  # by trait
OF_TRAIT = {trait.name: tuple(NAMES[trait.name].format(word) for word in trait.words) for trait in TRAITS}
ATTRIBUTES = tuple(name for names in OF_TRAIT.values() for name in names)
SCALARS = [factor.name for factor in FACTORS if not factor.circular]
HUES = [factor.name for factor in FACTORS if factor.circular]


def as_judged(factors: Tensor) -> Tensor:
    """Factors (n, len(FACTORS)) in the judge's units and order (`eval.metrics.pets.PetsJudge`), (n, 13).

    Scalar factors scaled to [-1, 1], then each hue as (cos, sin).
    """
    scalars, hues = [], []
    for value, factor in zip(factors.unbind(1), FACTORS, strict=True):
        if factor.circular:
            hues += [torch.cos(2 * math.pi * value), torch.sin(2 * math.pi * value)]
        else:
            scalars.append((2 * value - factor.low - factor.high) / (factor.high - factor.low))
    return torch.stack(scalars + hues, dim=1)


def has_attribute(seen: Tensor, name: str) -> Tensor:
    """Whether animals have an attribute.

    A scalar's range is cut into equal parts with a word each, as captions do it; a hue has the nearest word.

    Args:
        seen: the judge's outputs, or `as_judged` factors, (n, 13 or more).
        name: one of `ATTRIBUTES`.

    Returns:
        bool (n,).

    Raises:
        ValueError: if there is no such attribute.
    """
    for trait in TRAITS:
        if name in OF_TRAIT[trait.name]:
            return _bins(seen, trait) == OF_TRAIT[trait.name].index(name)
    raise ValueError(f"there is no attribute {name!r}; choose from {', '.join(ATTRIBUTES)}")


def _bins(seen: Tensor, trait: Trait) -> Tensor:
    count = len(trait.words)
    if trait.factor in HUES:
        first = len(SCALARS) + 2 * HUES.index(trait.factor)
        turns = torch.atan2(seen[:, first + 1], seen[:, first]) / (2 * math.pi)
        return (turns * count).round() % count
    place = (seen[:, SCALARS.index(trait.factor)] + 1) / 2 * count
    return place.floor().clamp(0, count - 1)
