"""CycleDiffusion for many candidates of an edit at once, with no evaluation made twice.

Candidates that differ only in the decoder's guidance share one encoding. All candidates go down the schedule together,
each from its own starting level. So one batch holds every trial, guidance scale and starting level.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from cyclediff.diffusion.conditioning import take
from cyclediff.diffusion.denoiser import Denoiser, GuidedDenoiser
from cyclediff.diffusion.levels import Prediction
from cyclediff.diffusion.noise import NoiseSource
from cyclediff.diffusion.paired import Control, inside_region, paired_evaluation, plan_control
from cyclediff.diffusion.schedule import Spacing
from cyclediff.diffusion.steps import (
    ddim_sigma,
    ddim_step,
    infer_noise,
    landing_noise,
    posterior_step,
    q_sample,
    transitions,
)


@dataclass(frozen=True)
class Pruning:
    """Candidates that are dropped on the way.

    Args:
        at: before which steps candidates are looked at, by the number of steps that are left.
        keep: (x0_hat (r, c, h, w), the numbers of these candidates) → the numbers of those that go on.
    """

    at: Collection[int]
    keep: Callable[[Tensor, Sequence[int]], Collection[int]]


def decode_candidates(
    x0: Tensor,
    source: Denoiser,
    target: Denoiser,
    noise: NoiseSource,
    candidates: Sequence[tuple[int, int]],
    T: int,
    eta: float,
    spacing: Spacing = "latent",
    attention: Control | None = None,
    pruning: Pruning | None = None,
) -> Tensor:
    """Translate latents in many ways.

    Args:
        x0: (p, c, h, w), a latent for each encoding.
        source: denoiser of the p encodings.
        target: denoiser of the n candidates.
        noise: source of randomness of the p encodings.
        candidates: (encoding, T_es) of each, T_es not increasing. Candidates of one encoding with different T_es start
            from different levels of it. Encodings are numbered in the order in which candidates first name them.
        T: number of timesteps of the sampler.
        eta: stochasticity of DDIM, positive.
        spacing: one with noise in the last step (see `DiffusionSchedule`).
        attention: cross-attention control.
        pruning: which candidates are dropped; those that have not begun yet stay.

    Returns:
        (n, c, h, w), in the order of `candidates`, not clamped. Of a candidate that was dropped, x0_hat.

    Raises:
        ValueError: if the candidates are not in this order, with attention control differ in T_es, or attention control
            or a model without prompts meets pruning.
    """
    encodings, lengths = [encoding for encoding, _ in candidates], [length for _, length in candidates]
    longest = {encoding: length for encoding, length in reversed(candidates)}
    if lengths != sorted(lengths, reverse=True) or list(dict.fromkeys(encodings)) != list(range(len(x0))):
        raise ValueError("candidates must be sorted by T_es, the longest first, and encodings by their first candidate")
    if attention and len(set(lengths)) > 1:
        raise ValueError(
            "with attention control all candidates of a batch must have one T_es; decode others separately"
        )
    if pruning and (attention or not (isinstance(source, GuidedDenoiser) and isinstance(target, GuidedDenoiser))):
        raise ValueError("candidates are dropped under prompts and without attention control only; leave out prune")
    levels = source.schedule.levels(T, spacing)[-lengths[0] - 1 :]
    plan = plan_control(attention, source, target, lengths[0], encodings)
    evaluate = paired_evaluation(source, target, plan, encodings)
    owner = torch.tensor(encodings, device=x0.device)
    alive, dropped = list(range(len(candidates))), {}
    xs, xt = x0[:0], x0[:0]
    for step, (t, s) in enumerate(transitions(levels)):
        left = lengths[0] - step
        begun, running = sum(longest[i] >= left for i in range(len(x0))), sum(lengths[i] >= left for i in alive)
        if begun > len(xs):
            new = x0[len(xs) : begun]
            xs = torch.cat((xs, q_sample(new, t, noise.rows(len(xs), begun).randn_like(new))))
        xt = torch.cat((xt, xs[owner[len(xt) : running]]))
        sigma = ddim_sigma(t, s, eta)
        seen_s, seen_t = evaluate(xs, xt, t, step)
        if pruning and left in pruning.at and running:
            kept = pruning.keep(seen_t.x0, alive[:running])
            stay = [row for row, i in enumerate(alive) if row >= running or i in kept]
            dropped |= {i: seen_t.x0[row] for row, i in enumerate(alive[:running]) if i not in kept}
            alive, running = [alive[row] for row in stay], running - (len(alive) - len(stay))
            owner, rows = owner[stay], stay[:running]
            xt, seen_t = take(xt, rows), Prediction(take(seen_t.x0, rows), take(seen_t.eps, rows))
            target = cast(GuidedDenoiser, target).some(stay)
            evaluate = paired_evaluation(source, target, plan, owner.tolist())
        own = x0[:begun]
        n = noise.rows(0, begun).randn_like(xs) if left > 1 else landing_noise(xs, own, t, s, sigma)
        z = infer_noise(xs, own, seen_s, t, s, sigma, n)
        xs = posterior_step(xs, own, t, s, sigma, n)
        xt = ddim_step(seen_t, s, sigma, z[owner[:running]])
        xt = inside_region(target, plan.blend(step, xs, xt) if plan else xt, xs[owner[:running]])
    found = dropped | dict(zip(alive, xt, strict=True))
    return torch.stack([found[i] for i in range(len(candidates))]) if dropped else xt
