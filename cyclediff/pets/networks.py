"""The networks of pets, the synthetic benchmark: DDPMs and EGSDE's classifier, small enough for two CPU cores."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from diffusers.models.unets.unet_2d import UNet2DModel
from safetensors.torch import load_file
from torch import Tensor, nn

from cyclediff.diffusion.denoiser import X0Denoiser, blend_x0
from cyclediff.diffusion.schedule import DiffusionSchedule, alpha_bar_from_betas, linear_betas
from cyclediff.models.classifier import DomainClassifier
from cyclediff.models.inference import for_inference
from cyclediff.models.pixel import PixelModel
from cyclediff.models.weights import load_weights
from cyclediff.pets.attributes import ATTRIBUTES

SIZE = 64
PATCH = 4
FEATURES = 16  # channels that the patch network gives the detail network, besides its picture
WIDTH = 64  # of the detail network
COARSE_ERROR = 0.08  # root mean squared error of the patch network on almost clean images
X0_ERROR = 0.01  # of the whole network on almost clean images, see blend_x0


class PetsUNet(nn.Module):
    """x0 from x_t at 64×64: a UNet on 4×4 patches draws the picture, convolutions on 2×2 patches finish it.

    The convolutions see the patch network's picture and features, the picture blended with x_t (at low noise x_t is
    the better estimate), and the noise level. They say where to trust x_t more or less than that, and add what lacks.
    On 2×2 patches they cost a quarter of what they would on pixels.
    """

    alpha_bar: Tensor

    def __init__(self):
        super().__init__()
        self.coarse = UNet2DModel(
            sample_size=SIZE // PATCH,
            in_channels=3 * PATCH**2,
            out_channels=3 * PATCH**2 + 4 * FEATURES,
            layers_per_block=1,
            block_out_channels=(64, 96, 128),
            down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            attention_head_dim=32,
            norm_num_groups=32,
        )
        self.enter = nn.Conv2d(12 + 12 + FEATURES + 1, WIDTH, 3, padding=1)
        self.middle = nn.Sequential(
            nn.SiLU(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.SiLU(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        )
        self.leave = nn.Sequential(nn.SiLU(), nn.Conv2d(WIDTH, 12, 3, padding=1))
        self.trust = nn.Sequential(nn.SiLU(), nn.Conv2d(WIDTH, 12, 3, padding=1))
        for parameter in (*self.leave.parameters(), *self.trust.parameters()):
            nn.init.zeros_(parameter)
        self.register_buffer("alpha_bar", alpha_bar_from_betas(linear_betas()), persistent=False)

    def forward(self, xt: Tensor, t: Tensor) -> Tensor:
        """Predict x0, (n, 3, 64, 64); t is int64 (n,)."""
        alpha_bar = self.alpha_bar[t][:, None, None, None]
        drawn = F.pixel_shuffle(self.coarse(F.pixel_unshuffle(xt, PATCH), t).sample, 2)
        coarse, pairs = drawn[:, :12], F.pixel_unshuffle(xt, 2)
        level = (1 / alpha_bar - 1).log().to(xt).expand_as(pairs[:, :1]) / 8
        trusted = alpha_bar.clamp(max=1 / (1 + COARSE_ERROR**2))  # a sampler's state is never cleaner than this
        scaled = alpha_bar.rsqrt().to(xt) * trusted.sqrt().to(xt) * pairs
        blend = blend_x0(scaled, coarse, trusted, COARSE_ERROR)
        hidden = self.enter(torch.cat((blend, drawn, level), dim=1))
        hidden = hidden + self.middle(hidden)
        return F.pixel_shuffle(blend + self.trust(hidden) * (blend - coarse) + self.leave(hidden), 2)


@cache
def load(path: str, device: str = "cpu", dtype: str = "float32", compile_mode: str | None = None) -> PixelModel:
    """A shipped network as a model; loaded once per process.

    Args:
        path: its safetensors file, as scripts/train_pets.py writes it.
        device: where it runs.
        dtype: of its evaluation, see `for_inference`.
        compile_mode: see `for_inference`.
    """
    network = PetsUNet()
    load_weights(network, load_file(path), path)
    evaluation = for_inference(network, PetsUNet.__call__, device, dtype, compile_mode)
    denoiser = X0Denoiser(evaluation, DiffusionSchedule(alpha_bar_from_betas(linear_betas())), X0_ERROR)
    return PixelModel(denoiser, SIZE, multiple=4 * PATCH)  # the patch network halves twice


class PetsClassifier(nn.Module):
    """Cat or dog, for noisy images at 64×64: EGSDE's domain classifier on 4×4 patches."""

    def __init__(self):
        super().__init__()
        self.network = DomainClassifier(
            image_size=SIZE // PATCH,
            classes=2,
            model_channels=64,
            channel_mult=(1, 2),
            num_res_blocks=1,
            attention_downsampling=(2,),
            num_head_channels=32,
            in_channels=3 * PATCH**2,
        )

    def features(self, xt: Tensor, t: Tensor) -> Tensor:
        """Feature map (n, 128, 8, 8)."""
        return self.network.features(F.pixel_unshuffle(xt, PATCH), t)

    def forward(self, xt: Tensor, t: Tensor) -> Tensor:
        """Logits of cat and dog, (n, 2)."""
        return self.network(F.pixel_unshuffle(xt, PATCH), t)


class PetsAttributes(nn.Module):
    """Which `ATTRIBUTES` an animal at 64×64 has: the classifier of plug-and-play guidance.

    It shares nothing with the judge but the words, so that the judge can say whether guidance by it worked.
    """

    def __init__(self):
        super().__init__()
        widths = (3, 24, 48, 72)
        stages = [
            nn.Sequential(nn.Conv2d(i, o, 5, stride=2, padding=2), nn.GroupNorm(6, o), nn.GELU())
            for i, o in pairwise(widths)
        ]
        self.body = nn.Sequential(*stages, nn.AdaptiveAvgPool2d(4), nn.Flatten())
        self.head = nn.Sequential(nn.Linear(widths[-1] * 16, 96), nn.GELU(), nn.Linear(96, len(ATTRIBUTES)))

    def forward(self, image: Tensor) -> Tensor:
        """Images (n, 3, 64, 64) in [-1, 1] → logits (n, len(ATTRIBUTES))."""
        return self.head(self.body(image))


@dataclass(frozen=True, eq=False)
class AttributeClassifiers:
    """Classifiers of the attributes that guidance can want.

    Args:
        classifiers: by attribute: what `prepare` makes of images → logit of presence, (n,).
        prepare: images (n, 3, h, w) in [0, 1] → the classifiers' input.
    """

    classifiers: Mapping[str, Callable[[Tensor], Tensor]]
    prepare: Callable[[Tensor], Tensor]


@cache
def load_attributes(path: str, device: str = "cpu") -> AttributeClassifiers:
    """The shipped classifier of attributes; loaded once per process."""
    network = PetsAttributes()
    load_weights(network, load_file(path), path)
    network.eval().requires_grad_(False).to(device)
    logits = {name: partial(_logit, network, index) for index, name in enumerate(ATTRIBUTES)}
    return AttributeClassifiers(logits, lambda images: 2 * images - 1)


def _logit(network: PetsAttributes, index: int, images: Tensor) -> Tensor:
    return network(images)[:, index]


@cache
def load_classifier(path: str, device: str = "cpu") -> PetsClassifier:
    """The shipped domain classifier; loaded once per process."""
    network = PetsClassifier()
    load_weights(network, load_file(path), path)
    return network.eval().requires_grad_(False).to(device)


def load_extractor(path: str, device: str = "cpu") -> Callable[[Tensor, Tensor], Tensor]:
    """EGSDE's domain-specific extractor: the classifier's feature map."""
    return load_classifier(path, device).features
