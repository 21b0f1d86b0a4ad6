"""Every method against the numbers of its official code, under the official code's own noise."""

import pytest
import torch

from baselines.ddib import DDIB, invert
from baselines.egsde import EGSDE, domain_energy, egsde, gradient, structure_energy
from baselines.ilvr import ILVR, ilvr
from baselines.sdedit import SDEdit, sdedit
from cyclediff.cyclediffusion import CycleDiffusion, encode, refine
from cyclediff.diffusion.levels import Level
from cyclediff.diffusion.lowpass import lowpass, resize_matrix
from cyclediff.diffusion.schedule import linear_betas

from .nets import RecordedNoise, cases, golden, tiny_classifier, tiny_denoiser


def timesteps_of(levels):
    return [level.t for level in levels[:-1]]


@pytest.mark.parametrize("case", cases("cyclediffusion_pixel"))
def test_cyclediffusion(case, parity):
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
    what = "final images: DDIM (eta 0.1 and 1), DDPM, refinement, reconstruction"
    parity("CycleDiffusion", what, out, data[f"{case}.out_pm1"])
    assert not noise.draws


def test_refine_iterations(parity):
    """Two refinements (the official refine_iterations) are the official first one, refined once more."""
    data, config = golden("cyclediffusion_pixel"), cases("cyclediffusion_pixel")["b"]
    source, target = (tiny_denoiser(name, data["b.betas"]) for name in ("adm_source", "adm_target"))
    R = config["refine_steps"]
    first = [*data["a.enc_noise"], *data["b.dec_noise"][1:-1]]
    again = torch.randn(R, *data["b.out_pm1"].shape, generator=torch.Generator().manual_seed(1))
    method = CycleDiffusion(config["custom_steps"], config["es_steps"], config["eta"], R, 2, raw_index_start=True)
    out = method(data["x0_pm1"][:1], source, target, noise := RecordedNoise([*first, *again]))
    levels = target.schedule.levels(config["custom_steps"])[-R - 1 :]
    expected = refine(data["b.out_pm1"], target, levels, RecordedNoise([*again]), target.schedule.at(R - 1))
    parity("CycleDiffusion", "final images after two refinements", out, expected)
    assert (out - data["b.out_pm1"]).abs().max() > 0.01
    assert not noise.draws


@pytest.mark.parametrize("case", ["a", "c", "e"])
def test_cyclediffusion_code(case, parity):
    data, config = golden("cyclediffusion_pixel"), cases("cyclediffusion_pixel")[case]
    source = tiny_denoiser("adm_source", data[f"{case}.betas"])
    levels = source.schedule.levels(config["custom_steps"])[-config["es_steps"] - 1 :]
    assert timesteps_of(levels) == data[f"{case}.seq_inv"].flip(0).tolist()
    noise, start = RecordedNoise([*data[f"{case}.enc_noise"]]), source.schedule.at(config["es_steps"] - 1)
    z = encode(data["x0_pm1"][: config["B"]], source, levels, config["eta"] or 1.0, noise, start)
    parity("CycleDiffusion", "latent codes z of DPM-Encoder", z, data[f"{case}.z"], 2e-3, relative=True)


@pytest.mark.parametrize("case", cases("sdedit"))
def test_sdedit(case, parity):
    data, config = golden("sdedit"), cases("sdedit")[case]
    target = tiny_denoiser("ddpm_target", data[f"{case}.betas"])
    levels = target.schedule.levels(1000)[-config["t"] - 1 :]
    variance = "large" if config.get("var_type") == "fixedlarge" else "small"
    guide = (2 * data["img_01"] - 1).expand(config["n"], -1, -1, -1)
    mask = data[f"{case}.mask"] == 1
    noises = data[f"{case}.noise"].unflatten(0, (config["sample_step"], -1))
    for repeat, samples in enumerate(data[f"{case}.samples"]):
        x = sdedit(guide, target, levels, RecordedNoise([*noises[repeat][:-1]]), variance, mask)
        parity("SDEdit", "images after each repeat: with and without mask, both fixed variances", x, samples)
        guide = torch.where(mask, guide, x)


def test_sdedit_repeats(parity):
    data = golden("sdedit")
    target = tiny_denoiser("ddpm_target", data["c.betas"])
    draws = [draw for repeat in data["c.noise"].unflatten(0, (2, -1)) for draw in repeat[:-1]]
    out = SDEdit(T=1000, t0=16, repeats=2, variance="large")(
        (2 * data["img_01"] - 1)[None], None, target, RecordedNoise(draws)
    )
    parity("SDEdit", "final images of two repeats", out, data["c.samples"][-1])


def test_sdedit_with_a_mask(parity):
    """As a run has it: the mask keeps the source also between two repeats."""
    data, config = golden("sdedit"), cases("sdedit")["b"]
    target = tiny_denoiser("ddpm_target", data["b.betas"])
    draws = [draw for repeat in data["b.noise"].unflatten(0, (2, -1)) for draw in repeat[:-1]]
    mask = data["b.mask"][:1] == 1
    assert 0 < mask.sum() < mask.numel()
    method = SDEdit(T=1000, t0=config["t"], repeats=2, mask=mask)
    out = method((2 * data["img_01"] - 1)[None], None, target, RecordedNoise(draws))
    parity("SDEdit", "final images of two repeats with a mask", out, data["b.samples"][-1])
    with pytest.raises(ValueError, match="the mask is for images of 16×16 and x0 has 8×8; masks are for pixel-space"):
        method(torch.zeros(1, 3, 8, 8), None, target, RecordedNoise(draws))


@pytest.mark.parametrize("case", cases("ddib"))
def test_ddib(case, parity):
    data, config = golden("ddib"), cases("ddib")[case]
    source = tiny_denoiser("adm_source", linear_betas())
    target = source if config.get("recon") else tiny_denoiser("adm_target", linear_betas())
    levels = source.schedule.levels(config["timestep_respacing"], "respaced")
    assert timesteps_of(levels) == data[f"{case}.timestep_map"].flip(0).tolist()
    parity("DDIB", "latents", invert(data["x0_pm1"], source, levels), data[f"{case}.latent"])
    out = DDIB(config["timestep_respacing"], config["clip_decode"])(data["x0_pm1"], source, target, RecordedNoise([]))
    parity("DDIB", "final images: respacings 20, 50, ddim50, with and without clipping", out, data[f"{case}.out"])


@pytest.mark.parametrize("down_N", [2, 4, 8, 16, 32])
def test_ilvr_lowpass(down_N, parity):
    x = golden("ilvr")["lp64.x"]
    shrink = resize_matrix(64, 1 / down_N, "cubic").float()
    parity("ILVR", "low-pass filter, shrunk, N = 2 … 32", shrink @ x @ shrink.T, golden("ilvr")[f"lp64.down{down_N}"])
    parity("ILVR", "low-pass filter, N = 2 … 32", lowpass(x, down_N, "cubic"), golden("ilvr")[f"lp64.lp{down_N}"])


def test_ilvr_lowpass_at_256(parity):
    x = golden("ilvr")["lp256.x"].float()
    parity("ILVR", "low-pass filter at 256×256, N = 32", lowpass(x, 32, "cubic"), golden("ilvr")["lp256.lp32"])


@pytest.mark.parametrize("down_N", [2, 8])
def test_ilvr_lowpass_weights(down_N):
    """The first output pixel's weights, with mirrored pixels folded together."""
    data = golden("ilvr")
    row = torch.zeros(64).index_add_(
        0, data[f"lp64.down{down_N}_fov_row0"].long(), data[f"lp64.down{down_N}_weights_row0"]
    )
    assert (resize_matrix(64, 1 / down_N, "cubic")[0] - row).abs().max() < 1e-7


def ilvr_case(case):
    data, config = golden("ilvr"), cases("ilvr")[case]
    return data["ref_img"], data[f"loop_{case}.noise"][:-1], data[f"loop_{case}.final"], config  # drawn, not used: last


@pytest.mark.parametrize("case", cases("ilvr"))
def test_ilvr(case, parity):
    reference, draws, final, config = ilvr_case(case)
    target = tiny_denoiser("adm_target", linear_betas())
    noise = RecordedNoise([*draws])
    out = ILVR(config["timestep_respacing"], config["down_N"], config["range_t"])(reference, None, target, noise)
    parity("ILVR", "final images: learned variance, range_t 0 and 7, 20 of 1000 steps", out, final)
    assert not noise.draws
    levels = target.schedule.levels("20", "respaced")
    assert timesteps_of(levels) == golden("ilvr")[f"loop_{case}.timestep_map"].flip(0).tolist()


def test_ilvr_golden_case_needs_the_learned_variance():
    """The numbers can tell: DDPM's fixed variance lands elsewhere."""
    reference, draws, final, config = ilvr_case("a")
    target = tiny_denoiser("adm_target", linear_betas())
    levels = target.schedule.levels(config["timestep_respacing"], "respaced")
    out = ilvr(reference, target, levels, config["down_N"], 0, RecordedNoise([*draws]), variance="small")
    assert (out - final).abs().max() > 1e-2


def energies(y, xt, t):
    """The four energies of EGSDE's isolated step, by their golden names."""
    extractor = tiny_classifier().features
    return {
        "E1_cosine": lambda: domain_energy(y, xt, t, extractor, "cosine"),
        "E1_neg_l2": lambda: domain_energy(y, xt, t, extractor, "neg_l2"),
        "E2_neg_l2": lambda: structure_energy(y, xt, 4, "neg_l2"),
        "E2_cosine": lambda: structure_energy(y, xt, 4, "cosine"),
    }


@pytest.mark.parametrize("name", ["E1_cosine", "E1_neg_l2", "E2_neg_l2", "E2_cosine"])
def test_egsde_energies_and_gradients(name, parity):
    data = golden("egsde")
    y, xt, t = data["step.y"], data["step.xt"], Level(0, 0, int(data["step.t"][0]))
    what = "energies, both similarities"
    parity("EGSDE", what, energies(y, xt, t)[name](), data[f"step.{name}"], relative=True)
    slope = gradient(lambda leaf, xt, t: energies(leaf, xt, t)[name](), y, xt, t)
    parity("EGSDE", "gradients of the energies", slope, data[f"step.grad_{name}"], 1e-3, relative=True)


def test_egsde_features_and_lowpass(parity):
    data = golden("egsde")
    for side in ("y", "xt"):
        features = tiny_classifier().features(data[f"step.{side}"], data["step.t"])
        parity("EGSDE", "domain-specific features", features, data[f"step.dse_{side}"])
        parity("EGSDE", "low-pass filter", lowpass(data[f"step.{side}"], 4, "linear"), data[f"step.lp_{side}"])


@pytest.mark.parametrize("kind", ["ADM", "DDPM"])
@pytest.mark.parametrize(("name", "weights"), {"full": (500, 2), "ls_only": (500, 0), "li_only": (0, 2)}.items())
def test_egsde_weights(kind, name, weights, parity):
    """The isolated step: what each weight adds to the unguided step."""
    data = golden("egsde")
    y, xt, t = data["step.y"], data["step.xt"], Level(0, 0, int(data["step.t"][0]))
    beta = data["step.betas"][int(t.t)].item()
    method = EGSDE(40, 20, *weights, down_N=4, extractor=tiny_classifier().features)
    shift = beta / (1 - beta) ** 0.5 * gradient(method.energy, y, xt, t)
    out = data[f"step.out_{kind}_none"] - shift
    parity("EGSDE", "one guided step: both weights, either alone", out, data[f"step.out_{kind}_{name}"])


@pytest.mark.parametrize("case", cases("egsde"))
def test_egsde(case, parity):
    data, config = golden("egsde"), cases("egsde")[case]
    target = tiny_denoiser(f"{config['diffusionmodel'].lower()}_target", data[f"{case}.betas"])
    method = EGSDE(
        T=target.schedule.num_train,
        t0=config["t"],
        lambda_s=config["ls"],
        lambda_i=config["li"],
        down_N=config["down_N"],
        extractor=tiny_classifier().features,
        repeats=config["sample_step"],
    )
    x0 = 2 * data["src_01"][: config["B"]] - 1
    repeats = data[f"{case}.noise"].unflatten(0, (config["sample_step"], -1))
    noise = RecordedNoise([draw for repeat in repeats for draw in repeat[:-1]])
    out = method(x0, None, target, noise)
    what = "final images: ADM and DDPM networks, one and two repeats, two schedules"
    parity("EGSDE", what, out, data[f"{case}.final_pm1"][-1])
    assert not noise.draws


def test_egsde_after_each_repeat(parity):
    data, config = golden("egsde"), cases("egsde")["b"]
    target = tiny_denoiser("ddpm_target", data["b.betas"])
    method = EGSDE(40, config["t"], 500, 2, config["down_N"], tiny_classifier().features)
    x0 = y = 2 * data["src_01"][:1] - 1
    for repeat, draws in enumerate(data["b.noise"].unflatten(0, (2, -1))):
        levels = target.schedule.levels(40)[-config["t"] - 1 :]
        y = egsde(y, x0, target, levels, method.energy, RecordedNoise([*draws[:-1]]))
        parity("EGSDE", "images after each repeat", y, data["b.final_pm1"][repeat])


def test_egsde_without_energies_is_sdedit(parity):
    """As golden section 3 says: with both weights 0 the two official codes compute the same."""
    data = golden("sdedit")
    target = tiny_denoiser("ddpm_target", data["a.betas"])
    guide = (2 * data["img_01"] - 1).expand(2, -1, -1, -1)
    method = EGSDE(1000, 20, 0.0, 0.0, 4, tiny_classifier().features)
    out = method(guide, None, target, RecordedNoise([*data["a.noise"][:-1]]))
    parity("EGSDE", "both weights 0, against SDEdit's official numbers", out, data["a.samples"][0])
