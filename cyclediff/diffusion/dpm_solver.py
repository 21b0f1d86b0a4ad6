"""SDE-DPM-Solver++ (arXiv 2211.01095), second order in the multistep ("2M") form, on levels (a, b).

A step from level t to the cleaner level s integrates the reverse SDE in lambda = ln(a / b). The first order takes
x0_hat as constant over the step: mean and noise are those of DDPM's step, DDIM's at eta 1. The second order adds the
slope of x0_hat since the last step.
"""

import math

from torch import Tensor

from cyclediff.diffusion.levels import Level, Prediction
from cyclediff.diffusion.steps import ddim_sigma, mean

Seen = tuple[Level, Prediction]  # what the network saw at a level


def half_log_snr(level: Level) -> float:
    """The lambda of a level, ln(a / b): -inf without signal, inf without noise."""
    if level.a == 0:
        return -math.inf
    return math.inf if level.b == 0 else math.log(level.a / level.b)


def solver_sigma(t: Level, s: Level) -> float:
    """Standard deviation of the noise of a step, b_s sqrt(1 - e^(-2h)) with h = lambda_s - lambda_t: DDPM's."""
    return ddim_sigma(t, s, 1.0)


def solver_mean(seen: Prediction, t: Level, s: Level, last: Seen | None = None) -> Tensor:
    """The mean of a step from x_t to x_s.

    With e^(-h) = a_t b_s / (a_s b_t) and D = x0_hat, the first order is b_s / b_t e^(-h) x_t + a_s (1 - e^(-2h)) D. The
    second order adds a_s (1 - e^(-2h)) / 2 (D - D_last) h / (lambda_t - lambda_last), the "midpoint" form of diffusers.

    Args:
        seen: of x_t, (n, c, h, w).
        t: where the step begins.
        s: where it ends.
        last: the level of the step before and what was seen there; None for a step of first order. A step to the clean
            image is of first order too: h is infinite there, and the second order is not defined.

    Returns:
        (n, c, h, w); add `solver_sigma` times noise for a sample.
    """
    first = mean(seen, s, solver_sigma(t, s))
    if last is None or s.b == 0:
        return first
    level, before = last
    h = half_log_snr(s) - half_log_snr(t)
    slope = h / (half_log_snr(t) - half_log_snr(level))
    return first - 0.5 * s.a * math.expm1(-2 * h) * slope * (seen.x0 - before.x0)
