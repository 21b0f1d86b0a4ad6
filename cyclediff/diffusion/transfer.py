"""Transfer: one recursion behind the methods that invert an image with one model and sample it with another.

A source path x_t leads from noise to the image. What a step of the source's sampler misses of it is the residual, and
the target's sampler adds it:

    r_s = x_s - mean_source(x_t)          y_s = mean_target(y_t) + lambda r_s          y_start = x_start

    method                      path of the source       sigma           lambda
    CycleDiffusion              chain                    sigma(eta)      1
    edit-friendly inversion     independent              sigma(1)        1
    DDCM (InfEdit)              chain                    b_s             1, and the path is then independent too
    LEDITS++                    independent              sigma(1), with a step of second order   1
    FlowEdit                    independent, of a flow   0               1
    direct inversion            DDIM inversion           0               0, and the source stays on its path

Here lambda is 1. Then the difference d = y - x is all that a step needs to know of the last one:

    d_s = mean_target(x_t + d_t) - mean_source(x_t)          d_start = 0

No code is stored, and nothing is divided by a small sigma.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cyclediff.diffusion.denoiser import Denoiser
from cyclediff.diffusion.levels import Level
from cyclediff.diffusion.noise import NoiseSource
from cyclediff.diffusion.paired import Plan, inside_region, paired_evaluation
from cyclediff.diffusion.schedule import Spacing
from cyclediff.diffusion.steps import mean, posterior_step, q_sample, transitions

Sigma = Callable[[Level, Level], float]  # (t, s) → standard deviation of the noise of a step
Path = Callable[[Tensor, Tensor, Level, Level, float, NoiseSource], Tensor]  # see `chain` and `independent`


def chain(x0: Tensor, xt: Tensor, t: Level, s: Level, sigma: float, noise: NoiseSource) -> Tensor:
    """x_s ~ q_sigma(x_s | x_t, x0): each state follows from the last one (DPM-Encoder, arXiv 2210.05559).

    Draws nothing where the step has no noise. x0, xt and the result are (n, c, h, w).
    """
    return posterior_step(xt, x0, t, s, sigma, noise.randn_like(x0) if sigma else 0.0)


def independent(x0: Tensor, xt: Tensor, t: Level, s: Level, sigma: float, noise: NoiseSource) -> Tensor:
    """x_s ~ q(x_s | x0): each state has noise of its own (edit-friendly inversion, arXiv 2304.06140)."""
    return q_sample(x0, s, noise.randn_like(x0))


def shared_levels(source: Denoiser, target: Denoiser, steps: int | str, spacing: Spacing) -> list[Level]:
    """The levels that the samplers of both models visit, from noisy to clean.

    Raises:
        ValueError: if they differ: a residual of one sampler is then none of the other.
    """
    levels = target.schedule.levels(steps, spacing)
    if source.schedule.levels(steps, spacing) != levels:
        raise ValueError("source and target must have the same noise levels; choose models of one schedule")
    return levels


def transfer(
    x0: Tensor,
    source: Denoiser,
    target: Denoiser,
    levels: Sequence[Level],
    path: Path,
    sigma: Sigma,
    noise: NoiseSource,
    start: Level | None = None,
    keep_last: bool = True,
    draws: int = 1,
    plan: Plan | None = None,
) -> Tensor:
    """Translate x0 with lambda 1; memory does not grow with the number of steps.

    The path ends at x0, also where the last level has noise, so source = target returns x0.

    Args:
        x0: (n, c, h, w).
        source: denoiser of the source.
        target: denoiser of the target.
        levels: of both, from noisy to clean.
        path: of the source.
        sigma: of a step.
        noise: source of randomness; a draw for the start of a path, then as the path draws, but none for its end.
        start: level at which a path starts, if not the first.
        keep_last: add the residual of the last step. Without it the result is the last step's mean, and not exact.
        draws: number of paths, whose differences are averaged in each step.
        plan: of attention control; with one path.

    Returns:
        The translation, same shape, not clamped.
    """
    evaluate = paired_evaluation(source, target, plan)
    xs = [q_sample(x0, start or levels[0], noise.randn_like(x0)) for _ in range(draws)]
    d, steps = torch.zeros_like(x0), transitions(levels)
    for step, (t, s) in enumerate(steps):
        std, last = sigma(t, s), step == len(steps) - 1
        if last and not keep_last:
            seen = [evaluate(x, x + d, t, step)[1] if plan else target(x + d, t) for x in xs]
            out = torch.stack([mean(of_target, s, std) for of_target in seen]).mean(0)
            return inside_region(target, plan.blend(step, x0, out) if plan else out, x0)
        pairs = [evaluate(x, x + d, t, step) for x in xs]
        d = torch.stack([mean(of_target, s, std) - mean(of_source, s, std) for of_source, of_target in pairs]).mean(0)
        xs = [x0 if last else path(x0, x, t, s, std, noise) for x in xs]
        if plan:
            d = plan.blend(step, xs[0], xs[0] + d) - xs[0]
        d = inside_region(target, d, torch.zeros_like(d))
    return x0 + d
