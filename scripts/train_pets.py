"""Train the embedded world's networks from seeds and write their weights and cards.

    python scripts/train_pets.py cat        one network; `cat` and `dog` run well side by side, one core each
    python scripts/train_pets.py            all of them, one after another

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
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cyclediff.denoiser import blend_x0
from cyclediff.models.pets import SIZE, X0_ERROR, PetsUNet
from cyclediff.pets.render import FACTORS, SPECIES, render, sample_factors
from cyclediff.schedule import alpha_bar_from_betas, linear_betas
from eval.features import PetsJudge

FIRST_ERROR = 0.03  # blend_x0's error while the patch network learns alone
WEIGHTS = Path(__file__).parents[1] / "cyclediff" / "pets" / "weights"
CHECKPOINTS = Path("outputs/training")
SEEDS = {"cat": 11, "dog": 22, "judge": 33}  # of data, initialisation and noise; evaluation draws from other seeds


DETAIL_FROM = 2 / 3  # of a diffusion network's steps: until then the patch network learns alone


def diffusion_loss(
    net: nn.Module, x0_error: float, x0: Tensor, alpha_bar: Tensor, generator: torch.Generator
) -> Tensor:
    """Min-SNR-weighted error of x0 (arXiv 2303.09556, section 3.4, gamma 5) at stratified timesteps."""
    n, num_train = x0.shape[0], alpha_bar.shape[0]
    u = (torch.arange(n) + torch.rand(n, generator=generator)) / n
    t = (u * num_train).long()
    ab = alpha_bar[t][:, None, None, None]
    xt = ab.sqrt().float() * x0 + (1 - ab).sqrt().float() * torch.randn(x0.shape, generator=generator)
    x0_hat = blend_x0(xt, net(xt, t), ab, x0_error)
    weight = (ab / (1 - ab)).clamp(max=5).float()
    return (weight * (x0_hat - x0) ** 2).mean()


def train_diffusion(species: str, steps: int, images: int = 20_000, batch: int = 32, lr: float = 4e-4) -> None:
    """Train one unconditional DDPM on rendered animals of one species."""
    generator = torch.Generator().manual_seed(SEEDS[species])
    data = render_all(sample_factors(images, generator), species)
    torch.manual_seed(SEEDS[species])
    net = PetsUNet()
    alpha_bar = alpha_bar_from_betas(linear_betas())

    def loss(step: int) -> Tensor:
        rows = torch.randint(images, (batch,), generator=generator)
        part, error = (net.coarse, FIRST_ERROR) if step < DETAIL_FROM * steps else (net, X0_ERROR)
        return diffusion_loss(part, error, data[rows].float() / 127.5 - 1, alpha_bar, generator)

    groups = [
        {"params": list(net.coarse.parameters()), "lr": lr},
        {"params": list(net.detail.parameters()), "lr": 5 * lr},
    ]
    ema, record = optimise(species, net, loss, steps, groups, generator)
    write_weights(species, ema, {"parameterisation": "x0", "x0_error": X0_ERROR, "images": images, **record})


def train_judge(steps: int, images: int = 12_000, batch: int = 64, lr: float = 1e-3) -> None:
    """Train the observer of `eval.features` on pairs of counterparts, half of them degraded."""
    generator = torch.Generator().manual_seed(SEEDS["judge"])
    factors = sample_factors(images, generator)
    pairs = torch.stack([render_all(factors, species) for species in SPECIES], dim=1)
    targets = judge_targets(factors)
    torch.manual_seed(SEEDS["judge"])
    judge = PetsJudge()

    def loss(step: int) -> Tensor:
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
    ema, record = optimise("judge", judge, loss, steps, groups, generator)
    write_weights("judge", ema, {"images": 2 * images, **record})


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
    loss: Callable[[int], Tensor],
    steps: int,
    groups: list[dict[str, Any]],
    generator: torch.Generator,
) -> tuple[nn.Module, dict[str, Any]]:
    """AdamW with warm-up, cosine decay and an exponential moving average; resumes. Returns (EMA network, record)."""
    ema = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.999))
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01, fused=True)
    warm_up = min(300, steps // 10)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min((i + 1) / warm_up, 0.5 + 0.5 * math.cos(math.pi * i / steps))
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
            value = loss(step)
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
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    size = sum(p.numel() for p in net.parameters())
    card = {"name": name, "parameters": size, "data_seed": SEEDS[name], **card, "sha256": digest}
    path.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n")


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"which networks to train: {', '.join(SEEDS)} (default: all)")
    parser.add_argument("--steps", type=int, default=7500, help="training steps of a diffusion network")
    parser.add_argument("--judge-steps", type=int, default=3000)
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(SEEDS)
    if unknown:
        parser.error(f"there is no network named {', '.join(sorted(unknown))}; choose from {', '.join(SEEDS)}")
    torch.set_num_threads(1)  # two trainings side by side on two cores are faster than one on both
    for name in arguments.names or SEEDS:
        if name == "judge":
            train_judge(arguments.judge_steps)
        else:
            train_diffusion(name, arguments.steps)


if __name__ == "__main__":
    main()
