"""Metrics against the official evaluators' numbers, formulas, and independent libraries."""

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch

from cyclediff.data import prepare_pets
from eval.evaluate import Protocol, evaluate
from eval.frechet import frechet_distance
from eval.kid import kernel_distance
from eval.pairwise import l2, psnr, ssim
from eval.pets import PetsJudge, factor_error, pets_judge
from eval.statistics import bootstrap_mean

from .nets import golden

JUDGE = Path(__file__).parents[1] / "cyclediff" / "pets" / "weights" / "judge.safetensors"
PETS = Protocol("pets/1", 64, "bilinear", pets_judge(str(JUDGE)), "pets-dog", JUDGE)


def features(n, d, seed, scale=1.0, shift=0.0):
    return scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


@pytest.mark.parametrize("size", [64, 256])
def test_pairwise_equals_the_official_evaluators(size):
    data = {k.removeprefix(f"img{size}."): v for k, v in golden("metrics_pairwise").items() if f"img{size}." in k}
    a, b = data["a_u8"].permute(0, 3, 1, 2), data["b_u8"].permute(0, 3, 1, 2)
    for official in ("cd", "eg"):
        assert (psnr(a, b) - data[f"{official}_psnr"]).abs().max() <= 1e-3
        assert (ssim(a, b) - data[f"{official}_ssim"]).abs().max() <= 1e-5
        assert torch.allclose(l2(a, b), data[f"{official}_l2"], rtol=1e-4)  # theirs is summed in float32
    average = torch.stack([psnr(a, b).mean(), ssim(a, b).mean(), l2(a, b).mean()])
    assert torch.allclose(average, data["cd_avg_psnr_ssim_l2"], rtol=1e-5)


def test_pairwise_equals_scikit_image():
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    a, b = (golden("metrics_pairwise")[f"img64.{side}_u8"][:3] for side in ("a", "b"))
    mine = psnr(a.permute(0, 3, 1, 2), b.permute(0, 3, 1, 2)), ssim(a.permute(0, 3, 1, 2), b.permute(0, 3, 1, 2))
    for i in range(3):
        x, y = a[i].numpy(), b[i].numpy()
        assert mine[0][i].item() == pytest.approx(peak_signal_noise_ratio(x, y), abs=1e-9)
        similarity = structural_similarity(x, y, channel_axis=2, gaussian_weights=True, use_sample_covariance=False)
        assert mine[1][i].item() == pytest.approx(similarity, abs=1e-6)


@pytest.mark.parametrize(("n_a", "n_b", "d"), [(50, 80, 16), (10, 30, 40), (300, 20, 64)])
def test_frechet_equals_the_formula_with_a_matrix_root(n_a, n_b, d):
    a, b = features(n_a, d, 1), features(n_b, d, 2, scale=1.5, shift=0.2)
    cov_a, cov_b = torch.cov(a.T).numpy(), torch.cov(b.T).numpy()
    root = np.trace(scipy.linalg.sqrtm(cov_a @ cov_b)).real
    expected = (a.mean(0) - b.mean(0)).square().sum().item() + np.trace(cov_a) + np.trace(cov_b) - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-5)


def test_frechet_of_known_gaussians():
    """Axis-aligned Gaussians: |Δmu|² + Σ (s_a - s_b)²; samples whitened so that their moments are exact."""
    white = features(500, 8, 1)
    white = torch.linalg.qr(white - white.mean(0)).Q * 499**0.5
    scale = torch.linspace(0.5, 2, 8, dtype=torch.float64)
    assert frechet_distance(white, white * scale + 3) == pytest.approx(72 + (1 - scale).square().sum().item(), rel=1e-9)
    assert frechet_distance(white, white) == pytest.approx(0, abs=1e-9)


def test_frechet_and_kernel_equal_clean_fid():
    from cleanfid.fid import frechet_distance as official_frechet
    from cleanfid.fid import kernel_distance as official_kernel

    a, b = features(200, 32, 1), features(150, 32, 2, scale=1.2, shift=0.3)
    moments = [moment for x in (a, b) for moment in (x.mean(0).numpy(), torch.cov(x.T).numpy())]
    assert frechet_distance(a, b) == pytest.approx(official_frechet(*moments), rel=1e-6)
    all_rows = official_kernel(a[:150].numpy(), b.numpy(), num_subsets=1, max_subset_size=150)
    assert kernel_distance(a[:150], b) == pytest.approx(all_rows, rel=1e-9)


def test_kernel_distance_is_unbiased_also_for_few_images():
    values = torch.tensor([kernel_distance(features(6, 8, 2 * i), features(9, 8, 2 * i + 1)) for i in range(2000)])
    assert values.mean().abs() < 4 * values.std() / 2000**0.5
    assert values.min() < 0


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_one_image_has_no_distance(distance):
    with pytest.raises(ValueError, match="at least 2 images"):
        distance(features(1, 8, 1), features(5, 8, 2))


def test_bootstrap_covers_the_mean_as_often_as_it_says():
    inside = 0
    for seed in range(200):
        low, high = bootstrap_mean(features(60, 1, seed)[:, 0], resamples=400)
        inside += low < 0 < high
    assert 0.88 < inside / 200 < 0.99


def test_factor_error_of_known_differences():
    a = torch.zeros(3, 18, dtype=torch.float64)
    a[:, 7::2] = 1.0  # every hue's cosine: turn 0
    b = a.clone()
    b[1, 0] = 2.0  # one scalar off by its whole range
    b[2, 7:9] = torch.tensor([-1.0, 0.0])  # one hue off by half a turn
    assert torch.allclose(factor_error(a, b), torch.tensor([0, 0.1, 0.1], dtype=torch.float64))


def test_evaluating_the_truth_gives_perfect_scores(tmp_path):
    """The true dogs, scored as translations of the cats: perfect against themselves, and not against the cats."""
    cats, dogs = (prepare_pets(species, "source", 12, 64, tmp_path) for species in ("cat", "dog"))
    metrics, rows = evaluate(dogs.path, cats.path, dogs.path, dogs.path, PETS)
    assert set(rows) == set(dogs.ids)
    assert metrics["counterpart_psnr"]["value"] == 100
    assert metrics["fid"]["value"] == pytest.approx(0, abs=1e-6)
    assert metrics["psnr"]["value"] < 30
    assert (metrics["fid"]["n"], metrics["fid"]["n_reference"]) == (12, 12)
    for entry in metrics.values():
        if entry["ci95"]:
            assert entry["ci95"][0] <= entry["value"] <= entry["ci95"][1]
    other, _ = evaluate(cats.path, cats.path, dogs.path, None, PETS)
    assert (other["psnr"]["value"], other["l2"]["value"], other["factor_error"]["value"]) == (100, 0, 0)
    assert other["ssim"]["value"] == pytest.approx(1)
    assert other["fid"]["value"] > 1
    assert "counterpart_psnr" not in other


def test_one_image_leaves_the_distances_empty(tmp_path):
    cats, dogs = (prepare_pets(species, "source", count, 64, tmp_path) for species, count in (("cat", 1), ("dog", 5)))
    metrics, _ = evaluate(cats.path, cats.path, dogs.path, None, PETS)
    assert metrics["fid"]["value"] is metrics["kid"]["value"] is None
    assert metrics["psnr"]["value"] == 100


def test_judge_shapes():
    features_, outputs = PetsJudge()(torch.zeros(2, 3, 64, 64))
    assert features_.shape == (2, 64)
    assert outputs.shape == (2, 18)
