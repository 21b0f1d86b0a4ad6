"""The embedded world's observer: features for FID and KID, and the factors that it sees in a picture."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from eval.features import Extractor, file_digest

HUES = 3
SCALARS = 7
DOMAIN = SCALARS + 2 * HUES  # the output that is positive for a dog
DEGRADATIONS = 4


class PetsJudge(nn.Module):
    """The embedded world's observer of 64×64 images: what is on the picture, and how well is it drawn?

    Its penultimate activations are the features of the embedded FID and KID. It is trained on rendered animals, half of
    them degraded, so the features know the factors, the species and the typical defects of generated images.

    The 18 outputs: 7 scalar factors scaled to [-1, 1], 3 hues as (cos, sin), the logit of "dog", and the strength of 4
    degradations (noise, blur, patch pattern, ghost of the other species).
    """

    features: int = 64

    def __init__(self):
        super().__init__()
        widths = (3, 32, 48, 64, 96)
        stages = [
            nn.Sequential(nn.Conv2d(i, o, 4, stride=2, padding=1), nn.GroupNorm(8, o), nn.SiLU(),
                          nn.Conv2d(o, o, 3, padding=1), nn.GroupNorm(8, o), nn.SiLU())
            for i, o in pairwise(widths)
        ]  # fmt: skip
        self.body = nn.Sequential(*stages, nn.Flatten(), nn.Linear(96 * 4 * 4, self.features))
        self.head = nn.Sequential(nn.SiLU(), nn.Linear(self.features, DOMAIN + 1 + DEGRADATIONS))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(n, 3, 64, 64) in [-1, 1] → features (n, 64), outputs (n, 18)."""
        features = self.body(image)
        return features, self.head(features)


def load_pets_judge(path: Path) -> PetsJudge:
    """The judge with weights from a safetensors file, ready for evaluation."""
    judge = PetsJudge()
    judge.load_state_dict({key: value.float() for key, value in load_file(path).items()})
    return judge.eval().requires_grad_(False)


def observe(judge: PetsJudge, images: Tensor) -> tuple[Tensor, Tensor]:
    """Features and outputs of uint8 images (n, 3, h, w); float64."""
    with torch.no_grad():
        pairs = [judge(batch.float() / 127.5 - 1) for batch in images.split(64)]
    return torch.cat([f for f, _ in pairs]).double(), torch.cat([o for _, o in pairs]).double()


def factor_error(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference of the factors that the judge sees in two sets of images, (n, 18) each → (n,).

    A scalar factor's difference is in units of its range, a hue's in units of half a turn, so 0 is "all kept", and two
    unrelated images differ by 0.4 on average.
    """
    scalars = (a[:, :SCALARS] - b[:, :SCALARS]).abs().clamp(max=2) / 2
    hue_a, hue_b = (x[:, SCALARS:DOMAIN].unflatten(1, (HUES, 2)) for x in (a, b))
    turn = torch.atan2(hue_a[..., 1], hue_a[..., 0]) - torch.atan2(hue_b[..., 1], hue_b[..., 0])
    hues = torch.atan2(turn.sin(), turn.cos()).abs() / torch.pi
    return torch.cat([scalars, hues], dim=1).mean(1)


def pets_judge(path: str, device: str = "cpu") -> Extractor:
    """The judge's features of 64×64 images.

    Args:
        path: its safetensors file.
        device: where it runs.
    """
    judge = load_pets_judge(Path(path)).to(device)
    return Extractor(
        f"pets-judge-{file_digest(Path(path))}/png64",
        lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1,
        lambda batch: judge(batch)[0],
        device,
    )
