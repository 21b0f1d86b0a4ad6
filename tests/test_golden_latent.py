"""Text-guided CycleDiffusion against its official code: latents, codes, the ensemble and its order."""

import json
from functools import cache

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors import safe_open
from torch import Tensor

from cyclediff.cyclediffusion import CycleDiffusion, decode, encode
from cyclediff.diffusion.conditioning import Conditioning
from cyclediff.diffusion.denoiser import GuidedDenoiser
from cyclediff.diffusion.prompt import Prompt
from cyclediff.diffusion.schedule import DiffusionSchedule, alpha_bar_from_betas, latent_timesteps, scaled_linear_betas
from cyclediff.diffusion.steps import ddim_sigma, transitions
from cyclediff.models.text_to_image import caller
from cyclediff.shared_encoding import decode_candidates
from cyclediff.studies.selection import Grid, rank

from .nets import GOLDEN, RecordedNoise, cases, golden, state_of

ALPHA_BAR = alpha_bar_from_betas(scaled_linear_betas())
SCHEDULE = DiffusionSchedule(ALPHA_BAR)
NAME = "cyclediffusion_ldm"
CODE = "CycleDiffusion, text-guided"


@cache
def header(key: str):
    with safe_open(GOLDEN / f"{NAME}.safetensors", "pt") as file:
        return json.loads(file.metadata()[key])


@cache
def network():
    unet = UNet2DConditionModel(**header("unet_config"))
    unet.load_state_dict(state_of(NAME, "unet."))
    unet.eval().requires_grad_(False)
    return caller(unet, torch.float32, torch.contiguous_format)


def denoiser(texts: list[str], scales) -> GuidedDenoiser:
    embedded = {text: golden(NAME)[f"emb.{text}"].float() for text in {*texts, "uncond"}}
    context = Conditioning(torch.stack([embedded[text] for text in texts]))
    empty = Conditioning(embedded["uncond"][None])
    prompts = tuple(Prompt(text, (0, 1, 2), ((0, 0), (0, len(text)), (0, 0))) for text in texts)
    scales = (float(scales),) * len(texts) if isinstance(scales, int | float) else tuple(map(float, scales))
    return GuidedDenoiser(network(), SCHEDULE, "epsilon", context, empty, scales, prompts, "golden")


def test_network(parity):
    data = golden(NAME)
    context = torch.stack([data["emb.src1"], data["emb.tgt1"]])
    context[1] = data["emb.tgt2"]
    out = network()(data["netcheck.x"].float(), data["netcheck.t"], Conditioning(context.float()))
    parity(CODE, "its UNet as a diffusers network", out, data["netcheck.out"], 1e-5)


@pytest.mark.parametrize("T", [99, 49, 33])
def test_schedule(T):
    data = golden(NAME)
    assert torch.allclose(ALPHA_BAR, data["sched.alphas_cumprod_f32"].double(), rtol=1e-6)
    if T == 99:
        levels = SCHEDULE.levels(T, "latent")
        assert [level.t for level in levels[-2::-1]] == data["a.ddim_timesteps"].tolist()
        found = [(t.a**2, s.a**2, ddim_sigma(t, s, 0.1)) for t, s in transitions(levels)]
        for column, key in enumerate(("ddim_alphas", "ddim_alphas_prev", "ddim_sigmas")):
            ours = torch.tensor([row[column] for row in reversed(found)], dtype=torch.float64)
            assert torch.allclose(ours, data[f"a.{key}"].double(), rtol=2e-5)
    assert latent_timesteps(1000, T)[[-1, 0]].tolist() == [1, {99: 981, 49: 961, 33: 961}[T]]


def test_posterior_sample(parity):
    data = golden(NAME)
    mean, logvar = data["moments"].float().chunk(2, dim=1)
    for case, noise in (("a", "a.posterior_noise"), ("b", "b.posterior_noise")):
        n = data[noise]
        x0 = header("scale_factor") * (mean[: len(n)] + (logvar[: len(n)].clamp(-30, 20) / 2).exp() * n)
        parity(CODE, "latents of images", x0, data[f"{case}.x0"], 1e-6)


def sides(case: str, w_d: float) -> tuple[GuidedDenoiser, GuidedDenoiser]:
    config = cases(NAME)[case]
    return denoiser(config["encode_texts"], config["encoder_scale"]), denoiser(config["decode_texts"], w_d)


FULL = [(case, w_d) for case in "abcf" for w_d in cases(NAME)[case]["decoder_scales"]]


@pytest.mark.parametrize(("case", "w_d"), FULL)
def test_edited_latents(case, w_d, parity):
    data, config = golden(NAME), cases(NAME)[case]
    source, target = sides(case, w_d)
    noise = RecordedNoise([*data[f"{case}.enc_noise"]])
    method = CycleDiffusion(T=99, T_es=99 - config["skip_steps"], eta=config["eta"], spacing="latent")
    out = method(data[f"{case}.x0"], source, target, noise)
    assert not noise.draws
    parity(
        CODE,
        "edited latents at encoder scales 0, 1, 2 and decoder scales 0 … 5",
        out,
        data[f"{case}.out_latent_s{w_d}"],
    )


@pytest.mark.parametrize("case", ["a", "b", "c", "f"])
def test_codes(case, parity):
    data, config = golden(NAME), cases(NAME)[case]
    source, _ = sides(case, 1)
    levels = SCHEDULE.levels(99, "latent")[config["skip_steps"] :]
    z = encode(data[f"{case}.x0"], source, levels, 0.1, RecordedNoise([*data[f"{case}.enc_noise"]]))
    parity(CODE, "latent codes z, with that of the last step", z, data[f"{case}.z"], 2e-3, relative=True)


def test_reconstruction(parity):
    """Decoding with the source's own text and scale returns the latent."""
    data = golden(NAME)
    source = denoiser(["src1"], 1)
    out = decode(data["a.z"], source, SCHEDULE.levels(99, "latent")[15:], 0.1)
    parity(CODE, "reconstruction", out, data["d.out_latent_s1"])
    assert (out - data["a.x0"]).abs().max() < 1e-4


def test_fewer_codes_than_steps(parity):
    """Where the official code encodes only the first transitions, fresh noise takes the place of the other codes."""
    data, config = golden(NAME), cases(NAME)["e"]
    source, target = sides("e", 3)
    levels = SCHEDULE.levels(99, "latent")[config["skip_steps"] :]
    draws = [*data["e.enc_noise"]]
    draws += [torch.zeros_like(draws[0])] * (len(levels) - 1 - len(draws))
    z = encode(data["e.x0"], source, levels, 0.1, RecordedNoise(draws))[:, : config["n_z"]]
    parity(CODE, "latent codes z, encoded in part", z, data["e.z"], 2e-3, relative=True)
    code = torch.cat((z, data["e.dec_noise_s3"].transpose(0, 1)), dim=1)
    parity(CODE, "edited latents, encoded in part", decode(code, target, levels, 0.1), data["e.out_latent_s3"])


class EncodingNoise:
    """Recorded draws of several encodings, each replayed in its own order."""

    def __init__(self, draws: list[list[Tensor]]):
        self.draws = draws

    def rows(self, start: int, stop: int) -> "EncodingNoise":
        return EncodingNoise(self.draws[start:stop])

    def randn_like(self, x: Tensor) -> Tensor:
        return torch.cat([draws.pop(0) for draws in self.draws])


def test_ensemble(parity):
    """All candidates in one batch equal the official code's, which makes them one after the other."""
    data, config = golden(NAME), header("ensemble")
    grid = Grid(config["n_trials"], tuple(config["enc"]), tuple(config["skips"]), tuple(config["dec"]))
    every = grid.candidates()
    lengths = {c.encoding: 99 - c.skip for c in every}
    draws = iter(data["ens.enc_noise"])
    noise = {encoding: [next(draws) for _ in range(length)] for encoding, length in lengths.items()}
    order = sorted(every, key=lambda c: c.skip)
    encodings = list(dict.fromkeys(c.encoding for c in order))
    scales = {c.encoding: c.source_guidance for c in every}
    mean, logvar = data["moments"][:1].float().chunk(2, dim=1)
    x0 = header("scale_factor") * (mean + (logvar.clamp(-30, 20) / 2).exp() * data["ens.posterior_noise"])
    found = decode_candidates(
        x0.expand(len(encodings), -1, -1, -1),
        denoiser(["src1"] * len(encodings), [scales[i] for i in encodings]),
        denoiser(["tgt1"] * len(order), [c.guidance for c in order]),
        EncodingNoise([noise[i] for i in encodings]),
        [(encodings.index(c.encoding), 99 - c.skip) for c in order],
        T=99,
        eta=0.1,
    )
    ours = torch.empty_like(found)
    ours[[c.index for c in order]] = found
    parity(CODE, "all candidates of an ensemble, in one batch", ours, data["ens.out_latents"].squeeze(1))
    assert not any(noise.values())
    rows = [
        {"index": c.index, "dclip": score} for c, score in zip(every, data["ens.fake_scores"].tolist(), strict=True)
    ]
    best = max(rows, key=lambda row: rank(row, "dclip"))["index"]
    assert best == config["best_flat_index"]
    picture = (ours[best, :3] + 1) / 2
    parity(CODE, "the chosen one", picture[None], data["ens.final_img"])


ENSEMBLE = json.loads((GOLDEN / "ensemble.json").read_text())


@pytest.mark.parametrize("example", ENSEMBLE["examples"], ids=lambda e: f"{e['n_trials']} trials")
def test_candidates_are_numbered_as_in_the_official_code(example):
    grid = Grid(
        example["n_trials"], tuple(example["encoder_scales"]), tuple(example["skip_steps"]),
        tuple(example["decoder_scales"]),
    )  # fmt: skip
    ours = grid.candidates()
    assert len(ours) == len(example["candidates"])
    for candidate, theirs in zip(ours, example["candidates"], strict=True):
        assert candidate.index == theirs["flat"]
        true = (theirs["trial"], theirs["encoder_scale"], theirs["skip_steps"], theirs["decoder_scale"])
        assert (candidate.trial, candidate.source_guidance, candidate.skip, candidate.guidance) == true


def test_an_undefined_score_never_wins():
    """Equal to the official choice but for undefined scores, of which the official code takes the first."""
    selection = ENSEMBLE["selection"]
    for scores, chosen in zip(selection["scores"], selection["chosen"], strict=True):
        rows = [{"index": i, "dclip": s or 0.0, "dclip_defined": s is not None} for i, s in enumerate(scores)]
        best = max(rows, key=lambda row: rank(row, "dclip"))
        defined = [s for s in scores if s is not None]
        assert best["dclip"] == max(defined)
        if len(defined) == len(scores):
            assert best["index"] == chosen
    nothing = [{"index": i, "dclip": 0.0, "dclip_defined": False} for i in range(3)]
    assert max(nothing, key=lambda row: rank(row, "dclip"))["index"] == 0
    assert (
        max(
            [{"index": 0, "dclip": 0.0, "dclip_defined": False}, {"index": 1, "dclip": -0.5}],
            key=lambda r: rank(r, "dclip"),
        )["index"]
        == 1
    )
