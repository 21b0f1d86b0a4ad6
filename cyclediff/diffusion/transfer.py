"""Transfer: one recursion behind the methods that invert an image with one model and sample it with another.

A source path x_t leads from noise to the image. What a step of the source's sampler misses of it is the residual, and
the target's sampler adds it:

    r_s = x_s - mean_source(x_t)          y_s = mean_target(y_t) + lambda r_s          y_start = x_start

    method                      path of the source       sigma           lambda
    CycleDiffusion              chain                    sigma(eta)      1
    edit-friendly inversion     independent              eta 1           1
    DDCM (InfEdit)              independent              b_s             1
    FlowEdit                    independent, of a flow   0               1
    direct inversion            DDIM inversion           0               0, and the source stays on its path

With lambda 1, y_s = x_s + mean_target(y_t) - mean_source(x_t): no code is stored, and no small sigma is divided by.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from cyclediff.diffusion.denoiser import Denoiser
from cyclediff.diffusion.levels import Level
from cyclediff.diffusion.paired import Plan, paired_evaluation
from cyclediff.diffusion.steps import mean, posterior_step, q_sample, transitions
from cyclediff.method import NoiseSource

Sigma = Callable[[Level, Level], float]  # (t, s) → standard deviation of the noise of a step


class SourcePath(Protocol):
    """How the states of the source are drawn; x0 and states are (n, c, h, w)."""

    def start(self, x0: Tensor, t: Level, noise: NoiseSource) -> Tensor:
        """The first state, at the noisiest level."""
        ...

    def next(self, x0: Tensor, xt: Tensor, t: Level, s: Level, sigma: float, noise: NoiseSource) -> Tensor:
        """The state at level s after that at level t."""
        ...


class Chain:
    """x_s ~ q_sigma(x_s | x_t, x0): each state follows from the last one (DPM-Encoder, arXiv 2210.05559)."""

    def start(self, x0: Tensor, t: Level, noise: NoiseSource) -> Tensor:
        """See `SourcePath`."""
        return q_sample(x0, t, noise.randn_like(x0))

    def next(self, x0: Tensor, xt: Tensor, t: Level, s: Level, sigma: float, noise: NoiseSource) -> Tensor:
        """See `SourcePath`; draws nothing where the step has no noise."""
        return posterior_step(xt, x0, t, s, sigma, noise.randn_like(x0) if sigma else 0.0)


class Independent:
    """x_s ~ q(x_s | x0): each state has noise of its own (edit-friendly inversion, arXiv 2304.06140)."""

    def start(self, x0: Tensor, t: Level, noise: NoiseSource) -> Tensor:
        """See `SourcePath`."""
        return q_sample(x0, t, noise.randn_like(x0))

    def next(self, x0: Tensor, xt: Tensor, t: Level, s: Level, sigma: float, noise: NoiseSource) -> Tensor:
        """See `SourcePath`; draws nothing for the image itself."""
        return q_sample(x0, s, noise.randn_like(x0)) if s.b else x0


def transfer(
    x0: Tensor,
    source: Denoiser,
    target: Denoiser,
    levels: Sequence[Level],
    path: SourcePath,
    sigma: Sigma,
    noise: NoiseSource,
    keep_last: bool = True,
    plan: Plan | None = None,
) -> Tensor:
    """Translate x0 with lambda 1.

    The path ends at x0, also where the last level has noise, so source = target returns x0.

    Args:
        x0: (n, c, h, w).
        source: denoiser of the source, with the schedule of the target.
        target: denoiser of the target.
        levels: from noisy to clean.
        path: of the source.
        sigma: of a step.
        noise: source of randomness, as the path draws from it.
        keep_last: add the residual of the last step; without it the result is the last step's mean, and not exact.
        plan: of attention control.

    Returns:
        The translation, same shape, not clamped.
    """
    steps = transitions(levels)
    xs = xt = path.start(x0, levels[0], noise)
    evaluate = paired_evaluation(source, target, plan)
    for step, (t, s) in enumerate(steps):
        std, last = sigma(t, s), step == len(steps) - 1
        seen_s, seen_t = evaluate(xs, xt, t, step)
        after = x0 if last else path.next(x0, xs, t, s, std, noise)
        if last and not keep_last:
            return mean(seen_t, s, std)
        xs, xt = after, after + mean(seen_t, s, std) - mean(seen_s, s, std)
    return xt
