import pytest
import torch

from cyclediff.diffusion.noise import Noise

X = torch.empty(4, 3, 5, 5)
IDS = ["a", "b", "c", "d"]


def test_draws_belong_to_the_image_not_to_its_place():
    whole, reversed_ = Noise(1, IDS), Noise(1, IDS[::-1])
    for _ in range(3):
        draw = whole.randn_like(X)
        assert draw.equal(reversed_.randn_like(X).flip(0))
    alone = Noise(1, ["c"])
    for _ in range(3):
        last = alone.randn_like(X[:1])
    assert last[0].equal(draw[2])


@pytest.mark.parametrize("other", [Noise(2, IDS), Noise(1, IDS, trial=1), Noise(1, ["e", "f", "g", "h"])])
def test_seed_trial_and_id_all_matter(other):
    assert not (Noise(1, IDS).randn_like(X) == other.randn_like(X)).any()


def test_draws_are_standard_normal_and_independent():
    draw = Noise(1, [str(i) for i in range(64)]).randn_like(torch.empty(64, 3, 32, 32)).flatten(1)
    assert draw.mean().abs() < 0.01
    assert abs(draw.std() - 1) < 0.01
    assert torch.corrcoef(draw).fill_diagonal_(0).abs().max() < 0.1  # 64 rows of 3072: 5.5 standard errors


def test_type_follows_x_and_the_batch_must_fit():
    assert Noise(1, IDS).randn_like(X.double()).dtype == torch.float64
    with pytest.raises(ValueError, match="4 images"):
        Noise(1, IDS).randn_like(X[:2])
