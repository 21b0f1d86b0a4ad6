"""ILVR and EGSDE against mathematics: limits, closed-form gradients, learned variance."""

import pytest
import torch

from baselines.egsde import EGSDE, domain_energy, gradient, structure_energy
from baselines.ilvr import ILVR, ilvr
from cyclediff.diffusion.denoiser import LearnedVarianceDenoiser
from cyclediff.diffusion.lowpass import lowpass
from cyclediff.diffusion.noise import Noise
from cyclediff.diffusion.schedule import DiffusionSchedule, alpha_bar_from_betas, linear_betas
from cyclediff.diffusion.steps import q_sample

from .nets import GaussianDenoiser

SCHEDULE = DiffusionSchedule(alpha_bar_from_betas(linear_betas()))
LEVEL = SCHEDULE.at(5)
MEAN, STD = -0.4, 0.5
TARGET = GaussianDenoiser(MEAN, STD, SCHEDULE)
IDS = [str(i) for i in range(8)]
X0 = 0.3 + 0.2 * torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_ilvr_without_conditions_samples_the_target():
    method = ILVR("1000", 4, range_t=1000, variance="small", clip_denoised=False)
    out = method(torch.zeros(64, 3, 16, 16, dtype=torch.float64), None, TARGET, Noise(1, [str(i) for i in range(64)]))
    assert out.mean().item() == pytest.approx(MEAN, abs=0.03)
    assert out.std().item() == pytest.approx(STD, abs=0.03)


def test_ilvr_that_keeps_every_frequency_denoises_the_source_once():
    """With N = 1 the state after each conditioned step is the noised source; only the last step is the network's."""
    levels = SCHEDULE.levels("10", "respaced")
    out = ilvr(X0, TARGET, levels, 1, 0, Noise(1, IDS), "small", clip_denoised=False)
    noise = Noise(1, IDS)
    draws = [noise.randn_like(X0) for _ in range(1 + 2 * 9)]
    y = q_sample(X0, levels[-3], draws[-1])
    assert (out - TARGET(y, levels[-2]).x0).abs().max() < 1e-9


def test_ilvr_keeps_more_of_the_source_the_smaller_the_factor():
    distances = [
        (lowpass(ILVR("50", n, variance="small")(X0, None, TARGET, Noise(1, IDS)) - X0, 2, "cubic")).abs().mean().item()
        for n in (2, 4, 8, 16)
    ]
    assert distances == sorted(distances)


@pytest.mark.parametrize(("v", "fixed"), [(-1.0, "small"), (1.0, "large")])
def test_the_learned_variance_ends_at_the_fixed_ones(v, fixed):
    def network(x, t):
        return torch.cat((TARGET(x, SCHEDULE.at(int(t[0]))).eps, torch.full_like(x, v)), 1)

    learned = LearnedVarianceDenoiser(network, SCHEDULE)
    outs = [
        ILVR("20", 4, variance=variance)(X0, None, denoiser, Noise(1, IDS))
        for variance, denoiser in (("learned", learned), (fixed, TARGET))
    ]
    assert (outs[0] - outs[1]).abs().max() < 1e-9


def test_ilvr_needs_a_network_with_a_variance():
    with pytest.raises(ValueError, match=r"variance=learned needs .*learn_sigma.*choose method\.variance=small"):
        ILVR("20", 4)(X0, None, TARGET, Noise(1, IDS))


@pytest.mark.parametrize(
    ("settings", "message"), [({"variance": "none"}, "learned, small or large"), ({"range_t": -1}, "at least 0")]
)
def test_ilvr_refuses_nonsense(settings, message):
    with pytest.raises(ValueError, match=message):
        ILVR("20", 4, **settings)


def extractor(x, t):
    return torch.stack((x.mean(1) ** 2, x[:, 0] + t[:, None, None] / 1000), dim=1)


def test_gradient_of_the_structure_energy():
    """d/dy |P(y - x)|² = 2 Pᵀ P (y - x); P is built column by column."""
    y = X0 + 0.1 * X0.flip(0)
    pixels = torch.eye(256, dtype=torch.float64).unflatten(1, (1, 16, 16))
    projection = lowpass(pixels, 4, "linear").flatten(1).T
    expected = 2 * ((y - X0).flatten(2) @ projection.T @ projection).unflatten(2, (16, 16))
    slope = gradient(lambda a, b, t: structure_energy(a, b, 4, "neg_l2"), y, X0, LEVEL)
    assert (slope - expected).abs().max() < 1e-12


@pytest.mark.parametrize("similarity", ["cosine", "neg_l2"])
def test_gradient_of_the_domain_energy_by_finite_differences(similarity):
    y, step = X0.roll(1, 0), 1e-6
    direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    slope = gradient(lambda a, b, t: domain_energy(a, b, t, extractor, similarity), y, X0, LEVEL)
    ends = [domain_energy(y + sign * step * direction, X0, LEVEL, extractor, similarity) for sign in (1, -1)]
    numeric = (ends[0] - ends[1]) / (2 * step)
    assert torch.allclose((slope * direction).sum(dim=(1, 2, 3)), numeric, rtol=1e-5)


def test_similarities_of_equal_pictures():
    assert torch.allclose(domain_energy(X0, X0, LEVEL, extractor, "cosine"), torch.ones(8, dtype=torch.float64))
    assert domain_energy(X0, X0, LEVEL, extractor, "neg_l2").abs().max() == 0
    assert structure_energy(X0, X0, 4, "neg_l2").abs().max() == 0
    assert torch.allclose(structure_energy(X0, X0, 4, "cosine"), -torch.ones(8, dtype=torch.float64))


def test_energies_pull_as_they_should():
    """lambda_i towards the source's low frequencies, lambda_s away from its features."""

    def translate(**weights):
        settings = {"lambda_s": 0.0, "lambda_i": 0.0, **weights}
        method = EGSDE(100, 50, **settings, down_N=4, extractor=lambda x, t: x[:, :2], similarity_s="neg_l2")
        return method(X0, None, TARGET, Noise(1, IDS))

    free = translate()
    kept = translate(lambda_i=0.5)
    driven = translate(lambda_s=0.3)
    assert lowpass(kept - X0, 4, "linear").norm() < 0.8 * lowpass(free - X0, 4, "linear").norm()
    assert (driven - X0)[:, :2].norm() > 1.1 * (free - X0)[:, :2].norm()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"t0": 0}, "t0 must be between 1 and T = 100; got 0"),
        ({"repeats": 0}, "repeats must be at least 1"),
        ({"variance": "learned"}, "small or large"),
        ({"similarity_s": "l1"}, "similarity_s must be cosine or neg_l2; got 'l1'"),
    ],
)
def test_egsde_refuses_nonsense(settings, message):
    complete = {"T": 100, "t0": 50, "lambda_s": 1.0, "lambda_i": 1.0, "down_N": 4, "extractor": extractor, **settings}
    with pytest.raises(ValueError, match=message):
        EGSDE(**complete)
