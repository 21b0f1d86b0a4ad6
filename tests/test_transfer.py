"""The recursion behind inversion-based editing against mathematics: exact predictions of Gaussian data are known."""

import weakref
from functools import partial

import pytest
import torch

from baselines.ddcm import DDCM
from baselines.edit_friendly import EditFriendly
from baselines.flowedit import FlowEdit
from cyclediff.cyclediffusion import Path, cyclediffusion
from cyclediff.diffusion.noise import Noise
from cyclediff.diffusion.schedule import DiffusionSchedule, FlowSchedule, alpha_bar_from_betas, linear_betas
from cyclediff.diffusion.steps import ddim_sigma, mean, q_sample, transitions
from cyclediff.diffusion.transfer import chain, independent, transfer
from cyclediff.models.scheduler import zero_terminal_snr

from .nets import GaussianDenoiser, RecordedNoise

ALPHA_BAR = alpha_bar_from_betas(linear_betas())
KINDS = {
    "diffusion": DiffusionSchedule(ALPHA_BAR),
    "zero terminal SNR": DiffusionSchedule(zero_terminal_snr(ALPHA_BAR)),
    "flow": FlowSchedule(),
    "shifted flow": FlowSchedule(3.0),
}
PATHS = {"chain": chain, "independent": independent}
SIGMAS = {
    "eta 1": partial(ddim_sigma, eta=1.0),
    "eta 0.3": partial(ddim_sigma, eta=0.3),
    "full noise": lambda t, s: s.b,
    "none": lambda t, s: 0.0,
}
IDS = ["a", "b"]
X0 = 0.3 + 0.2 * Noise(7, IDS).randn_like(torch.empty(2, 3, 4, 4, dtype=torch.float64))


@pytest.fixture(params=KINDS)
def schedule(request):
    return KINDS[request.param]


@pytest.fixture(params=PATHS)
def path(request):
    return PATHS[request.param]


@pytest.fixture(params=SIGMAS)
def sigma(request):
    return SIGMAS[request.param]


class Watched:
    """A denoiser that first tells somebody of each state that it is asked about."""

    def __init__(self, denoiser, note):
        self.denoiser, self.schedule, self.note = denoiser, denoiser.schedule, note

    def __call__(self, x, level):
        self.note(x)
        return self.denoiser(x, level)


def pair(schedule):
    return GaussianDenoiser(0.3, 0.2, schedule), GaussianDenoiser(-0.4, 0.5, schedule)


def grid(schedule, spacing, steps=20):
    """All levels: the first has no signal with zero terminal SNR and flows."""
    if isinstance(schedule, DiffusionSchedule) and schedule.at(999).a == 0 and spacing == "uniform":
        levels = [schedule.at(t) for t in range(999, 0, -50)]
        return [*levels, schedule.levels(1)[-1]]
    return schedule.levels(steps, spacing)


@pytest.mark.parametrize("spacing", ["uniform", "latent"])
def test_source_as_target_returns_the_image(schedule, path, sigma, spacing):
    source, _ = pair(schedule)
    out = transfer(X0, source, source, grid(schedule, spacing), path, sigma, Noise(1, IDS), draws=2)
    assert torch.allclose(out, X0, atol=1e-14)


@pytest.mark.parametrize("spacing", ["uniform", "latent"])
def test_it_is_encoding_then_decoding(schedule, path, sigma, spacing):
    """The recursion written out: all states, then the residuals, then the target's sampler with them."""
    (source, target), levels = pair(schedule), grid(schedule, spacing)
    steps, noise = transitions(levels), Noise(1, IDS)
    states = [q_sample(X0, levels[0], noise.randn_like(X0))]
    for t, s in steps[:-1]:
        states.append(path(X0, states[-1], t, s, sigma(t, s), noise))
    states.append(X0)
    residuals = [
        after - mean(source(before, t), s, sigma(t, s))
        for (t, s), before, after in zip(steps, states[:-1], states[1:], strict=True)
    ]
    for kept in (residuals[-1], torch.zeros_like(X0)):
        y = states[0]
        for (t, s), r in zip(steps, [*residuals[:-1], kept], strict=True):
            y = mean(target(y, t), s, sigma(t, s)) + r
        keep_last = kept is residuals[-1]
        out = transfer(X0, source, target, levels, path, sigma, Noise(1, IDS), keep_last=keep_last)
        assert torch.allclose(out, y, atol=1e-11)


@pytest.mark.parametrize("eta", [0.1, 1.0])
def test_on_a_chain_it_is_cyclediffusion(schedule, eta):
    """Whose last step is encoded where it has noise, and predicted where it has none."""
    (source, target), sigma = pair(schedule), partial(ddim_sigma, eta=eta)
    for spacing in ("latent", "uniform"):
        levels = grid(schedule, spacing)
        wanted = cyclediffusion(X0, source, target, Path(levels, levels), eta, Noise(1, IDS))
        out = transfer(X0, source, target, levels, chain, sigma, Noise(1, IDS), keep_last=spacing == "latent")
        assert torch.allclose(out, wanted, atol=1e-11)
        assert (out - X0).abs().max() > 0.1


def test_with_full_noise_a_chain_is_independent(schedule):
    """The identity behind DDCM: nothing of x_t is left in x_s."""
    (source, target), levels = pair(schedule), grid(schedule, "uniform")
    full = SIGMAS["full noise"]
    outs = [transfer(X0, source, target, levels, path, full, Noise(1, IDS)) for path in (chain, independent)]
    assert torch.allclose(*outs, atol=1e-12)
    other = transfer(X0, source, target, levels, independent, SIGMAS["eta 1"], Noise(1, IDS))
    assert (outs[0] - other).abs().max() > 1e-3


@pytest.mark.parametrize("n_avg", [1, 3])
@pytest.mark.parametrize("n_min", [0, 4])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_on_a_flow_without_noise_it_is_flowedit(n_avg, n_min, shift):
    """FlowEdit's Algorithm 1 in velocities v = eps - x0, the noisiest level (sigma 1) included."""
    schedule = FlowSchedule(shift)
    source, target = pair(schedule)

    def v(denoiser, x, level):
        seen = denoiser(x, level)
        return seen.eps - seen.x0

    levels, noise = schedule.levels(12, "scheduler"), Noise(1, IDS)
    z, steps = X0, transitions(levels)
    for t, s in steps[: 12 - n_min]:
        change = torch.zeros_like(X0)
        for _ in range(n_avg):
            zs = (1 - t.b) * X0 + t.b * noise.randn_like(X0)
            change += (v(target, z + zs - X0, t) - v(source, zs, t)) / n_avg
        z = z + (s.b - t.b) * change
    if n_min:
        sigma = steps[-n_min][0].b
        z = z + sigma * noise.randn_like(X0) + (1 - sigma) * X0 - X0
        for t, s in steps[12 - n_min :]:
            z = z + (s.b - t.b) * v(target, z, t)
    method = FlowEdit(T=12, n_max=12, n_min=n_min, n_avg=n_avg)
    assert torch.allclose(method(X0, source, target, Noise(1, IDS)), z, atol=1e-12)


def test_the_path_can_start_at_another_level():
    schedule = KINDS["diffusion"]
    (source, target), levels = pair(schedule), KINDS["diffusion"].levels(20)[-11:]
    draws = [Noise(seed, IDS).randn_like(X0) for seed in range(10)]
    one, other = levels[0], schedule.at(999)
    moved = [q_sample(X0, other, draws[0]), *draws[1:]]
    moved[0] = (moved[0] - one.a * X0) / one.b  # the noise that leads to the same start
    out = transfer(X0, source, target, levels, chain, SIGMAS["eta 1"], RecordedNoise(draws), start=other)
    wanted = transfer(X0, source, target, levels, chain, SIGMAS["eta 1"], RecordedNoise(moved))
    assert torch.allclose(out, wanted, atol=1e-12)


@pytest.mark.parametrize("steps", [10, 40])
def test_memory_does_not_grow_with_the_steps(steps, path):
    """States that the networks have seen are let go: two of the last step are left at most."""
    seen, alive = [], []

    def note(x):
        alive.append(sum(ref() is not None for ref in seen))
        seen.append(weakref.ref(x))

    source, target = (Watched(denoiser, note) for denoiser in pair(KINDS["diffusion"]))
    transfer(X0, source, target, KINDS["diffusion"].levels(steps), path, SIGMAS["eta 1"], Noise(1, IDS))
    assert len(seen) == 2 * steps
    assert max(alive) <= 3


def test_without_the_last_residual_the_source_is_not_evaluated_for_it():
    states = [], []
    source, target = map(Watched, pair(KINDS["diffusion"]), (found.append for found in states))
    EditFriendly(T=20, t0=12)(X0, source, target, Noise(1, IDS))
    assert [len(found) for found in states] == [11, 12]


@pytest.mark.parametrize("make", [partial(EditFriendly, T=20, t0=20), partial(DDCM, T=20, t0=20, spacing="uniform")])
def test_methods_also_work_on_flows(make):
    """Also from the level without signal, and with t0 below T."""
    schedule = KINDS["shifted flow"]
    source, target = pair(schedule)
    for t0 in (20, 12):
        method = make(t0=t0, **({"keep_last": True} if make.func is EditFriendly else {}))
        assert torch.allclose(method(X0, source, source, Noise(1, IDS)), X0, atol=1e-12)
        assert (method(X0, source, target, Noise(1, IDS)) - X0).abs().max() > 0.1


def test_models_of_different_levels_are_refused():
    source, target = pair(KINDS["flow"])[0], pair(KINDS["shifted flow"])[1]
    for method in (EditFriendly(10, 10), DDCM(10, 10, spacing="uniform"), FlowEdit(10, 10)):
        with pytest.raises(ValueError, match="must have the same noise levels; choose models of one schedule"):
            method(X0, source, target, RecordedNoise([]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EditFriendly(10, 11), "t0 must be between 1 and T = 10; got 11"),
        (lambda: EditFriendly(10, 0), "t0 must be between 1 and T = 10; got 0"),
        (lambda: EditFriendly(10, 5, eta=0.0), "at most 1 .eta = 0 has no noise maps: use ddib.; got 0.0"),
        (lambda: EditFriendly(10, 5, eta=float("nan")), "eta must be above 0 and at most 1 .*; got nan"),
        (lambda: EditFriendly(10, 5, eta=1.1), "eta must be above 0 and at most 1 .*; got 1.1"),
        (lambda: DDCM(10, 11), "t0 must be between 1 and T = 10; got 11"),
        (lambda: DDCM(10, 10, eta=1.5), "eta must be between 0 and 1; got 1.5"),
        (lambda: FlowEdit(10, 11), "n_max must be between 1 and T = 10; got 11"),
        (lambda: FlowEdit(10, 5, n_min=5), "n_min must be between 0 and n_max - 1 = 4; got 5"),
        (lambda: FlowEdit(10, 5, n_avg=0), "n_avg must be at least 1; got 0"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_wrong_kind_of_model_is_refused_before_it_is_evaluated():
    states = []
    diffusion, flow = (Watched(pair(KINDS[kind])[0], states.append) for kind in ("diffusion", "flow"))
    for model, method, message in (
        (diffusion, FlowEdit(10, 10), "flowedit needs a rectified flow, and this is a diffusion model; choose a flow"),
        (diffusion, DDCM(10, 10, spacing="scheduler"), "or lcm with a diffusion model; got 'scheduler'"),
        (flow, DDCM(10, 10), "spacing must be uniform, latent or scheduler with a flow; got 'lcm'"),
    ):
        with pytest.raises(ValueError, match=message):
            method(X0, model, model, RecordedNoise([]))
    assert not states
