"""SDE-DPM-Solver++ against DDPM, diffusers' scheduler and the order that it claims."""

import math

import pytest
import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

from cyclediff.diffusion.dpm_solver import half_log_snr, solver_mean, solver_sigma
from cyclediff.diffusion.levels import CLEAN, NOISE, Level, Prediction
from cyclediff.diffusion.schedule import DiffusionSchedule, FlowSchedule, alpha_bar_from_betas, linear_betas
from cyclediff.diffusion.steps import ddim_step, ddpm_step, transitions, truth

from .nets import GaussianDenoiser
from .test_steps import diffusion, draws, flow, seen_in

STEPS = [(diffusion(0.3), diffusion(0.5)), (diffusion(0.99), diffusion(0.9999)), (flow(0.7), flow(0.45))]
SCHEDULE = DiffusionSchedule(alpha_bar_from_betas(linear_betas()))


@pytest.mark.parametrize(("t", "s"), STEPS)
def test_the_first_order_is_ddpm(t, s):
    xt, x0_hat, z = draws(3)
    seen = seen_in(xt, x0_hat, t)
    assert (solver_mean(seen, t, s) + solver_sigma(t, s) * z).equal(ddpm_step(seen, t, s, solver_sigma(t, s), z))


@pytest.mark.parametrize(("t", "s"), STEPS)
def test_it_is_the_papers(t, s):
    """Written with lambda and h, as in the paper's section on the SDE."""
    xt, x0_hat, before = draws(3)
    q = diffusion(0.2)
    h, last_h = half_log_snr(s) - half_log_snr(t), half_log_snr(t) - half_log_snr(q)
    first = s.b / t.b * math.exp(-h) * xt + s.a * (1 - math.exp(-2 * h)) * x0_hat
    slope = (x0_hat - before) / (last_h / h)
    seen, last = seen_in(xt, x0_hat, t), (q, Prediction(before, before))
    assert torch.allclose(solver_mean(seen, t, s), first, atol=1e-12)
    second = first + 0.5 * s.a * (1 - math.exp(-2 * h)) * slope
    assert torch.allclose(solver_mean(seen, t, s, last), second, atol=1e-12)
    assert solver_sigma(t, s) == pytest.approx(s.b * math.sqrt(1 - math.exp(-2 * h)), rel=1e-9)


@pytest.mark.parametrize("order", [1, 2])
def test_it_is_diffusers(order):
    """A whole sampling with the same noise; x0_hat is no linear function of x."""
    scheduler = DPMSolverMultistepScheduler(
        beta_schedule="linear", beta_start=1e-4, beta_end=0.02, algorithm_type="sde-dpmsolver++", solver_order=order,
        solver_type="midpoint", lower_order_final=False, final_sigmas_type="sigma_min", prediction_type="sample",
    )  # fmt: skip
    scheduler.set_timesteps(12)
    levels = [SCHEDULE.at(t) for t in [*scheduler.timesteps.tolist(), 0]]
    x = theirs = draws(1)[0].float()
    last = None
    for k, (t, s) in enumerate(transitions(levels)):
        z = torch.randn(x.shape, generator=torch.Generator().manual_seed(k))
        (theirs,) = scheduler.step(theirs.sin(), int(t.t), theirs, variance_noise=z, return_dict=False)
        seen = truth(x, x.sin(), t)
        x = solver_mean(seen, t, s, last) + solver_sigma(t, s) * z
        last = (t, seen) if order == 2 else None
    assert (x - theirs).abs().max() < 2e-4  # theirs is float32, and the slope enlarges that


def error_of_the_variance(steps: int, order: int) -> float:
    """Of all samples, for Gaussian data: the sampler is linear in its start and in each z, so units there give it."""
    exact = GaussianDenoiser(0.0, 2.0, SCHEDULE)
    lambdas = [-2.5 + 4.5 * i / steps for i in range(steps + 1)]
    levels = [Level((1 + math.exp(-2 * x)) ** -0.5, (1 + math.exp(2 * x)) ** -0.5, 0) for x in lambdas]
    start, end = (level.a**2 * exact.std**2 + level.b**2 for level in (levels[0], levels[-1]))
    units = torch.eye(steps + 1, dtype=torch.float64)[..., None, None, None]
    x, last = math.sqrt(start) * units[0], None
    for (t, s), unit in zip(transitions(levels), units[1:], strict=True):
        seen = exact(x, t)
        x = solver_mean(seen, t, s, last) + solver_sigma(t, s) * unit
        last = (t, seen) if order == 2 else None
    return abs(x.square().sum().item() - end)


@pytest.mark.parametrize("order", [1, 2])
def test_halving_the_steps_shows_the_order(order):
    ratio = error_of_the_variance(80, order) / error_of_the_variance(160, order)
    assert math.log2(ratio) == pytest.approx(order, abs=0.05)


def test_a_step_to_the_clean_image_is_what_is_seen():
    xt, x0_hat = draws(2)
    t = diffusion(0.9)
    seen = seen_in(xt, x0_hat, t)
    assert solver_mean(seen, t, CLEAN, (diffusion(0.5), seen_in(xt, xt, t))).equal(ddim_step(seen, CLEAN))
    assert solver_sigma(t, CLEAN) == 0


def test_after_a_level_without_signal_the_slope_is_unknown():
    """The lambda is -inf there, so the second order has nothing to add in the next step."""
    xt, x0_hat = draws(2)
    levels = FlowSchedule().levels(10)
    assert half_log_snr(levels[0]) == half_log_snr(NOISE) == -math.inf
    seen = seen_in(xt, x0_hat, levels[1])
    found = solver_mean(seen, levels[1], levels[2], (levels[0], Prediction(xt, xt)))
    assert found.equal(solver_mean(seen, levels[1], levels[2]))
