"""One transition against the mathematics it implements, in float64."""

import math

import pytest
import torch

from cyclediff.diffusion.steps import (
    ddim_sigma,
    ddim_step,
    ddpm_sigma,
    ddpm_step,
    infer_noise,
    posterior_step,
    predict_eps,
    predict_x0,
    q_sample,
    transitions,
)

LEVELS = [(0.3, 0.5), (0.9, 0.95), (0.0001, 0.2), (0.99, 0.9999)]


def draws(count: int) -> torch.Tensor:
    return torch.randn(count, 2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def test_transitions_end_at_the_clean_image():
    alpha_bar = torch.tensor([0.9, 0.7, 0.5, 0.3], dtype=torch.float64)
    assert list(transitions(alpha_bar, torch.tensor([3, 1]))) == [(3, 0.3, 0.7), (1, 0.7, 1.0)]


@pytest.mark.parametrize("alpha_bar", [0.0001, 0.3, 0.9999])
def test_x0_and_eps_predict_each_other(alpha_bar):
    x0, eps = draws(2)
    xt = q_sample(x0, alpha_bar, eps)
    assert torch.allclose(predict_x0(xt, eps, alpha_bar), x0, atol=1e-10)
    assert torch.allclose(predict_eps(xt, x0, alpha_bar), eps, atol=1e-10)


@pytest.mark.parametrize(("alpha_bar", "alpha_bar_prev"), LEVELS)
def test_ddpm_is_ddim_at_eta_1(alpha_bar, alpha_bar_prev):
    xt, eps, z = draws(3)
    sigma = ddpm_sigma(alpha_bar, alpha_bar_prev, "small")
    assert sigma == pytest.approx(ddim_sigma(alpha_bar, alpha_bar_prev, 1.0), rel=1e-12)
    ddpm = ddpm_step(xt, eps, alpha_bar, alpha_bar_prev, sigma, z)
    assert torch.allclose(ddpm, ddim_step(xt, eps, alpha_bar, alpha_bar_prev, sigma, z), atol=1e-9)


def test_large_variance_is_beta_except_at_the_end():
    assert ddpm_sigma(0.3, 0.5, "large") == pytest.approx(math.sqrt(1 - 0.3 / 0.5))
    assert ddpm_sigma(0.99, 1.0, "large") == 0


@pytest.mark.parametrize("eta", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(("alpha_bar", "alpha_bar_prev"), LEVELS)
def test_the_posterior_keeps_the_marginals(alpha_bar, alpha_bar_prev, eta):
    """q(x_{t-1} | x_0) has mean sqrt(ab') x_0 and variance 1 - ab', for every eta (DDIM, lemma 1)."""
    sigma = ddim_sigma(alpha_bar, alpha_bar_prev, eta)

    def position(x0: float, eps: float, n: float) -> float:
        x0_, eps_, n_ = (torch.full((1, 1, 1, 1), v, dtype=torch.float64) for v in (x0, eps, n))
        return posterior_step(q_sample(x0_, alpha_bar, eps_), x0_, alpha_bar, alpha_bar_prev, sigma, n_).item()

    assert position(1, 0, 0) == pytest.approx(math.sqrt(alpha_bar_prev), abs=1e-9)
    assert position(0, 1, 0) ** 2 + position(0, 0, 1) ** 2 == pytest.approx(1 - alpha_bar_prev, abs=1e-9)


@pytest.mark.parametrize("eta", [0.01, 0.1, 1.0])
@pytest.mark.parametrize(("alpha_bar", "alpha_bar_prev"), LEVELS)
def test_inferred_noise_leads_to_the_posterior_sample(alpha_bar, alpha_bar_prev, eta):
    xt, x0, eps, n = draws(4)
    sigma = ddim_sigma(alpha_bar, alpha_bar_prev, eta)
    z = infer_noise(xt, x0, eps, alpha_bar, alpha_bar_prev, sigma, n)
    reached = ddim_step(xt, eps, alpha_bar, alpha_bar_prev, sigma, z)
    wanted = posterior_step(xt, x0, alpha_bar, alpha_bar_prev, sigma, n)
    assert (reached - wanted).abs().max() < 1e-9 * wanted.abs().max()


def test_too_large_an_eta_is_refused():
    with pytest.raises(ValueError, match="eta must be at most 1"):
        ddim_sigma(0.9997, 0.9999, 2.0)
