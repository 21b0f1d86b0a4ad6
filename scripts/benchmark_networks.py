"""The real networks' speed on this machine's CPU, with random weights: the part of `make bench` at 256×256."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor
from guided_diffusion_forward import forward
from make_random_checkpoints import random_state, shapes
from rich.table import Table
from torch import Tensor

from baselines.egsde import EGSDE, domain_energy, gradient, structure_energy
from cyclediff.cyclediffusion import CycleDiffusion
from cyclediff.diffusion.denoiser import LearnedVarianceDenoiser
from cyclediff.diffusion.noise import Noise
from cyclediff.diffusion.schedule import DiffusionSchedule, alpha_bar_from_betas, linear_betas
from cyclediff.models import adm
from cyclediff.models.classifier import DomainClassifier
from cyclediff.models.classifier import names as classifier_names
from cyclediff.models.inference import for_inference, sample_of
from cyclediff.models.weights import load_converted
from cyclediff.runtime.meter import Meter

MULT = (1, 1, 2, 2, 4, 4)
SPLIT = partial(adm.split_qkv, head_channels=64, order="legacy")


def afhq_network() -> tuple[Any, dict[str, Tensor]]:
    """The AFHQ network as we run it, and its weights under their official names."""
    state = random_state(shapes("afhq_dog"), seed=1)
    with torch.device("meta"):
        unet: Any = adm.build(256, 128, MULT, 1, (16,), 64)
    load_converted(unet, state, adm.names(unet.config, unet.state_dict()), "random", SPLIT)
    return unet.eval().requires_grad_(False), state


def domain_classifier() -> DomainClassifier:
    """EGSDE's classifier."""
    with torch.device("meta"):
        network = DomainClassifier(256, 2, 128, MULT, 2, (8, 16, 32), 64)
    load_converted(network, random_state(shapes("dse_cat2dog"), seed=2), classifier_names(network), "random", SPLIT)
    return network.eval().requires_grad_(False)


def side_by_side(forms: dict[str, Callable[[], Any]], rounds: int = 4) -> dict[str, float]:
    """Best seconds of each form; the forms take turns, so that a busy moment hits all of them."""
    best = dict.fromkeys(forms, float("inf"))
    for form in forms.values():
        form()
    for _ in range(rounds):
        for name, form in forms.items():
            began = time.perf_counter()
            form()
            best[name] = min(best[name], time.perf_counter() - began)
    return best


@torch.no_grad()
def rows_of_forward(table: Table) -> None:
    """One evaluation of the AFHQ network, against guided-diffusion's form and with the usual accelerations."""
    unet, state = afhq_network()
    ours = for_inference(unet, sample_of, "cpu")
    first, _ = afhq_network()
    plain, _ = afhq_network()
    for part in plain.modules():
        if isinstance(part, Attention):
            part.set_processor(AttnProcessor())
    for batch in (1, 4):
        x, t = torch.randn(batch, 3, 256, 256), torch.full((batch,), 500)
        out = ours(x, t)

        def in_bf16(x: Tensor = x, t: Tensor = t) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return ours(x, t)

        best = side_by_side(
            {
                "guided-diffusion's form": lambda x=x, t=t: forward(state, x, t, MULT, 1, (16,), 64),
                "ours (channels last, SDPA)": lambda x=x, t=t: ours(x, t),
                "channels first": lambda x=x, t=t: first(x, t).sample,
                "channels first, without SDPA": lambda x=x, t=t: plain(x, t).sample,
                "bf16 autocast": in_bf16,
            },
            rounds=4 if batch == 1 else 2,
        )
        own = best["ours (channels last, SDPA)"]
        for name, seconds in best.items():
            promise = "≥ 1 × ours" if name.startswith("guided") else ""
            shown = f"{seconds:.2f} s, {seconds / own:.2f} × ours"
            table.add_row(f"ADM 256×256, batch {batch}: {name}", shown, promise)
        error = ((in_bf16().float() - out).abs().max() / out.abs().max()).item()
        table.add_row(f"ADM 256×256, batch {batch}: error of bf16", f"{error:.1%} of the largest value", "")


def rows_of_cyclediffusion(table: Table, steps: int = 4) -> None:
    """CycleDiffusion between two AFHQ networks: evaluations, and what the rest costs."""
    unet, _ = afhq_network()
    meter = Meter(["a"], lambda: None)
    schedule = DiffusionSchedule(alpha_bar_from_betas(linear_betas()))
    denoiser = LearnedVarianceDenoiser(for_inference(unet, sample_of, "cpu"), schedule)
    source, target = (meter.watch(denoiser, side) for side in ("source", "target"))
    method = CycleDiffusion(T=1000, T_es=steps, eta=0.1)
    began = time.perf_counter()
    with torch.no_grad():
        method(torch.zeros(1, 3, 256, 256), source, target, Noise(1, ["a"]))
    seconds = time.perf_counter() - began
    what = "CycleDiffusion, ADM 256×256: evaluations per step"
    table.add_row(what, f"{(meter.forwards + 1) / steps:.0f}", "2; the last step has 1")
    table.add_row("  everything else", f"{1 - meter.seconds / seconds:.2%} of the time", "≤ 3 %")
    table.add_row(
        "  a code that holds all steps would keep", f"{4 * 3 * 256**2 / 1000:.0f} kB × T an image", "O(1) here"
    )


def rows_of_egsde(table: Table) -> None:
    """A step of EGSDE in units of one evaluation of the network."""
    unet, _ = afhq_network()
    classifier = domain_classifier()
    features = for_inference(classifier, type(classifier).features, "cpu")
    network = for_inference(unet, sample_of, "cpu")
    method = EGSDE(1000, 500, 500.0, 2.0, 32, features)
    y, xt = torch.randn(2, 1, 3, 256, 256)
    t, level = torch.tensor([100]), DiffusionSchedule(alpha_bar_from_betas(linear_betas())).at(100)

    def evaluate() -> None:
        with torch.no_grad():
            network(y, t)

    def apart() -> None:
        gradient(lambda a, b, t: domain_energy(a, b, t, features, "cosine"), y, xt, level)
        gradient(lambda a, b, t: structure_energy(a, b, 32, "neg_l2"), y, xt, level)

    best = side_by_side(
        {
            "one evaluation": evaluate,
            "both energies, one backward": lambda: gradient(method.energy, y, xt, level),
            "two backwards": apart,
        },
        rounds=3,
    )
    unit = best["one evaluation"]
    for name, seconds in best.items():
        table.add_row(f"EGSDE, ADM 256×256: {name}", f"{seconds:.2f} s, {seconds / unit:.2f} evaluations", "")
    whole = unit + best["both energies, one backward"]
    table.add_row("  a step", f"{whole / unit:.2f} evaluations", "")
