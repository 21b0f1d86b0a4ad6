"""Pets: the renderer, the shipped networks and their cards."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from cyclediff.cyclediffusion import decode
from cyclediff.data.images import to_uint8
from cyclediff.diffusion.denoiser import X0Denoiser, blend_x0
from cyclediff.diffusion.schedule import DiffusionSchedule, alpha_bar_from_betas, linear_betas
from cyclediff.diffusion.steps import q_sample
from cyclediff.errors import UserError
from cyclediff.models.weights import load_weights
from cyclediff.pets.networks import load, load_classifier
from cyclediff.pets.render import FACTORS, SPECIES, render, sample_factors
from eval.metrics.pets import DOMAIN, attribute_error, load_pets_judge, observe

WEIGHTS = Path(__file__).parents[1] / "cyclediff" / "pets" / "weights"
NAMES = {factor.name: column for column, factor in enumerate(FACTORS)}


def factors(n: int = 8, seed: int = 5, **fixed: float) -> torch.Tensor:
    drawn = sample_factors(n, torch.Generator().manual_seed(seed))
    for name, value in fixed.items():
        drawn[:, NAMES[name]] = value
    return drawn


def unconditional(species: str, count: int, steps: int) -> torch.Tensor:
    denoiser = load(str(WEIGHTS / f"{species}.safetensors")).condition()
    code = torch.randn(count, steps, 3, 64, 64, generator=torch.Generator().manual_seed(6))
    return to_uint8(decode(code, denoiser, denoiser.schedule.levels(steps), eta=1.0))


def own_share(species: str, images: torch.Tensor) -> float:
    outputs = observe(load_pets_judge(WEIGHTS / "judge.safetensors"), images)[1]
    return ((outputs[:, DOMAIN] > 0) == (species == "dog")).double().mean().item()


@pytest.mark.parametrize("species", SPECIES)
def test_every_factor_shows(species):
    """Each factor, moved from one end of its range to the other (a hue by half a turn), changes the picture."""
    for factor in FACTORS:
        ends = (factor.low, (factor.low + factor.high) / 2 if factor.circular else factor.high)
        low, high = (render(factors(4, **{factor.name: end}), species) for end in ends)
        changed = ((low - high).abs().amax(1) > 0.1).double().mean(dim=(1, 2))
        assert changed.min() > 0.004, factor.name  # 16 pixels


def test_resolutions_show_the_same_picture():
    large, small = render(factors(), "cat", 256), render(factors(), "cat", 64)
    shrunk = torch.nn.functional.avg_pool2d(large, 4)
    assert (shrunk - small).abs().mean() < 0.02
    assert (shrunk - small).flatten(1).abs().quantile(0.99) < 0.3  # the thinnest lines differ most


def test_edges_are_antialiased():
    """A head moved by a tenth of a pixel changes edge pixels by fractions, not by steps."""
    step = 2 / 64 / 10
    before, after = (render(factors(1, x=x, tilt=0.0), "dog") for x in (0.05, 0.05 + step))
    difference = (after - before).abs()
    assert 0 < difference.max() < 0.25


def test_cat_and_dog_share_wall_and_place():
    drawn = factors()
    cat, dog = (render(drawn, species) for species in SPECIES)
    assert (cat - dog).abs()[:, :, :, :3].mean() < 0.02
    assert ((cat - dog).abs().amax(1) > 0.1).double().mean() > 0.15


def test_unknown_species_is_refused():
    with pytest.raises(ValueError, match="cat, dog"):
        render(factors(1), "cow")


@pytest.mark.parametrize("name", ["cat", "dog", "judge", "classifier", "attributes"])
def test_cards_belong_to_their_weights(name):
    card = json.loads((WEIGHTS / f"{name}.json").read_text())
    assert card["sha256"] == hashlib.sha256((WEIGHTS / f"{name}.safetensors").read_bytes()).hexdigest()
    assert {"parameters", "data_seed", "steps", "loss", "seconds"} <= card.keys()


@pytest.mark.parametrize("species", SPECIES)
def test_the_judge_knows_species_and_factors(species):
    judge, drawn = load_pets_judge(WEIGHTS / "judge.safetensors"), factors(128, seed=77)
    images = [to_uint8(render(drawn, s)) for s in (species, "cat")]
    seen, cats = (observe(judge, image)[1] for image in images)
    assert own_share(species, images[0]) > 0.99
    assert attribute_error(seen, cats).mean() < 0.06  # of equal attributes
    assert 0.3 < attribute_error(seen, cats.roll(1, dims=0)).mean() < 0.46  # unrelated animals


def test_the_features_of_the_judge_are_standardised():
    judge, drawn = load_pets_judge(WEIGHTS / "judge.safetensors"), factors(600, seed=79)
    features, _ = observe(judge, torch.cat([to_uint8(render(drawn, species)) for species in SPECIES]))
    assert features.mean(0).abs().max() < 0.15  # 1200 images: the standard error is 0.03
    assert (features.std(0) - 1).abs().max() < 0.15


def grain(images: torch.Tensor) -> float:
    """What 3×3 means do not explain of the background above the animals."""
    background = images[:, :, :10]
    return (background - torch.nn.functional.avg_pool2d(background, 3, 1, 1))[:, :, 1:-1, 1:-1].std().item()


@pytest.mark.parametrize("species", SPECIES)
@pytest.mark.parametrize("t", [10, 20, 60])
def test_no_grain_is_left_where_nothing_is_drawn(species, t):
    denoiser = load(str(WEIGHTS / f"{species}.safetensors")).condition()
    x0, level = render(factors(16, seed=80, size=0.5), species), denoiser.schedule.at(t)
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    seen = denoiser(level.a * x0 + level.b * noise, level).x0
    assert grain(noise) * level.b / level.a > 0.04
    assert grain(seen - x0) < 0.0125  # 1.6 of 255 grey levels


@pytest.mark.parametrize("species", SPECIES)
def test_samples_are_of_their_species(species):
    assert own_share(species, unconditional(species, 16, 25)) > 0.9


@pytest.mark.parametrize(("t", "share"), [(0, 0.99), (300, 0.97), (600, 0.7)])
def test_the_classifier_knows_species_through_noise(t, share):
    classifier, drawn = load_classifier(str(WEIGHTS / "classifier.safetensors")), factors(64, seed=78)
    level = alpha_bar_from_betas(linear_betas())[t].item()
    noise = torch.randn(64, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    right = 0.0
    for label, species in enumerate(SPECIES):
        xt = level**0.5 * render(drawn, species) + (1 - level) ** 0.5 * noise
        right += (classifier(xt, torch.full((64,), t)).argmax(1) == label).double().mean().item() / 2
    assert right >= share


@pytest.mark.slow
@pytest.mark.parametrize("species", SPECIES)
def test_256_samples_are_of_their_species(species):
    images = torch.cat([unconditional(species, 256, 100)])
    assert own_share(species, images) >= 0.97


def test_a_blend_of_two_estimates_has_the_smaller_error():
    """Independent errors of size sigma and e: the blend's is 1 / sqrt(1 / sigma² + 1 / e²)."""
    generator, error = torch.Generator().manual_seed(1), 0.1
    x0 = torch.zeros(1, 3, 300, 300)
    for alpha_bar in (0.999, 0.99, 0.9):
        level = torch.tensor(alpha_bar, dtype=torch.float64)
        sigma = (1 / alpha_bar - 1) ** 0.5
        xt = alpha_bar**0.5 * (x0 + sigma * torch.randn(x0.shape, generator=generator))
        blended = blend_x0(xt, x0 + error * torch.randn(x0.shape, generator=generator), level, error)
        assert blended.std().item() == pytest.approx((sigma**-2 + error**-2) ** -0.5, rel=0.02)


def test_an_x0_network_gives_the_eps_of_its_x0():
    schedule = DiffusionSchedule(alpha_bar_from_betas(linear_betas()))
    x0, eps = torch.randn(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    for level in (schedule.at(100), schedule.at(900)):
        seen = X0Denoiser(lambda xt, t: x0, schedule, x0_error=0.0)(q_sample(x0, level, eps), level)
        assert (seen.eps - eps).abs().max() < 1e-4
        assert (seen.x0 - x0).abs().max() < 1e-5


def test_wrong_weights_are_named():
    network = torch.nn.Linear(2, 3)
    with pytest.raises(
        UserError,
        match=r"file\.x does not fit .*: 1 missing \(bias\); 1 of another shape \(weight \(2, 2\) for \(3, 2\)\)",
    ):
        load_weights(network, {"weight": torch.zeros(2, 2)}, "file.x")


def test_no_file_of_weights_says_where_it_was_made():
    for path in WEIGHTS.rglob("*.json"):
        assert "_name_or_path" not in path.read_text(), path
