"""CycleDiffusion against mathematics: the exact eps of Gaussian data is known."""

import math

import pytest
import torch

from cyclediff.cyclediffusion import CycleDiffusion, cyclediffusion, decode, encode
from cyclediff.diffusion.denoiser import EpsDenoiser
from cyclediff.diffusion.noise import Noise
from cyclediff.diffusion.schedule import alpha_bar_from_betas, linear_betas, spaced_timesteps
from cyclediff.diffusion.steps import ddim_sigma, ddim_step, q_sample, transitions

from .nets import gaussian_denoiser

ALPHA_BAR = alpha_bar_from_betas(linear_betas())
SOURCE = gaussian_denoiser(0.3, 0.2, ALPHA_BAR)
TARGET = gaussian_denoiser(-0.4, 0.5, ALPHA_BAR)
IDS = [str(i) for i in range(4)]
X0 = 0.3 + 0.2 * Noise(7, IDS).randn_like(torch.empty(4, 3, 8, 8, dtype=torch.float64))


@pytest.mark.parametrize("eta", [0.1, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_code_holds_the_image_up_to_the_last_step(eta, dtype):
    """Decoding with the encoder's own model meets the encoder's state at the last level, then predicts x0."""
    x0 = X0.to(dtype)
    timesteps = spaced_timesteps(1000, 1000)[-850:]
    states = []

    def spy(xt, t):
        states.append((t[0].item(), xt))
        return SOURCE(xt, t)

    watched = EpsDenoiser(spy, ALPHA_BAR)
    code = encode(x0, watched, timesteps, eta, Noise(1, IDS))
    encoded = dict(states)
    states.clear()
    out = decode(code, watched, timesteps, eta)
    decoded = dict(states)
    error = max((encoded[t] - decoded[t]).abs().max().item() for t in encoded)
    assert error < (3e-5 if dtype == torch.float32 else 1e-12)
    last_step = (out - x0).square().mean().sqrt().item()
    expected = (1 - ALPHA_BAR[0].item()) ** 0.5  # the prediction leaves the last level's noise in the image
    assert last_step == pytest.approx(expected, rel=0.15)


def test_streaming_is_encode_then_decode():
    timesteps = spaced_timesteps(1000, 50)[-40:]
    code = encode(X0, SOURCE, timesteps, 0.1, Noise(1, IDS))
    assert code.shape == (4, 40, 3, 8, 8)
    streamed = cyclediffusion(X0, SOURCE, TARGET, timesteps, 0.1, Noise(1, IDS))
    assert torch.allclose(streamed, decode(code, TARGET, timesteps, 0.1), atol=1e-12)


@pytest.mark.parametrize("eta", [0.1, 1.0])
def test_the_code_of_gaussian_data_has_the_variance_that_mathematics_says(eta):
    """z = n + c (eps_true - E[eps_true | x_t]), so var z = 1 + c² var[eps_true | x_t].

    That last variance is ab s² / (ab s² + 1 - ab) for data of variance s². c follows from what a step does: moving eps
    by 1 moves x_{t-1} by c sigma.
    """
    timesteps, ids, s = spaced_timesteps(1000, 50), [str(i) for i in range(64)], 0.2
    x0 = 0.3 + s * Noise(8, ids).randn_like(torch.empty(64, 1, 16, 16, dtype=torch.float64))
    code = encode(x0, SOURCE, timesteps, eta, Noise(1, ids))
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    for z, (_, ab, ab_prev) in zip(code.unbind(1)[1:], transitions(ALPHA_BAR, timesteps), strict=False):
        sigma = ddim_sigma(ab, ab_prev, eta)
        c = (ddim_step(zero, one, ab, ab_prev, sigma) / sigma).item()
        variance = 1 + c**2 * ab * s**2 / (ab * s**2 + 1 - ab)
        assert z.mean().abs().item() < 5 * math.sqrt(variance / z.numel())
        assert z.var().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / z.numel()))


def test_gaussian_to_gaussian():
    """DDPM's translations of N(0.3, 0.2²) by two exact models are distributed as N(-0.4, 0.5²)."""
    ids = [str(i) for i in range(64)]
    x0 = 0.3 + 0.2 * Noise(8, ids).randn_like(torch.empty(64, 1, 16, 16, dtype=torch.float64))
    out = CycleDiffusion(T=1000, T_es=1000, eta=1.0)(x0, SOURCE, TARGET, Noise(1, ids))
    assert out.mean().item() == pytest.approx(-0.4, abs=0.02)
    assert out.std().item() == pytest.approx(0.5, rel=0.03)


def test_x_T_is_drawn_at_the_first_timestep_or_at_the_raw_index():
    timesteps = spaced_timesteps(1000, 50)[-40:]
    n = Noise(1, IDS).randn_like(X0)
    for start, level in ((None, 780), (39, 39)):
        code = encode(X0, SOURCE, timesteps, 0.1, Noise(1, IDS), start)
        assert code[:, 0].equal(q_sample(X0, ALPHA_BAR[level].item(), n))


def test_refinement_pulls_towards_the_target():
    """With a point-like target model, one noising and denoising ends at its mean wherever it began."""
    point = gaussian_denoiser(0.7, 1e-3, ALPHA_BAR)
    near = gaussian_denoiser(0.3, 0.2, ALPHA_BAR)
    plain = CycleDiffusion(T=50, T_es=40, eta=0.1)(X0, near, near, Noise(1, IDS))
    assert (plain - X0).abs().max() < 0.1
    refined = CycleDiffusion(T=50, T_es=1, eta=0.1, refine_steps=30)(X0, near, point, Noise(1, IDS))
    assert (refined - 0.7).abs().max() < 0.02


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"T": 10, "T_es": 5, "eta": 0.0}, "eta > 0"),
        ({"T": 10, "T_es": 5, "eta": float("nan")}, "eta > 0"),
        ({"T": 10, "T_es": 11, "eta": 0.1}, "between 1 and T = 10"),
        ({"T": 10, "T_es": 0, "eta": 0.1}, "between 1 and T = 10"),
        ({"T": 10, "T_es": 5, "eta": 0.1, "refine_steps": 10}, "between 0 and T - 1 = 9"),
        ({"T": 10, "T_es": 5, "eta": 0.1, "refine_steps": 5, "refine_iterations": 0}, "must be 1 or more; got 0"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        CycleDiffusion(**settings)


def test_schedules_must_agree_in_length():
    short = gaussian_denoiser(0, 1, ALPHA_BAR[:500])
    with pytest.raises(ValueError, match="1000 and 500"):
        CycleDiffusion(T=10, T_es=5, eta=0.1)(X0, SOURCE, short, Noise(1, IDS))
