"""Bootstrap against formulas, and its promises by simulation: coverage, and what pairs can tell."""

import math

import pytest
import torch

from eval.metrics.frechet import Statistics, frechet_distance, frechet_replicates
from eval.metrics.statistics import Difference, difference, interval, mean_replicates, resamples

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


def test_pairs_tell_what_intervals_cannot():
    """Two methods whose scores differ by 0.2 on images that differ by 3: alone each could be the better one."""
    images, counts = 3 * normal(80, seed=3), resamples(80, 1000)
    a, b = (images + 0.3 * normal(80, seed=seed) + shift for seed, shift in ((4, 0.0), (5, 0.2)))
    value_a, value_b = a.mean().item(), b.mean().item()
    first, second = mean_replicates(a, counts), mean_replicates(b, counts)
    assert interval(value_a, first)[1] > interval(value_b, second)[0] + 0.5
    found = difference(value_a, value_b, first, second)
    assert found.value == value_a - value_b
    assert found.distinguishable
    assert found.probability > 0.99
    assert found.high - found.low == pytest.approx(2 * 1.96 * (a - b).std().item() / 80**0.5, rel=0.15)
    assert not difference(value_a, value_b, first, mean_replicates(b, resamples(80, 1000, seed=1))).distinguishable


def test_a_method_against_itself_is_a_tie():
    replicates = mean_replicates(normal(30, seed=6), resamples(30, 100))
    assert difference(1.5, 1.5, replicates, replicates) == Difference(0, 0, 0, 0.5)
    assert not difference(1.5, 1.5, replicates, replicates).distinguishable


def test_differences_of_known_replicates():
    a = torch.tensor([1.0, 2, 3, 4, math.nan], dtype=torch.float64)
    b = torch.tensor([0.0, 2, 4, 4, 7], dtype=torch.float64)
    found = difference(5.0, 5.0, a, b)  # differences 1, 0, -1, 0; their mean is 0 already
    assert (found.value, found.probability) == (0, 0.5)
    assert (found.low, found.high) == pytest.approx((-0.925, 0.925))
    found = difference(4.5, 5.0, a, b)  # moved: 0.5, -0.5, -1.5, -0.5
    assert found.probability == 0.75
    turned = difference(5.0, 4.5, b, a)
    assert (turned.value, turned.low, turned.high) == pytest.approx((0.5, -found.high, -found.low))
    assert turned.probability == 0.25
    with pytest.raises(ValueError, match="must come in pairs; got 5 and 4"):
        difference(5.0, 5.0, a, b[:4])
