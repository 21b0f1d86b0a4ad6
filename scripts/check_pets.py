"""Score samples of the shipped generators of pets, and draw some: what the judge sees of their quality.

    python scripts/check_pets.py cat dog     the DDPMs: 50 steps
    python scripts/check_pets.py text flow   the text-to-image models under captions: 33 steps, at two guidance scales
    python scripts/check_pets.py             all of it; minutes

Pictures land in ~/.cache/cyclediff/training.
"""

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch
from rich.progress import track
from torch import Tensor
from train_one import CHECKPOINTS
from train_pets import SIZE, WEIGHTS, render_all
from train_pets_flow import FLOW
from train_pets_text import MODEL, captions

from cyclediff.cyclediffusion import decode
from cyclediff.data.images import to_pil, to_uint8
from cyclediff.diffusion.noise import Noise
from cyclediff.models.load_text import load_text_to_image
from cyclediff.pets.captions import Description
from cyclediff.pets.networks import load
from cyclediff.pets.render import SPECIES, sample_factors
from eval.metrics.frechet import frechet_distance
from eval.metrics.pets import DOMAIN, load_pets_judge, observe

BLUR = DOMAIN + 2  # of the judge's outputs
COUNT, BATCH = 256, 32
REAL, SAMPLES, CAPTIONS = 45, 44, 46  # seeds; no table and no training has them


def score(name: str, images: Tensor, species: str) -> None:
    """Print what the judge sees in images, uint8 (COUNT, 3, 64, 64), beside two sets of rendered ones; draw some."""
    judge = load_pets_judge(WEIGHTS / "judge.safetensors")
    real = render_all(sample_factors(2 * COUNT, torch.Generator().manual_seed(REAL)), species)
    (first, seen_first), (second, _) = (observe(judge, half) for half in real.split(COUNT))
    features, seen = observe(judge, images)
    scores = {
        "own_species": ((seen[:, DOMAIN] > 0) == (species == "dog")).double().mean().item(),
        "fd": frechet_distance(features, first),
        "fd_of_two_real_sets": frechet_distance(second, first),
        "blur": seen[:, BLUR].mean().item(),
        "blur_of_real": seen_first[:, BLUR].mean().item(),
    }
    print(name, json.dumps({key: round(value, 3) for key, value in scores.items()}))
    sheet = torch.cat([torch.cat(list(row), 2) for row in images[:32].split(8)], 1)
    CHECKPOINTS.mkdir(parents=True, exist_ok=True)
    to_pil(sheet).resize((1024, 512), 0).save(CHECKPOINTS / f"{name.replace(' ', '_')}.png")


@torch.no_grad()
def check_ddpm(species: str) -> None:
    """Unconditional samples, DDPM's steps."""
    denoiser = load(str(WEIGHTS / f"{species}.safetensors")).condition()
    levels, generator = denoiser.schedule.levels(50), torch.Generator().manual_seed(SAMPLES)
    images = []
    for _ in track(range(COUNT // BATCH), f"samples of {species}"):
        code = torch.randn(BATCH, len(levels) - 1, 3, SIZE, SIZE, generator=generator)
        images.append(to_uint8(decode(code, denoiser, levels, eta=1.0)))
    score(species, torch.cat(images), species)


@torch.no_grad()
def check_text(name: str, folder: str, eta: float) -> None:
    """Samples under captions, and what the autoencoder makes of rendered pictures."""
    model: Any = load_text_to_image(folder)
    generator = torch.Generator().manual_seed(SAMPLES)
    factors = sample_factors(COUNT, torch.Generator().manual_seed(CAPTIONS))
    for species in SPECIES:
        texts = captions([Description(row, species) for row in factors], generator)
        pictures = render_all(factors, species)
        again, drawn = [], {1.0: [], 3.0: []}
        for start in track(range(0, COUNT, BATCH), f"{name}: {species}"):
            some = pictures[start : start + BATCH].float() / 127.5 - 1
            z = model.encode(some, Noise(1, [str(i) for i in range(start, start + BATCH)]))
            again.append(to_uint8(model.decode(z)))
            for scale, images in drawn.items():
                denoiser = model.condition(texts[start : start + BATCH], guidance_scale=scale)
                levels = denoiser.schedule.levels(33, "latent")
                code = torch.randn(BATCH, len(levels) - 1, *z.shape[1:], generator=generator)
                images.append(to_uint8(model.decode(decode(code, denoiser, levels, eta=eta))))
        error = ((torch.cat(again).double() - pictures) / 255).square().mean((1, 2, 3))
        print(f"{name} {species}: autoencoder {-10 * error.log10().mean().item():.2f} dB")
        score(f"{name} autoencoder {species}", torch.cat(again), species)
        for scale, images in drawn.items():
            score(f"{name} {species} guidance {scale:g}", torch.cat(images), species)


CHECKS: dict[str, Callable[[], None]] = {
    "cat": lambda: check_ddpm("cat"),
    "dog": lambda: check_ddpm("dog"),
    "text": lambda: check_text("text", str(MODEL), 1.0),
    "flow": lambda: check_text("flow", str(FLOW), 0.0),  # Euler's steps, without noise
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*CHECKS, []], help="default: all")
    for check in parser.parse_args().names or CHECKS:
        CHECKS[check]()
