"""An edit that stays inside a region: every method that follows texts, at every noise level and at its end."""

from dataclasses import replace

import pytest
import torch

from baselines.ledits_pp import LEDITSpp
from cyclediff.diffusion.conditioning import Conditioning
from cyclediff.diffusion.denoiser import GuidedDenoiser
from cyclediff.diffusion.noise import Noise
from cyclediff.diffusion.schedule import DiffusionSchedule, FlowSchedule, alpha_bar_from_betas, linear_betas
from cyclediff.studies.candidates import Edits, edit, split
from cyclediff.studies.selection import Grid

from .prompts import prompt_of
from .test_contract import FILES, make

IDS = ["a", "b"]
X0 = 0.3 + 0.2 * torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(4))
REGION = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
REGION[0, :, 2:6, 3:] = REGION[1, :, :5, :2] = True
SCHEDULE, FLOW = DiffusionSchedule(alpha_bar_from_betas(linear_betas())), FlowSchedule(3.0)
METHODS = sorted(file.stem for file in FILES if "text" in make(file).conditions and file.stem != "transfer_grid")


class Network:
    """The exact prediction for data N(mean, 0.3²), whose mean the prompt names; it also looks at the whole image."""

    def __init__(self, flow: bool, coupling: float):
        self.flow, self.coupling = flow, coupling
        self.schedule, self.seen = (FLOW if flow else SCHEDULE), []

    def __call__(self, x, t, context, edit):
        level = self.schedule.at(t[0].item() if self.flow else int(t[0]))
        self.seen.append((level, x, context.tokens[:, 0, 0]))
        mean = context.tokens[:, 0, 0][:, None, None, None] + self.coupling * x.mean((1, 2, 3), keepdim=True)
        apart = (x - level.a * mean) / (level.a**2 * 0.3**2 + level.b**2)
        x0, eps = mean + 0.3**2 * level.a * apart, level.b * apart
        return eps - x0 if self.flow else eps

    def condition(self, prompts, guidance_scale):
        prompts, kind = [prompt_of(text) for text in prompts], "flow" if self.flow else "epsilon"
        means = torch.tensor([0.3 if "cat" in prompt.text else -0.4 for prompt in prompts])
        context = Conditioning(means[:, None, None].expand(-1, 77, 1).contiguous())
        empty = Conditioning(torch.zeros(1, 77, 1))
        scales = tuple(map(float, guidance_scale))
        return GuidedDenoiser(self, self.schedule, kind, context, empty, scales, tuple(prompts), "one")


def built(name):
    method = make(next(file for file in FILES if file.stem == name), "zero_shot")
    few = {"timesteps": "12"} if name.startswith("ddib") else {"T": 12}
    if method.starts_at:
        few[method.starts_at] = 9
    return replace(method, **few)


def called(name, region, coupling=0.0):
    method, network = built(name), Network(name == "flowedit", coupling)
    source, target = (network.condition([text] * 2, [1.0] * 2) for text in ("a cat", "a dog"))
    return method(X0, source, replace(target, region=region), Noise(1, IDS)), network


@pytest.mark.parametrize("name", METHODS)
def test_the_whole_image_as_its_region_changes_nothing(name):
    assert (called(name, torch.ones_like(REGION), 0.5)[0] - called(name, None, 0.5)[0]).abs().max() < 1e-5


@pytest.mark.parametrize("name", [name for name in METHODS if name != "ledits_pp"])
def test_inside_a_network_without_neighbours_gives_what_it_gives_alone(name):
    free, kept = called(name, None)[0], called(name, REGION)[0]
    inside = REGION.expand_as(X0)
    assert (kept - free)[inside].abs().max() < 1e-5
    assert (free - X0)[inside].abs().mean() > 0.1
    assert (kept - X0)[~inside].abs().max() < 0.15  # SDEdit's last level has a little noise
    assert (free - X0)[~inside].abs().mean() > 0.1


@pytest.mark.parametrize("name", [name for name in METHODS if not name.startswith(("ledits_pp", "sdedit", "ddib"))])
def test_outside_is_the_source_at_each_level(name):
    compared = 0
    for _, x, means in called(name, REGION, 0.5)[1].seen:
        pairs = [x[means == mean] for mean in means.unique()]
        if len(pairs) == 2:
            outside = ~REGION.expand_as(X0)
            assert (pairs[0] - pairs[1])[outside].abs().max() < 1e-5
            compared += 1
    assert compared >= 8


@pytest.mark.parametrize("name", ["ddib", "ddib_cac"])
def test_outside_ddib_is_its_inversion_at_each_level(name):
    _, network = called(name, REGION, 0.5)
    states, compared = {}, 0
    for level, x, means in network.seen:
        if len(means.unique()) == 1 and means[0] > 0:
            states[level] = x  # the way up
        elif level in states and level != network.seen[-1][0]:
            outside = ~REGION.expand_as(X0)
            found = x[-2:][outside] - states[level][outside]
            compared += found.abs().max() < 1e-5
    assert compared >= 8


@pytest.mark.parametrize("name", ["sdedit", "sdedit_cac"])
def test_outside_sdedit_has_the_source_with_one_noise(name):
    _, network = called(name, REGION, 0.5)
    noises = [((x[-2:] - level.a * X0) / level.b)[~REGION.expand_as(X0)] for level, x, _ in network.seen]
    assert len(noises) == 9
    assert all((noise - noises[0]).abs().max() < 1e-3 for noise in noises)


def test_flowedit_keeps_the_outside_while_it_samples_alone():
    method, network = replace(built("flowedit"), n_min=4), Network(True, 0.5)
    source, target = (network.condition([text] * 2, [1.0] * 2) for text in ("a cat", "a dog"))
    kept = method(X0, source, replace(target, region=REGION), Noise(1, IDS))
    assert (kept - X0)[~REGION.expand_as(X0)].abs().max() < 1e-5
    assert (kept - X0)[REGION.expand_as(X0)].abs().mean() > 0.1


def test_concepts_of_ledits_pp_do_nothing_outside():
    method = LEDITSpp(T=12, T_es=9, threshold=0.0, first_order_below=0)
    network = Network(False, 0.0)
    source, target = (
        network.condition([text] * 2, scale) for text, scale in (("a cat", [1.0] * 2), ("a dog", [3.0] * 2))
    )
    kept = method(X0, source, replace(target, region=REGION), Noise(1, IDS))
    assert (kept - X0)[~REGION.expand_as(X0)].abs().max() < 1e-4
    assert (kept - X0)[REGION.expand_as(X0)].abs().mean() > 0.1


@pytest.mark.parametrize("name", METHODS)
def test_every_candidate_ends_with_the_source_outside_to_the_last_bit(name):
    method, network = built(name), Network(name == "flowedit", 0.5)
    guidance = (3.0,) if name == "ledits_pp" else (1.0, 2.0)
    skips = (3, 5) if method.starts_at else (0,)
    grid = Grid(trials=2, guidance=guidance, source_guidance=(1.0,), skip=skips)
    edits = Edits(IDS, [("a cat", "a dog")] * 2, X0, seed=3, region=REGION)
    for units in split(method, grid, 2, 5, shared_encoding=False):
        found = edit(method, network, edits, grid, units, shared_encoding=False)
        images = [image for image, _ in units]
        outside = ~REGION[images].expand_as(found)
        assert found[outside].equal(X0[images][outside])
        assert (found - X0[images])[~outside].abs().mean() > 0.01
