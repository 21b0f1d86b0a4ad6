"""CUT's networks on this machine's CPU, with random weights: the part of `make bench` about training."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn

from baselines import cut
from cyclediff.models.cut_networks import Discriminator, Generator, Projections, Up, initialise

SIZE, ROUNDS = 256, 5
SMALL = cut.Training(width=32, blocks=5, discriminator_width=32, patches=128, load_size=64, crop_size=64)  # of pets


class OfficialUp(nn.Module):
    """The official Upsample: edges are copied, a transposed convolution by the filter, edges are cut."""

    def __init__(self, up: Up):
        super().__init__()
        self.register_buffer("filt", up.filt)

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) → (n, c, 2h, 2w)."""
        padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
        made = F.conv_transpose2d(padded, self.filt, stride=2, padding=2, groups=x.shape[1])  # pyright: ignore[reportArgumentType]
        return made[:, :, 1:, 1:][:, :, :-1, :-1]


def official_form(generator: Generator) -> Generator:
    """The same generator with the official code's upsampling."""
    for name, module in list(generator.model.named_children()):
        if isinstance(module, Up):
            setattr(generator.model, name, OfficialUp(module))
    return generator


def medians(forms: dict[str, Callable[[], Any]], rounds: int = ROUNDS) -> dict[str, float]:
    """Median seconds of each form; the forms take turns, so that a busy moment hits all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for form in forms.values():
        form()
    for _ in range(rounds):
        for name, form in forms.items():
            began = time.perf_counter()
            form()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(found) for name, found in seconds.items()}


@torch.no_grad()
def rows_of_forward(table: Table) -> None:
    """The generator at 256×256, as `method=cut` runs it, beside the official form."""
    rng = torch.Generator().manual_seed(1)
    x = torch.rand(1, 3, SIZE, SIZE, generator=rng) * 2 - 1
    ours = initialise(Generator(), rng).eval().requires_grad_(False)
    official = Generator()
    official.load_state_dict(ours.state_dict())
    official = official_form(official).eval().requires_grad_(False)
    worst = (ours(x) - official(x)).abs().max().item()
    last = Generator()
    last.load_state_dict(ours.state_dict())
    last = last.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    channels_last = x.to(memory_format=torch.channels_last)
    forms = {"ours": lambda: ours(x), "official": lambda: official(x), "last": lambda: last(channels_last)}
    found = medians(forms)
    table.add_row(
        f"CUT's generator, {SIZE}×{SIZE}: ours / the official form",
        f"{found['ours'] / found['official']:.2f} ({found['ours']:.2f} s; largest difference {worst:.1e})",
        "≤ 1.0",
    )
    table.add_row("  the same, channels last", f"{found['last'] / found['official']:.2f}", "")


def rows_of_step(table: Table) -> None:
    """A training step, beside the forwards and backwards of its networks alone."""
    how, rng = SMALL, torch.Generator().manual_seed(1)
    generator = initialise(Generator(how.width, how.blocks), rng)
    discriminator = initialise(Discriminator(how.discriminator_width, how.discriminator_layers), rng)
    projections = initialise(Projections(generator.feature_widths(how.layers), 64), rng)
    networks = cut.Networks(generator, discriminator, projections)
    groups = {"discriminator": [discriminator], "generator": [generator, projections]}
    parameters = {name: [p for part in parts for p in part.parameters()] for name, parts in groups.items()}
    optimizers = {name: torch.optim.Adam(some, how.lr, (how.beta1, how.beta2)) for name, some in parameters.items()}
    a, b = (torch.rand(1, 3, how.crop_size, how.crop_size, generator=rng) * 2 - 1 for _ in range(2))

    def update(which: str, loss: Tensor) -> None:
        optimizers[which].zero_grad()
        loss.backward(inputs=parameters[which])
        optimizers[which].step()

    def networks_alone() -> None:
        """What a step evaluates: images, the discriminator twice, features of what was made, and the heads twice."""
        both = torch.cat((a, b))
        made, seen = generator.with_features(both, how.layers)
        places = cut.draw_positions(seen, how.patches, rng)
        scores = discriminator(torch.cat((made[:1].detach(), b)))
        torch.autograd.grad(scores.sum(), parameters["discriminator"])
        features = generator.features(made, how.layers)
        judged = discriminator(made[:1])
        with torch.no_grad():
            projections(seen, places)
        heads = projections(features, places)
        total = judged.sum() + torch.stack([head.sum() for head in heads]).sum()
        torch.autograd.grad(total, parameters["generator"], allow_unused=True)

    found = medians(
        {
            "step": lambda: cut.training_step(a, b, networks, how, rng, update),
            "networks": networks_alone,
        },
        rounds=9,
    )
    table.add_row(
        "a training step of CUT on pets / its networks alone",
        f"{found['step'] / found['networks']:.2f} ({1000 * found['step']:.0f} ms)",
        "≤ 1.1",
    )


def rows_of_training(table: Table) -> None:
    """All of this file."""
    rows_of_forward(table)
    rows_of_step(table)
