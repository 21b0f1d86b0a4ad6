"""DiffusionCLIP (arXiv 2110.02711): a diffusion model is fine-tuned until what it draws of an image fits a text.

An image is encoded by DDIM with the model as it was, and decoded with the fine-tuned one. Training decodes encoded
images with few steps, and moves CLIP's features of the result in the direction from one text to the other.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torchvision.transforms.functional import center_crop

from cyclediff.diffusion.clip_views import Embedded, ImageTower, unit
from cyclediff.diffusion.denoiser import Denoiser
from cyclediff.diffusion.levels import CLEAN, Level, Prediction
from cyclediff.diffusion.noise import NoiseSource
from cyclediff.diffusion.schedule import Schedule
from cyclediff.diffusion.steps import ddim_step, transitions

Update = Callable[[str, Tensor], None]  # (optimiser, loss): minimise a scalar by the optimiser of that name, now
NETWORK = "network"  # the name of the one optimiser
SMALLEST_NORM = 1e-7


@dataclass(frozen=True)
class Training:
    """How a model is fine-tuned; the defaults are the official code's.

    Args:
        steps: of the sampler while it is trained (n_train_step).
        images: encoded images that an iteration takes, one in a step (n_train_img).
        iterations: over all images (n_iter).
        per_step: minimise after each step of the sampler (clip_finetune_eff); else once, through all of them.
        lambda_clip: weight of the direction of CLIP's features (clip_loss_w).
        lambda_l1: weight of the distance in pixels (l1_loss_w).
        lambda_identity: weight of the face's identity (id_loss_w).
        lr: learning rate of Adam (lr_clip_finetune).
        growth: factor of the learning rate after each iteration (sch_gamma).
        checkpointing: compute steps again in the backward pass, instead of keeping what the network computed.
        source_text: what the images show (src_txts).
        target_text: what results should show (trg_txts).
    """

    steps: int = 6
    images: int = 50
    iterations: int = 1
    per_step: bool = False
    lambda_clip: float = 3.0
    lambda_l1: float = 0.0
    lambda_identity: float = 0.0
    lr: float = 2e-6
    growth: float = 1.3
    checkpointing: bool = True
    source_text: str | None = None
    target_text: str | None = None

    def __post_init__(self):
        for key, least in {"steps": 2, "images": 1, "iterations": 1}.items():
            if getattr(self, key) < least:
                raise ValueError(f"training.{key} must be at least {least}; got {getattr(self, key)}")
        for key in ("lambda_clip", "lambda_l1", "lambda_identity"):
            if getattr(self, key) < 0:
                raise ValueError(f"training.{key} must be at least 0; got {getattr(self, key)}")
        if self.lr <= 0 or self.growth <= 0:
            raise ValueError(f"training.lr and training.growth must be above 0; got {self.lr} and {self.growth}")


@dataclass(frozen=True)
class DiffusionCLIP:
    """A fine-tuned model as a method: encode with the source, decode with the target; it draws no noise.

    Args:
        t0: timestep up to which an image is encoded (t_0).
        encoding_steps: states of the encoding, the image among them (n_inv_step).
        decoding_steps: of the sampler (n_test_step).
        training: how the target was, or is to be, fine-tuned from the source.
        name: the stem of its file in conf/method.
    """

    t0: int = 400
    encoding_steps: int = 40
    decoding_steps: int = 40
    training: Training = field(default_factory=Training)
    name: str = "diffusionclip"
    needs = frozenset({"source", "target"})
    conditions = frozenset({"none"})
    starts_at = None
    inverts = False
    reconstructs = "approximately"  # DDIM inversion
    takes_region = False

    @property
    def num_steps(self) -> int:
        """`decoding_steps`."""
        return self.decoding_steps

    def __post_init__(self):
        if self.t0 < 1:
            raise ValueError(f"t0 must be at least 1; got {self.t0}")
        for key in ("encoding_steps", "decoding_steps"):
            if not 2 <= getattr(self, key) <= self.t0 + 1:
                raise ValueError(
                    f"{key} must be between 2 and the {self.t0 + 1} timesteps up to t0; got {getattr(self, key)}"
                )
        if self.training.steps > self.t0 + 1:
            raise ValueError(
                f"training.steps must be at most the {self.t0 + 1} timesteps up to t0; got {self.training.steps}"
            )

    def __call__(self, x0: Tensor, source: Denoiser, target: Denoiser, noise: NoiseSource) -> Tensor:
        """Edit x0 (n, c, h, w)."""
        latent = self.encode(x0, source)
        return generate(latent, target, levels_up_to(target.schedule, self.t0, self.decoding_steps))

    def encode(self, x0: Tensor, source: Denoiser) -> Tensor:
        """The latents of x0 (n, c, h, w): where training and decoding start."""
        return invert(x0, source, levels_up_to(source.schedule, self.t0, self.encoding_steps))


def levels_up_to(schedule: Schedule, t0: int, steps: int) -> list[Level]:
    """The levels of so many equidistant timesteps from t0 down to 0, both among them, then the clean image.

    Raises:
        ValueError: if the model has no timestep t0.
    """
    if t0 >= schedule.num_train:
        raise ValueError(f"t0 must be less than the {schedule.num_train} training timesteps of the network; got {t0}")
    timesteps = [int(u * t0) for u in torch.linspace(0, 1, steps, dtype=torch.float64).tolist()]
    return [*(schedule.at(t) for t in reversed(timesteps)), CLEAN]


def invert(x0: Tensor, denoiser: Denoiser, levels: Sequence[Level]) -> Tensor:
    """The state at the first of some levels, by DDIM's ODE from the clean end up; x0 is taken as that of timestep 0."""
    x = x0
    for lower, higher in transitions(list(reversed(levels[:-1]))):
        x = ddim_step(denoiser(x, lower), higher)
    return x


def generate(latent: Tensor, denoiser: Denoiser, levels: Sequence[Level]) -> Tensor:
    """The image of a latent (n, c, h, w), by DDIM's ODE down to the clean end."""
    x = latent
    for t, s in transitions(levels):
        x = ddim_step(denoiser(x, t), s)
    return x


def text_direction(texts: Embedded) -> Tensor:
    """Where features should move for each image, (n, d), of length 1: the mean over templates of T - S.

    Features of each template are divided by their norm first.
    """
    return unit((unit(texts.target) - unit(texts.source)).mean(dim=1))


def view(images: Tensor, size: int) -> Tensor:
    """What CLIP is shown of images (n, 3, h, w) in [-1, 1]: resized (bicubic), the middle, in [0, 1].

    It is not antialiased, as in the official code at its time.
    """
    x = (images + 1) / 2
    short, long = sorted(x.shape[2:])
    other = int(size * long / short)
    shape = (size, other) if x.shape[2] <= x.shape[3] else (other, size)
    x = F.interpolate(x, shape, mode="bicubic", align_corners=False, antialias=False)
    return center_crop(x, [size, size])


def directional(made: Tensor, before: Tensor, direction: Tensor) -> Tensor:
    """1 - the cosine between how features moved and where they should, (n,): Eq. 5.

    Args:
        made: features of results (n, d), of any length.
        before: features of the source images.
        direction: see `text_direction`.
    """
    moved = unit(made) - unit(before)
    moved = moved / (moved.norm(dim=1, keepdim=True) + SMALLEST_NORM)
    return 1 - F.cosine_similarity(moved, direction, dim=1)


@dataclass(frozen=True, eq=False)
class Losses:
    """The losses of fine-tuning, for images x that were made of x0.

    Args:
        clip: the image tower.
        direction: (n, d) or (1, d), see `text_direction`.
        how: the settings.
        identity: of faces: images (n, 3, h, w) in [-1, 1] → features of length 1; where it has a weight.
    """

    clip: ImageTower
    direction: Tensor
    how: Training
    identity: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self):
        if self.how.lambda_identity and self.identity is None:
            raise ValueError("training.lambda_identity needs a network of faces; set it to 0, or name one")

    def __call__(self, x: Tensor, x0: Tensor, state: Tensor | None = None) -> dict[str, Tensor]:
        """Losses without their weights, and "total".

        Args:
            x: the image, or what a step predicts of it, (n, 3, h, w) in [-1, 1].
            x0: the source image.
            state: whose face is looked at, instead of x. As in the official code it is that after the step, without a
                gradient, where each step is minimised; so identity has no effect there.
        """
        with torch.no_grad():
            before = self.clip.images(view(x0, self.clip.size))
        apart = directional(self.clip.images(view(x, self.clip.size)), before, self.direction).mean()
        found = {"directional": apart, "clip": -((2 - apart) / 2).log(), "l1": (x0 - x).abs().mean()}
        total = self.how.lambda_clip * found["clip"] + self.how.lambda_l1 * found["l1"]
        if self.how.lambda_identity and self.identity is not None:
            faces = (self.identity(x if state is None else state) * self.identity(x0)).sum(dim=1)
            found["identity"] = (1 - faces).mean()
            total = total + self.how.lambda_identity * found["identity"]
        return found | {"total": total}


def training_step(
    latent: Tensor, x0: Tensor, denoiser: Denoiser, levels: Sequence[Level], losses: Losses, update: Update
) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Decode encoded images, and fine-tune the network on what comes out.

    Args:
        latent: of the images (n, c, h, w), see `DiffusionCLIP.encode`.
        x0: the images.
        denoiser: of the network that is fine-tuned.
        levels: of the sampler, see `levels_up_to`.
        losses: to minimise; its settings say how.
        update: called with "network" once, or after each step of the sampler.

    Returns:
        The decoded images, and the losses of each call of `update`.
    """
    run = _per_step if losses.how.per_step else _whole_chain
    return run(latent, x0, denoiser, levels, losses, update)


def rate(step: int, how: Training) -> float:
    """Factor of the learning rate at a step: it grows with every iteration, as in the official code."""
    return math.pow(how.growth, step // how.images)


def _whole_chain(
    latent: Tensor, x0: Tensor, denoiser: Denoiser, levels: Sequence[Level], losses: Losses, update: Update
) -> tuple[Tensor, list[dict[str, Tensor]]]:
    x = latent
    with torch.enable_grad():
        for t, s in transitions(levels):
            one = partial(_step, denoiser, t=t, s=s)
            x = checkpoint(one, x, use_reentrant=False) if losses.how.checkpointing else one(x)
        found = losses(x, x0)
        update(NETWORK, found["total"])
    return x.detach(), [_shown(found)]


def _per_step(
    latent: Tensor, x0: Tensor, denoiser: Denoiser, levels: Sequence[Level], losses: Losses, update: Update
) -> tuple[Tensor, list[dict[str, Tensor]]]:
    x, made = latent, []
    for t, s in transitions(levels):
        with torch.enable_grad():
            seen: Prediction = denoiser(x, t)
            x = ddim_step(seen, s).detach()
            found = losses(seen.x0, x0, x)
            update(NETWORK, found["total"])
        made.append(_shown(found))
    return x, made


def _step(denoiser: Denoiser, x: Tensor, t: Level, s: Level) -> Tensor:
    return ddim_step(denoiser(x, t), s)


def _shown(found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach() for key, value in found.items()}
