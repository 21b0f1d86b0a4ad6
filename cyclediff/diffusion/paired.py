"""Source and target at one timestep, in one batch where one network serves both."""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor

from cyclediff.attention_control import AttentionControl, ControlPlan
from cyclediff.diffusion.denoiser import Denoiser, GuidedDenoiser
from cyclediff.diffusion.steps import batch_of

Evaluation = Callable[[Tensor, Tensor, int, int], tuple[Tensor, Tensor]]


def joint(
    source: Denoiser, target: Denoiser, plan: ControlPlan | None = None, owner: Sequence[int] | None = None
) -> Evaluation:
    """Evaluate two denoisers together.

    Args:
        source: of the images xs.
        target: of the images xt.
        plan: attention control: how the attention of xt's images follows that of xs's.
        owner: for each image of xt the one of xs that it belongs to; by default the one in its place.

    Returns:
        (xs, xt, t, step) → eps of both; t is a timestep of the schedule and step the number of it in the sampler. Where
        both denoisers are one network under two prompts, every evaluation of the step is a row of one batch.

    Raises:
        ValueError: if there is a plan and not one network.
    """
    shared = (
        isinstance(source, GuidedDenoiser) and isinstance(target, GuidedDenoiser) and source.network == target.network
    )
    if not shared:
        if plan is not None:
            raise ValueError("attention control needs one text-to-image model; leave it out, or choose an editing task")
        return lambda xs, xt, t, step: (source(xs, batch_of(t, xs)), target(xt, batch_of(t, xt)))
    source, target = cast(GuidedDenoiser, source), cast(GuidedDenoiser, target)
    contexts: dict[tuple[int, int], Tensor] = {}  # one tensor for all steps: see ControlledAttention

    def evaluate(xs: Tensor, xt: Tensor, t: int, step: int) -> tuple[Tensor, Tensor]:
        s, r = source.rows(xs), target.rows(xt)
        latents = torch.cat((s.xt, r.xt))
        edit = None
        if plan is not None:
            owners = [owner[i] if owner else i for i in r.bound]
            place = {image: len(s.free) + k for k, image in enumerate(s.bound)}
            base = [place[i] for i in owners]
            edited = list(range(len(latents) - len(r.bound), len(latents)))
            edit = plan.at(step, base, edited, owners)
        sizes = len(s.context), len(r.context)
        if sizes not in contexts:
            contexts[sizes] = torch.cat((s.context, r.context))
        out = source.network(latents, batch_of(t, latents), contexts[sizes], edit)
        eps_s = source.combine(out[: len(s.xt)], s, xs, batch_of(t, xs))
        return eps_s, target.combine(out[len(s.xt) :], r, xt, batch_of(t, xt))

    return evaluate


def plan_control(
    control: AttentionControl | None,
    source: Denoiser,
    target: Denoiser,
    steps: int,
    owner: Sequence[int] | None = None,
) -> ControlPlan | None:
    """Align the prompts of two denoisers for a sampler of `steps` steps; None for no control.

    Raises:
        ValueError: if the denoisers have no prompts, or the source's own prompts are not evaluated.
    """
    if control is None:
        return None
    if not (isinstance(source, GuidedDenoiser) and isinstance(target, GuidedDenoiser)):
        raise ValueError("attention control needs prompts; choose an editing task, or a method without it")
    if 0 in source.scales:
        raise ValueError("attention control follows the source prompt; its guidance scale must not be 0")
    of = dict(zip(owner, target.prompts, strict=True)) if owner else dict(enumerate(target.prompts))
    targets = [of[i] for i in range(len(source.prompts))]
    return control.plan(source.prompts, targets, source.context.shape[1], steps)
