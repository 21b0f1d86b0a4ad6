"""Every method against the numbers of its official code, under the official code's own noise."""

import pytest
import torch

from baselines.ddib import DDIB, invert
from baselines.sdedit import SDEdit, sdedit
from cyclediff.cyclediffusion import CycleDiffusion, encode
from cyclediff.schedule import respaced_timesteps, spaced_timesteps

from .nets import RecordedNoise, assert_close, cases, golden, tiny_denoiser


@pytest.mark.parametrize("case", cases("cyclediffusion_pixel"))
def test_cyclediffusion(case):
    data, config = golden("cyclediffusion_pixel"), cases("cyclediffusion_pixel")[case]
    encoded_in = {"b": "a", "d": "a", "d2": "c"}.get(case, case)  # cases that share an encoding
    draws = [*data[f"{encoded_in}.enc_noise"], *data[f"{case}.dec_noise"][1:]]
    draws = draws[:-1] if config["refine_steps"] else draws  # the official code draws, and cancels, at every last step
    source = tiny_denoiser("adm_source", data[f"{case}.betas"])
    target = source if config.get("recon") else tiny_denoiser("adm_target", data[f"{case}.betas"])
    method = CycleDiffusion(
        T=config["custom_steps"],
        T_es=config["es_steps"],
        eta=config["eta"] or 1.0,  # DDPM is DDIM at eta 1
        refine_steps=config["refine_steps"],
        raw_index_start=True,
    )
    noise = RecordedNoise(draws)
    out = method(data["x0_pm1"][: config["B"]], source, target, noise)
    assert_close(out, data[f"{case}.out_pm1"])
    assert not noise.draws


@pytest.mark.parametrize("case", ["a", "c", "e"])
def test_cyclediffusion_code(case):
    data, config = golden("cyclediffusion_pixel"), cases("cyclediffusion_pixel")[case]
    source = tiny_denoiser("adm_source", data[f"{case}.betas"])
    timesteps = spaced_timesteps(len(source.alpha_bar), config["custom_steps"])[-config["es_steps"] :]
    assert timesteps.flip(0).equal(data[f"{case}.seq_inv"])
    noise = RecordedNoise([*data[f"{case}.enc_noise"]])
    z = encode(data["x0_pm1"][: config["B"]], source, timesteps, config["eta"] or 1.0, noise, config["es_steps"] - 1)
    expected = data[f"{case}.z"]
    assert (z - expected).abs().max() <= 2e-3 * expected.abs().max()


@pytest.mark.parametrize("case", cases("sdedit"))
def test_sdedit(case):
    data, config = golden("sdedit"), cases("sdedit")[case]
    target = tiny_denoiser("ddpm_target", data[f"{case}.betas"])
    timesteps = spaced_timesteps(1000, 1000)[-config["t"] :]
    variance = "large" if config.get("var_type") == "fixedlarge" else "small"
    guide = (2 * data["img_01"] - 1).expand(config["n"], -1, -1, -1)
    mask = data[f"{case}.mask"] == 1
    noises = data[f"{case}.noise"].unflatten(0, (config["sample_step"], -1))
    for repeat, samples in enumerate(data[f"{case}.samples"]):
        x = sdedit(guide, target, timesteps, RecordedNoise([*noises[repeat][:-1]]), variance, mask)
        assert_close(x, samples)
        guide = torch.where(mask, guide, x)


def test_sdedit_repeats():
    data = golden("sdedit")
    target = tiny_denoiser("ddpm_target", data["c.betas"])
    draws = [draw for repeat in data["c.noise"].unflatten(0, (2, -1)) for draw in repeat[:-1]]
    method = SDEdit(T=1000, t0=16, repeats=2, variance="large")
    assert_close(method((2 * data["img_01"] - 1)[None], None, target, RecordedNoise(draws)), data["c.samples"][-1])


@pytest.mark.parametrize("case", cases("ddib"))
def test_ddib(case):
    data, config = golden("ddib"), cases("ddib")[case]
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    source = tiny_denoiser("adm_source", betas)
    target = source if config.get("recon") else tiny_denoiser("adm_target", betas)
    timesteps = respaced_timesteps(1000, config["timestep_respacing"])
    assert timesteps.flip(0).equal(data[f"{case}.timestep_map"])
    assert_close(invert(data["x0_pm1"], source, timesteps), data[f"{case}.latent"])
    method = DDIB(config["timestep_respacing"], config["clip_decode"])
    assert_close(method(data["x0_pm1"], source, target, RecordedNoise([])), data[f"{case}.out"])
