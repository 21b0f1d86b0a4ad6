"""The official codes' numbers (tests/golden, see its README) and the tiny networks they were computed with."""

import json
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from cyclediff.diffusion.denoiser import LearnedVarianceDenoiser, NetworkDenoiser
from cyclediff.diffusion.levels import Level, Prediction
from cyclediff.diffusion.schedule import DiffusionSchedule, FlowSchedule, Schedule, alpha_bar_from_betas
from cyclediff.models import adm, ddpm
from cyclediff.models.classifier import DomainClassifier
from cyclediff.models.classifier import names as classifier_names
from cyclediff.models.weights import load_converted

GOLDEN = Path(__file__).parent / "golden"
OFFICIAL = {
    "CycleDiffusion": "ChenWu98/cycle-diffusion@3edb980",
    "CycleDiffusion, text-guided": "ChenWu98/cycle-diffusion@3edb980, latent diffusion and ensemble",
    "SDEdit": "ermongroup/SDEdit@66a5e44",
    "DDIB": "suxuann/ddib@89e5c27",
    "ILVR": "jychoi118/ilvr_adm@9b84f26",
    "EGSDE": "ML-GSAI/EGSDE@446a957",
    "Edit-friendly inversion": "inbarhub/DDPM_inversion@58fc881",
    "InfEdit, DDCM": "sled-group/InfEdit@eaac91e, without attention control",
    "FlowEdit": "fallenshock/FlowEdit@457f402, on diffusers' SD3 and FLUX transformers",
    "LEDITS++": "ml-research/ledits_pp@c2ccffb",
    "Prompt-to-Prompt": "google/prompt-to-prompt@9c472e4 (controllers: the notebooks of its fork)",
    "Direct inversion": "cure-lab/PnPInversion@07f97f4, with Prompt-to-Prompt and LocalBlend",
    "Plug-and-play guidance": "ChenWu98/unified-generative-zoo@5d2b8b9, with stub energies",
    "DiffuseIT": "cyclomon/DiffuseIT@8386b9a, on small random networks",
    "CUT, FastCUT": "taesungp/contrastive-unpaired-translation@b3ac297, on small random networks",
    "Splice": "omerbt/Splice@12e0146, on small random networks",
    "DiffusionCLIP": "gwang-kim/DiffusionCLIP@e4bfb25, on small random networks",
    "PIE-Bench": "cure-lab/PnPInversion@07f97f4, its metrics",
    "CLIP scores": "ChenWu98/cycle-diffusion@3edb980, model/energy/clean_clip.py",
    "diffusers": "huggingface/diffusers 0.42.1: its pipelines under the same noise, on small random networks",
    "Networks": "guided_diffusion/unet.py (ILVR, EGSDE), models/diffusion.py (SDEdit), as diffusers networks",
}


@cache
def golden(name: str) -> dict[str, Tensor]:
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


@cache
def cases(name: str) -> dict[str, dict]:
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        return json.loads(file.metadata()["cases"])


@cache
def golden_json(name: str) -> dict:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def state_of(name: str, prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v.float() for k, v in golden(name).items() if k.startswith(prefix)}


def adm_network(state, order="legacy", **shape):
    with torch.device("meta"):
        unet = adm.build(**shape)
    split = partial(adm.split_qkv, head_channels=shape["num_head_channels"], order=order)
    load_converted(unet, state, adm.names(unet.config, unet.state_dict()), "golden", split)
    unet.eval().requires_grad_(False)
    return lambda xt, t: unet(xt, t).sample


def ddpm_network(state, **shape):
    with torch.device("meta"):
        unet = ddpm.build(**shape)
    load_converted(unet, state, ddpm.names(len(shape["ch_mult"]), unet.state_dict()), "golden")
    unet.eval().requires_grad_(False)
    return lambda xt, t: unet(xt, t).sample


def domain_classifier(state, **shape) -> DomainClassifier:
    with torch.device("meta"):
        network = DomainClassifier(**shape)
    split = partial(adm.split_qkv, head_channels=shape["num_head_channels"], order="legacy")
    load_converted(network, state, classifier_names(network), "golden", split)
    return network.eval().requires_grad_(False)


TINY = {"num_res_blocks": 1, "attention_downsampling": (2,), "model_channels": 32, "image_size": 16}


@cache
def tiny_network(name: str):
    """adm_source, adm_target or ddpm_target as a function (xt, t) → eps (and variance)."""
    state = state_of("tiny_nets", f"{name}.")
    if name.startswith("adm"):
        return adm_network(state, channel_mult=(1, 1), num_head_channels=16, **TINY)
    return ddpm_network(state, image_size=16, ch=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(8,))


@cache
def tiny_classifier() -> DomainClassifier:
    return domain_classifier(
        state_of("tiny_nets", "dse."), classes=2, channel_mult=(1, 1), num_head_channels=16, **TINY
    )


def tiny_denoiser(name: str, betas: Tensor):
    kind = LearnedVarianceDenoiser if name.startswith("adm") else NetworkDenoiser
    return kind(tiny_network(name), DiffusionSchedule(alpha_bar_from_betas(betas)))


class RecordedNoise:
    """Replays recorded draws in their order."""

    def __init__(self, draws: list[Tensor]):
        self.draws = list(draws)

    def randn_like(self, x: Tensor) -> Tensor:
        draw = self.draws.pop(0)
        assert draw.shape == x.shape
        return draw

    def rows(self, start: int, stop: int) -> "RecordedNoise":
        raise AssertionError("a recording is of a whole batch")


@dataclass(frozen=True, eq=False)
class GaussianDenoiser:
    """The exact predictions for data N(mean, std²), of any kind of model and at every level.

    x = a x0 + b eps is N(a mean, a² std² + b²), so E[x0 | x] = mean + std² a (x - a mean) / (a² std² + b²), and
    E[eps | x] = b (x - a mean) / (a² std² + b²).
    """

    mean: float
    std: float
    schedule: Schedule

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        apart = (x - level.a * self.mean) / (level.a**2 * self.std**2 + level.b**2)
        return Prediction(self.mean + self.std**2 * level.a * apart, level.b * apart)


def flow_denoiser(mean: float, std: float, schedule: FlowSchedule) -> NetworkDenoiser:
    """The same for a flow, as a network that predicts eps - x0."""
    exact = GaussianDenoiser(mean, std, schedule)

    def network(xt, t):
        sigma = t[0].item() / schedule.num_train
        seen = exact(xt, Level(1 - sigma, sigma, t[0].item()))
        return seen.eps - seen.x0

    return NetworkDenoiser(network, schedule, "flow")


def gaussian_denoiser(mean: float, std: float, schedule: DiffusionSchedule) -> NetworkDenoiser:
    """The same for a diffusion model, as a network that predicts eps."""
    exact = GaussianDenoiser(mean, std, schedule)
    return NetworkDenoiser(lambda xt, t: exact(xt, schedule.at(int(t[0]))).eps, schedule)
