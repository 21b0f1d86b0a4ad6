"""The grid's points are the methods that they stand for."""

import pytest
import torch

from baselines.ddib import DDIB
from baselines.transfer_grid import TransferGrid
from cyclediff.cyclediffusion import CycleDiffusion
from cyclediff.diffusion.noise import Noise
from cyclediff.diffusion.schedule import DiffusionSchedule, FlowSchedule, alpha_bar_from_betas, linear_betas
from cyclediff.diffusion.steps import ddim_sigma
from cyclediff.diffusion.transfer import independent, transfer

from .nets import GaussianDenoiser, RecordedNoise

IDS = ["a", "b"]
X0 = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
SCHEDULES = {"diffusion": DiffusionSchedule(alpha_bar_from_betas(linear_betas())), "flow": FlowSchedule()}


@pytest.fixture(params=SCHEDULES)
def sides(request):
    schedule = SCHEDULES[request.param]
    return GaussianDenoiser(0.3, 0.2, schedule), GaussianDenoiser(-0.4, 0.5, schedule)


def grid(path, sigma, residual, T=20, t0=15):
    return TransferGrid(T, t0, path, sigma, residual)


@pytest.mark.parametrize("path", ["chain", "independent", "ddim"])
@pytest.mark.parametrize("sigma", [0.0, 0.3, 1.0, "full"])
def test_with_its_residual_one_model_returns_the_image(path, sigma, sides):
    out = grid(path, sigma, True)(X0, sides[0], sides[0], Noise(1, IDS))
    assert (out - X0).abs().max() < 1e-12


@pytest.mark.parametrize("eta", [0.1, 1.0])
def test_a_chain_is_cyclediffusion(eta, sides):
    wanted = CycleDiffusion(T=20, T_es=15, eta=eta, spacing="latent")(X0, *sides, Noise(1, IDS))
    assert torch.allclose(grid("chain", eta, True)(X0, *sides, Noise(1, IDS)), wanted, atol=1e-10)


@pytest.mark.parametrize("sigma", [0.0, 1.0])
def test_independent_states_are_transfer(sigma, sides):
    levels = sides[0].schedule.levels(20, "latent")[-16:]
    wanted = transfer(X0, *sides, levels, independent, lambda t, s: ddim_sigma(t, s, sigma), Noise(1, IDS))
    assert torch.allclose(grid("independent", sigma, True)(X0, *sides, Noise(1, IDS)), wanted, atol=1e-12)


def test_full_noise_is_the_same_on_both_paths(sides):
    """Then a chain forgets its last state (DDCM)."""
    outs = [grid(path, "full", True)(X0, *sides, Noise(1, IDS)) for path in ("chain", "independent")]
    assert torch.allclose(*outs, atol=1e-10)


def test_ddim_without_residual_is_ddib(sides):
    wanted = DDIB("20", clip_denoised=False, spacing="latent")(X0, *sides, RecordedNoise([]))
    assert torch.allclose(grid("ddim", 0.0, False, t0=20)(X0, *sides, RecordedNoise([])), wanted, atol=1e-12)


def test_fresh_noise_samples_the_target(sides):
    """SDEdit from pure noise at eta 1 has the target's moments."""
    ids = [str(i) for i in range(64)]
    x0 = torch.zeros(64, 3, 16, 16, dtype=torch.float64)
    out = TransferGrid(100, 100, "chain", 1.0, False)(x0, *sides, Noise(1, ids))
    assert out.mean().item() == pytest.approx(-0.4, abs=0.05)
    assert out.std().item() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"t0": 0}, "t0 must be between 1 and T = 20; got 0"),
        ({"source_path": "line"}, "source_path must be chain, independent or ddim; got 'line'"),
        ({"sigma": 1.5}, "sigma must be full, or from 0 to 1; got 1.5"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        TransferGrid(**{"T": 20, "t0": 15, "source_path": "chain", "sigma": 0.1, "residual": True, **settings})
