"""CycleDiffusion for many candidates of an edit at once, with no evaluation made twice.

Candidates that differ in the decoder's guidance share their encoding. All of them go down the schedule together, each
from its own starting level, so one batch holds every trial, guidance scale and starting level.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from cyclediff.cyclediffusion import CycleDiffusion
from cyclediff.diffusion.denoiser import Denoiser
from cyclediff.diffusion.paired import joint, plan_control
from cyclediff.diffusion.schedule import sampling_path
from cyclediff.diffusion.steps import (
    ddim_sigma,
    ddim_step,
    infer_noise,
    landing_noise,
    posterior_step,
    q_sample,
    transitions,
)
from cyclediff.method import NoiseSource


def search(
    method: CycleDiffusion,
    x0: Tensor,
    source: Denoiser,
    target: Denoiser,
    noise: NoiseSource,
    candidates: Sequence[tuple[int, int]],
) -> Tensor:
    """Translate latents in many ways.

    Args:
        method: its T, eta, spacing (with noise in the last step) and attention control are used, its T_es is not.
        x0: (p, c, h, w), a latent for each encoding path.
        source: denoiser of the p paths.
        target: denoiser of the n candidates.
        noise: source of randomness of the p paths.
        candidates: (path, T_es) of each, T_es not increasing. Candidates of one path with different T_es start from the
            same path at different levels. Paths are numbered in the order in which candidates first name them.

    Returns:
        (n, c, h, w), in the order of `candidates`.

    Raises:
        ValueError: if the candidates are not in this order, or with attention control differ in T_es.
    """
    paths, lengths = [path for path, _ in candidates], [length for _, length in candidates]
    longest = {path: length for path, length in reversed(candidates)}
    if lengths != sorted(lengths, reverse=True) or list(dict.fromkeys(paths)) != list(range(len(x0))):
        raise ValueError("candidates must be sorted by T_es, the longest first, and paths by their first candidate")
    if method.attention and len(set(lengths)) > 1:
        raise ValueError("with attention control the candidates of a batch must have one T_es; search them apart")
    timesteps, end = sampling_path(source.alpha_bar, method.T, method.spacing)
    encoded = timesteps[-lengths[0] :]
    evaluate = joint(source, target, plan_control(method.attention, source, target, lengths[0], paths), paths)
    owner = torch.tensor(paths, device=x0.device)
    xs, xt = x0[:0], x0[:0]
    for step, (t, ab, ab_prev) in enumerate(transitions(source.alpha_bar, encoded, end)):
        left = len(encoded) - step
        begun, running = sum(longest[path] >= left for path in range(len(x0))), sum(n >= left for n in lengths)
        if begun > len(xs):
            new = x0[len(xs) : begun]
            xs = torch.cat((xs, q_sample(new, ab, noise.rows(len(xs), begun).randn_like(new))))
        xt = torch.cat((xt, xs[owner[len(xt) : running]]))
        sigma = ddim_sigma(ab, ab_prev, method.eta)
        eps_s, eps_t = evaluate(xs, xt, t, step)
        own = x0[:begun]
        n = noise.rows(0, begun).randn_like(xs) if left > 1 else landing_noise(xs, own, ab, ab_prev, sigma)
        z = infer_noise(xs, own, eps_s, ab, ab_prev, sigma, n)
        xs = posterior_step(xs, own, ab, ab_prev, sigma, n)
        xt = ddim_step(xt, eps_t, ab, ab_prev, sigma, z[owner[:running]])
    return xt
