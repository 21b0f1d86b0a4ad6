"""The noise of an ancestral step: as the network predicts it, or one of DDPM's two fixed values."""

import math
from typing import Literal

from torch import Tensor

from cyclediff.diffusion.denoiser import Denoiser, VarianceDenoiser
from cyclediff.diffusion.levels import Level, Prediction
from cyclediff.diffusion.steps import ddpm_sigma

Variance = Literal["learned", "small", "large"]


def predict_with_sigma(
    x: Tensor, denoiser: Denoiser, t: Level, s: Level, variance: Variance
) -> tuple[Prediction, Tensor | float]:
    """The prediction of x (n, c, h, w), and the standard deviation of the step from t to s.

    A learned variance is interpolated in its logarithm (arXiv 2102.09672, Eq. 15). A step that ends at the clean image
    has none.

    Raises:
        ValueError: if the network has no learned variance to use.
    """
    if variance != "learned":
        return denoiser(x, t), ddpm_sigma(t, s, variance)
    if not isinstance(denoiser, VarianceDenoiser):
        raise ValueError(
            "variance=learned needs a network that predicts its variance (learn_sigma), and the target model does not; "
            "choose method.variance=small"
        )
    seen, fraction = denoiser.with_variance(x, t)
    if s.b == 0:
        return seen, 0.0
    small, large = (math.log(ddpm_sigma(t, s, which)) for which in ("small", "large"))
    return seen, (fraction * (large - small) + small).exp()
