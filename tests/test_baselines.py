"""SDEdit and DDIB against mathematics: on Gaussian data both have a closed form."""

import math

import pytest
import torch

from baselines.ddib import DDIB
from baselines.sdedit import SDEdit, sdedit
from cyclediff.diffusion.noise import Noise
from cyclediff.diffusion.schedule import DiffusionSchedule, alpha_bar_from_betas, linear_betas
from cyclediff.diffusion.steps import transitions

from .nets import GaussianDenoiser, RecordedNoise

SCHEDULE = DiffusionSchedule(alpha_bar_from_betas(linear_betas()))
MEAN, STD = -0.4, 0.5
TARGET = GaussianDenoiser(MEAN, STD, SCHEDULE)


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("t0", [10, 50, 100])
def test_sdedit_has_the_moments_of_its_affine_recursion(t0, variance):
    """x_{t-1} = a x_t + b + sigma n with exact a and b: the mean and variance from a pixel x0 follow by recursion."""
    x0, ids = 0.8, [str(i) for i in range(64)]
    levels = SCHEDULE.levels(100)[-t0 - 1 :]
    mean, var = levels[0].a * x0, levels[0].b ** 2
    for ab, ab_prev in transitions([level.a**2 for level in levels]):
        beta = 1 - ab / ab_prev
        gain = (1 - ab) / (ab * STD**2 + 1 - ab)  # eps = gain / sqrt(1 - ab) (x - sqrt(ab) mean)
        a = (1 - beta * gain / (1 - ab)) / math.sqrt(1 - beta)
        b = beta * gain / (1 - ab) * math.sqrt(ab) * MEAN / math.sqrt(1 - beta)
        noise = 0.0 if ab_prev == 1 else beta if variance == "large" else beta * (1 - ab_prev) / (1 - ab)
        mean, var = a * mean + b, a**2 * var + noise
    guide = torch.full((64, 1, 32, 32), x0, dtype=torch.float64)
    out = SDEdit(T=100, t0=t0, variance=variance)(guide, None, TARGET, Noise(1, ids))
    assert out.mean().item() == pytest.approx(mean, abs=5 * math.sqrt(var / out.numel()))
    assert out.var().item() == pytest.approx(var, rel=5 * math.sqrt(2 / out.numel()))


def test_sdedit_keeps_what_is_masked():
    guide = torch.linspace(-1, 1, 32, dtype=torch.float64).reshape(1, 1, 4, 8)
    mask = torch.zeros(1, 1, 4, 8, dtype=torch.bool)
    mask[..., :4] = True
    out = sdedit(guide, TARGET, SCHEDULE.levels(50)[-26:], Noise(1, ["a"]), mask=mask)
    assert (out - guide)[mask].abs().max() < 5 * SCHEDULE.at(0).b
    assert (out - guide)[~mask].abs().min() > 0.0


def test_ddib_converges_at_first_order_to_the_monotone_map():
    """Between Gaussians the ODEs' composition is (x - mu_s) / s_s * s_t + mu_t; the error falls as 1 / steps."""
    source = GaussianDenoiser(0.3, 0.2, SCHEDULE)
    x0 = torch.linspace(-0.3, 0.9, 64, dtype=torch.float64).reshape(1, 1, 8, 8)
    exact = (x0 - 0.3) / 0.2 * STD + MEAN
    errors = []
    for steps in (50, 200, 1000):
        out = DDIB(timesteps=str(steps), clip_denoised=False)(x0, source, TARGET, RecordedNoise([]))
        errors.append((out - exact).abs().max().item())
    assert errors[-1] < 0.02
    rates = [math.log(errors[i] / errors[i + 1]) / math.log((200, 1000)[i] / (50, 200)[i]) for i in range(2)]
    assert all(0.7 < rate < 1.3 for rate in rates)


def test_ddib_clips_only_if_asked():
    source = GaussianDenoiser(0.0, 0.3, SCHEDULE)
    x0 = torch.linspace(-2, 2, 64, dtype=torch.float64).reshape(1, 1, 8, 8)
    noise = RecordedNoise([])
    assert DDIB("50", clip_denoised=True)(x0, source, TARGET, noise).abs().max() <= 1 + 1e-9
    assert DDIB("50", clip_denoised=False)(x0, source, TARGET, noise).abs().max() > 1.5


@pytest.mark.parametrize("settings", [{"t0": 0}, {"t0": 101}, {"t0": 5, "repeats": 0}, {"t0": 5, "variance": "medium"}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match="got"):
        SDEdit(T=100, **settings)
