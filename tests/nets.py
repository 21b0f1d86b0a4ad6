"""The official codes' numbers (tests/golden, see its README) and the tiny networks they were computed with."""

import json
from functools import cache
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from cyclediff.denoiser import EpsDenoiser
from cyclediff.models import adm, ddpm
from cyclediff.schedule import alpha_bar_from_betas

GOLDEN = Path(__file__).parent / "golden"


@cache
def golden(name: str) -> dict[str, Tensor]:
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


@cache
def cases(name: str) -> dict[str, dict]:
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        return json.loads(file.metadata()["cases"])


@cache
def tiny_network(name: str):
    """adm_source, adm_target or ddpm_target as a function (xt, t) → eps (and variance)."""
    state = {k.removeprefix(f"{name}."): v.float() for k, v in golden("tiny_nets").items() if k.startswith(f"{name}.")}
    if name.startswith("adm"):
        unet = adm.build(16, 32, (1, 1), 1, (2,), 16)
        converted = adm.convert(state, unet)
    else:
        unet = ddpm.build(16, 32, (1, 1), 1, (8,))
        converted = ddpm.convert(state, unet)
    unet.load_state_dict(converted)
    unet.eval().requires_grad_(False)
    return lambda xt, t: unet(xt, t).sample


def tiny_denoiser(name: str, betas: Tensor) -> EpsDenoiser:
    return EpsDenoiser(tiny_network(name), alpha_bar_from_betas(betas))


class RecordedNoise:
    """Replays recorded draws in their order and insists that all of them are used."""

    def __init__(self, draws: list[Tensor]):
        self.draws = list(draws)

    def randn_like(self, x: Tensor) -> Tensor:
        draw = self.draws.pop(0)
        assert draw.shape == x.shape
        return draw


def gaussian_denoiser(mean: float, std: float, alpha_bar: Tensor):
    """The exact eps of data N(mean, std²): E[eps | x_t] = sqrt(1-ab) (x_t - sqrt(ab) mean) / (ab std² + 1 - ab)."""

    def network(xt: Tensor, t: Tensor) -> Tensor:
        ab = alpha_bar[t][:, None, None, None].to(xt)
        return (1 - ab).sqrt() * (xt - ab.sqrt() * mean) / (ab * std**2 + 1 - ab)

    return EpsDenoiser(network, alpha_bar)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    """max|diff| <= tolerance * max(1, max|expected|), the rule of the golden numbers."""
    limit = tolerance * max(1.0, expected.abs().max().item())
    assert (actual - expected).abs().max().item() <= limit
