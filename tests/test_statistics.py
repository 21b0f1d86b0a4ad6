"""Bootstrap against formulas, and its promises by simulation: coverage."""

import math

import pytest
import torch

from eval.metrics.frechet import Statistics, frechet_distance, frechet_replicates
from eval.metrics.statistics import interval, mean_replicates, resamples

TRIALS = 300


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_resamples_draw_evenly_with_replacement_and_always_the_same():
    counts = resamples(20, 4000, seed=3)
    assert counts.dtype == torch.int64
    assert counts.shape == (4000, 20)
    assert (counts.sum(1) == 20).all()
    assert torch.allclose(counts.double().mean(0), torch.ones(20, dtype=torch.float64), atol=0.08)  # 5 standard errors
    assert counts.double().var(0).mean().item() == pytest.approx(19 / 20, abs=0.03)  # binomial
    state = torch.get_rng_state()
    assert torch.equal(counts, resamples(20, 4000, seed=3))
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(counts, resamples(20, 4000, seed=4))
    with pytest.raises(ValueError, match="there must be images to resample; got 0"):
        resamples(0, 10)


@pytest.mark.parametrize("n", [1, 2, 7, 500])
def test_fewer_resamples_are_the_first_of_more(n):
    """So that claims over FID (200 resamples) and means (1000) use the same ones."""
    assert torch.equal(resamples(n, 200), resamples(n, 1000)[:200])


def test_mean_replicates_of_known_counts():
    values = torch.tensor([1.0, math.nan, 4.0], dtype=torch.float64)
    counts = torch.tensor([[1, 1, 1], [2, 0, 1], [0, 1, 2], [0, 3, 0]])
    found = mean_replicates(values, counts)
    assert found[:3].tolist() == pytest.approx([2.5, 2, 4])
    assert found[3].isnan()


def test_the_interval_is_moved_to_the_value_and_passes_over_nan():
    replicates = torch.cat([torch.linspace(10, 11, 1001, dtype=torch.float64), torch.tensor([math.nan] * 9)])
    assert interval(3.0, replicates) == pytest.approx((2.525, 3.475))
    assert all(math.isnan(end) for end in interval(3.0, torch.tensor([math.nan])))


def test_the_bootstrap_of_a_mean_is_as_wide_as_its_formula():
    values = normal(400, seed=1).exp()
    low, high = interval(values.mean().item(), mean_replicates(values, resamples(len(values), 1000)))
    assert high - low == pytest.approx(2 * 1.96 * values.std().item() / 20, rel=0.1)
    assert low < values.mean() < high


def test_intervals_of_a_mean_cover_it_as_often_as_they_say():
    counts = resamples(60, 400)
    inside = 0
    for values in normal(TRIALS, 60, seed=1):
        low, high = interval(values.mean().item(), mean_replicates(values, counts))
        inside += low < 0 < high
    assert 0.88 < inside / TRIALS < 0.99


@pytest.fixture(scope="module")
def fids():
    """FID and its replicates for many samples of 60 images, against a fixed reference."""
    truth, counts = Statistics(torch.zeros(4).double(), torch.eye(4).double()), resamples(60, 300)
    samples = 1.2 * normal(TRIALS, 60, 4, seed=2) + 0.3
    return [(frechet_distance(a, truth), frechet_replicates(a, truth, counts)) for a in samples]


def test_intervals_of_fid_cover_its_mean_at_this_number_of_images(fids):
    mean = sum(value for value, _ in fids) / TRIALS
    ends = [interval(*fid) for fid in fids]
    assert 0.88 < sum(low < mean < high for low, high in ends) / TRIALS < 0.99
    assert all(low <= value <= high for (low, high), (value, _) in zip(ends, fids, strict=True))


def test_resamples_have_a_larger_fid_than_the_sample(fids):
    """Which is why intervals are moved to the value."""
    assert sum(replicates.mean() > value for value, replicates in fids) / TRIALS > 0.95
