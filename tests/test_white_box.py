"""A sampler as a function of its noise: what it computes, its encoder, checkpointing, refusals."""

import math
from dataclasses import dataclass, replace

import pytest
import torch

from cyclediff.diffusion.denoiser import LearnedVarianceDenoiser, NetworkDenoiser
from cyclediff.diffusion.noise import Noise
from cyclediff.diffusion.schedule import DiffusionSchedule, alpha_bar_from_betas, linear_betas
from cyclediff.diffusion.steps import ddim_sigma, ddim_step, posterior_step, q_sample, transitions
from cyclediff.diffusion.white_box import WhiteBox
from cyclediff.guidance import draw_code

from .nets import RecordedNoise, gaussian_denoiser

SCHEDULE = DiffusionSchedule(alpha_bar_from_betas(linear_betas()))
LEVELS, SHAPE = SCHEDULE.levels(16, "respaced"), (3, 4, 4)


def network(x, t):
    """Small, not linear, and different at each timestep."""
    return (x * (1 + t / 1000)[:, None, None, None]).sin() * x.cos()


def white_box(**settings) -> WhiteBox:
    return WhiteBox(NetworkDenoiser(network, SCHEDULE), **{"levels": LEVELS, "white_box_steps": 15, **settings})


def codes(count: int, slots: int = 15) -> torch.Tensor:
    return draw_code(Noise(0, [str(i) for i in range(count)]), torch.zeros(count, *SHAPE), slots)


def message(call) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        call()
    return str(error.value)


@pytest.mark.parametrize("kind", ["ddpm", "ddim"])
def test_the_generator_is_the_sampler(kind):
    """Without clamps it is the sampler of DDIM at eta 1, whose posterior mean is DDPM's."""
    z = codes(1, 16)
    x, *noises = z.unbind(1)
    denoiser = NetworkDenoiser(network, SCHEDULE)
    for (t, s), n in zip(transitions(LEVELS), [*noises, 0.0], strict=True):
        x = ddim_step(denoiser(x, t), s, ddim_sigma(t, s, 1.0), n)
    made = white_box(white_box_steps=16, kind=kind, clamp=False, clip_pixels=None)(z, RecordedNoise([]))
    assert torch.allclose(made, x, rtol=1e-4, atol=1e-4)


def test_exact_network_gives_the_data():
    """With the exact denoiser of N(mean, std^2) and codes ~ N(0, I), images are of that distribution."""
    schedule = DiffusionSchedule(alpha_bar_from_betas(linear_betas()))
    levels = schedule.levels(200, "respaced")
    z = torch.randn(1, 200, 1, 48, 48, generator=torch.Generator().manual_seed(0))
    box = WhiteBox(gaussian_denoiser(0.3, 0.5, schedule), levels, 200, clamp=False, clip_pixels=None)
    x0 = box(z, RecordedNoise([]))
    assert x0.mean().item() == pytest.approx(0.3, abs=0.05)
    assert x0.std().item() == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_the_encoder_gives_back_the_path(variance):
    """With all codes, the generator goes along x_s ~ q(x_s | x_t, x0), so up to the last step it ends at x0."""
    x0 = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    box = white_box(white_box_steps=16, variance=variance)
    noise = [torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(k)) for k in range(16)]
    x = q_sample(x0, LEVELS[0], noise[0])
    for (t, s), n in zip(transitions(LEVELS)[:-1], noise[1:], strict=True):
        x = posterior_step(x, x0, t, s, ddim_sigma(t, s, 1.0), n)
    z = box.encode(x0, RecordedNoise(noise))
    almost = replace(box, levels=LEVELS[:-1])(z, RecordedNoise([]))
    assert torch.allclose(almost, x, atol=1e-5)
    assert (almost - x0).abs().max() < 6 * LEVELS[-2].b
    assert white_box(white_box_steps=4, variance=variance).encode(x0, RecordedNoise(noise)).equal(z[:, :4])


def test_noise_outside_the_code_is_drawn_anew():
    box, z = white_box(), codes(1)
    one, same, other = (box(z, Noise(0, ["a"], trial=trial)) for trial in (1, 1, 2))
    assert one.equal(same)
    assert not one.equal(other)
    fixed = white_box(white_box_steps=16)
    z = codes(1, 16)
    assert fixed(z, Noise(0, ["a"], trial=1)).equal(fixed(z, Noise(0, ["a"], trial=2)))


def test_the_noise_of_the_last_noisy_step_is_limited():
    """E|sigma n| = pixels 2/255 there; the noise of the step before it acts as without a limit."""
    still = NetworkDenoiser(lambda x, t: torch.zeros_like(x), SCHEDULE)
    free, tight = (
        WhiteBox(still, LEVELS[-4:-1], 3, variance="large", clamp=False, clip_pixels=pixels) for pixels in (None, 0.1)
    )
    moved = {}
    for name, box in {"free": free, "tight": tight}.items():
        z = torch.zeros(3, 3, *SHAPE)
        z[1, 1], z[2, 2] = 1, 1  # the noise of the first step, and of the last
        x = box(z, RecordedNoise([]))
        moved[name] = [(x[row] - x[0]).mean().item() for row in (1, 2)]
    assert moved["tight"][0] == moved["free"][0] > 0.1
    assert moved["tight"][1] * math.sqrt(2 / math.pi) == pytest.approx(0.1 * 2 / 255, rel=1e-4)
    assert moved["free"][1] > 2 * moved["tight"][1]


# Checkpointing


@dataclass
class Counted:
    """A network that keeps `depth` images for its backward pass, where a sampler's state is one."""

    depth: int = 100
    calls: int = 0

    def __call__(self, x, t):
        out = network(x, t)
        for _ in range(self.depth):
            out = out.sin()
        self.calls += 1  # when it is done, as the meter of a run counts
        return out


def gradient_of(box: WhiteBox, z):
    """Gradient, the bytes that the graph keeps after the forward pass, and the evaluations of both passes."""
    counted, kept = Counted(), {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    box = replace(box, denoiser=NetworkDenoiser(counted, SCHEDULE))
    leaf = z.clone().requires_grad_()
    with torch.enable_grad():
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = box(leaf, Noise(0, ["a", "b"])).square().sum()
        forwards = counted.calls
        (slope,) = torch.autograd.grad(loss, leaf)
    return slope, sum(kept.values()), forwards, counted.calls


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 50])
@pytest.mark.parametrize("variance", ["small", "learned"])
def test_checkpointing_changes_nothing(steps, variance):
    def learned(x, t):
        return torch.cat((network(x, t), x.sin()), dim=1)

    denoiser = (LearnedVarianceDenoiser if variance == "learned" else NetworkDenoiser)(
        learned if variance == "learned" else network, SCHEDULE
    )
    slots = max(1, steps - 1)
    box = WhiteBox(denoiser, SCHEDULE.levels(steps, "respaced"), slots, variance=variance)
    z = codes(2, slots)
    slopes = []
    for checkpointing in (True, False):
        leaf = z.clone().requires_grad_()
        with torch.enable_grad():
            loss = replace(box, checkpointing=checkpointing)(leaf, Noise(0, ["a", "b"])).square().sum()
            slopes.append((loss.detach(), torch.autograd.grad(loss, leaf)[0]))
    assert slopes[0][0].equal(slopes[1][0])
    assert slopes[0][1].equal(slopes[1][1])


@pytest.mark.parametrize("clamp", [True, False])
def test_checkpointing_keeps_the_square_root_of_the_steps(clamp):
    """50 steps: the last 11 (1.5 √50) are kept, and the first 39 are evaluated once more, to their end."""
    settings = {"white_box_steps": 49, "levels": SCHEDULE.levels(50, "respaced"), "clamp": clamp}
    z = codes(2, 49)
    lean, naive = (gradient_of(white_box(**settings, checkpointing=c), z) for c in (True, False))
    assert lean[0].equal(naive[0])
    assert lean[1] < 0.25 * naive[1]
    assert (lean[2], lean[3]) == (50, 89)
    assert (naive[2], naive[3]) == (50, 50)


def test_memory_grows_with_the_square_root_of_the_steps():
    kept = {}
    for steps in (25, 100):
        box = WhiteBox(NetworkDenoiser(network, SCHEDULE), SCHEDULE.levels(steps, "respaced"), 1)
        kept[steps] = gradient_of(box, codes(2, 1))[1]
    assert kept[100] == pytest.approx(2 * kept[25], rel=0.2)


# Refusals

REFUSED = {
    "kind must be ddpm or ddim; got 'ode'": {"kind": "ode"},
    "variance must be small, large, optimal or learned; got 'fixed'": {"variance": "fixed"},
    "eta must be 1 with kind ddpm; got 0.5, choose kind ddim": {"eta": 0.5},
    "eta must be at least 0; got nan": {"kind": "ddim", "eta": math.nan},
    "white_box_steps must be between 1 (x_T alone) and 16 with 16 steps; got 17": {"white_box_steps": 17},
    "white_box_steps must be between 1 (x_T alone) and 16 with 16 steps; got 0": {"white_box_steps": 0},
    "clip_pixels must be positive, or null for no limit; got 0": {"clip_pixels": 0},
    "the optimal variance needs a network that predicts eps and eps^2, and eta above 0; choose variance small or "
    "large": {"variance": "optimal"},
    "the learned variance needs a network that predicts one (learn_sigma), and kind ddpm; choose variance small or "
    "large": {"variance": "learned"},
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_settings_of_the_generator_that_are_refused(sentence):
    assert message(lambda: white_box(**REFUSED[sentence])) == sentence


def test_codes_of_another_shape_are_refused():
    sentence = "codes must be (n, 15, c, h, w); got (2, 14, 3, 4, 4)"
    assert message(lambda: white_box()(codes(2, 14), Noise(0, ["a", "b"]))) == sentence


def test_eta_zero_has_nothing_to_encode():
    box = white_box(kind="ddim", eta=0)
    sentence = "eta 0 has no noise to encode; choose eta above 0, or white_box_steps=1"
    assert message(lambda: box.encode(torch.zeros(1, *SHAPE), Noise(0, ["a"]))) == sentence
