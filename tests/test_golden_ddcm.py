"""DDCM against InfEdit's code: timesteps, states of both branches, predictions and edited latents."""

import json
import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from diffusers import LCMScheduler
from safetensors import safe_open

from baselines.ddcm import DDCM
from cyclediff.diffusion.conditioning import Conditioning
from cyclediff.diffusion.levels import CLEAN, NOISE, Prediction
from cyclediff.diffusion.schedule import lcm_timesteps
from cyclediff.diffusion.steps import mean, posterior_step, transitions
from cyclediff.diffusion.transfer import chain, transfer

from .nets import GOLDEN, RecordedNoise, cases, golden
from .test_golden_latent import SCHEDULE, denoiser

NAME, CODE = "infedit_ddcm", "InfEdit, DDCM"


@cache
def update_cases() -> list[dict]:
    with safe_open(GOLDEN / f"{NAME}.safetensors", "pt") as file:
        return json.loads(file.metadata()["step"])


@pytest.mark.parametrize("T", [1, 4, 8, 12, 33, 50])
def test_timesteps_are_those_of_diffusers(T):
    scheduler = LCMScheduler()
    scheduler.set_timesteps(T)
    assert lcm_timesteps(1000, T).tolist() == scheduler.timesteps.tolist()
    assert [level.t for level in SCHEDULE.levels(T, "lcm")] == [*scheduler.timesteps.tolist(), CLEAN.t]


@pytest.mark.parametrize(("num_train", "T"), [(1000, 0), (1000, 51), (49, 10)])
def test_timesteps_that_do_not_exist_are_refused(num_train, T):
    with pytest.raises(ValueError, match=f"between 1 and 50 with lcm spacing.*got {T} of {num_train}"):
        lcm_timesteps(num_train, T)


@pytest.mark.parametrize("case", cases(NAME))
def test_timesteps_of_the_cases(case):
    config, data = cases(NAME)[case], golden(NAME)
    levels = SCHEDULE.levels(config["n"], "lcm")[:-1]
    assert [level.t for level in levels] == data[f"{case}.timesteps_all"].tolist()
    assert [level.t for level in levels[-config["steps"] :]] == data[f"{case}.timesteps_used"].tolist()


class Spy:
    """A denoiser that notes the states that it is asked about."""

    def __init__(self, denoiser):
        self.denoiser, self.schedule, self.states = denoiser, denoiser.schedule, []

    def __call__(self, x, level):
        self.states.append(x)
        return self.denoiser(x, level)


def sides(case: str):
    """The official guidance: none at a target's scale of 1 or less; negative and positive prompts as empty ones."""
    config, data = cases(NAME)[case], golden("cyclediffusion_ldm")
    made = []
    for keys in (("src", "gs", "pos"), ("tgt", "gt", "neg")):
        prompt, scale, empty = (config[key] for key in keys)
        one = denoiser([prompt], scale if config["gt"] > 1 else 1.0)
        made.append(replace(one, empty=Conditioning(data[f"emb.{empty or 'uncond'}"].float()[None])))
    return made


def draws(case: str) -> list[torch.Tensor]:
    """The official code draws at every step; the last draw has no effect, and none has at eta 0."""
    noise = [n[None] for n in golden(NAME)[f"{case}.noise"].float()]
    return noise[:-1] if cases(NAME)[case]["eta"] else noise[:1]


@pytest.mark.parametrize("case", cases(NAME))
def test_edited_latents(case, parity):
    config, data, noise = cases(NAME)[case], golden(NAME), RecordedNoise(draws(case))
    method = DDCM(config["n"], config["steps"], config["eta"], pure_start=not config["denoise"])
    source, target = map(Spy, sides(case))
    out = method(data[f"{case}.x0"].float(), source, target, noise)
    assert not noise.draws
    parity(CODE, "states of the source", torch.cat(source.states), data[f"{case}.x_s"])
    parity(CODE, "states of the target", torch.cat(target.states), data[f"{case}.x_t"])
    what = "edited latents: eta 0, 0.5 and 1, noised and pure start, negative prompt, one step"
    parity(CODE, what, out, data[f"{case}.out"])


@pytest.mark.parametrize("case", cases(NAME))
def test_predictions_of_each_step(case, parity):
    """What the result would be if each step were the last one."""
    config, data = cases(NAME)[case], golden(NAME)
    levels, found = SCHEDULE.levels(config["n"], "lcm")[-config["steps"] - 1 :], []
    for stop in range(1, config["steps"] + 1):
        start = None if config["denoise"] else NOISE
        noise = RecordedNoise(draws(case)[:stop])

        def sigma(t, s):
            return math.sqrt(config["eta"]) * s.b

        x0 = data[f"{case}.x0"].float()
        found.append(transfer(x0, *sides(case), [*levels[:stop], CLEAN], chain, sigma, noise, start))
    parity(CODE, "predicted x0 of each step", torch.cat(found), data[f"{case}.pred_x0"])


@pytest.mark.parametrize("index", range(6))
def test_one_update(index, parity):
    """From states and predictions that are random, between any two levels."""
    data, config = {k: v.float() for k, v in golden(NAME).items() if k.startswith("step.")}, update_cases()[index]
    x0, xs, xt, e_s, e_t = (data[f"step.{key}"] for key in ("x_0", "x_s", "x_t", "e_s", "e_t"))
    t, s = SCHEDULE.at(config["t"]), SCHEDULE.at(config["prev_t"])
    sigma = DDCM(10, 10, config["eta"]).sigma(t, s)

    def change(s, sigma):
        seen_s, seen_t = (Prediction((x - t.b * eps) / t.a, eps) for x, eps in ((xs, e_s), (xt, e_t)))
        return mean(seen_t, s, sigma) - mean(seen_s, s, sigma)

    parity(CODE, "predicted x0 of one update", x0 + change(CLEAN, 0.0), data[f"step.{index}.pred_x0"])
    if config["num_inference_steps"] == 1:  # then both states are x0's
        return
    after = posterior_step(xs, x0, t, s, sigma, data["step.noise"])
    parity(CODE, "next state of the target, one update", after + change(s, sigma), data[f"step.{index}.prev_xt"])
    moved = data[f"step.{index}.prev_xs"] - math.sqrt(s.b**2 - sigma**2) * (e_t - e_s)  # recorded with the target's e
    parity(CODE, "next state of the source, one update", after, moved)


def test_a_start_at_noise_needs_all_steps():
    """With steps left out the image is noised, and so it is without pure_start."""
    x0, noise = golden(NAME)["a.x0"].float(), golden(NAME)["a.noise"][:1].float()
    states = {}
    for pure_start in (True, False):
        for t0 in (4, 3):
            source, target = map(Spy, sides("a"))
            DDCM(4, t0, pure_start=pure_start)(x0, source, target, RecordedNoise([noise] * t0))
            states[pure_start, t0] = source.states[0]
    first, second = (t for t, _ in transitions(SCHEDULE.levels(4, "lcm")[:3]))
    assert states[True, 4].equal(noise)
    assert torch.allclose(states[False, 4], first.a * x0 + first.b * noise)
    assert states[True, 3].equal(states[False, 3])
    assert torch.allclose(states[True, 3], second.a * x0 + second.b * noise)
