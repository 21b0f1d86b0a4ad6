"""A text-to-image folder with a flow-matching scheduler, and the shipped one of pets."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from baselines.ddib import sample
from cyclediff.cyclediffusion import CycleDiffusion
from cyclediff.diffusion.noise import Noise
from cyclediff.models.load_text import load_text_to_image
from cyclediff.pets.render import render, sample_factors

from .tiny_sd import stable_diffusion

SOURCE, TARGET = "a small ginger cat on a teal background", "a small blue dog on a teal background"
IMAGE = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
PETS = Path(__file__).parents[1] / "cyclediff/pets/weights/text_to_image_flow"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return stable_diffusion(tmp_path_factory.mktemp("sd"))


def test_a_flow_is_sampled_as_diffusers_scheduler_does(tmp_path, folder, parity):
    """A folder with a flow-matching scheduler: Euler steps under guidance, against diffusers' own scheduler object."""
    flow = Path(shutil.copytree(folder, tmp_path / "flow"))
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(flow / "scheduler")
    model = load_text_to_image(str(flow))
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    levels, denoiser = model.schedule.levels(8), model.condition([SOURCE, TARGET], 2.5)
    ours = sample(x, denoiser, levels)
    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs.set_timesteps(8, sigmas=[1 - i / 8 for i in range(8)])
    both = torch.cat((denoiser.empty.tokens.expand(2, -1, -1), denoiser.context.tokens))
    for t in theirs.timesteps:
        without, under = model.module(torch.cat((x, x)), t.expand(4), both).sample.chunk(2)
        x = theirs.step(without + 2.5 * (under - without), t, x, return_dict=False)[0]
    parity("diffusers", "FlowMatchEulerDiscreteScheduler, latents", ours, x)


def test_cyclediffusion_on_a_flow_returns_the_latent_under_one_prompt(tmp_path, folder):
    flow = Path(shutil.copytree(folder, tmp_path / "flow"))
    FlowMatchEulerDiscreteScheduler().save_pretrained(flow / "scheduler")
    model, noise = load_text_to_image(str(flow)), Noise(1, ["a", "b"])
    x0 = model.encode(IMAGE, noise)
    for T_es in (20, 14):
        method = CycleDiffusion(T=20, T_es=T_es, eta=0.1, spacing="latent")
        same = method(x0, model.condition([SOURCE] * 2), model.condition([SOURCE] * 2), noise)
        assert (same - x0).abs().max() < 1e-5 * max(1, x0.abs().max())
        other = method(x0, model.condition([SOURCE] * 2), model.condition([TARGET] * 2, 3.0), noise)
        assert (other - x0).abs().max() > 0.01


def test_cyclediffusion_on_the_flow_of_pets():
    """Under one prompt the latent comes back; under another, it changes."""
    model, noise = load_text_to_image(str(PETS)), Noise(1, ["a", "b"])
    assert model.parametrization == "flow"
    cats = render(sample_factors(2, torch.Generator().manual_seed(3)), "cat")
    x0, method = model.encode(cats, noise), CycleDiffusion(T=33, T_es=27, eta=0.1, spacing="latent")
    sides = [model.condition([text] * 2, scale) for text, scale in (("a cat", 1.0), ("a dog", 3.0))]
    assert (method(x0, sides[0], sides[0], noise) - x0).abs().max() < 1e-5 * max(1, x0.abs().max())
    assert (method(x0, *sides, noise) - x0).abs().mean() > 0.05
