"""Semantic guidance: concepts steer a prediction, each where its mask says (LEDITS++, arXiv 2311.16711, section 3.2).

    eps = eps_base + sum_c weight_c M_c phi_c,        phi_c = ± scale_c (eps_c - eps_base)        (Eq. 5 and 6)

M_c is 1 at the pixels above a quantile: of the cross attention of the concept's words (M1), or of |phi_c| (M2).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cyclediff.diffusion.attention_maps import AttentionMaps
from cyclediff.diffusion.conditioning import Conditioning, joined
from cyclediff.diffusion.denoiser import GuidedDenoiser
from cyclediff.diffusion.levels import Level, Prediction

Masks = Literal["noise", "attention", "intersect"]


@dataclass(frozen=True)
class Concept:
    """What an edit moves towards, or away from.

    Args:
        scale: of its guidance, not negative; one for all images, or one an image.
        reverse: move away from it.
        threshold: part of the pixels that stay as they are, 0 … 1; 0.9 edits the top 10 %.
        warmup: steps before it acts.
        cooldown: number of the step from which it acts no more; None for never.
        weight: factor of its share in the sum.
    """

    scale: float | tuple[float, ...]
    reverse: bool = False
    threshold: float = 0.9
    warmup: int = 0
    cooldown: int | None = None
    weight: float = 1.0

    def __post_init__(self):
        scales = self.scale if isinstance(self.scale, tuple) else (self.scale,)
        if not all(0 <= scale < math.inf for scale in scales):
            raise ValueError(f"a concept's scale must not be negative, use reverse; got {self.scale}")
        if not 0 <= self.threshold <= 1:
            raise ValueError(
                f"threshold must be between 0 and 1, the part of the pixels that stay; got {self.threshold}"
            )
        if self.warmup < 0:
            raise ValueError(f"warmup must be at least 0; got {self.warmup}")
        if self.cooldown is not None and self.cooldown <= self.warmup:
            raise ValueError(f"cooldown must be above warmup = {self.warmup}; got {self.cooldown}, null is never")

    def acts(self, step: int) -> bool:
        """Whether it acts in a step; 0 is the first (the noisiest)."""
        return self.warmup <= step and (self.cooldown is None or step < self.cooldown)


@dataclass(frozen=True)
class SeenConcepts:
    """What a network makes of one state, without and under concepts.

    Args:
        base: the prediction that is guided, of (n, c, h, w).
        concepts: number of a concept → the prediction under it.
        attention: number of a concept → attention of its words, see `attention_of_words`; not for M2 alone.
    """

    base: Prediction
    concepts: Mapping[int, Prediction]
    attention: Mapping[int, Tensor] = field(default_factory=dict)


Predict = Callable[[Tensor, Level, Sequence[int]], SeenConcepts]  # (x, level, numbers of the concepts that act)


class Guided(NamedTuple):
    """A guided prediction, and for each concept that acts the mask (n, 1, h, w), 0 or 1, with which it did."""

    prediction: Prediction
    masks: dict[int, Tensor]


def guide(
    seen: SeenConcepts,
    level: Level,
    concepts: Sequence[Concept],
    masks: Masks = "noise",
    user_mask: Tensor | None = None,
) -> Guided:
    """Guide a prediction by the concepts of `seen`.

    The masks see |phi| under the user's mask, and that of attention does not look at phi.

    Args:
        seen: at one level; where it has no concept, the result is its base.
        level: of the state.
        concepts: all of them, those of `seen` and others.
        masks: M2 ("noise"), M1 ("attention"), or M1 M2 ("intersect").
        user_mask: factor of phi, broadcastable to (n, 1, h, w).
    """
    near_noise = level.a <= level.b  # there differences are taken of x0, which an eps of v or of a flow need not lose
    one = seen.base.x0 if near_noise else seen.base.eps
    total, found = torch.zeros_like(one), {}
    for number, under in seen.concepts.items():
        concept = concepts[number]
        phi = _factor(concept, one) * ((under.x0 if near_noise else under.eps) - one)
        phi = phi if user_mask is None else phi * user_mask.to(phi)
        mask = torch.ones_like(phi[:, :1])
        if masks != "attention":
            mask = mask * noise_mask(phi, concept.threshold)
        if masks != "noise" and _has_parts(phi):
            mask = mask * attention_mask(seen.attention[number], concept.threshold, phi.shape[-2:])
        found[number] = mask
        total = total + concept.weight * mask * phi
    if near_noise:  # a x0 + b eps is the state, whatever the guidance
        return Guided(Prediction(one + total, seen.base.eps - level.a / level.b * total), found)
    return Guided(Prediction(seen.base.x0 - level.b / level.a * total, one + total), found)


def noise_mask(phi: Tensor, threshold: float) -> Tensor:
    """M2: where |phi|, summed over channels, is at or above its quantile of each image; bool (n, 1, h, w)."""
    return _above(phi.abs().sum(dim=1, keepdim=True), threshold)


def attention_mask(maps: Tensor, threshold: float, size: Sequence[int]) -> Tensor:
    """M1: where a concept's words have most attention.

    Args:
        maps: (n, h', w'), the attention of the words of the concept, see `attention_of_words`.
        threshold: part of the pixels that are outside.
        size: (h, w) of the images.

    Returns:
        bool (n, 1, h, w).
    """
    return F.interpolate(_above(smooth(maps), threshold).float(), tuple(size)).bool()


def attention_of_words(maps: Tensor, words: Sequence[int], size: Sequence[int]) -> Tensor:
    """The attention of an image's pixels to the words of a prompt.

    Args:
        maps: (n, q, tokens), cross attention with q queries, mean over layers and heads.
        words: number of tokens of each image's prompt, without start and end.
        size: (h, w) of the images, of which the maps are a smaller copy.

    Returns:
        (n, h', w') with h' w' = q.

    Raises:
        ValueError: if no smaller copy of the images has q pixels.
    """
    height, width = size
    side = math.isqrt(height * width // maps.shape[1])
    if side == 0 or height % side or width % side or height * width != side**2 * maps.shape[1]:
        raise ValueError(
            f"attention maps with {maps.shape[1]} queries do not fit latents of {height}×{width}; set queries to "
            "the latent's height times width by a square number"
        )
    position = torch.arange(maps.shape[2], device=maps.device)
    inside = (position >= 1) & (position <= torch.tensor(words, device=maps.device)[:, None])
    return (maps * inside[:, None]).sum(dim=2).unflatten(1, (height // side, width // side))


def smooth(maps: Tensor) -> Tensor:
    """Maps (n, h, w) under a 3×3 kernel e^(-dx² - dy²), normalised: a Gaussian of sigma 0.707; (n, 1, h, w).

    The paper says sigma 0.5; the official code's kernel, which is this one, squares a distance divided by 2 sigma.
    """
    line = torch.tensor([-1.0, 0.0, 1.0], device=maps.device, dtype=maps.dtype).square().neg().exp()
    kernel = torch.outer(line, line)
    padded = F.pad(maps[:, None], (1, 1, 1, 1), mode="reflect")
    return F.conv2d(padded, (kernel / kernel.sum())[None, None])


def _above(values: Tensor, threshold: float) -> Tensor:
    """Where values (n, 1, h, w) are at or above their quantile of each image."""
    values = values.float()  # torch.quantile takes no other
    return values >= values.flatten(1).quantile(threshold, dim=1)[:, None, None, None]


def _factor(concept: Concept, like: Tensor) -> Tensor | float:
    scales = concept.scale if isinstance(concept.scale, tuple) else (concept.scale,)
    sign = -1 if concept.reverse else 1
    if len(set(scales)) == 1:  # as a number, it need not go to the device
        return sign * scales[0]
    return sign * torch.tensor(scales, dtype=torch.float64).reshape(-1, 1, 1, 1).to(like)


def predictions_under(base: GuidedDenoiser, concepts: Sequence[GuidedDenoiser], queries: int | None = None) -> Predict:
    """Predictions of one network under some prompts: a batch of the network a step.

    Args:
        base: what is guided.
        concepts: the network under the prompt of each concept, all guidance scales 1.
        queries: number of positions of the layers whose cross attention masks are made of; None for no such masks.

    Raises:
        ValueError: if they are not one network, or it cannot do what is asked.
    """
    if any(concept.network_id != base.network_id for concept in concepts):
        raise ValueError("concepts need one text-to-image model for source and target; choose an editing task")
    if base.abilities.reads_scale:
        raise ValueError(
            "concepts are differences from the empty prompt, and this network is given its guidance scale instead; "
            "choose another method, as cyclediffusion or flowedit"
        )
    if queries and not base.abilities.attention:
        raise ValueError(
            "masks of attention are made of the cross attention of a UNet, and this network has none; choose "
            "method.masks=noise"
        )
    contexts: dict[tuple[int, ...], Conditioning] = {}  # one value for all steps: see ControlledAttention

    def predict(x: Tensor, level: Level, acting: Sequence[int]) -> SeenConcepts:
        every = [base, *(concepts[number] for number in acting)]
        batches = [denoiser.batch(x) for denoiser in every]
        key = (len(x), *acting)
        if key not in contexts:
            contexts[key] = joined([batch.context for batch in batches])
        states = torch.cat([batch.xt for batch in batches])
        first = len(batches[0].xt)
        rows = torch.arange(first, len(states), device=x.device)
        maps = AttentionMaps(rows, queries) if queries and acting and _has_parts(x) else None
        out = base.network(states, base.schedule.time(level, states), contexts[key], maps)
        parts = out.split([len(batch.xt) for batch in batches])
        seen = [d.combine(part, batch, x, level) for d, part, batch in zip(every, parts, batches, strict=True)]
        attention = {}
        for number, own in zip(acting, maps.mean().split(len(x)) if maps else (), strict=False):
            words = [len(prompt.ids) - 2 for prompt in concepts[number].prompts[: len(x)]]
            attention[number] = attention_of_words(own, words, x.shape[-2:])
        return SeenConcepts(seen[0], dict(zip(acting, seen[1:], strict=True)), attention)

    return predict


def _has_parts(x: Tensor) -> bool:
    """Whether a mask can tell pixels of x apart; a single one is at its own quantile, and always inside."""
    return x[0, 0].numel() > 1


def require_mask(mask: Tensor | None, x: Tensor) -> None:
    """Require that a user's mask has the height and width of the images x.

    Raises:
        ValueError: if it has not.
    """
    if mask is not None and mask.shape[-2:] != x.shape[-2:]:
        (height, width), (h, w) = mask.shape[-2:], x.shape[-2:]
        raise ValueError(f"the mask is for {height}×{width} and the latents are {h}×{w}; resize the mask to {h}×{w}")
