"""Train the networks of pets from seeds, and write their weights and cards.

    python scripts/train_pets.py cat    one network; `cat` and `dog` run well side by side, one core each
    python scripts/train_pets.py        all of it, one after another

A training that was stopped continues from its last checkpoint in ~/.cache/cyclediff/training.
"""

import argparse
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from train_one import train_one

from cyclediff.diffusion.schedule import alpha_bar_from_betas, linear_betas
from cyclediff.pets.attributes import ATTRIBUTES, as_judged, has_attribute
from cyclediff.pets.networks import SIZE, PetsAttributes, PetsClassifier, PetsUNet
from cyclediff.pets.render import SPECIES, render, sample_factors
from eval.metrics.pets import PetsJudge, observe

WEIGHTS = Path(__file__).parents[1] / "cyclediff" / "pets" / "weights"
SEEDS = {
    "cat": 11,
    "dog": 22,
    "judge": 33,
    "classifier": 44,
    "attributes": 55,
}  # of data, initialisation and noise; evaluation draws from other seeds
DDPM_STEPS = 7_000  # half a day on one core of a CPU
DETAIL_STEPS = 4_000
DECAY = 0.2  # share of a DDPM's steps over which its learning rate falls to 0
FACTOR_NOISE = 0.15  # of the labels of the classifier of attributes; factors span [-1, 1]
BINS = 50  # of timesteps, for the average error of each


class DiffusionTraining(nn.Module):
    """A DDPM in training, with the average error of x0 at each noise level.

    Every level's error is divided by its average, so that each counts the same, however small its errors are: what the
    learned uncertainty of EDM2 does (arXiv 2312.02696, section 2.2), by counting instead of learning. Sharp edges are
    drawn at low noise, where min-SNR weights would let the errors of high noise drown them.
    """

    average: Tensor

    def __init__(self, net: nn.Module, alpha_bar: Tensor):
        super().__init__()
        self.net, self.alpha_bar = net, alpha_bar
        self.register_buffer("average", torch.ones(BINS))

    def loss(self, x0: Tensor, generator: torch.Generator, power: float) -> tuple[Tensor, Tensor]:
        """The loss to minimise, and the min-SNR-weighted error (arXiv 2303.09556, gamma 5), at stratified timesteps.

        They are u ** power of all, u uniform.
        """
        n, num_train = x0.shape[0], self.alpha_bar.shape[0]
        u = (torch.arange(n) + torch.rand(n, generator=generator)) / n
        t = (u**power * num_train).long()
        ab = self.alpha_bar[t]
        eps = torch.randn(x0.shape, generator=generator)
        xt = ab.sqrt().float()[:, None, None, None] * x0 + (1 - ab).sqrt().float()[:, None, None, None] * eps
        error = ((self.net(xt, t) - x0) ** 2).mean((1, 2, 3))
        bins = t * BINS // num_train
        for i, value in zip(bins.tolist(), error.detach(), strict=True):
            self.average[i].lerp_(value, 0.02)
        return (error / self.average[bins]).mean(), ((ab / (1 - ab)).clamp(max=5).float() * error).mean().detach()


def train_diffusion(species: str, steps: int, images: int = 30_000) -> None:
    """Train one unconditional DDPM on rendered animals of one species: all of it, then the detail network alone."""
    generator = torch.Generator().manual_seed(SEEDS[species])
    data = render_all(sample_factors(images, generator), species)
    torch.manual_seed(SEEDS[species])
    network = PetsUNet()
    network.trust.requires_grad_(False)

    def rate(i: int) -> float:
        return min((i + 1) / 500, 1.0, (1 - i / steps) / DECAY)

    network, first = train_stage(species, network, data, generator, 32, (steps, 5e-4, rate, 0.9995))
    generator.manual_seed(SEEDS[species] + 1)
    network, second = finish_details(species, network, data, generator)
    record = {key: [first[key], second[key]] for key in first}
    write_weights(species, network, {"parameterisation": "x0", "images": images, **record})


def finish_details(
    species: str, network: PetsUNet, data: Tensor, generator: torch.Generator
) -> tuple[PetsUNet, dict[str, Any]]:
    """Train the detail network alone, mostly at low noise: it learns to leave no grain where nothing is drawn."""
    network.requires_grad_(True).coarse.requires_grad_(False)
    how = DETAIL_STEPS, 1e-3, None, 0.999
    return train_stage(f"{species}_details", network, data, generator, 16, how, power=2)


def train_stage(
    name: str,
    network: PetsUNet,
    data: Tensor,
    generator: torch.Generator,
    batch: int,
    how: tuple[int, float, Callable[[int], float] | None, float],
    power: float = 1,
) -> tuple[PetsUNet, dict[str, Any]]:
    """Train what of the network requires gradients; `how`: steps, learning rate, its factor, decay of the average."""
    training = DiffusionTraining(network, alpha_bar_from_betas(linear_betas()))

    def loss(number: int) -> tuple[Tensor, Tensor]:
        rows = torch.randint(len(data), (batch,), generator=generator)
        return training.loss(data[rows].float() / 127.5 - 1, generator, power)

    steps, lr, rate, average = how
    ema, record = train_one(name, training, loss, steps, lr, generator, rate, average)
    return ema.net, record


def train_judge(steps: int = 3000, images: int = 12_000, batch: int = 64, lr: float = 1e-3) -> None:
    """Train the observer of `eval.metrics.pets` on cats and dogs of equal attributes, half of them degraded."""
    generator = torch.Generator().manual_seed(SEEDS["judge"])
    factors = sample_factors(images, generator)
    pairs = torch.stack([render_all(factors, species) for species in SPECIES], dim=1)
    targets = as_judged(factors)
    torch.manual_seed(SEEDS["judge"])
    judge = PetsJudge()

    def loss(number: int) -> Tensor:
        rows = torch.randint(images, (batch,), generator=generator)
        dog = torch.randint(2, (batch,), generator=generator)
        image, other = (pairs[rows, which].float() / 127.5 - 1 for which in (dog, 1 - dog))
        image, strength = degrade(image, other, generator)
        species = (dog - strength[:, 3] / 2).abs()
        seen = judge(image)[1]
        kept, domain, degradation = seen.split((targets.shape[1], 1, strength.shape[1]), dim=1)
        domain_loss = F.binary_cross_entropy_with_logits(domain[:, 0], species)
        return F.mse_loss(kept, targets[rows]) + 0.1 * domain_loss + F.mse_loss(degradation, strength)

    ema, record = train_one("judge", judge, loss, steps, lr, generator)
    standardise(ema)
    write_weights("judge", ema, {"images": 2 * images, **record})


def standardise(judge: PetsJudge, count: int = 4000) -> None:
    """Give the judge's features mean 0 and variance 1 over rendered cats and dogs."""
    factors = sample_factors(count, torch.Generator().manual_seed(34))
    features, _ = observe(judge.eval(), torch.cat([render_all(factors, species) for species in SPECIES]))
    judge.mean, judge.std = features.mean(0).float(), features.std(0).float()


def train_classifier(steps: int = 3000, images: int = 6_000, batch: int = 64, lr: float = 3e-4) -> None:
    """Train EGSDE's noise-aware domain classifier: uniform timesteps, cross-entropy, as its official code does."""
    generator = torch.Generator().manual_seed(SEEDS["classifier"])
    factors = sample_factors(2 * images, generator)
    data = torch.stack([render_all(part, kind) for part, kind in zip(factors.split(images), SPECIES, strict=True)])
    alpha_bar = alpha_bar_from_betas(linear_betas())
    torch.manual_seed(SEEDS["classifier"])
    classifier = PetsClassifier()

    def loss(number: int) -> Tensor:
        kind = torch.randint(2, (batch,), generator=generator)
        x0 = data[kind, torch.randint(images, (batch,), generator=generator)].float() / 127.5 - 1
        t = torch.randint(len(alpha_bar), (batch,), generator=generator)
        level = alpha_bar[t][:, None, None, None].float()
        xt = level.sqrt() * x0 + (1 - level).sqrt() * torch.randn(x0.shape, generator=generator)
        return F.cross_entropy(classifier(xt, t), kind)

    ema, record = train_one("classifier", classifier, loss, steps, lr, generator)
    write_weights("classifier", ema, {"images": 2 * images, **record})


def train_attributes(steps: int = 4000, images: int = 12_000, batch: int = 64, lr: float = 1e-3) -> None:
    """Train the classifier of attributes that guides sampling, on cats and dogs, half of them degraded.

    Labels come from factors with a little noise. So the classifier is the surer, the farther a factor is from where its
    word ends, and guidance does not stop there.
    """
    generator = torch.Generator().manual_seed(SEEDS["attributes"])
    factors = sample_factors(images, generator)
    pairs = torch.stack([render_all(factors, species) for species in SPECIES], dim=1)
    seen = as_judged(factors)
    torch.manual_seed(SEEDS["attributes"])
    network = PetsAttributes()

    def loss(number: int) -> Tensor:
        rows = torch.randint(images, (batch,), generator=generator)
        dog = torch.randint(2, (batch,), generator=generator)
        image, other = (pairs[rows, which].float() / 127.5 - 1 for which in (dog, 1 - dog))
        image, _ = degrade(image, other, generator)
        noisy = seen[rows] + FACTOR_NOISE * torch.randn(batch, seen.shape[1], generator=generator)
        targets = torch.stack([has_attribute(noisy, name) for name in ATTRIBUTES], dim=1).float()
        return F.binary_cross_entropy_with_logits(network(image), targets)

    ema, record = train_one("attributes", network, loss, steps, lr, generator)
    write_weights("attributes", ema, {"images": 2 * images, **record})


def degrade(image: Tensor, other: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Spoil half of the images in one way each; returns them and the strengths (n, 4) in [0, 1]."""
    n = image.shape[0]
    kind = torch.randint(8, (n,), generator=generator)  # 4 and more: left as it is
    strength = F.one_hot(kind, 8)[:, :4] * torch.rand(n, 1, generator=generator)
    noise, blur, patch, ghost = strength[:, :, None, None, None].unbind(1)
    blurred = F.avg_pool2d(F.pad(image, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
    pattern = torch.randn(n, 3, 4, 4, generator=generator).repeat(1, 1, SIZE // 4, SIZE // 4)
    image = image + 0.25 * noise * torch.randn(image.shape, generator=generator) + 0.25 * patch * pattern
    image = image + blur * (blurred - image) + ghost / 2 * (other - image)
    return image.clamp(-1, 1), strength


def render_all(factors: Tensor, species: str) -> Tensor:
    """Render many animals, uint8 (n, 3, 64, 64)."""
    chunks = [render(chunk, species, SIZE) for chunk in factors.split(100)]
    return torch.cat([((chunk + 1) * 127.5).round().to(torch.uint8) for chunk in chunks])


def write_weights(name: str, net: nn.Module, card: dict, folder: Path = WEIGHTS) -> None:
    """Write `net` as float16 safetensors with its card."""
    path = folder / f"{name}.safetensors"
    save_file({key: value.half().contiguous() for key, value in net.state_dict().items()}, path)
    write_card(name, path, SEEDS[name], net, card, folder)


def write_card(name: str, path: Path, seed: int, net: nn.Module, card: dict, folder: Path = WEIGHTS) -> None:
    """Say in a folder of weights what one of its files is and how it came about."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    size = sum(p.numel() for p in net.parameters())
    card = {"name": name, "parameters": size, "data_seed": seed, **card, "sha256": digest}
    (folder / f"{name}.json").write_text(json.dumps(card, indent=2) + "\n")


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"any of {', '.join(SEEDS)}; default: all, in this order")
    parser.add_argument("--steps", type=int, default=DDPM_STEPS, help="of a DDPM; default: %(default)s")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(SEEDS)
    if unknown:
        parser.error(f"there is no part named {', '.join(sorted(unknown))}; choose from {', '.join(SEEDS)}")
    for name in arguments.names or SEEDS:
        torch.set_num_threads(1)  # two trainings side by side on two cores are faster than one on both
        if name == "judge":
            train_judge()
        elif name == "classifier":
            train_classifier()
        elif name == "attributes":
            train_attributes()
        else:
            train_diffusion(name, arguments.steps)


if __name__ == "__main__":
    main()
