"""Train the vision transformer of pets from seeds, and write its weights and card.

    python scripts/train_pets_vit.py            about half an hour on one CPU core; it continues where it was stopped

A patch learns where on the animal's head it lies, whatever the colours are. The CLS token learns species, pose and
colours.
"""

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from train_one import train_one
from train_pets import WEIGHTS, render_all, write_card

from cyclediff.pets.attributes import as_judged
from cyclediff.pets.networks import SIZE
from cyclediff.pets.render import FACTORS, SPECIES, sample_factors
from cyclediff.pets.vit import PATCH, WIDTH, build_vit

NAME, SEED = "vit", 77
FAR = 1.5  # head coordinates are clamped to this
COLUMNS = {factor.name: index for index, factor in enumerate(FACTORS)}


class Training(nn.Module):
    """The network with what it is trained on: head coordinates of patches, attributes and species of the image."""

    def __init__(self):
        super().__init__()
        self.vit = build_vit()
        self.place, self.whole = nn.Linear(WIDTH, 2), nn.Linear(WIDTH, 14)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Images (n, 3, 64, 64) in [-1, 1] → coordinates (n, 64, 2), and attributes and species (n, 14)."""
        tokens = self.vit.forward_features(image)
        return self.place(tokens[:, 1:]), self.whole(tokens[:, 0])


def head_coordinates(factors: Tensor) -> Tensor:
    """Where on the head each patch's centre lies, (n, 64, 2): the renderer's head coordinates, clamped."""
    axis = (torch.arange(SIZE // PATCH) + 0.5) / (SIZE // PATCH) * 2 - 1
    v, u = torch.meshgrid(axis, axis, indexing="ij")
    x, y, size, tilt = (factors[:, COLUMNS[name], None, None] for name in ("x", "y", "size", "tilt"))
    dx, dy = (u - x) / size, (v - y) / size
    cos, sin = torch.cos(tilt), torch.sin(tilt)
    found = torch.stack((cos * dx + sin * dy, cos * dy - sin * dx), dim=-1)
    return found.clamp(-FAR, FAR).flatten(1, 2)


def train(steps: int = 4000, images: int = 12_000, batch: int = 64, lr: float = 1e-3) -> None:
    """Train on cats and dogs of equal attributes."""
    generator = torch.Generator().manual_seed(SEED)
    factors = sample_factors(images, generator)
    pairs = torch.stack([render_all(factors, species) for species in SPECIES], dim=1)
    places, seen = head_coordinates(factors), as_judged(factors)
    torch.manual_seed(SEED)
    network = Training()

    def loss(number: int) -> Tensor:
        rows = torch.randint(images, (batch,), generator=generator)
        dog = torch.randint(2, (batch,), generator=generator)
        place, whole = network(pairs[rows, dog].float() / 127.5 - 1)
        species = F.binary_cross_entropy_with_logits(whole[:, 13], dog.float())
        return F.mse_loss(place, places[rows]) + F.mse_loss(whole[:, :13], seen[rows]) + 0.1 * species

    ema, record = train_one(NAME, network, loss, steps, lr, generator)
    path = WEIGHTS / f"{NAME}.safetensors"
    save_file({key: value.half().contiguous() for key, value in ema.vit.state_dict().items()}, path)
    write_card(NAME, path, SEED, ema.vit, {"images": 2 * images, **record})


if __name__ == "__main__":
    torch.set_num_threads(1)
    train()
