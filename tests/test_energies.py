"""Energies of guidance: gradients, attributes, the text energy and its augmentations."""

import math
from types import SimpleNamespace

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import functional as TF

from cyclediff.diffusion.energies import gradient, weighted_gradient
from cyclediff.diffusion.noise import Noise
from cyclediff.errors import UserError
from cyclediff.models.attribute_classifier import MEAN, STD, Attribute, AttributeEnergy, imagenet_input
from cyclediff.models.clip_energy import Clip, ClipEnergy, augment, clip_of, cutout, draw, resized, translation

from .tiny_clip import TINY

IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def noise(ids=("a", "b"), trial=0) -> Noise:
    return Noise(0, ids, trial=trial)


# Gradients


def test_gradient_by_the_first_argument():
    """d(sum c x^3)/dx = 3 c x^2."""
    x = IMAGES.clone()
    slope = gradient(lambda x, c: (c * x**3).flatten(1).sum(1), x, 2.0)
    assert torch.allclose(slope, 6 * x**2)
    assert not x.requires_grad


def test_weighted_gradient():
    energies = {"square": lambda x: x.square().flatten(1).sum(1), "sum": lambda x: x.flatten(1).sum(1)}
    values, slope = weighted_gradient(
        lambda x: {name: energy(x) for name, energy in energies.items()}, {"square": 3.0, "sum": -2.0}, IMAGES
    )
    assert torch.allclose(slope, 6 * IMAGES - 2)
    for name, energy in energies.items():
        assert values[name].equal(energy(IMAGES))
        assert not values[name].requires_grad


# Attributes


def logits(**values):
    """Classifiers that give these logits, plus nothing of the image."""
    return {name: lambda x, value=value: (0 * x).flatten(1).sum(1) + value for name, value in values.items()}


def same(images):
    return images


def test_attributes_are_weighed():
    """-log sigmoid(l) of a present attribute, -log(1 - sigmoid(l)) of an absent one, times its weight."""
    wanted = {"young": Attribute(True, 2.0), "glasses": Attribute(False, -0.5)}
    energy = AttributeEnergy(logits(young=1.5, glasses=-0.7, beard=9.0), wanted, same)
    expected = 2 * math.log(1 + math.exp(-1.5)) - 0.5 * math.log(1 + math.exp(-0.7))
    assert energy(IMAGES, noise()).tolist() == pytest.approx([expected] * 2, rel=1e-5)


def test_an_attribute_that_is_impossible_is_finite():
    for present, logit in ((True, -200.0), (False, 200.0)):
        energy = AttributeEnergy(logits(young=logit), {"young": Attribute(present)}, same)
        assert energy(IMAGES, noise()).tolist() == pytest.approx([-math.log(1e-8)] * 2)


def test_classifiers_read_images_as_torchvision_prepares_them():
    expected = TF.normalize(TF.resize(IMAGES, [224, 224], antialias=False), MEAN, STD)
    assert torch.allclose(imagenet_input(IMAGES), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("attributes", "sentence"),
    [
        ({"yung": Attribute(True)}, "there is no attribute yung; choose from glasses, young"),
        ({}, "name an attribute to guide; there are glasses, young"),
        ({"young": Attribute(True, 0)}, "the weight of attribute young must be a number other than 0; got 0"),
        ({"young": Attribute(True, math.nan)}, "the weight of attribute young must be a number other than 0; got nan"),
    ],
)
def test_attributes_that_are_refused(attributes, sentence):
    with pytest.raises(UserError) as error:
        AttributeEnergy(logits(young=1.0, glasses=1.0), attributes)
    assert str(error.value) == sentence


# Augmentations


def test_draws_are_uniform():
    draws = draw(noise(), torch.zeros(2, 3, 16, 16), 5000)
    for name in ("brightness", "saturation", "contrast"):
        u = getattr(draws, name)
        assert 0 <= u.min() < 0.01
        assert 0.99 < u.max() < 1
        assert u.mean().item() == pytest.approx(0.5, abs=0.015)
        assert u.var().item() == pytest.approx(1 / 12, rel=0.05)
    for name, low, high in (("shift_rows", -2, 2), ("shift_columns", -2, 2), ("cutout_rows", 0, 16)):
        counts = getattr(draws, name).flatten().unique(return_counts=True)
        assert counts[0].tolist() == list(range(low, high + 1))
        expected = 10000 / (high - low + 1)
        assert (counts[1] - expected).abs().max() < 5 * expected**0.5
    names = ("brightness", "saturation", "contrast", "shift_rows", "shift_columns", "cutout_rows", "cutout_columns")
    columns = torch.stack([getattr(draws, name).double().flatten() for name in names])
    assert (torch.corrcoef(columns) - torch.eye(len(names))).abs().max() < 0.05
    assert draws.resize.shape == (2,)


def test_draws_depend_on_the_image_alone():
    both, alone = draw(noise(), IMAGES, 4), draw(noise(["b"]), IMAGES[1:], 4)
    assert both.brightness[1:].equal(alone.brightness)
    assert both.cutout_columns[1:].equal(alone.cutout_columns)
    assert both.resize[1:].equal(alone.resize)
    assert torch.allclose(augment(IMAGES, both)[4:], augment(IMAGES[1:], alone), atol=1e-6)


def test_translation_moves_what_torch_rolls():
    x = torch.arange(1.0, 49).reshape(1, 3, 4, 4)
    found = translation(x, torch.tensor([1]), torch.tensor([-2]))
    rolled = x.roll((-1, 2), (2, 3))
    assert found[:, :, :3, 2:].equal(rolled[:, :, :3, 2:])
    assert found[:, :, 3:].eq(0).all()
    assert found[:, :, :, :2].eq(0).all()


@pytest.mark.parametrize(("u", "side"), [(0.0, 6), (0.999, 9), (0.5, 8)])
def test_resize_keeps_the_frame(u, side):
    """8 pixels become int((0.8 + 0.4 u) 8), in the middle of 8."""
    found = resized(torch.ones(1, 3, 8, 8), u)
    assert found.shape == (1, 3, 8, 8)
    assert found.sum() == pytest.approx(3 * min(side, 8) ** 2)
    if side < 8:
        assert found[0, 0, 1:7, 1:7].min() > 0.999


def test_the_hole_is_half_the_side_and_thinner_at_the_border():
    x = torch.ones(3, 3, 8, 8)
    found = cutout(x, torch.tensor([4, 0, 8]), torch.tensor([4, 4, 8]))
    assert (found == 0)[:, 0].sum((1, 2)).tolist() == [16, 8, 4]
    assert found[0, :, 2:6, 2:6].eq(0).all()


# The text energy


def cosine_clip(weight=1.0) -> Clip:
    text = torch.randn(192, generator=torch.Generator().manual_seed(1))
    return Clip(lambda x: x.flatten(1) ** 2, text, 8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), weight)


def test_clip_energy_is_the_mean_over_copies():
    clips, draws = [cosine_clip(), cosine_clip(-0.3)], draw(noise(), IMAGES, 4)
    found = ClipEnergy(clips, 4)(IMAGES, noise())
    seen = (2 * augment(IMAGES, draws) - 1).flatten(1) ** 2
    cosines = F.cosine_similarity(seen, clips[0].text[None]).reshape(2, 4).mean(1)
    assert torch.allclose(found, 0.7 * (1 - cosines), atol=1e-5)


@pytest.mark.parametrize("shape", [(12, 20), (30, 9), (8, 8), (8, 11)])
def test_pictures_are_prepared_as_torchvision_does(shape):
    images = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(2))
    resized = TF.resize(images, 8, TF.InterpolationMode.BICUBIC, antialias=False)
    expected = TF.normalize(TF.center_crop(resized, [8, 8]), [0.5] * 3, [0.5] * 3)
    assert torch.allclose(cosine_clip().prepare(images), expected, atol=1e-5)


def test_an_open_clip_network(tmp_path):
    """The energy is small for a text that fits, by open_clip's own network and its own preparation."""
    torch.manual_seed(0)
    network = open_clip.CLIP(**{**TINY, "vision_cfg": {**TINY["vision_cfg"], "image_size": 32, "patch_size": 8}}).eval()
    network.visual.preprocess_cfg = {
        "size": (32, 32), "interpolation": "bicubic", "resize_mode": "shortest", "mean": (0.4,) * 3, "std": (0.3,) * 3,
    }  # fmt: skip
    tokens = open_clip.tokenize(["a dog"])
    clip = clip_of(network, tokens)
    images = torch.rand(2, 3, 32, 32)
    features = network.encode_image((images - 0.4) / 0.3, normalize=True)
    expected = 1 - features @ network.encode_text(tokens, normalize=True)[0]
    assert torch.allclose(clip.distance(images), expected, atol=1e-5)


def test_what_the_text_energy_refuses():
    how = {"size": 32, "interpolation": "bilinear", "resize_mode": "squash"}
    with pytest.raises(UserError) as error:
        clip_of(SimpleNamespace(visual=SimpleNamespace(preprocess_cfg=how)), torch.zeros(1, 4))
    assert str(error.value) == (
        "this CLIP reads pictures resized by bilinear, squash, and guidance prepares them by bicubic, shortest; choose "
        "another CLIP"
    )
    for clips, copies, sentence in (
        ([], 3, "the text energy needs a CLIP; got none"),
        ([cosine_clip()], 0, "copies must be 1 or more; got 0"),
    ):
        with pytest.raises(UserError) as error:
            ClipEnergy(clips, copies)
        assert str(error.value) == sentence
