"""Pairwise metrics against the official evaluators' numbers, scikit-image and torchmetrics."""

import math

import pytest
import torch

from eval.metrics.pairwise import background, l2, psnr, ssim

from .nets import golden


def images(size, count=3):
    """A pair of golden pictures' batches, uint8 (n, 3, size, size)."""
    return tuple(golden("metrics_pairwise")[f"img64.{s}_u8"][:count, :size, :size].permute(0, 3, 1, 2) for s in "ab")


def noise(*shape, seed):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def torchmetrics_map(a, b):
    from torchmetrics.functional.image import structural_similarity_index_measure

    settings = {"kernel_size": 11, "sigma": 1.5, "data_range": 1.0, "reduction": "none", "return_full_image": True}
    return structural_similarity_index_measure(a.double() / 255, b.double() / 255, **settings)[1]


@pytest.mark.parametrize("size", [64, 256])
def test_metrics_are_the_official_evaluators(size):
    data = {k.removeprefix(f"img{size}."): v for k, v in golden("metrics_pairwise").items() if f"img{size}." in k}
    a, b = data["a_u8"].permute(0, 3, 1, 2), data["b_u8"].permute(0, 3, 1, 2)
    for official in ("cd", "eg"):
        assert (psnr(a, b) - data[f"{official}_psnr"]).abs().max() <= 1e-3
        assert (ssim(a, b) - data[f"{official}_ssim"]).abs().max() <= 1e-5
        assert torch.allclose(l2(a, b), data[f"{official}_l2"], rtol=1e-4)  # theirs is summed in float32
    average = torch.stack([psnr(a, b).mean(), ssim(a, b).mean(), l2(a, b).mean()])
    assert torch.allclose(average, data["cd_avg_psnr_ssim_l2"], rtol=1e-5)


def test_metrics_are_scikit_images():
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    a, b = images(64)
    for i in range(3):
        x, y = (side[i].permute(1, 2, 0).numpy() for side in (a, b))
        assert psnr(a, b)[i].item() == pytest.approx(peak_signal_noise_ratio(x, y), abs=1e-9)
        # float64 on [0, 255], where scikit-image's own border of 5 pixels is left out as well
        settings = {"channel_axis": 2, "gaussian_weights": True, "use_sample_covariance": False, "data_range": 255}
        similarity = structural_similarity(x.astype(float), y.astype(float), **settings)
        assert ssim(a, b)[i].item() == pytest.approx(similarity, abs=1e-12)


PAIRS = {
    "photos": images(64),
    "oblong": (noise(2, 3, 40, 23, seed=1), noise(2, 3, 40, 23, seed=2)),
    "dark and bright": (noise(2, 3, 30, 30, seed=1) // 64, 255 - noise(2, 3, 30, 30, seed=2) // 64),
    "one window": (noise(2, 3, 11, 11, seed=1), noise(2, 3, 11, 11, seed=2)),
    "constant": (torch.full((1, 3, 20, 20), 40, dtype=torch.uint8), torch.full((1, 3, 20, 20), 200, dtype=torch.uint8)),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_similarity_is_torchmetrics_inside_of_the_border(pair):
    expected = torchmetrics_map(*pair)[..., 5:-5, 5:-5].mean(dim=(1, 2, 3))
    assert ssim(*pair).dtype == torch.float64
    assert torch.allclose(ssim(*pair), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_similarity_of_the_background_is_torchmetrics_with_its_border(pair):
    nowhere = torch.zeros(len(pair[0]), 1, *pair[0].shape[-2:], dtype=torch.bool)
    expected = torchmetrics_map(*pair).mean(dim=(1, 2, 3))
    found = background(*pair, nowhere)["ssim"]
    assert found.dtype == torch.float64
    flat = pair is PAIRS["constant"]  # float32, in which the evaluator works, rounds most where variances are 0
    assert torch.allclose(found, expected, rtol=0, atol=2e-4 if flat else 1e-5)


def test_similarity_of_constant_images_is_the_formulas():
    """Without variance only the first factor is left: (2 x y + c1) / (x² + y² + c1)."""
    x, y = 40 / 255, 200 / 255
    assert ssim(*PAIRS["constant"]).item() == pytest.approx((2 * x * y + 1e-4) / (x * x + y * y + 1e-4), abs=1e-12)
    assert ssim(PAIRS["constant"][0], PAIRS["constant"][0]).item() == pytest.approx(1, abs=1e-12)


def test_images_are_compared_in_blocks_of_any_size(monkeypatch):
    a, b = noise(7, 3, 16, 16, seed=1), noise(7, 3, 16, 16, seed=2)
    whole = ssim(a, b)
    for block in (1, 2 * 3 * 16 * 16, 3 * 3 * 16 * 16):
        monkeypatch.setattr("eval.metrics.pairwise.BLOCK", block)
        assert torch.allclose(ssim(a, b), whole, rtol=1e-12)


def test_images_smaller_than_the_window_are_refused():
    a = noise(1, 3, 10, 12, seed=1)
    with pytest.raises(ValueError, match="11×11 pixels at least; got 10×12"):
        ssim(a, a)
    nowhere = torch.zeros(1, 1, 10, 12, dtype=torch.bool)
    assert background(a, a, nowhere)["ssim"].item() == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match="6×6 pixels at least; got 5×12"):
        background(a[:, :, :5], a[:, :, :5], nowhere[:, :, :5])


def test_the_background_is_pnpinversions():
    """PnPInversion's evaluator: torchmetrics in float32 on images multiplied by 1 - mask."""
    from torchmetrics import MeanSquaredError
    from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

    a, b = images(64)
    mask = torch.zeros(3, 1, 64, 64, dtype=torch.bool)
    mask[:2, :, 20:50, 10:40] = True
    mask[1, :, :, 30:] = True
    found = background(a, b, mask)
    for i in range(3):
        x, y = ((image[i : i + 1].float() / 255 * (1 - mask[i : i + 1].float())).contiguous() for image in (a, b))
        assert found["psnr"][i].item() == pytest.approx(PeakSignalNoiseRatio(data_range=1.0)(x, y).item(), abs=1e-5)
        similarity = StructuralSimilarityIndexMeasure(data_range=1.0)(x, y).item()
        assert found["ssim"][i].item() == pytest.approx(similarity, abs=1e-6)
        assert found["mse"][i].item() == pytest.approx(MeanSquaredError()(x, y).item(), rel=1e-5)
        outside = ((a[i].double() - b[i]) / 255)[:, ~mask[i, 0]].square().sum().item()
        assert found["mse"][i].item() == pytest.approx(outside / (3 * 64 * 64), rel=1e-12)
    assert torch.equal(found["psnr"][2], psnr(a, b)[2])


def test_what_the_mask_covers_does_not_count():
    a, b = images(64)
    mask = torch.zeros(3, 1, 64, 64, dtype=torch.bool)
    mask[:, :, 20:50, 10:40] = True
    changed = torch.where(mask, 255 - a, a)
    assert background(a, changed, mask)["psnr"].tolist() == [100] * 3
    nothing = background(a, b, torch.ones_like(mask))
    assert all(math.isnan(value) for values in nothing.values() for value in values.tolist())
