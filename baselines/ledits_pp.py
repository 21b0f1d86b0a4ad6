"""LEDITS++ (arXiv 2311.16711): invert an image exactly with a second-order SDE solver, and edit it by masked concepts.

The states x_t of the inversion are drawn independently of each other, as in edit-friendly inversion. The code is the
noise with which the solver would lead from each to the next (section 3.1). An edit runs the solver with this noise from
the same start; its prediction is the inversion's, guided by concepts, each where its mask says so (section 3.2).

The edit study has a source and a target text. One concept is the whole target text, and what it guides is the
prediction under the empty prompt (as published) or under the source text. The concept's scale is the study's guidance.
The official code asks for concepts by hand ("cat", or reversed "glasses"); `edit` takes any number of them.

Ours also works where the official code stops with an error: while all concepts are in their warm-up, and where some of
several are. Masks of attention are made for each image of a batch; it mixes images and heads there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from torch import Tensor

from cyclediff.diffusion.denoiser import Denoiser, GuidedDenoiser
from cyclediff.diffusion.dpm_solver import Seen, solver_mean, solver_sigma
from cyclediff.diffusion.levels import Level, Prediction
from cyclediff.diffusion.noise import NoiseSource
from cyclediff.diffusion.schedule import Schedule
from cyclediff.diffusion.semantic_guidance import Concept, Masks, Predict, guide, predictions_under, require_mask
from cyclediff.diffusion.steps import q_sample, transitions


@dataclass(frozen=True)
class LEDITSpp:
    """LEDITS++ with the target text as its concept.

    Args:
        T: number of timesteps of the sampler.
        T_es: how many of them, from the clean end, are run.
        skip: part of the training timesteps, at the noisy end, that the T timesteps leave out, 0 … 1.
        threshold: part of the pixels that stay as they are, 0 … 1.
        warmup: steps without guidance at the beginning.
        cooldown: number of the step from which there is none; None for never.
        base: what is inverted and guided: the prediction under the "empty" prompt, or under the "source" text.
        masks: where the concept acts: "noise" (M2), "attention" (M1) or "intersect", see `guide`.
        queries: positions of the layers whose attention counts; officially 16², those of a quarter of the latents of
            512 pixels.
        first_order_below: with fewer steps, the last step of an edit is of first order, as in the official code. That
            of the inversion is not, so such an edit does not return the image without concepts. 0 is exact.
        name: the stem of its file in conf/method.
    """

    T: int
    T_es: int
    skip: float = 0.15
    threshold: float = 0.9
    warmup: int = 0
    cooldown: int | None = None
    base: Literal["empty", "source"] = "empty"
    masks: Masks = "noise"
    queries: int = 256
    first_order_below: int = 15
    name: str = "ledits_pp"
    needs = frozenset({"source", "target"})
    conditions = frozenset({"text"})
    starts_at = "T_es"
    inverts = False
    neutral_guidance = 0.0  # the scale of a concept, not of classifier-free guidance
    takes_region = True

    def __post_init__(self):
        if not 1 <= self.T_es <= self.T:
            raise ValueError(f"T_es must be between 1 and T = {self.T}; got {self.T_es}")
        if not 0 <= self.skip < 1:
            raise ValueError(f"skip must be at least 0 and below 1, a part of the training timesteps; got {self.skip}")
        if self.base not in ("empty", "source"):
            raise ValueError(f"base must be empty or source; got {self.base!r}")
        if self.masks not in ("noise", "attention", "intersect"):
            raise ValueError(f"masks must be noise, attention or intersect; got {self.masks!r}")
        if self.queries < 1:
            raise ValueError(f"queries must be at least 1; got {self.queries}, and 256 is published")
        if self._concept(1.0).warmup >= self.T_es:
            raise ValueError(f"warmup must be below the {self.T_es} steps that are run; got {self.warmup}")

    @property
    def reconstructs(self) -> str | None:
        """Without guidance; a last step of first order is not the inversion's."""
        return "approximately" if self.T_es < self.first_order_below else "exact"

    @property
    def num_steps(self) -> int:
        """T."""
        return self.T

    def __call__(self, x0: Tensor, source: Denoiser, target: Denoiser, noise: NoiseSource) -> Tensor:
        """Translate x0 (n, c, h, w)."""
        if not (isinstance(source, GuidedDenoiser) and isinstance(target, GuidedDenoiser)):
            raise ValueError("ledits_pp needs prompts; choose an editing task, or a method without them")
        levels = spaced_levels(target.schedule, self.T, self.skip)[-self.T_es - 1 :]
        base = source if self.base == "source" else _under(target, 0.0)
        guided = [scale for scale in source.scales if scale != 1]
        if self.base == "empty" and guided:
            raise ValueError(
                "ledits_pp inverts under the empty prompt, where the source's guidance does nothing; got "
                f"{guided[0]}, set selection.grid.source_guidance to [1], or method.base to source"
            )
        predict = predictions_under(base, [_under(target, 1.0)], None if self.masks == "noise" else self.queries)
        code = encode(x0, base, levels, noise)
        concepts = [self._concept(target.scales[: len(x0)])]
        region = None if target.region is None else target.region.to(x0)
        return edit(code, predict, levels, concepts, self.masks, region, self.first_order_below)

    def _concept(self, scale: float | tuple[float, ...]) -> Concept:
        return Concept(scale, threshold=self.threshold, warmup=self.warmup, cooldown=self.cooldown)


class Code(NamedTuple):
    """An inverted image: the noisiest state (n, c, h, w), and the noise of each step from there, same shape."""

    start: Tensor
    zs: Sequence[Tensor]


def spaced_levels(schedule: Schedule, steps: int, skip: float) -> list[Level]:
    """The levels of the official code: equidistant timesteps, rounded down, from num_train (1 - skip) - 1 to 1, then 0.

    Raises:
        ValueError: if so many timesteps do not fit.
    """
    first = schedule.num_train - schedule.num_train * skip - 1
    if first < max(1, steps):
        raise ValueError(
            f"T must be at most {max(0, int(first))}, the timesteps that skip = {skip} leaves of {schedule.num_train}; "
            f"got {steps}"
        )
    timesteps = np.linspace(first, 1, steps).astype(int).tolist()
    return [schedule.at(t) for t in (*timesteps, 0)]


def encode(
    x0: Tensor, source: Callable[[Tensor, Level], Prediction], levels: Sequence[Level], noise: NoiseSource
) -> Code:
    """Invert an image (section 3.1): z = (x_s - mean(x_t)) / sigma for states x_t drawn independently from q(x_t | x0).

    As in the official code the last step ends at x0, and its z is kept, so the solver returns x0 from its code.

    Args:
        x0: (n, c, h, w).
        source: the denoiser of the inversion.
        levels: from noisy to clean; the last has noise.
        noise: source of randomness; a draw for each step.
    """
    start = xt = q_sample(x0, levels[0], noise.randn_like(x0))
    steps, last, zs = transitions(levels), None, []
    for step, (t, s) in enumerate(steps):
        after = x0 if step == len(steps) - 1 else q_sample(x0, s, noise.randn_like(x0))
        seen = source(xt, t)
        zs.append((after - solver_mean(seen, t, s, last)) / solver_sigma(t, s))
        xt, last = after, (t, seen)
    return Code(start, zs)


def edit(
    code: Code,
    predict: Predict,
    levels: Sequence[Level],
    concepts: Sequence[Concept],
    masks: Masks = "noise",
    user_mask: Tensor | None = None,
    first_order_below: int = 15,
) -> Tensor:
    """Run the solver with the noise of an inverted image, guided by concepts (section 3.2).

    Args:
        code: as `encode` makes it with the same levels.
        predict: the prediction that is guided, and those under the concepts that act.
        levels: from noisy to clean; the last has noise.
        concepts: none returns the image.
        masks: where concepts act, see `guide`.
        user_mask: factor of all guidance, broadcastable to (n, 1, h, w).
        first_order_below: see `LEDITSpp`.

    Returns:
        (n, c, h, w), not clamped.

    Raises:
        ValueError: if the user's mask has another size than the image.
    """
    require_mask(user_mask, code.start)
    x, steps = code.start, transitions(levels)
    ends_low = len(steps) < first_order_below
    last: Seen | None = None
    for step, ((t, s), z) in enumerate(zip(steps, code.zs, strict=True)):
        seen = predict(x, t, [number for number, concept in enumerate(concepts) if concept.acts(step)])
        guided = guide(seen, t, concepts, masks, user_mask).prediction
        low = ends_low and step == len(steps) - 1
        x = solver_mean(guided, t, s, None if low else last) + solver_sigma(t, s) * z
        last = t, guided
    return x


def _under(target: GuidedDenoiser, scale: float) -> GuidedDenoiser:
    """The same network under the empty prompt alone (0), or under its own alone (1)."""
    return replace(target, scales=(scale,) * len(target.scales), _contexts={})
