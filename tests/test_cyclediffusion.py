"""CycleDiffusion against mathematics: the exact eps of Gaussian data is known."""

import math

import pytest
import torch

from cyclediff.cyclediffusion import CycleDiffusion, Path, cyclediffusion, decode, encode
from cyclediff.diffusion.denoiser import NetworkDenoiser
from cyclediff.diffusion.levels import CLEAN
from cyclediff.diffusion.noise import Noise
from cyclediff.diffusion.schedule import DiffusionSchedule, FlowSchedule, alpha_bar_from_betas, linear_betas
from cyclediff.diffusion.steps import ddim_sigma, q_sample, transitions
from cyclediff.models.scheduler import zero_terminal_snr

from .nets import GaussianDenoiser

ALPHA_BAR = alpha_bar_from_betas(linear_betas())
SCHEDULE = DiffusionSchedule(ALPHA_BAR)
SOURCE = GaussianDenoiser(0.3, 0.2, SCHEDULE)
TARGET = GaussianDenoiser(-0.4, 0.5, SCHEDULE)
IDS = [str(i) for i in range(4)]
X0 = 0.3 + 0.2 * Noise(7, IDS).randn_like(torch.empty(4, 3, 8, 8, dtype=torch.float64))


class Spy:
    """A denoiser that notes the states that it is asked about."""

    def __init__(self, denoiser):
        self.denoiser, self.schedule, self.states = denoiser, denoiser.schedule, {}

    def __call__(self, x, level):
        self.states[level.t] = x
        return self.denoiser(x, level)


@pytest.mark.parametrize("eta", [0.1, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_code_holds_the_image_up_to_the_last_step(eta, dtype):
    """Decoding with the encoder's own model meets the encoder's state at the last level, then predicts x0."""
    x0, levels = X0.to(dtype), SCHEDULE.levels(1000)[-851:]
    encoder, decoder = Spy(SOURCE), Spy(SOURCE)
    code = encode(x0, encoder, levels, eta, Noise(1, IDS))
    out = decode(code, decoder, levels, eta)
    error = max((encoder.states[t] - decoder.states[t]).abs().max().item() for t in encoder.states)
    assert error < (3e-5 if dtype == torch.float32 else 1e-12)
    last_step = (out - x0).square().mean().sqrt().item()
    assert last_step == pytest.approx(SCHEDULE.at(0).b, rel=0.15)  # the prediction leaves that noise in the image


KINDS = {"diffusion": SCHEDULE, "flow": FlowSchedule(), "shifted flow": FlowSchedule(3.0)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eta", [0.1, 1.0])
def test_streaming_is_encode_then_decode(kind, eta):
    """For both kinds of models, the first level of a flow without any signal included."""
    schedule = KINDS[kind]
    source, target = GaussianDenoiser(0.3, 0.2, schedule), GaussianDenoiser(-0.4, 0.5, schedule)
    levels = schedule.levels(50) if "flow" in kind else schedule.levels(50)[-41:]
    code = encode(X0, source, levels, eta, Noise(1, IDS))
    assert code.shape == (4, len(levels) - 1, 3, 8, 8)
    streamed = cyclediffusion(X0, source, target, Path(levels, levels), eta, Noise(1, IDS))
    assert torch.allclose(streamed, decode(code, target, levels, eta), atol=1e-11)
    spies = Spy(source), Spy(source)
    cyclediffusion(X0, *spies, Path(levels, levels), eta, Noise(1, IDS))
    met = [(spies[0].states[t] - spies[1].states[t]).abs().max().item() for t in spies[0].states]
    assert max(met) < 1e-11


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eta", [0.1, 1.0])
def test_the_code_of_gaussian_data_has_the_variance_that_mathematics_says(eta, kind):
    """z = n + c (x0 - E[x0 | x_t]), so var z = 1 + c² var[x0 | x_t], with var[x0 | x_t] = s² b² / (a² s² + b²).

    c follows from what a step does: moving x0 by 1, and eps by -a / b with it, moves x_s by c sigma.
    """
    levels, ids, width = KINDS[kind].levels(50), [str(i) for i in range(64)], 0.2
    x0 = 0.3 + width * Noise(8, ids).randn_like(torch.empty(64, 1, 16, 16, dtype=torch.float64))
    code = encode(x0, GaussianDenoiser(0.3, width, KINDS[kind]), levels, eta, Noise(1, ids))
    for z, (t, s) in zip(code.unbind(1)[1:], transitions(levels), strict=False):
        sigma = ddim_sigma(t, s, eta)
        c = (s.a - math.sqrt(s.b**2 - sigma**2) * t.a / t.b) / sigma
        variance = 1 + c**2 * width**2 * t.b**2 / (t.a**2 * width**2 + t.b**2)
        assert z.mean().abs().item() < 5 * math.sqrt(variance / z.numel())
        assert z.var().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / z.numel()))


def test_a_flow_is_a_diffusion_model_in_other_units():
    """x / sqrt(a² + b²) of a flow is the state of a diffusion model: both give the same translation."""
    flow = FlowSchedule(2.0)
    sigmas = [level.b for level in flow.levels(20)[1:-1]]
    table = torch.tensor([(1 - s) ** 2 / ((1 - s) ** 2 + s**2) for s in reversed(sigmas)], dtype=torch.float64)
    diffusion = DiffusionSchedule(table)
    of_flow, of_diffusion = flow.levels(20)[1:], [*(diffusion.at(i) for i in range(len(table) - 1, -1, -1)), CLEAN]
    for eta in (0.3, 1.0):
        outs = [
            cyclediffusion(
                X0, GaussianDenoiser(0.3, 0.2, schedule), GaussianDenoiser(-0.4, 0.5, schedule), Path(levels, levels),
                eta, Noise(1, IDS),
            )
            for schedule, levels in ((flow, of_flow), (diffusion, of_diffusion))
        ]  # fmt: skip
        assert torch.allclose(*outs, atol=1e-11)


def test_zero_terminal_snr_starts_at_the_level_without_signal():
    """A v network at exactly a = 0 gives x0 without 0/0, and the translation is finite and exact."""
    schedule = DiffusionSchedule(zero_terminal_snr(ALPHA_BAR))
    assert schedule.at(999).a == 0
    exact = GaussianDenoiser(0.3, 0.2, schedule)

    def v(x, t):
        level = schedule.at(int(t[0]))
        seen = exact(x, level)
        return level.a * seen.eps - level.b * seen.x0

    x, denoiser = torch.randn(2, 1, 4, 4, dtype=torch.float64), NetworkDenoiser(v, schedule, "v_prediction")
    for t in (999, 500, 0):
        seen, wanted = denoiser(x, schedule.at(t)), exact(x, schedule.at(t))
        assert torch.allclose(seen.x0, wanted.x0, atol=1e-12)
        assert torch.allclose(seen.eps, wanted.eps, atol=1e-12)
    with pytest.raises(ValueError, match="the first level of the sampler has no signal"):
        NetworkDenoiser(v, schedule)(x, schedule.at(999))
    out = CycleDiffusion(T=1000, T_es=1000, eta=1.0)(X0, denoiser, denoiser, Noise(1, IDS))
    assert (out - X0).square().mean().sqrt().item() == pytest.approx(schedule.at(0).b, rel=0.15)


def test_gaussian_to_gaussian():
    """DDPM's translations of N(0.3, 0.2²) by two exact models are distributed as N(-0.4, 0.5²)."""
    ids = [str(i) for i in range(64)]
    x0 = 0.3 + 0.2 * Noise(8, ids).randn_like(torch.empty(64, 1, 16, 16, dtype=torch.float64))
    out = CycleDiffusion(T=1000, T_es=1000, eta=1.0)(x0, SOURCE, TARGET, Noise(1, ids))
    assert out.mean().item() == pytest.approx(-0.4, abs=0.02)
    assert out.std().item() == pytest.approx(0.5, rel=0.03)


def test_x_T_is_drawn_at_the_first_timestep_or_at_the_raw_index():
    levels = SCHEDULE.levels(50)[-41:]
    n = Noise(1, IDS).randn_like(X0)
    for start, level in ((None, 780), (SCHEDULE.at(39), 39)):
        code = encode(X0, SOURCE, levels, 0.1, Noise(1, IDS), start)
        assert code[:, 0].equal(q_sample(X0, SCHEDULE.at(level), n))


def test_refinement_pulls_towards_the_target():
    """With a point-like target model, one noising and denoising ends at its mean wherever it began."""
    point = GaussianDenoiser(0.7, 1e-3, SCHEDULE)
    near = GaussianDenoiser(0.3, 0.2, SCHEDULE)
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
    short = GaussianDenoiser(0, 1, DiffusionSchedule(ALPHA_BAR[:500]))
    with pytest.raises(ValueError, match="1000 and 500"):
        CycleDiffusion(T=10, T_es=5, eta=0.1)(X0, SOURCE, short, Noise(1, IDS))


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_on_a_flow_the_same_model_returns_the_image(shift, dtype):
    """With "latent" spacing the last step is encoded too: encode, then decode, is exact, from pure noise on."""
    schedule = FlowSchedule(shift)
    levels = schedule.levels(30, "latent")
    assert (levels[0].a, levels[-1].b) == (0, 0.001)
    model, x0 = GaussianDenoiser(0.3, 0.2, schedule), X0.to(dtype)
    out = decode(encode(x0, model, levels, 0.1, Noise(1, IDS)), model, levels, 0.1)
    assert (out - x0).abs().max() < (1e-5 if dtype == torch.float32 else 1e-12)
    method = CycleDiffusion(T=30, T_es=30, eta=0.1, spacing="latent")
    other = method(x0, model, GaussianDenoiser(-0.4, 0.5, schedule), Noise(1, IDS))
    assert (other - x0).abs().mean() > 0.3
