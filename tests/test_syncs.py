"""No method and no network waits for a GPU, or copies to it, in each step. Counted on a made-up device."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

import cyclediff.pets
from cyclediff.attention_control import AttentionControl
from cyclediff.attention_layers import install
from cyclediff.diffusion.conditioning import Conditioning
from cyclediff.diffusion.denoiser import GuidedDenoiser, NetworkDenoiser
from cyclediff.diffusion.prompt import Prompt
from cyclediff.models.text_to_image import caller
from cyclediff.pets.networks import PetsUNet
from scripts.benchmark_syncs import CUDA, made_up_gpu, to_made_up

from .test_contract import FILES, FLOW, SCHEDULE, make

PETS_TEXT = Path(cyclediff.pets.__file__).parent / "weights" / "text_to_image" / "unet"
PROMPT = Prompt("a cat", (0, 1, 2, 3), ((0, 0), (0, 1), (2, 5), (0, 0)))
GUIDED = ("egsde", "egsde_dagger", "diffuseit", "splice", "cut", "fastcut")  # their networks are not on the device


class DeviceNoise:
    """Noise that is drawn where it is needed."""

    def randn_like(self, x):
        return torch.randn_like(x)

    def rows(self, start, stop):
        return self


def test_what_is_counted():
    with made_up_gpu() as counts:
        x = torch.randn(4, 3, device=CUDA)
        x * 2 + 1
        assert not counts.crossings + counts.waits
        x.to("cpu"), torch.zeros(4).to(CUDA)
        assert len(counts.crossings) == 2
        if x.isfinite().all():
            float(x.sum())
        assert len(counts.waits) == 2
        torch.tensor([1.0, 2.0], device=CUDA)
        assert len(counts.crossings) == 3
        assert counts.crossings[2].endswith("torch.tensor([1.0, 2.0], device=CUDA)")


@pytest.mark.parametrize("file", [f for f in FILES if not f.stem.startswith(GUIDED)], ids=lambda file: file.stem)
def test_a_method_waits_and_copies_at_most_a_few_times(file):
    method, calls = make(file), []

    def network(x, t, *more):
        calls.append(len(x))
        return 0.5 * x

    def denoiser(side):
        if method.name == "flowedit":
            return NetworkDenoiser(network, FLOW, "flow")
        if "none" in method.conditions:
            return NetworkDenoiser(network, SCHEDULE)
        context, empty = (Conditioning(torch.zeros(n, 4, 1, device=CUDA)) for n in (2, 1))
        scales = (1.0 if side == "source" else 3.0,) * 2
        return GuidedDenoiser(network, SCHEDULE, "epsilon", context, empty, scales, (PROMPT,) * 2, "one")

    with made_up_gpu() as counts:
        x0 = torch.randn(2, 3, 16, 16, device=CUDA)
        sides = [denoiser(side) if side in method.needs else None for side in ("source", "target")]
        out = method(x0, *sides, DeviceNoise())
        assert out.device == CUDA
    assert len(calls) >= 12
    assert not counts.waits
    assert len(counts.crossings) <= 8, counts.crossings  # the tables of attention control, or a filter's weights, once


def test_a_pixel_network_copies_nothing():
    with made_up_gpu() as counts:
        network = to_made_up(PetsUNet())
        network(torch.randn(2, 3, 64, 64, device=CUDA), torch.full((2,), 500, device=CUDA))
    assert counts.operations > 100
    assert not counts.crossings + counts.waits


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_attention_control_copies_its_tables_once(dtype):
    unet: Any = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(PETS_TEXT))
    install(unet.to(dtype))
    length, width = 16, unet.config.cross_attention_dim
    prompts = [Prompt(text, (0, 1, 2, 3), ((0, 0), (0, 1), (2, 5), (0, 0))) for text in ("a cat", "a dog")]
    plan = AttentionControl().plan(prompts[:1], prompts[1:], length, 10, CUDA)
    with made_up_gpu() as counts:
        call = caller(to_made_up(unet), dtype, torch.contiguous_format)
        x, t, context = (torch.randn(s, device=CUDA) for s in ((4, 4, 16, 16), (4,), (4, length, width)))
        context = Conditioning(context)
        plan.at(0, [2], [3], [0])
        assert len(counts.crossings) <= 8, counts
        counts.crossings.clear()
        for step in range(4):
            call(x, t, context, plan.at(step, [2], [3], [0]))
        assert not counts.crossings + counts.waits
