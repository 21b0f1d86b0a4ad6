"""Guidance: what a Langevin chain samples, which code it chooses, resume, batches and refusals."""

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from cyclediff.diffusion.noise import Noise
from cyclediff.guidance import Guidance, State, draw_code, langevin, result

from .test_white_box import SHAPE, message, white_box


def toy(z, noise):
    """A generator whose image is the code."""
    return z[:, 0]


def steps_of(ids, seed=0):
    return lambda k: Noise(seed, ids, trial=k + 1)


def pull(images, noise):
    """An energy that wants a bright image."""
    return (1 - images).square().flatten(1).sum(1)


ENERGIES = {"pull": pull}
CHAIN = Guidance(0.05, 6, {"pull": 2.0}, best_by="pull")


def start(ids, slots=15) -> State:
    return State.start(draw_code(Noise(0, ids), torch.zeros(len(ids), *SHAPE), slots))


def run(state, guidance=CHAIN, generator=None, energies=ENERGIES, ids=("a", "b")) -> list[State]:
    return list(langevin(state, guidance, generator or white_box(), energies, steps_of(ids)))


# What a chain samples


def test_a_chain_samples_the_posterior():
    """With energy w (x - m)^2 / 2 of a code that is the image, p(z) = N(w m / (1 + w), 1 / (1 + w)).

    The chain is z <- (1 - h (1 + w) / 2) z + h w m / 2 + sqrt(h) n, whose stationary mean is that one, and whose
    variance is 1 / (1 + w) / (1 - h (1 + w) / 4). The energy is of (x + 1) / 2, the image in [0, 1].
    """
    h, w, m = 0.1, 3.0, 0.8
    guidance = Guidance(h, 60, {"near": 4 * w})
    energies = {"near": lambda images, noise: ((images - (m + 1) / 2).square() / 2).flatten(1).sum(1)}
    state = State.start(torch.randn(1, 1, 1, 200, 200, generator=torch.Generator().manual_seed(0)))
    *_, state = run(state, guidance, toy, energies, ["a"])
    z, variance = state.z.double(), 1 / (1 + w) / (1 - h * (1 + w) / 4)
    assert z.mean().item() == pytest.approx(w * m / (1 + w), abs=4 * math.sqrt(variance / z.numel()))
    assert z.var().item() == pytest.approx(variance, rel=4 * math.sqrt(2 / z.numel()))


def test_a_negative_weight_makes_an_energy_large():
    state = start(["a", "b"])
    rise, fall = (run(state, replace(CHAIN, weights={"pull": w}, steps=3))[-1].energies["pull"] for w in (-2.0, 2.0))
    assert (rise > fall).all()


def test_prior_weight():
    """Without energy to speak of, a step is z (1 - h prior_weight / 2) + sqrt(h) n."""
    state = start(["a", "b"])
    guidance = Guidance(0.05, 1, {"pull": 1e-12}, prior_weight=3.0)
    noise = steps_of(("a", "b"))(0)
    noise.randn_like(state.z[:, 0])  # of the step that is no white box
    expected = state.z * (1 - 0.05 * 3 / 2) + math.sqrt(0.05) * noise.randn_like(state.z)
    found = run(state, guidance)[0]
    assert torch.allclose(found.z, expected, atol=1e-6)
    assert torch.allclose(found.energies["prior"], state.z.square().sum((1, 2, 3, 4)) / 2)
    total = 1e-12 * found.energies["pull"] + 3 * found.energies["prior"]
    assert torch.allclose(found.energies["total"], total)


# Which code is chosen


def falling(images, noise):
    """Decreases along a chain that goes to bright images."""
    return -images.flatten(1).sum(1)


@pytest.mark.parametrize("best_by", ["fall", "prior", "total"])
def test_the_best_of_each_image_is_chosen(best_by):
    """The best of the codes before each update, for each image, by one number."""
    ids, guidance = ("a", "b", "c"), Guidance(0.3, 8, {"fall": 3.0}, best_by=best_by)
    begin = State.start(draw_code(Noise(0, ids), torch.zeros(3, *SHAPE), 1))
    states = run(begin, guidance, toy, {"fall": falling}, ids)
    judged = torch.stack([state.energies[best_by] for state in states])
    codes = torch.stack([begin.z, *(state.z for state in states[:-1])])
    assert states[-1].best.equal(judged.min(0).values)
    chosen = codes[judged.argmin(0), torch.arange(3)]
    assert states[-1].best_z.equal(chosen)
    found = result(states[-1], guidance, toy, {"fall": falling}, steps_of(ids))
    assert found.z.equal(chosen)
    assert found.images.equal(chosen[:, 0])


def test_without_a_judge_the_last_code_is_taken():
    states = run(start(["a", "b"]), replace(CHAIN, best_by=None))
    found = result(states[-1], replace(CHAIN, best_by=None), white_box(), ENERGIES, steps_of(("a", "b")))
    assert found.z.equal(states[-1].z)
    assert states[-1].best.isinf().all()


def test_the_last_code_is_judged_only_if_asked():
    ids, guidance = ("a", "b"), Guidance(1e-9, 3, {"fall": 1e9}, best_by="fall")  # it falls in each step
    begin = State.start(torch.zeros(2, 1, *SHAPE))
    states = run(begin, guidance, toy, {"fall": falling}, ids)
    assert states[-1].best_z.equal(states[-2].z)
    for judge_last, chosen in ((False, states[-2].z), (True, states[-1].z)):
        settings = replace(guidance, judge_last=judge_last)
        assert result(states[-1], settings, toy, {"fall": falling}, steps_of(ids)).z.equal(chosen)


# Resume and batches


@pytest.mark.parametrize("stop", [1, 4])
def test_a_chain_that_is_resumed_is_the_same(stop, tmp_path):
    ids = ("a", "b")
    whole = run(start(ids))
    save_file({key: value.contiguous() for key, value in whole[stop - 1].tensors().items()}, tmp_path / "state")
    resumed = run(State.from_tensors(load_file(tmp_path / "state")))
    assert [state.step for state in resumed] == list(range(stop + 1, 7))
    for one, other in zip(whole[stop:], resumed, strict=True):
        assert all(value.equal(other.tensors()[key]) for key, value in one.tensors().items())
        assert all(value.equal(other.energies[key]) for key, value in one.energies.items())
    one, other = (result(states[-1], CHAIN, white_box(), ENERGIES, steps_of(ids)) for states in (whole, resumed))
    assert one.images.equal(other.images)


def test_an_image_does_not_depend_on_its_batch():
    ids = ("a", "b", "c")
    together = run(start(ids), ids=ids)[-1]
    for i, name in enumerate(ids):
        alone = run(start([name]), ids=[name])[-1]
        for key in ("z", "best_z", "best"):
            assert torch.allclose(getattr(together, key)[i : i + 1], getattr(alone, key), atol=1e-5)


def test_a_chain_leaves_its_inputs_and_global_randomness_alone():
    state = start(["a", "b"])
    before, seeded = state.z.clone(), torch.random.get_rng_state()
    run(state)
    assert state.z.equal(before)
    assert torch.random.get_rng_state().equal(seeded)


# Refusals

WRONG = {
    "step_size must be positive; got 0": {"step_size": 0},
    "step_size must be positive; got nan": {"step_size": math.nan},
    "steps must be 1 or more; got 0": {"steps": 0},
    "guidance needs an energy; got none": {"weights": {}},
    "the weight of pull must be a number other than 0; got 0": {"weights": {"pull": 0}},
    "the weight of pull must be a number other than 0; got nan": {"weights": {"pull": math.nan}},
    "no energy can be called prior or total; got total, give it another name": {"weights": {"total": 1}},
    "prior_weight must be 0 or more; got -1": {"prior_weight": -1},
    "best_by must be null or one of pull, prior, total; got 'clip'": {"best_by": "clip"},
}


@pytest.mark.parametrize("sentence", WRONG)
def test_settings_of_a_chain_that_are_refused(sentence):
    assert message(lambda: replace(CHAIN, **WRONG[sentence])) == sentence


def test_energies_and_weights_must_match():
    sentence = "each energy needs a weight; got energies push and weights of pull"
    assert message(lambda: run(start(["a", "b"]), energies={"push": pull})) == sentence


def test_energies_that_are_constant_are_refused():
    sentence = "the energy pull has no gradient, so it cannot guide; choose one that is differentiable"
    constant = {"pull": lambda images, noise: (images > 0.5).float().flatten(1).sum(1)}
    assert message(lambda: run(start(["a", "b"]), energies=constant)) == sentence
    saturated = {"pull": lambda images, noise: images.clamp(5, 6).flatten(1).sum(1)}
    sentence = "no energy changes with the code, so they cannot guide; choose other energies"
    assert message(lambda: run(start(["a", "b"]), energies=saturated)) == sentence


class Breaks:
    """An energy that is wrong in one evaluation."""

    def __init__(self, at: int, value: float, gradient: bool = False):
        self.at, self.value, self.gradient, self.calls = at, value, gradient, 0

    def __call__(self, images, noise):
        self.calls += 1
        energy = pull(images, noise)
        if self.calls - 1 != self.at:
            return energy
        return energy * self.value if not self.gradient else energy + (images - images).abs().sqrt().flatten(1).sum(1)


def test_an_energy_that_is_not_finite_stops_the_chain():
    sentence = "the energy pull is NaN or Inf in step 2 of the chain; choose a smaller step_size or weight"
    for value in (math.nan, math.inf):
        assert message(lambda value=value: run(start(["a", "b"]), energies={"pull": Breaks(2, value)})) == sentence
    sentence = "the gradient of the energies is NaN or Inf in step 1 of the chain; choose a smaller step_size or weight"
    assert message(lambda: run(start(["a", "b"]), energies={"pull": Breaks(1, 1, gradient=True)})) == sentence


def test_a_chain_that_diverges_is_stopped():
    """h = 8 multiplies a code by 1 - h / 2 = -3 in each step, under the prior alone."""
    guidance = Guidance(8.0, 20, {"pull": 1e-9})
    states = []
    with pytest.raises(
        ValueError, match="the chain diverges in step 3: its codes have a root mean square of 1"
    ) as error:
        states.extend(langevin(start(["a", "b"]), guidance, white_box(), ENERGIES, steps_of(("a", "b"))))
    assert str(error.value).endswith("where 1 is usual; choose a smaller step_size or weight")
