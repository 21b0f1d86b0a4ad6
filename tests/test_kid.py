"""Kernel distances against clean-fid, torchmetrics and a double sum; unbiasedness; subsets; resamples."""

import math

import pytest
import torch

from eval.metrics.kid import kernel_distance, kernel_distance_subsets, kernel_replicates
from eval.metrics.statistics import resamples


def features(n, d, seed, scale=1.0, shift=0.0):
    return scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def double_sum(a, b, weights):
    """Σ_{i≠j} w_i w_j k_ij / Σ_{i≠j} w_i w_j + the same of b - 2 mean k_ib, term by term."""

    def kernel(x, y):
        return ((x @ y).item() / len(x) + 1) ** 3

    def within(x, w):
        pairs = [(i, j) for i in range(len(x)) for j in range(len(x)) if i != j]
        total = sum(w[i] * w[j] for i, j in pairs)
        return sum(w[i] * w[j] * kernel(x[i], x[j]) for i, j in pairs) / total

    between = sum(w * kernel(x, y) for x, w in zip(a, weights, strict=True) for y in b)
    return within(a, weights) + within(b, [1] * len(b)) - 2 * between / (sum(weights) * len(b))


def test_the_distance_is_clean_fids():
    from cleanfid.fid import kernel_distance as official

    a, b = features(150, 32, 1), features(150, 32, 2, scale=1.2, shift=0.3)
    assert kernel_distance(a, b) == pytest.approx(official(a.numpy(), b.numpy(), 1, 150), rel=1e-9)


def test_the_distance_is_torchmetrics():
    from torchmetrics.image.kid import poly_mmd

    a, b = features(100, 32, 1), features(100, 32, 2, scale=1.2, shift=0.3)
    assert kernel_distance(a, b) == pytest.approx(poly_mmd(a, b).item(), rel=1e-9)
    assert kernel_distance_subsets(a, b, 100, 3).tolist() == pytest.approx([poly_mmd(a, b).item()] * 3, rel=1e-9)


def test_many_images_go_through_in_blocks(monkeypatch):
    a, b, counts = features(30, 8, 1), features(23, 8, 2), resamples(30, 5)
    expected = double_sum(a, b, [1] * 30), [double_sum(a, b, row) for row in counts.tolist()]
    for rows in (7, 10, 1000):
        monkeypatch.setattr("eval.metrics.kid.ROWS", rows)
        assert kernel_distance(a, b) == pytest.approx(expected[0], rel=1e-9)
        assert kernel_replicates(a, b, counts).tolist() == pytest.approx(expected[1], rel=1e-9)


def test_each_image_once_is_the_distance_itself():
    a, b = features(30, 8, 1), features(20, 8, 2)
    assert kernel_replicates(a, b, torch.ones(1, 30).long()).item() == pytest.approx(kernel_distance(a, b), rel=1e-9)


def test_one_image_many_times_has_no_value():
    counts = torch.tensor([[3, 0, 0], [2, 1, 0]])
    found = kernel_replicates(features(3, 8, 1), features(4, 8, 2), counts)
    assert found.isnan().tolist() == [True, False]


def test_the_distance_is_unbiased_also_for_few_images():
    values = torch.tensor([kernel_distance(features(6, 8, 2 * i), features(9, 8, 2 * i + 1)) for i in range(1000)])
    assert values.mean().abs() < 4 * values.std() / 1000**0.5
    assert values.min() < 0


def test_resamples_have_no_bias_of_their_own():
    """The mean of many resamples is the distance of the sample, which copies counted as pairs would exceed by far."""
    a, b = features(12, 8, 1), features(12, 8, 2)
    replicates = kernel_replicates(a, b, resamples(12, 20000))
    assert (replicates.mean() - kernel_distance(a, b)).abs() < 5 * replicates.std() / 20000**0.5


def test_subsets_are_seeded_and_as_published():
    a, b = features(60, 16, 1), features(40, 16, 2, scale=1.1, shift=0.2)
    found = kernel_distance_subsets(a, b, 20, 200, seed=5)
    assert found.shape == (200,)
    assert torch.equal(found, kernel_distance_subsets(a, b, 20, 200, seed=5))
    assert not torch.equal(found, kernel_distance_subsets(a, b, 20, 200, seed=6))
    assert found.std() > 0
    assert (found.mean() - kernel_distance(a, b)).abs() < 5 * found.std() / 200**0.5  # either set is drawn evenly
    whole = kernel_distance_subsets(a[:40], b, 40, 2)
    assert whole.tolist() == pytest.approx([kernel_distance(a[:40], b)] * 2, rel=1e-12)  # no image twice


def test_mistakes_get_a_sentence():
    good, spoilt = features(6, 8, 1), features(5, 8, 2)
    with pytest.raises(ValueError, match="at least 2 images on each side; got 1 and 6"):
        kernel_distance(good[:1], good)
    spoilt[1, 3] = math.inf
    with pytest.raises(ValueError, match="1 of 5 images have features that are not finite"):
        kernel_distance(good, spoilt)
    with pytest.raises(ValueError, match="features of one network; got 8 and 7"):
        kernel_distance(good, features(6, 7, 2))
    for size in (1, 6):
        with pytest.raises(ValueError, match=f"which have 6 and 5; got {size}; choose"):
            kernel_distance_subsets(good, features(5, 8, 2), size, 3)
    with pytest.raises(ValueError, match=r"resamples of 6 images must be \(B, 6\) counts; got \(2, 5\)"):
        kernel_replicates(good, good, torch.ones(2, 5))
