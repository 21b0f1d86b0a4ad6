"""Splice (arXiv 2201.00424): a generator is trained on one image, to draw its structure with another one's appearance.

Structure is the self-similarity of a vision transformer's keys, and appearance its CLS token. Every random number comes
from a generator that the image's own noise seeds.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import functional as transform

from cyclediff.diffusion.denoiser import Denoiser
from cyclediff.diffusion.noise import NoiseSource
from cyclediff.diffusion.vit_losses import FeatureNetwork, cls_distance, self_similarity, structure

JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}
FLIPPED, JITTERED, BLURRED = 0.5, 0.5, 0.2  # shares of the crops
TIMED = 2  # steps of `measure`
BLUR, SIGMAS = 3, (0.1, 2.0)  # pixels of the kernel, and between which its standard deviation is drawn


@dataclass(frozen=True)
class Splice:
    """Splice with the official defaults; it takes some thousand evaluations forwards and backwards for each image.

    Args:
        vit: the vision transformer.
        generator: (torch.Generator) → a new generator: images (n, 3, h, w) in [0, 1] → same shape and range.
        steps: of the optimiser, for each image (n_epochs).
        lr: learning rate of Adam.
        beta1: of Adam.
        beta2: of Adam.
        lambda_cls: weight of the appearance's CLS token (lambda_global_cls).
        lambda_structure: weight of the structure (lambda_global_ssim).
        lambda_identity: weight of giving back the appearance image as it is (lambda_global_identity).
        entire_every: steps from one that also compares the whole image to the next (entire_A_every).
        lambda_entire_cls: weight of the CLS token there.
        lambda_entire_structure: weight of the structure there (lambda_entire_ssim).
        warm_up: first steps without structure and identity (cls_warmup).
        min_cover: least side of a crop, as a part of the image's height (global_*_crops_min_cover).
        augment: change colours and sharpness of the structure image's crops (use_augmentations).
        name: the stem of its file in conf/method.
    """

    vit: FeatureNetwork
    generator: Callable[[torch.Generator], Any]
    steps: int = 10000
    lr: float = 0.002
    beta1: float = 0.0
    beta2: float = 0.99
    lambda_cls: float = 10.0
    lambda_structure: float = 1.0
    lambda_identity: float = 1.0
    entire_every: int = 75
    lambda_entire_cls: float = 10.0
    lambda_entire_structure: float = 1.0
    warm_up: int = 1
    min_cover: float = 0.95
    augment: bool = True
    name: str = "splice"
    needs = frozenset({"vit"})
    conditions = frozenset({"none"})
    given = frozenset({"target_image"})
    starts_at = None
    inverts = False
    reconstructs = None
    takes_region = False
    one_by_one = True  # see `measure`

    @property
    def num_steps(self) -> int:
        """`steps`, of the optimiser."""
        return self.steps

    def measure(self, image: Tensor) -> tuple[float, int]:
        """What an image takes, from a few steps on one of its size: seconds, and bytes kept for gradients.

        Args:
            image: any, (1, 3, h, w) in [-1, 1].
        """
        kept: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        rng = torch.Generator().manual_seed(0)
        how = replace(self, steps=1 + TIMED)
        steps = optimise(self.generator(rng).to(image.device), image, image, how, rng)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            next(steps)["total"].item()  # its first step looks at everything, so it needs the most memory
        began = time.perf_counter()
        for _ in range(TIMED):
            next(steps)["total"].item()  # .item() waits for a GPU
        return (time.perf_counter() - began) / TIMED * self.steps, sum(kept.values())

    def __post_init__(self):
        for key, least in {"steps": 1, "entire_every": 1, "warm_up": 0}.items():
            if getattr(self, key) < least:
                raise ValueError(f"{key} must be at least {least}; got {getattr(self, key)}")
        for key in ("cls", "structure", "identity", "entire_cls", "entire_structure"):
            if getattr(self, f"lambda_{key}") < 0:
                raise ValueError(f"lambda_{key} must be at least 0; got {getattr(self, f'lambda_{key}')}")
        if not 0 < self.min_cover <= 1:
            raise ValueError(f"min_cover must be above 0 and at most 1; got {self.min_cover}")
        if self.lr <= 0 or not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ValueError(
                f"lr must be above 0, beta1 and beta2 in [0, 1); got {self.lr}, {self.beta1} and {self.beta2}"
            )

    def __call__(
        self,
        x0: Tensor,
        source: Denoiser | None,
        target: Denoiser | None,
        noise: NoiseSource,
        targets: Tensor | None = None,
    ) -> Tensor:
        """Give images (n, 3, h, w) in [-1, 1] the appearance of others, one after another.

        Args:
            x0: images whose structure is kept.
            source: not used.
            target: not used.
            noise: source of randomness; one draw for each image, which seeds everything of this image.
            targets: of each image, in the shape of x0: whose appearance it gets.

        Raises:
            ValueError: if there are no targets, or a loss is not finite.
        """
        if targets is None or targets.shape != x0.shape:
            raise ValueError(f"{self.name} needs a target image of the same size for each image")
        drawn = noise.randn_like(x0.new_empty(len(x0), 2, dtype=torch.float32))
        made = []
        for image, appearance, numbers in zip(x0.split(1), targets.split(1), drawn.cpu(), strict=True):
            seed = int(numbers.view(torch.int64))
            made.append(splice((image + 1) / 2, (appearance + 1) / 2, self, torch.Generator().manual_seed(seed)))
        return 2 * torch.cat(made) - 1


def splice(image: Tensor, appearance: Tensor, how: Splice, rng: torch.Generator) -> Tensor:
    """The result of `optimise`, for one image (1, 3, h, w) in [0, 1] and an appearance; same shape and range.

    Raises:
        ValueError: if a loss is not finite.
    """
    network = how.generator(rng).to(image.device)
    for step, loss in enumerate(optimise(network, image, appearance, how, rng), start=1):
        if not torch.isfinite(loss["total"]):
            raise ValueError(f"the loss of Splice became NaN or Inf at step {step} of {how.steps}; choose a smaller lr")
    with torch.no_grad():
        return network(image)


def optimise(
    network: Any, image: Tensor, appearance: Tensor, how: Splice, rng: torch.Generator
) -> Iterator[dict[str, Tensor]]:
    """Train a generator in place; gives the losses of each step, so that a caller can show them, or stop.

    Args:
        network: images in [0, 1] → images in [0, 1].
        image: whose structure is kept, (1, 3, h, w) in [0, 1].
        appearance: the other image, (1, 3, h', w') in [0, 1].
        how: the settings.
        rng: what crops are drawn from.
    """
    network.train().requires_grad_(True)
    optimizer = torch.optim.Adam(network.parameters(), how.lr, (how.beta1, how.beta2))
    for step in range(how.steps):
        crop, other = draw_crops(image, appearance, how, rng)
        with torch.enable_grad():
            entire = network(image) if step % how.entire_every == 0 else None
            found = losses(step, network(crop), network(other), entire, crop, other, image, how)
            optimizer.zero_grad()
            found["total"].backward()
        optimizer.step()
        yield {key: value.detach() for key, value in found.items()}


def losses(
    step: int, made: Tensor, same: Tensor, entire: Tensor | None, crop: Tensor, other: Tensor, image: Tensor,
    how: Splice,
) -> dict[str, Tensor]:  # fmt: skip
    """The losses of a step without their weights, and their weighted sum "total"; images are in [0, 1].

    Args:
        step: from 0.
        made: what the generator makes of `crop`.
        same: what it makes of `other`.
        entire: what it makes of `image`; None where this step does not look at it.
        crop: of the structure image.
        other: of the appearance image.
        image: the structure image.
        how: the settings.
    """
    with torch.no_grad():
        wanted, keys = how.vit(2 * other - 1), how.vit(2 * crop - 1).keys
    seen = how.vit(2 * made - 1)
    found = {"cls": cls_distance(seen.cls, wanted.cls).mean()}
    total = how.lambda_cls * found["cls"]
    if step >= how.warm_up:
        found["structure"] = structure(seen.keys, self_similarity(keys)).mean()
        found["identity"] = (how.vit(2 * same - 1).keys - wanted.keys).square().mean()
        total = total + how.lambda_structure * found["structure"] + how.lambda_identity * found["identity"]
    if entire is not None:
        with torch.no_grad():
            whole = how.vit(2 * image - 1).keys
        seen = how.vit(2 * entire - 1)
        found["entire_structure"] = structure(seen.keys, self_similarity(whole)).mean()
        found["entire_cls"] = cls_distance(seen.cls, wanted.cls).mean()
        total = total + how.lambda_entire_structure * found["entire_structure"]
        total = total + how.lambda_entire_cls * found["entire_cls"]
    return found | {"total": total}


def draw_crops(image: Tensor, appearance: Tensor, how: Splice, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """A square of each image (1, 3, h, w), mirrored in half of the cases; that of the first is augmented."""
    one, other = (_flip(_square(x, how.min_cover, rng), rng) for x in (image, appearance))
    if how.augment:
        if _uniform(rng) < JITTERED:
            one = _jitter(one, rng)
        if _uniform(rng) < BLURRED:
            one = transform.gaussian_blur(one, [BLUR, BLUR], [_uniform(rng, *SIGMAS)] * 2)
    return one, other


def _square(image: Tensor, cover: float, rng: torch.Generator) -> Tensor:
    height, width = image.shape[2:]
    side = min(round(_uniform(rng, cover * height, height)), width)
    top, left = (int(torch.randint(room - side + 1, (), generator=rng)) for room in (height, width))
    return image[:, :, top : top + side, left : left + side]


def _flip(image: Tensor, rng: torch.Generator) -> Tensor:
    return image.flip(3) if _uniform(rng) < FLIPPED else image


def _jitter(image: Tensor, rng: torch.Generator) -> Tensor:
    """As torchvision's ColorJitter: four changes in a random order."""
    names = list(JITTER)
    for index in torch.randperm(len(names), generator=rng).tolist():
        name, strength = names[index], JITTER[names[index]]
        middle = 0.0 if name == "hue" else 1.0
        change = getattr(transform, f"adjust_{name}")
        image = change(image, _uniform(rng, middle - strength, middle + strength))
    return image


def _uniform(rng: torch.Generator, low: float = 0.0, high: float = 1.0) -> float:
    return low + (high - low) * float(torch.rand((), generator=rng))
