"""One transition against the mathematics it implements, in float64, for diffusion models and rectified flows."""

import math
from itertools import pairwise

import pytest
import torch

from cyclediff.diffusion.levels import CLEAN, Level, Prediction
from cyclediff.diffusion.steps import (
    beta,
    ddim_sigma,
    ddim_step,
    ddpm_sigma,
    ddpm_step,
    infer_noise,
    landing_noise,
    mean,
    mean_difference,
    posterior_step,
    q_sample,
    transitions,
    truth,
)


def diffusion(alpha_bar: float) -> Level:
    return Level(math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar), 0)


def flow(sigma: float) -> Level:
    return Level(1 - sigma, sigma, 1000 * sigma)


STEPS = {
    "middle": (diffusion(0.3), diffusion(0.5)),
    "low noise": (diffusion(0.9), diffusion(0.95)),
    "high noise": (diffusion(0.0001), diffusion(0.2)),
    "lowest noise": (diffusion(0.99), diffusion(0.9999)),
    "flow": (flow(0.7), flow(0.45)),
    "flow, low noise": (flow(0.05), flow(0.02)),
    "flow, no signal": (flow(1.0), flow(0.9)),
    "zero terminal SNR": (Level(0.0, 1.0, 999), diffusion(0.01)),
}


@pytest.fixture(params=STEPS)
def step(request):
    return STEPS[request.param]


def draws(count: int) -> torch.Tensor:
    return torch.randn(count, 2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def seen_in(xt, x0_hat, t) -> Prediction:
    """A consistent prediction: x_t = a x0_hat + b eps_hat."""
    return Prediction(x0_hat, (xt - t.a * x0_hat) / t.b)


def test_transitions_are_neighbours():
    levels = [diffusion(0.3), diffusion(0.7), CLEAN]
    assert transitions(levels) == list(pairwise(levels))


def test_the_truth_is_what_was_mixed(step):
    x0, eps = draws(2)
    found = truth(q_sample(x0, step[0], eps), x0, step[0])
    assert found.x0 is x0
    assert torch.allclose(found.eps, eps, atol=1e-10)


def test_sigma_is_the_papers_in_alpha_bar():
    """DDIM Eq. 16 and DDPM section 3.2, written with alpha_bar as in the papers."""
    ab, ab_prev = 0.3, 0.5
    t, s = diffusion(ab), diffusion(ab_prev)
    small = math.sqrt((1 - ab_prev) / (1 - ab) * (1 - ab / ab_prev))
    assert ddim_sigma(t, s, 0.4) == pytest.approx(0.4 * small, rel=1e-12)
    assert ddpm_sigma(t, s, "small") == pytest.approx(small, rel=1e-12)
    assert ddpm_sigma(t, s, "large") == pytest.approx(math.sqrt(1 - ab / ab_prev), rel=1e-12)
    assert beta(t, s) == pytest.approx(1 - ab / ab_prev, rel=1e-12)
    assert ddpm_sigma(t, CLEAN, "large") == ddpm_sigma(t, CLEAN, "small") == 0


def test_a_ddpm_step_is_the_papers():
    """DDPM algorithm 2, line 4, with alpha_bar as in the paper."""
    ab, ab_prev = 0.3, 0.5
    xt, eps, z = draws(3)
    b = 1 - ab / ab_prev
    wanted = (xt - b / math.sqrt(1 - ab) * eps) / math.sqrt(1 - b) + 0.2 * z
    seen = Prediction((xt - math.sqrt(1 - ab) * eps) / math.sqrt(ab), eps)
    assert torch.allclose(ddpm_step(seen, diffusion(ab), diffusion(ab_prev), 0.2, z), wanted, atol=1e-10)


def test_a_flow_step_without_noise_is_eulers():
    """x_s = x_t + (s - t) v, with v = eps - x0."""
    xt, x0_hat = draws(2)
    t, s = flow(0.7), flow(0.45)
    seen = seen_in(xt, x0_hat, t)
    assert torch.allclose(ddim_step(seen, s), xt + (0.45 - 0.7) * (seen.eps - seen.x0), atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.1, 1.0])
def test_the_posterior_keeps_the_marginals(step, eta):
    """q(x_s | x_0) has mean a_s x_0 and variance b_s², for every eta (DDIM, lemma 1)."""
    t, s = step
    sigma = ddim_sigma(t, s, eta)

    def position(x0: float, eps: float, n: float) -> float:
        x0_, eps_, n_ = (torch.full((1, 1, 1, 1), v, dtype=torch.float64) for v in (x0, eps, n))
        return posterior_step(q_sample(x0_, t, eps_), x0_, t, s, sigma, n_).item()

    assert position(1, 0, 0) == pytest.approx(s.a, abs=1e-9)
    assert position(0, 1, 0) ** 2 + position(0, 0, 1) ** 2 == pytest.approx(s.b**2, abs=1e-9)


def test_full_noise_again_keeps_the_marginals(step):
    """sigma = b_s is the most that a step can add: nothing of eps_hat is left."""
    x0, eps, n = draws(3)
    t, s = step
    assert torch.allclose(posterior_step(q_sample(x0, t, eps), x0, t, s, s.b, n), q_sample(x0, s, n), atol=1e-9)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_a_difference_of_means(step, eta):
    xt, one, other = draws(3)
    t, s = step
    sigma = ddim_sigma(t, s, eta)
    a, b = seen_in(xt, one, t), seen_in(xt, other, t)
    assert torch.allclose(mean_difference(a, b, t, s, sigma), mean(a, s, sigma) - mean(b, s, sigma), atol=1e-9)


@pytest.mark.parametrize("eta", [0.01, 0.1, 1.0])
def test_inferred_noise_leads_to_the_posterior_sample(step, eta):
    xt, x0, x0_hat, n = draws(4)
    t, s = step
    seen, sigma = seen_in(xt, x0_hat, t), ddim_sigma(t, s, eta)
    z = infer_noise(xt, x0, seen, t, s, sigma, n)
    wanted = posterior_step(xt, x0, t, s, sigma, n)
    assert (ddim_step(seen, s, sigma, z) - wanted).abs().max() < 1e-9 * wanted.abs().max()


def test_landing_noise_leads_to_the_image(step):
    xt, x0 = draws(2)
    t, s = step
    sigma = ddim_sigma(t, s, 0.5)
    n = landing_noise(xt, x0, t, s, sigma)
    assert (posterior_step(xt, x0, t, s, sigma, n) - x0).abs().max() < 1e-9 * n.abs().max()


def test_too_large_an_eta_is_refused():
    with pytest.raises(ValueError, match="eta must be at most 1"):
        ddim_sigma(diffusion(0.9997), diffusion(0.9999), 2.0)
