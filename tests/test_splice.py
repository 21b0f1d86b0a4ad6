"""Splice: an image takes another one's appearance, from its own random numbers alone."""

import pytest
import torch

from baselines.splice import Splice, draw_crops, optimise, splice
from cyclediff.diffusion.noise import Noise
from cyclediff.models.splice_generator import SkipNets

from .guided_nets import smooth_features

NETS = SkipNets((4, 4), (4, 4), (2, 2))
STRUCTURE, APPEARANCE = (torch.rand(1, 3, 16, 20, generator=torch.Generator().manual_seed(i)) for i in range(2))


def how(**changed) -> Splice:
    return Splice(smooth_features, NETS, **{"steps": 3} | changed)


def test_the_loss_falls_and_colours_move():
    appearance = 0.2 + APPEARANCE / 10
    network = NETS(torch.Generator().manual_seed(1))
    rng = torch.Generator().manual_seed(2)
    totals = [
        found["cls"].item()
        for found in optimise(network, STRUCTURE, appearance, how(steps=80, entire_every=1000, lr=0.01), rng)
    ]
    assert sum(totals[-5:]) < 0.3 * sum(totals[:5])
    assert (network(STRUCTURE).mean() - appearance.mean()).abs() < 0.1


def test_the_whole_image_is_looked_at_from_the_first_step_on():
    rng = torch.Generator().manual_seed(1)
    found = optimise(NETS(rng), STRUCTURE, APPEARANCE, how(steps=5, entire_every=2), rng)
    names = [set(losses) for losses in found]
    assert ["entire_cls" in one for one in names] == [True, False, True, False, True]
    assert ["identity" in one for one in names] == [False, True, True, True, True]


def test_crops():
    rng, sizes, mirrored, augmented = torch.Generator().manual_seed(1), set(), 0, 0
    ramp = torch.arange(60.0).expand(1, 3, 40, 60) / 60
    for _ in range(100):
        one, other = draw_crops(ramp, ramp, how(), rng)
        assert other.shape[2] == other.shape[3]
        sizes.add(other.shape[2])
        mirrored += bool(other[0, 0, 0, 0] > other[0, 0, 0, -1])
        rows = one[0, 0, 0]
        augmented += not ((rows[None] - ramp[0, 0, 0][:, None]).abs().min(0).values < 1e-6).all()
    assert sizes == {38, 39, 40}
    assert 35 < mirrored < 65
    assert 45 < augmented < 75  # colours in half, sharpness in a fifth: 60 of 100
    plain, _ = draw_crops(ramp, ramp, how(augment=False), rng)
    assert ((plain[0, 0, 0][None] - ramp[0, 0, 0][:, None]).abs().min(0).values < 1e-6).all()


def test_a_crop_is_no_wider_than_the_image():
    one, _ = draw_crops(torch.zeros(1, 3, 40, 20), torch.zeros(1, 3, 40, 20), how(), torch.Generator())
    assert one.shape[2:] == (20, 20)


def test_everything_of_an_image_comes_from_its_noise():
    x = 2 * torch.cat((STRUCTURE, APPEARANCE)) - 1
    whole = how()(x, None, None, Noise(1, ["a", "b"]), targets=x.flip(0))
    alone = how()(x[1:], None, None, Noise(1, ["b"]), targets=x[:1])
    assert whole[1:].equal(alone)
    assert not how()(x[1:], None, None, Noise(2, ["b"]), targets=x[:1]).equal(alone)
    assert whole.abs().max() <= 1


def test_a_loss_that_is_not_finite():
    def broken(image):
        return smooth_features(image * float("inf"))

    with pytest.raises(ValueError, match="the loss of Splice became NaN or Inf at step 1 of 3; choose a smaller lr"):
        splice(STRUCTURE, APPEARANCE, Splice(broken, NETS, steps=3), torch.Generator())


BAD = {
    "steps": (0, "steps must be at least 1; got 0"),
    "lambda_cls": (-1.0, "lambda_cls must be at least 0; got -1.0"),
    "min_cover": (1.5, "min_cover must be above 0 and at most 1; got 1.5"),
    "beta1": (1.0, r"beta1 and beta2 in \[0, 1\)"),
}


@pytest.mark.parametrize("key", BAD)
def test_bad_settings(key):
    value, sentence = BAD[key]
    with pytest.raises(ValueError, match=sentence):
        how(**{key: value})


def test_without_a_target_image():
    with pytest.raises(ValueError, match="splice needs a target image of the same size for each image"):
        how()(STRUCTURE, None, None, Noise(1, ["a"]))


def test_bad_shapes_of_a_generator():
    with pytest.raises(ValueError, match="a number for every level; got 2, 1 and 2"):
        SkipNets((4, 4), (4,), (2, 2))
    with pytest.raises(ValueError, match="must be at least 1"):
        SkipNets((4, 0), (4, 4), (2, 2))


def test_what_an_image_takes_is_measured():
    few, many = how(steps=1).measure(STRUCTURE), how(steps=1000).measure(STRUCTURE)
    large = how(steps=1).measure(STRUCTURE.repeat(1, 1, 4, 4))
    assert many[0] > 20 * few[0]
    assert many[1] == few[1] > STRUCTURE.nbytes
    assert 16 <= large[1] / few[1] <= 256  # maps grow with the pixels, self-similarities with their square
