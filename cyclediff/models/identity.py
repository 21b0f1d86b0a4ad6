"""Whose face it is: the IR-SE50 network of ArcFace (arXiv 1801.07698), and an energy on its features."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from cyclediff.diffusion.noise import NoiseSource
from cyclediff.errors import UserError
from cyclediff.models.checkpoint import read_checkpoint
from cyclediff.models.state_dicts import choose
from cyclediff.models.weights import load_weights, wanted_shapes

Faces = Callable[[Tensor], Tensor]  # (n, 3, 112, 112) → features (n, d)
WHOLE, SHOWN = 256, 112  # pixels of a picture before its face is cut out, and of a face as the network reads it
FACE = slice(35, 223), slice(32, 220)  # rows and columns of the face in an aligned picture of 256 pixels
STAGES = ((64, 3), (128, 4), (256, 14), (512, 3))  # channels and units; the first unit of each halves the size
FEATURES = 512
COUNTER = ".num_batches_tracked"  # of BatchNorm, for training only; old files have none


class SqueezeExcitation(nn.Module):
    """Channels weighted by what the whole map holds (arXiv 1709.01507)."""

    def __init__(self, channels: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // 16, 1, bias=False)
        self.fc2 = nn.Conv2d(channels // 16, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        return x * self.fc2(self.fc1(x.mean(dim=(2, 3), keepdim=True)).relu()).sigmoid()


class Unit(nn.Module):
    """A residual unit of IR-SE networks."""

    def __init__(self, channels: int, out: int, stride: int):
        super().__init__()
        if channels == out:
            self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)
        else:
            self.shortcut_layer = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, out, 3, padding=1, bias=False),
            nn.PReLU(out),
            nn.Conv2d(out, out, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(out),
            SqueezeExcitation(out),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) → (n, out, h / stride, w / stride)."""
        return self.res_layer(x) + self.shortcut_layer(x)


class IRSE50(nn.Module):
    """IR-SE50 under the names of the published file (model_ir_se50.pth, of TreB1eN/InsightFace_Pytorch)."""

    def __init__(self):
        super().__init__()
        self.input_layer = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64))
        units, channels = [], 64
        for out, count in STAGES:
            for unit in range(count):
                units.append(Unit(channels, out, stride=1 if unit else 2))
                channels = out
        self.body = nn.Sequential(*units)
        last = SHOWN // 2 ** len(STAGES)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.Dropout(),
            nn.Flatten(),
            nn.Linear(channels * last**2, FEATURES),
            nn.BatchNorm1d(FEATURES),
        )

    def forward(self, faces: Tensor) -> Tensor:
        """Faces (n, 3, 112, 112) → features of length 1, (n, 512)."""
        return F.normalize(self.output_layer(self.body(self.input_layer(faces))))


@cache
def load_ir_se50(path: str, device: str = "cpu") -> IRSE50:
    """The published network from a local file; loaded once per process.

    It was trained on aligned faces in [-1, 1].

    Raises:
        UserError: if the file is missing or damaged, or a tensor is missing, unexpected, of another shape or not
            finite.
    """
    with torch.device("meta"):
        network = IRSE50()
    wanted = wanted_shapes(network, {key: (key,) for key in network.state_dict()})
    counters = {key: torch.tensor(0) for key in wanted if key.endswith(COUNTER)}
    groups = {
        place: {key: value for key, value in group.items() if not key.endswith(COUNTER)}
        for place, group in read_checkpoint(Path(path)).items()
    }
    state = choose(groups, {key: wanted[key] for key in wanted.keys() - counters.keys()}, False, None, path)
    load_weights(network, {**state, **counters}, path)
    return network.eval().requires_grad_(False).to(device)


def load_faces(path: str, device: str = "cpu") -> Callable[[Tensor], Tensor]:
    """The same for aligned images of any size (n, 3, h, w) in [-1, 1] → features (n, 512)."""
    network = load_ir_se50(path, device)
    return lambda images: network(cut_face(images))


def cut_face(images: Tensor) -> Tensor:
    """Aligned pictures of any size (n, 3, h, w), of any range → faces (n, 3, 112, 112), as pSp and e4e cut them."""
    if images.shape[2] != WHOLE:
        images = F.adaptive_avg_pool2d(images, (WHOLE, WHOLE))
    return F.adaptive_avg_pool2d(images[:, :, FACE[0], FACE[1]], (SHOWN, SHOWN))


@dataclass(frozen=True, eq=False)
class IdentityEnergy:
    """How unlike the faces of images are to those of references: 1 - the mean cosine of their features, 0 … 2.

    Args:
        network: faces (n, 3, 112, 112) → features of length 1, (n, d).
        references: features of the references, of length 1, (k, d).
        trained_range: give the network images in [-1, 1], on which it was trained. Published: false, the official code
            gives it images in [0, 1].
    """

    network: Faces
    references: Tensor
    trained_range: bool = False

    def __call__(self, images: Tensor, noise: NoiseSource) -> Tensor:
        """Images (n, 3, h, w) in [0, 1] → (n,); it draws nothing."""
        features = self.network(_faces(images, self.trained_range))
        return 1 - (features @ self.references.T).mean(1)


@torch.no_grad()
def identity_energy(
    network: Faces,
    references: Sequence[Image.Image],
    device: str = "cpu",
    trained_range: bool = False,
    reference_size: int | None = SHOWN,
) -> IdentityEnergy:
    """The energy of the faces on some aligned pictures.

    Args:
        network: see `IdentityEnergy`.
        references: pictures of one person, 1 or more.
        device: where the network is.
        trained_range: see `IdentityEnergy`.
        reference_size: the short side to which references are resized first, as published, which blurs them. None
            leaves them as they are, like the images that are guided.

    Raises:
        UserError: if there is no reference.
    """
    if not references:
        raise UserError("the identity energy needs a picture of the person; got none")
    features = []
    for picture in references:
        picture = picture.convert("RGB")
        if reference_size is not None:
            scale = reference_size / min(picture.size)
            width, height = (int(side * scale) for side in picture.size)
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        image = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].to(device) / 255
        features.append(network(_faces(image, trained_range)))
    return IdentityEnergy(network, torch.cat(features), trained_range)


def _faces(images: Tensor, trained_range: bool) -> Tensor:
    return cut_face(2 * images - 1 if trained_range else images)
