"""The judge of pets, a synthetic benchmark: features for FD and KD, and the attributes that it sees in a picture."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from eval.metrics.features import Extractor, file_digest
from eval.metrics.metric import Metric

ATTRIBUTE_ERROR = Metric("attribute error", 3, False)
EDIT_ERROR, KEPT_ERROR = Metric("edit error", 3, False), Metric("error elsewhere", 3, False)
HUES = 3
SCALARS = 7
DOMAIN = SCALARS + 2 * HUES  # the output that is positive for a dog
DEGRADATIONS = 4
EDITED = {
    "size": 2,
    "gaze": 6,
    "fur": SCALARS,
    "background": SCALARS + 1,
    "animal": SCALARS + HUES,
}  # of `_differences`


class PetsJudge(nn.Module):
    """The judge of pets: what is on a 64×64 image, and how well is it drawn?

    Its penultimate activations are the features of FD and KD. They are standardised: over rendered cats and dogs each
    has mean 0 and variance 1. The judge is trained on rendered animals, half of them degraded, so the features depend
    on the attributes, the species and the typical defects of generated images.

    The 18 outputs: 7 scalar attributes scaled to [-1, 1], 3 hues as (cos, sin), the logit of "dog", and the strength of
    4 degradations (noise, blur, patch pattern, ghost of the other species).
    """

    features: int = 64
    mean: Tensor
    std: Tensor

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
        self.register_buffer("mean", torch.zeros(self.features))
        self.register_buffer("std", torch.ones(self.features))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(n, 3, 64, 64) in [-1, 1] → features (n, 64), outputs (n, 18)."""
        features = self.body(image)
        return (features - self.mean) / self.std, self.head(features)


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


def attribute_error(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference of the attributes that the judge sees in two sets of images, (n, 18) each → (n,).

    A scalar's difference is in units of its range, a hue's in units of half a turn. So 0 means that all are kept; two
    unrelated images differ by 0.4 on average.
    """
    return _differences(a, b)[:, : SCALARS + HUES].mean(1)


def edit_error(seen: Tensor, wanted: Tensor, category: Sequence[str]) -> Tensor:
    """Difference of the edited attribute between results and ground truth; 0 means that it is as it should be.

    Args:
        seen: the judge's outputs for edited images, (n, 18).
        wanted: for the true edited images, (n, 18).
        category: n times what was edited, one of `EDITED`. The animal's difference is that of the judge's certainties.

    Returns:
        float64 (n,) in [0, 1].

    Raises:
        ValueError: if a category is unknown.
    """
    return _differences(seen, wanted).gather(1, _edited(category))[:, 0]


def kept_error(seen: Tensor, kept: Tensor, category: Sequence[str]) -> Tensor:
    """Mean difference of all attributes but the edited one, and of the animal, between results and sources.

    Args:
        seen: the judge's outputs for edited images, (n, 18).
        kept: for the images before, (n, 18).
        category: n times what was edited, one of `EDITED`.

    Returns:
        float64 (n,) in [0, 1]; 0 means that all else is kept.

    Raises:
        ValueError: if a category is unknown.
    """
    differences = _differences(seen, kept).scatter(1, _edited(category), 0.0)
    return differences.sum(1) / (differences.shape[1] - 1)


def _edited(category: Sequence[str]) -> Tensor:
    unknown = sorted(set(category) - EDITED.keys())
    if unknown:
        raise ValueError(f"an edit of pets changes one of {', '.join(EDITED)}; got {unknown[0]!r}")
    return torch.tensor([[EDITED[name]] for name in category])


def _differences(a: Tensor, b: Tensor) -> Tensor:
    """Of 7 scalars in units of their range, 3 hues in half turns, and the certainty of "dog": (n, 18) → (n, 11)."""
    scalars = (a[:, :SCALARS] - b[:, :SCALARS]).abs().clamp(max=2) / 2
    hue_a, hue_b = (x[:, SCALARS:DOMAIN].unflatten(1, (HUES, 2)) for x in (a, b))
    turn = torch.atan2(hue_a[..., 1], hue_a[..., 0]) - torch.atan2(hue_b[..., 1], hue_b[..., 0])
    hues = torch.atan2(turn.sin(), turn.cos()).abs() / torch.pi
    dog = (a[:, DOMAIN].sigmoid() - b[:, DOMAIN].sigmoid()).abs()
    return torch.cat([scalars, hues, dog[:, None]], dim=1)


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
