"""An energy that wants attributes to be present or absent, by binary classifiers of pictures."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from cyclediff.diffusion.noise import NoiseSource
from cyclediff.errors import UserError

Classifier = Callable[[Tensor], Tensor]  # what `prepare` makes of images → logit of presence, (n,) or (n, 1)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
SIDE = 224
SMALLEST = 1e-8  # added to a probability, as published, so that its logarithm is finite


def imagenet_input(images: Tensor) -> Tensor:
    """Images (n, 3, h, w) in [0, 1] → (n, 3, 224, 224), normalised as ImageNet's; bilinear, without antialiasing."""
    images = F.interpolate(images, (SIDE, SIDE), mode="bilinear", align_corners=False)
    return (images - images.new_tensor(MEAN)[:, None, None]) / images.new_tensor(STD)[:, None, None]


@dataclass(frozen=True)
class Attribute:
    """What is wanted of one attribute.

    Args:
        present: whether it should be there.
        weight: of its term; a negative one wants the opposite, without end.
    """

    present: bool
    weight: float = 1.0


@dataclass(frozen=True, eq=False)
class AttributeEnergy:
    """sum_k weight_k * -log(p_k + 1e-8), with p_k the probability that attribute k is as it should be.

    Args:
        classifiers: by attribute.
        attributes: what is wanted, of some of them.
        prepare: images (n, 3, h, w) in [0, 1] → the classifiers' input.
    """

    classifiers: Mapping[str, Classifier]
    attributes: Mapping[str, Attribute]
    prepare: Callable[[Tensor], Tensor] = imagenet_input

    def __post_init__(self):
        if not self.attributes:
            raise UserError(f"name an attribute to guide; there are {', '.join(sorted(self.classifiers))}")
        for name, wanted in self.attributes.items():
            if name not in self.classifiers:
                raise UserError(f"there is no attribute {name}; choose from {', '.join(sorted(self.classifiers))}")
            if not math.isfinite(wanted.weight) or wanted.weight == 0:
                raise UserError(f"the weight of attribute {name} must be a number other than 0; got {wanted.weight}")

    def __call__(self, images: Tensor, noise: NoiseSource) -> Tensor:
        """Images (n, 3, h, w) in [0, 1] → (n,); it draws nothing."""
        seen, energy = self.prepare(images), images.new_zeros(len(images))
        for name, wanted in self.attributes.items():
            logit = self.classifiers[name](seen).reshape(len(images))
            probability = logit.sigmoid() if wanted.present else 1 - logit.sigmoid()
            energy = energy - wanted.weight * (probability + SMALLEST).log()
        return energy
