"""Why CycleDiffusion keeps images similar: the bound of arXiv 2210.05559, section 3, measured step by step.

Source x and target y start as one state, and both end a step from level t to s with the same noise sigma z:

    x_s = mean_source(x_t) + sigma z          y_s = mean_target(y_t) + sigma z

So the noise cancels in their difference. With the target's mean of the *source's* state between the two,

    d_s = |mean_source(x_t) - mean_target(y_t)|  <=  K_t d_t + S_t
    K_t = |mean_target(x_t) - mean_target(y_t)| / d_t     how much the target's step stretches the difference
    S_t = |mean_source(x_t) - mean_target(x_t)|           the gap of the two domains, or of the two texts

which bounds the distance at every level: B_s = K_t B_t + S_t, from B = 0 where both start. |.| is the root mean square
per value, in units of x0. K does not depend on that choice.

The paper assumes constants K_t and S_t. Here they are measured on the states that are visited, for each image. With its
own constants an image has its own bound, which loses nothing but the triangle inequality. The largest constants of a
set of images give one bound for each of them, as the paper's is (`bound_of_all`). It says nothing about other images.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cyclediff.cyclediffusion import CycleDiffusion
from cyclediff.diffusion.denoiser import Denoiser
from cyclediff.diffusion.levels import Level, Prediction
from cyclediff.diffusion.noise import NoiseSource
from cyclediff.diffusion.paired import paired_evaluation
from cyclediff.diffusion.steps import ddim_sigma, mean, posterior_step, q_sample, transitions
from cyclediff.diffusion.transfer import shared_levels


@dataclass(frozen=True)
class Measured:
    """How far source and target are apart, and why, for n images and k steps; float64.

    Args:
        levels: the k + 1 levels, from noisy to clean.
        distance: d at each level, (n, k + 1); 0 at the first.
        stretch: K of each step, (n, k); 0 where d is 0, as in the first step: there any number would do.
        gap: S of each step, (n, k).
    """

    levels: list[Level]
    distance: Tensor
    stretch: Tensor
    gap: Tensor


def measure(method: CycleDiffusion, x0: Tensor, source: Denoiser, target: Denoiser, noise: NoiseSource) -> Measured:
    """Run CycleDiffusion, and measure distance, stretch and gap in each step.

    The states are those of the method itself. Each step takes one more evaluation of the target, at the source's state.
    The last step of a pixel-space sampler has no noise and is not encoded: there x ends at the source's own mean, which
    is the image as its code gives it back, and which the method does not evaluate. The last step of a latent sampler is
    encoded, and x ends at x0.

    Args:
        method: without attention control and without refinement.
        x0: (n, c, h, w).
        source: denoiser of the source, for n images.
        target: denoiser of the target, for 2 n images: the n, and once more the n.
        noise: source of randomness; draws as the method does.

    Raises:
        ValueError: if the method does more than the bound is about, source and target have other levels, or there is
            no value to measure.
    """
    if method.attention or method.refine_steps:
        raise ValueError("the bound is of CycleDiffusion alone; choose attention=null and refine_steps=0")
    if not x0.numel():
        raise ValueError(f"images must have at least one pixel; got {tuple(x0.shape)}")
    levels = shared_levels(source, target, method.T, method.spacing)[-method.T_es - 1 :]
    start = source.schedule.at(method.T_es - 1) if method.raw_index_start else levels[0]
    x = y = q_sample(x0, start, noise.randn_like(x0))
    evaluate, steps = paired_evaluation(source, target), transitions(levels)
    distance, stretch, gap = [torch.zeros(len(x0), dtype=torch.float64, device=x0.device)], [], []
    for step, (t, s) in enumerate(steps):
        sigma = ddim_sigma(t, s, method.eta)
        seen = evaluate(x, torch.cat((y, x)), t, step)
        of_source, of_target = (mean(Prediction(*(part.double() for part in one)), s, sigma) for one in seen)
        at_y, at_x = of_target.chunk(2)
        d, moved = distance[-1], _size(at_x - at_y)
        stretch.append(torch.where(d > 0, moved / d, 0.0))
        gap.append(_size(of_source - at_x))
        distance.append(_size(at_y - of_source))
        if step < len(steps) - 1:
            x = posterior_step(x, x0, t, s, sigma, noise.randn_like(x0))
            y = x + (at_y - of_source).to(x)
    return Measured(levels, *(torch.stack(part, dim=1) for part in (distance, stretch, gap)))


def bound(stretch: Tensor, gap: Tensor) -> Tensor:
    """B at each level: B = 0 at the first, then B_s = K_t B_t + S_t.

    Args:
        stretch: K of each step, (n, k).
        gap: S of each step, (n, k).

    Returns:
        (n, k + 1). No distance of the image that the constants are of is larger.
    """
    found = [torch.zeros_like(gap[:, 0])]
    for k, s in zip(stretch.unbind(1), gap.unbind(1), strict=True):
        found.append(k * found[-1] + s)
    return torch.stack(found, dim=1)


def bound_of_all(stretch: Tensor, gap: Tensor) -> Tensor:
    """The bound with the largest constants of all images, (k + 1,); no distance of any of them is larger."""
    return bound(*(part.amax(0, keepdim=True) for part in (stretch, gap)))[0]


def _size(difference: Tensor) -> Tensor:
    return difference.square().mean((1, 2, 3)).sqrt()
