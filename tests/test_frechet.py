"""Fréchet distances against the formula, known Gaussians and clean-fid; resamples; extrapolation."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from eval.metrics.frechet import Statistics, frechet_distance, frechet_infinity, frechet_replicates
from eval.metrics.statistics import resamples


def features(n, d, seed, scale=1.0, shift=0.0):
    return scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def statistics(x):
    return Statistics(x.mean(0), torch.cov(x.T), len(x))


def formula(a, b):
    cov_a, cov_b = torch.cov(a.T).numpy(), torch.cov(b.T).numpy()
    root = np.trace(scipy.linalg.sqrtm(cov_a @ cov_b)).real
    return (a.mean(0) - b.mean(0)).square().sum().item() + np.trace(cov_a) + np.trace(cov_b) - 2 * root


SHAPES = [(50, 80, 16), (10, 30, 40), (300, 20, 64), (20, 300, 64), (12, 9, 30)]


@pytest.mark.parametrize(("n_a", "n_b", "d"), SHAPES)
def test_the_distance_is_the_formula_with_a_matrix_root(n_a, n_b, d):
    a, b = features(n_a, d, 1), features(n_b, d, 2, scale=1.5, shift=0.2)
    assert frechet_distance(a, b) == pytest.approx(formula(a, b), rel=1e-5)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-9)
    assert frechet_distance(a.float(), b.float()) == pytest.approx(frechet_distance(a, b), rel=1e-5)


@pytest.mark.parametrize(("n_a", "n_b", "d"), SHAPES)
def test_statistics_serve_as_well_as_features(n_a, n_b, d):
    a, b = features(n_a, d, 1), features(n_b, d, 2, scale=1.5, shift=0.2)
    assert frechet_distance(a, statistics(b)) == pytest.approx(frechet_distance(a, b), rel=1e-8)


def test_distances_of_known_gaussians():
    """Axis-aligned Gaussians: |Δmu|² + Σ (s_a - s_b)²; samples whitened so that their moments are exact."""
    white = features(500, 8, 1)
    white = torch.linalg.qr(white - white.mean(0)).Q * 499**0.5
    scale = torch.linspace(0.5, 2, 8, dtype=torch.float64)
    known = 72 + (1 - scale).square().sum().item()
    assert frechet_distance(white, white * scale + 3) == pytest.approx(known, rel=1e-9)
    reference = Statistics(torch.full((8,), 3.0, dtype=torch.float64), torch.diag(scale**2))
    assert frechet_distance(white, reference) == pytest.approx(known, rel=1e-9)
    assert frechet_distance(white, white) == pytest.approx(0, abs=1e-9)


def test_a_covariance_may_be_singular_or_a_little_indefinite():
    """One variance of b is zero and one, by rounding, below it: they count as zero."""
    white = torch.linalg.qr(features(100, 4, 1) - features(100, 4, 1).mean(0)).Q * 99**0.5
    rotation = torch.linalg.qr(features(4, 4, 2)).Q
    variances = torch.tensor([4.0, 1.0, 0.0, -1e-15], dtype=torch.float64)
    reference = Statistics(torch.zeros(4, dtype=torch.float64), rotation @ torch.diag(variances) @ rotation.T)
    assert frechet_distance(white, reference) == pytest.approx(1 + 0 + 1 + 1, abs=1e-6)
    ones = torch.ones(1, 100, dtype=torch.int64)
    assert frechet_replicates(white, reference, ones).item() == pytest.approx(3, abs=1e-6)


def test_images_that_are_all_alike_have_no_spread():
    same, d = torch.ones(30, 8, dtype=torch.float64), 8
    assert frechet_distance(same, 3 * same) == pytest.approx(4 * d)
    assert frechet_replicates(same, 3 * same, resamples(30, 2)).tolist() == pytest.approx([4 * d] * 2)
    spread = features(40, d, 1)
    expected = (spread.mean(0) - 1).square().sum().item() + torch.cov(spread.T).trace().item()
    assert frechet_distance(spread, same) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("n_a", "n_b", "d"), [(200, 150, 32), (60, 50, 90)])
def test_the_distance_is_clean_fids(n_a, n_b, d):
    from cleanfid.fid import fid_from_feats

    mixing = features(d, d, 3)
    a, b = (features(n_a, d, 1) @ mixing).relu(), (features(n_b, d, 2, scale=1.2, shift=0.3) @ mixing).relu()
    assert frechet_distance(a, b) == pytest.approx(fid_from_feats(a.numpy(), b.numpy()), rel=1e-5)


@pytest.mark.parametrize("known", [False, True], ids=["features", "statistics"])
@pytest.mark.parametrize(("n_a", "n_b", "d"), [*SHAPES, (40, 40, 8)])
def test_replicates_are_distances_of_resamples(n_a, n_b, d, known):
    a, b = features(n_a, d, 1, shift=5.0), features(n_b, d, 2, scale=1.5, shift=5.2)
    counts = torch.cat([torch.ones(1, n_a, dtype=torch.int64), resamples(n_a, 6)])
    found = frechet_replicates(a, statistics(b) if known else b, counts)
    expected = [frechet_distance(a.repeat_interleave(row, dim=0), b) for row in counts]
    assert found.tolist() == pytest.approx(expected, rel=1e-7)
    assert found.dtype == torch.float64


def test_many_replicates_are_the_same_in_blocks(monkeypatch):
    a, b = features(30, 4, 1), features(30, 4, 2)
    whole = frechet_replicates(a, b, resamples(30, 20))
    monkeypatch.setattr("eval.metrics.frechet.BLOCK", 300)
    assert torch.allclose(frechet_replicates(a, b, resamples(30, 20)), whole, rtol=1e-12)


def test_wide_features_are_multiplied_in_halves(monkeypatch):
    a, b = features(60, 13, 1), features(50, 13, 2, scale=1.5)
    whole = frechet_distance(a, b)
    monkeypatch.setattr("eval.metrics.frechet.NARROW", 2)
    assert frechet_distance(a, b) == pytest.approx(whole, rel=1e-10)


def test_threads_are_left_as_they_were():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        frechet_distance(features(20, 8, 1), features(20, 8, 2))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_extrapolation_comes_nearer_to_the_truth():
    """Unit Gaussians a distance of 1 apart: the distance of few images is too large, for every draw here."""
    d, errors, extrapolated = 16, [], []
    truth = Statistics(torch.zeros(d, dtype=torch.float64), torch.eye(d, dtype=torch.float64))
    for seed in range(20):
        a = features(200, d, seed, shift=1 / math.sqrt(d))
        errors.append(frechet_distance(a, truth) - 1)
        extrapolated.append(frechet_infinity(a, truth, seed=seed) - 1)
    assert abs(np.mean(extrapolated)) < np.mean(errors) / 3
    assert np.sqrt(np.mean(np.square(extrapolated))) < np.sqrt(np.mean(np.square(errors)))
    assert frechet_infinity(a, truth, seed=3) == frechet_infinity(a, truth, seed=3)
    assert frechet_infinity(a, truth, seed=3) != frechet_infinity(a, truth, seed=4)


def test_extrapolation_finds_the_intercept_of_a_line(monkeypatch):
    monkeypatch.setattr("eval.metrics.frechet.frechet_replicates", lambda a, b, counts: 7 + 40 / counts.sum(1).double())
    assert frechet_infinity(features(50, 2, 1), features(50, 2, 2)) == pytest.approx(7, rel=1e-9)


@pytest.mark.parametrize("distance", [frechet_distance, frechet_infinity])
def test_mistakes_get_a_sentence(distance):
    good, spoilt = features(6, 8, 1), features(5, 8, 2)
    with pytest.raises(ValueError, match=r"at least [24] images"):
        distance(good[:1], good)
    spoilt[1, 3], spoilt[4, 0], spoilt[4, 1] = math.nan, math.inf, math.nan
    for pair in ((spoilt, good), (good, spoilt)):
        with pytest.raises(ValueError, match="2 of 5 images have features that are not finite"):
            distance(*pair)
    for other in (features(6, 7, 2), statistics(features(6, 7, 2))):
        with pytest.raises(ValueError, match="features of one network; got 8 and 7"):
            distance(good, other)


def test_one_reference_image_has_no_distance():
    with pytest.raises(ValueError, match="at least 2 images on each side; got 6 and 1"):
        frechet_distance(features(6, 8, 1), features(1, 8, 2))


@pytest.mark.parametrize("counts", [torch.ones(3, 5), torch.ones(6), torch.eye(6)], ids=["others", "row", "one image"])
def test_replicates_refuse_counts_that_do_not_fit(counts):
    with pytest.raises(ValueError, match=r"resamples of 6 images must be \(B, 6\) counts"):
        frechet_replicates(features(6, 8, 1), features(5, 8, 2), counts.long())
