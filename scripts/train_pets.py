"""Train the embedded world's networks from seeds and write their weights and cards.

    python scripts/train_pets.py cat        one network; `cat` and `dog` run well side by side, one core each
    python scripts/train_pets.py check      note on the cards how many samples the judge recognises
    python scripts/train_pets.py            all of it, one after another

An interrupted training continues from its last checkpoint in outputs/training.
"""

import argparse
import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cyclediff.cyclediffusion import decode
from cyclediff.denoiser import blend_x0
from cyclediff.images import to_uint8
from cyclediff.models.pets import SIZE, PetsClassifier, PetsUNet, load
from cyclediff.pets.render import FACTORS, SPECIES, render, sample_factors
from cyclediff.schedule import alpha_bar_from_betas, linear_betas, spaced_timesteps
from eval.pets import DOMAIN, PetsJudge, load_pets_judge, observe

FIRST_ERROR = 0.03  # of blend_x0 while the patch network learns alone
BLIND_BELOW = 0.15
SECOND_STEPS = 2600
WEIGHTS = Path(__file__).parents[1] / "cyclediff" / "pets" / "weights"
CHECKPOINTS = Path("outputs/training")
SEEDS = {
    "cat": 11,
    "dog": 22,
    "judge": 33,
    "classifier": 44,
}  # of data, initialisation and noise; evaluation draws from other seeds


def diffusion_loss(
    net: Callable[[Tensor, Tensor], Tensor],
    x0: Tensor,
    alpha_bar: Tensor,
    generator: torch.Generator,
    blind_below: float = 0.0,
) -> Tensor:
    """Min-SNR-weighted error of x0 (arXiv 2303.09556, section 3.4, gamma 5) at stratified timesteps.

    Where the noise level sigma = sqrt(1 / alpha_bar - 1) is under `blind_below`, the image gets a random amount between
    the two: a sampler's states hold their own errors besides the nominal noise, and a network that trusts them would
    leave those in the image (exposure bias, arXiv 2301.11706).
    """
    n, num_train = x0.shape[0], alpha_bar.shape[0]
    u = (torch.arange(n) + torch.rand(n, generator=generator)) / n
    t = (u * num_train).long()
    ab = alpha_bar[t][:, None, None, None]
    sigma = (1 / ab - 1).sqrt()
    if blind_below:
        sigma = sigma + torch.rand(n, 1, 1, 1, generator=generator) * (blind_below - sigma).clamp(min=0)
    xt = ab.sqrt().float() * (x0 + sigma.float() * torch.randn(x0.shape, generator=generator))
    weight = (ab / (1 - ab)).clamp(max=5).float()
    return (weight * (net(xt, t) - x0) ** 2).mean()


def train_diffusion(species: str, images: int = 20_000, batch: int = 32) -> None:
    """Train one unconditional DDPM on rendered animals of one species: the patch network, then all of it."""
    generator = torch.Generator().manual_seed(SEEDS[species])
    data = render_all(sample_factors(images, generator), species)
    alpha_bar = alpha_bar_from_betas(linear_betas())

    def some() -> Tensor:
        return data[torch.randint(images, (batch,), generator=generator)].float() / 127.5 - 1

    def blended(xt: Tensor, t: Tensor) -> Tensor:
        return blend_x0(xt, net.coarse(xt, t), alpha_bar[t][:, None, None, None], FIRST_ERROR)

    torch.manual_seed(SEEDS[species])
    net = PetsUNet()
    groups = [{"params": net.coarse.parameters(), "lr": 4e-4}]
    coarse, first = optimise(
        f"{species}_coarse",
        net.coarse,
        lambda: diffusion_loss(blended, some(), alpha_bar, generator),
        5000,
        groups,
        generator,
        cycle=7500,
    )
    net.coarse.load_state_dict(coarse.state_dict())
    groups = [{"params": net.coarse.parameters(), "lr": 2e-4}, {"params": net.detail.parameters(), "lr": 1e-3}]
    ema, second = optimise(
        species,
        net,
        lambda: diffusion_loss(net, some(), alpha_bar, generator, BLIND_BELOW),
        SECOND_STEPS,
        groups,
        generator,
        cycle=SECOND_STEPS,
    )
    steps = {key: [first[key], second[key]] for key in ("steps", "seconds")}
    write_weights(species, ema, {"parameterisation": "x0", "images": images, **steps, "loss": second["loss"]})


def train_judge(steps: int = 3000, images: int = 12_000, batch: int = 64, lr: float = 1e-3) -> None:
    """Train the observer of `eval.pets` on pairs of counterparts, half of them degraded."""
    generator = torch.Generator().manual_seed(SEEDS["judge"])
    factors = sample_factors(images, generator)
    pairs = torch.stack([render_all(factors, species) for species in SPECIES], dim=1)
    targets = judge_targets(factors)
    torch.manual_seed(SEEDS["judge"])
    judge = PetsJudge()

    def loss() -> Tensor:
        rows = torch.randint(images, (batch,), generator=generator)
        dog = torch.randint(2, (batch,), generator=generator)
        image, other = (pairs[rows, which].float() / 127.5 - 1 for which in (dog, 1 - dog))
        image, strength = degrade(image, other, generator)
        species = (dog - strength[:, 3] / 2).abs()
        seen = judge(image)[1]
        kept, domain, degradation = seen.split((targets.shape[1], 1, strength.shape[1]), dim=1)
        domain_loss = F.binary_cross_entropy_with_logits(domain[:, 0], species)
        return F.mse_loss(kept, targets[rows]) + 0.1 * domain_loss + F.mse_loss(degradation, strength)

    groups = [{"params": list(judge.parameters()), "lr": lr}]
    ema, record = optimise("judge", judge, loss, steps, groups, generator, cycle=steps)
    write_weights("judge", ema, {"images": 2 * images, **record})


def train_classifier(steps: int = 3000, images: int = 6_000, batch: int = 64, lr: float = 3e-4) -> None:
    """Train EGSDE's noise-aware domain classifier: uniform timesteps, cross-entropy, as its official code does."""
    generator = torch.Generator().manual_seed(SEEDS["classifier"])
    factors = sample_factors(2 * images, generator)
    data = torch.stack([render_all(part, kind) for part, kind in zip(factors.split(images), SPECIES, strict=True)])
    alpha_bar = alpha_bar_from_betas(linear_betas())
    torch.manual_seed(SEEDS["classifier"])
    classifier = PetsClassifier()

    def loss() -> Tensor:
        kind = torch.randint(2, (batch,), generator=generator)
        x0 = data[kind, torch.randint(images, (batch,), generator=generator)].float() / 127.5 - 1
        t = torch.randint(len(alpha_bar), (batch,), generator=generator)
        level = alpha_bar[t][:, None, None, None].float()
        xt = level.sqrt() * x0 + (1 - level).sqrt() * torch.randn(x0.shape, generator=generator)
        return F.cross_entropy(classifier(xt, t), kind)

    groups = [{"params": list(classifier.parameters()), "lr": lr}]
    ema, record = optimise("classifier", classifier, loss, steps, groups, generator, cycle=steps)
    write_weights("classifier", ema, {"images": 2 * images, **record})


def judge_targets(factors: Tensor) -> Tensor:
    """Scalar factors scaled to [-1, 1], then each hue as (cos, sin), in the order that `PetsJudge` documents."""
    scalars, hues = [], []
    for value, factor in zip(factors.unbind(1), FACTORS, strict=True):
        if factor.circular:
            hues += [torch.cos(2 * math.pi * value), torch.sin(2 * math.pi * value)]
        else:
            scalars.append((2 * value - factor.low - factor.high) / (factor.high - factor.low))
    return torch.stack(scalars + hues, dim=1)


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


def optimise(
    name: str,
    net: nn.Module,
    loss: Callable[[], Tensor],
    steps: int,
    groups: list[dict[str, Any]],
    generator: torch.Generator,
    cycle: int,
) -> tuple[nn.Module, dict[str, Any]]:
    """AdamW with warm-up, half a cosine of `cycle` steps and an exponential moving average; resumes.

    Returns:
        The averaged network, and what goes on its card.
    """
    ema = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01, fused=True)
    warm_up = min(300, steps // 10)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min((i + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * i / cycle))
    )
    parts = {"net": net, "ema": ema, "optimizer": optimizer, "scheduler": scheduler}
    checkpoint = CHECKPOINTS / f"pets_{name}.pt"
    start, seconds, average = 0, 0.0, float("nan")
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        if saved["steps"] != steps:
            raise SystemExit(
                f"{checkpoint} belongs to a training of {saved['steps']} steps; delete it or ask for as many"
            )
        for key, part in parts.items():
            part.load_state_dict(saved[key])
        generator.set_state(saved["generator"])
        start, seconds, average = saved["step"], saved["seconds"], saved["loss"]
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, TextColumn("loss {task.fields[loss]:.4f}")) as progress:
        bar = progress.add_task(name, total=steps, completed=start, loss=average)
        for step in range(start, steps):
            began = time.perf_counter()
            value = loss()
            optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            ema.update_parameters(net)
            average = value.item() if math.isnan(average) else 0.99 * average + 0.01 * value.item()
            seconds += time.perf_counter() - began
            progress.update(bar, advance=1, loss=average)
            if (step + 1) % 250 == 0:
                state = {key: part.state_dict() for key, part in parts.items()}
                state |= {"generator": generator.get_state(), "step": step + 1, "steps": steps}
                state |= {"seconds": seconds, "loss": average}
                checkpoint.parent.mkdir(parents=True, exist_ok=True)
                torch.save(state, checkpoint.with_suffix(".tmp"))
                os.replace(checkpoint.with_suffix(".tmp"), checkpoint)
    return ema.module, {"steps": steps, "loss": round(average, 5), "seconds": round(seconds)}


def write_weights(name: str, net: nn.Module, card: dict) -> None:
    """Ship `net` as float16 safetensors with its card."""
    WEIGHTS.mkdir(exist_ok=True)
    path = WEIGHTS / f"{name}.safetensors"
    save_file({key: value.half().contiguous() for key, value in net.state_dict().items()}, path)
    write_card(name, path, SEEDS[name], net, card)


def write_card(name: str, path: Path, seed: int, net: nn.Module, card: dict) -> None:
    """Say beside the weights folder's files what a file of weights is and how it came about."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    size = sum(p.numel() for p in net.parameters())
    card = {"name": name, "parameters": size, "data_seed": seed, **card, "sha256": digest}
    (WEIGHTS / f"{name}.json").write_text(json.dumps(card, indent=2) + "\n")


def check(species: str, count: int = 256, batch: int = 32) -> None:
    """Note on a network's card which share of its unconditional samples the judge calls by their own name."""
    denoiser = load(str(WEIGHTS / f"{species}.safetensors")).condition()
    judge = load_pets_judge(WEIGHTS / "judge.safetensors")
    timesteps, generator = spaced_timesteps(len(denoiser.alpha_bar), 100), torch.Generator().manual_seed(44)
    right = 0
    for _ in track(range(count // batch), f"samples of {species}"):
        code = torch.randn(batch, len(timesteps), 3, SIZE, SIZE, generator=generator)
        with torch.no_grad():
            outputs = observe(judge, to_uint8(decode(code, denoiser, timesteps, eta=1.0)))[1]
        right += ((outputs[:, DOMAIN] > 0) == (species == "dog")).sum().item()
    path = WEIGHTS / f"{species}.json"
    card = json.loads(path.read_text()) | {"own_species": right / count, "own_species_of": count}
    path.write_text(json.dumps(card, indent=2) + "\n")
    print(f"{species}: the judge recognises {right} of {count} unconditional samples")


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = [*SEEDS, "check"]
    parser.add_argument("names", nargs="*", help=f"any of {', '.join(parts)}; default: all, in this order")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(parts)
    if unknown:
        parser.error(f"there is no part named {', '.join(sorted(unknown))}; choose from {', '.join(parts)}")
    for name in arguments.names or parts:
        # two trainings side by side on two cores are faster than one on both
        torch.set_num_threads(1 if name in SEEDS else os.cpu_count() or 1)
        if name == "judge":
            train_judge()
        elif name == "classifier":
            train_classifier()
        elif name == "check":
            for species in SPECIES:
                check(species)
        else:
            train_diffusion(name)


if __name__ == "__main__":
    main()
