"""Paired evaluation: source and target at one level, in one batch where one network serves both."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from cyclediff.diffusion.conditioning import Conditioning, joined
from cyclediff.diffusion.denoiser import Denoiser, GuidedDenoiser
from cyclediff.diffusion.levels import Level, Prediction
from cyclediff.diffusion.prompt import Prompt

PairedEvaluation = Callable[[Tensor, Tensor, Level, int], tuple[Prediction, Prediction]]


class Plan(Protocol):
    """What attention control does over a whole run, for some pairs of prompts."""

    def at(self, step: int, base_rows: Sequence[int], edited_rows: Sequence[int], pairs: Sequence[int]) -> Any:
        """What reaches the network's attention at a step of the sampler; None for nothing.

        Args:
            step: 0 is the first (the noisiest).
            base_rows: for each edited row the row of the batch that it follows.
            edited_rows: rows with target prompts.
            pairs: for each edited row the pair of prompts that it belongs to.
        """
        ...

    def blend(self, step: int, xs: Tensor, xt: Tensor) -> Tensor:
        """The states xt after a step, with those of their sources xs where the edit has no part; xt if it is all."""
        ...


class Control(Protocol):
    """Settings of attention control; `cyclediff.attention_control.AttentionControl` in a run."""

    @property
    def blend(self) -> Any:
        """Which part of an image an edit may change; None for all of it."""
        ...

    def plan(
        self,
        sources: Sequence[Prompt],
        targets: Sequence[Prompt],
        length: int,
        num_steps: int,
        device: torch.device | str = "cpu",
    ) -> Plan:
        """The plan for pairs of prompts, on `length` token positions and `num_steps` steps, for a network's device."""
        ...


def paired_evaluation(
    source: Denoiser, target: Denoiser, plan: Plan | None = None, owner: Sequence[int] | None = None
) -> PairedEvaluation:
    """Evaluate two denoisers together.

    Args:
        source: of the images xs.
        target: of the images xt.
        plan: attention control: how the attention of xt's images follows that of xs's.
        owner: for each image of xt the one of xs that it belongs to; by default the one in its place.

    Returns:
        (xs, xt, level, step) → predictions of both; step is the number of the step in the sampler. Where both denoisers
        have one network under two prompts (equal `network_id`), a step is one batch of that network.

    Raises:
        ValueError: if there is a plan, but not one network.
    """
    shared = (
        isinstance(source, GuidedDenoiser)
        and isinstance(target, GuidedDenoiser)
        and source.network_id == target.network_id
    )
    if not shared:
        if plan is not None:
            raise ValueError("attention control needs one text-to-image model; leave it out, or choose an editing task")
        return lambda xs, xt, level, step: (source(xs, level), target(xt, level))
    source, target = cast(GuidedDenoiser, source), cast(GuidedDenoiser, target)
    contexts: dict[tuple[int, int], Conditioning] = {}  # one value for all steps: see ControlledAttention

    def evaluate(xs: Tensor, xt: Tensor, level: Level, step: int) -> tuple[Prediction, Prediction]:
        of_source, of_target = source.batch(xs), target.batch(xt)
        latents = torch.cat((of_source.xt, of_target.xt))
        edit = None
        if plan is not None:
            owners = [owner[i] if owner else i for i in of_target.conditional]
            row = {image: len(of_source.unconditional) + k for k, image in enumerate(of_source.conditional)}
            edited = list(range(len(latents) - len(of_target.conditional), len(latents)))
            edit = plan.at(step, [row[i] for i in owners], edited, owners)
        sizes = len(of_source.context), len(of_target.context)
        if sizes not in contexts:
            contexts[sizes] = joined((of_source.context, of_target.context))
        out = source.network(latents, source.schedule.time(level, latents), contexts[sizes], edit)
        seen = source.combine(out[: len(of_source.xt)], of_source, xs, level)
        return seen, target.combine(out[len(of_source.xt) :], of_target, xt, level)

    return evaluate


def has_region(target: Denoiser) -> bool:
    """Whether edits under this denoiser stay inside a region."""
    return isinstance(target, GuidedDenoiser) and target.region is not None


def inside_region(target: Denoiser, x: Tensor, kept: Tensor) -> Tensor:
    """A state of the target, (n, c, h, w), with `kept` outside its region; x itself where it has none."""
    region = target.region if isinstance(target, GuidedDenoiser) else None
    return x if region is None else torch.where(region[: len(x)], x, kept)


def for_attention(source: Denoiser) -> Denoiser:
    """A denoiser for one whose attention is followed and whose prediction is not used: without the empty prompt.

    Attention control follows rows under the source's own prompt, which do not depend on the others.
    """
    if not isinstance(source, GuidedDenoiser):
        return source
    return replace(source, scales=(1.0,) * len(source.scales), _contexts={})


def plan_control(
    control: Control | None,
    source: Denoiser,
    target: Denoiser,
    steps: int,
    owner: Sequence[int] | None = None,
) -> Plan | None:
    """Align the prompts of two denoisers for a sampler of `steps` steps; None for no control.

    The sampler calls `Plan.blend` after each step.

    Args:
        control: attention control, if any.
        source: whose attention is followed.
        target: whose attention follows.
        steps: of the sampler.
        owner: see `paired_evaluation`.

    Raises:
        ValueError: if the denoisers have no prompts, their network no cross attention, or prompts that are followed
            are not evaluated.
    """
    if control is None:
        return None
    if not (isinstance(source, GuidedDenoiser) and isinstance(target, GuidedDenoiser)):
        raise ValueError("attention control needs prompts; choose an editing task, or a method without it")
    if not (source.abilities.attention and target.abilities.attention):
        raise ValueError(
            "attention control follows the cross attention of a UNet, and this network has none that it can follow; "
            "choose a method without it, or method.attention=null"
        )
    if 0 in source.scales:
        raise ValueError("attention control follows the source prompt; its guidance scale must not be 0")
    if control.blend is not None and 0 in target.scales:
        raise ValueError("attention.blend follows the target prompt; its guidance scale must not be 0")
    of = dict(zip(owner, target.prompts, strict=True)) if owner else dict(enumerate(target.prompts))
    targets = [of[i] for i in range(len(source.prompts))]
    tokens = source.context.tokens
    return control.plan(source.prompts, targets, tokens.shape[1], steps, tokens.device)
