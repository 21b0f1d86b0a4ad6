"""The low-pass filters against mathematics and PyTorch's own antialiased resize."""

import pytest
import torch
import torch.nn.functional as F

from cyclediff.diffusion.lowpass import lowpass, resize_matrix

X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize(("kernel", "mode"), [("cubic", "bicubic"), ("linear", "bilinear")])
@pytest.mark.parametrize("down_N", [2, 4])
def test_shrinking_equals_pytorch_where_no_border_is_near(kernel, mode, down_N):
    """PyTorch cuts the kernel at the border where the official resizer mirrors the image."""
    shrink = resize_matrix(64, 1 / down_N, kernel)
    theirs = F.interpolate(X, scale_factor=1 / down_N, mode=mode, antialias=True)
    inner = (..., slice(2, -2), slice(2, -2))
    assert (shrink @ X @ shrink.T - theirs)[inner].abs().max() < 1e-9


@pytest.mark.parametrize("kernel", ["cubic", "linear"])
def test_constants_pass_and_one_changes_nothing(kernel):
    assert (lowpass(torch.full_like(X, 0.7), 8, kernel) - 0.7).abs().max() < 1e-12
    assert (lowpass(X, 1, kernel) - X).abs().max() < 1e-12
    assert (
        lowpass(2 * X[:1] + X[1:], 8, kernel) - 2 * lowpass(X[:1], 8, kernel) - lowpass(X[1:], 8, kernel)
    ).abs().max() < 1e-12


@pytest.mark.parametrize("kernel", ["cubic", "linear"])
def test_slow_waves_pass_and_fast_ones_do_not(kernel):
    position = torch.arange(64, dtype=torch.float64)
    slow, fast = (torch.cos(2 * torch.pi * waves * (position + 0.5) / 64).expand(1, 1, 64, 64) for waves in (1, 28))
    assert lowpass(slow, 8, kernel).std() > 0.8 * slow.std()
    assert lowpass(fast, 8, kernel).std() < 0.05 * fast.std()


def test_images_need_not_be_square():
    assert lowpass(X[..., :32], 8, "cubic").shape == (2, 3, 64, 32)


@pytest.mark.parametrize("down_N", [0, 3, 128])
def test_a_factor_that_does_not_divide(down_N):
    with pytest.raises(ValueError, match=f"down_N must divide the image size 64; got {down_N}"):
        lowpass(X, down_N, "cubic")
