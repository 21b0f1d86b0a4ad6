"""DiffuseIT (arXiv 2209.15264): an unconditional model is led to a text or to another image's style.

Losses on the features of a vision transformer keep the content and change the appearance. Their gradient goes through
the denoiser, as manifold-constrained gradients do (arXiv 2206.00941).

Here one evaluation of the network gives both the step and, by its backward pass, the gradient. The official code
evaluates it twice at the same state. Features of the source, the target and the texts are computed once an image, and
the CLS token of the last step is kept: a step evaluates the vision transformer once, and each CLIP once.
"""

import math
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from cyclediff.diffusion.clip_views import Clip, agreement, draw_cuts, embed
from cyclediff.diffusion.colour import in_colours_of
from cyclediff.diffusion.denoiser import Denoiser
from cyclediff.diffusion.guide import Guide, guide_of
from cyclediff.diffusion.levels import Level, Prediction
from cyclediff.diffusion.noise import NoiseSource
from cyclediff.diffusion.schedule import count_respaced
from cyclediff.diffusion.steps import beta, ddim_step, ddpm_sigma, posterior_step, q_sample, transitions
from cyclediff.diffusion.streams import Streams
from cyclediff.diffusion.variance import Variance, predict_with_sigma
from cyclediff.diffusion.vit_losses import FeatureNetwork, cls_distance, contrast, structure

WEIGHTS = ("ssim", "contra", "dir_cls", "trg", "l2_trg", "clip", "range", "id")


@dataclass(frozen=True)
class DiffuseIT:
    """DiffuseIT with ancestral sampling, as in the official code; the names of the weights are its own.

    Args:
        guided_by: "text" or "image".
        timesteps: in the respacing notation of `respaced_timesteps`.
        t0: how many of them, from the clean end, are run; the official skip_timesteps is the number of the others.
        lambda_ssim: weight of the self-similarity of keys, which keeps the structure.
        lambda_contra: weight of the contrast of keys, which keeps the content.
        lambda_dir_cls: weight of moving away from the last step's CLS token.
        diff_iter: that is done in steps with an index (counted from the clean end, 0 is the last) above it.
        lambda_trg: weight of the target image's CLS token.
        lambda_l2_trg: weight of the target image's pixels.
        lambda_clip: weight of the text.
        lambda_range: weight of staying in [-1, 1].
        lambda_id: weight of the face's identity.
        cuts: random cuts that each CLIP is shown in a step; 0 shows the whole image.
        noise_aug_all: all losses see x0_hat with some of the noise, as CLIP always does; else they see x0_hat.
        prog_contrast: halve the contrast of keys where the last step's agreement with the text was below 0.5.
        regularize_content: double it where that was above 0.5.
        range_restart: begin again with new noise where the range loss is above `range_limit`. The last step's CLS token
            is kept, as in the official code.
        range_limit: of the weighted range loss.
        max_restarts: of an image; then its range is not looked at, and a warning says so. Official: no limit.
        resample: how often the first step is made.
        ddim: sample with DDIM, without resampling and restarts, and take the guided prediction.
        match_colours: give the result the target image's colours.
        variance: of a step: the network's own ("learned"), or DDPM's fixed "small" or "large".
        vit: the vision transformer.
        clip: of a text: one or more CLIPs.
        identity: of faces: images (n, 3, h, w) in [-1, 1] → features of length 1 (n, d).
        name: the stem of its file in conf/method.
    """

    guided_by: Literal["text", "image"]
    timesteps: str
    t0: int
    vit: FeatureNetwork
    clip: Sequence[Clip] = ()
    identity: Callable[[Tensor], Tensor] | None = None
    lambda_ssim: float = 1000.0
    lambda_contra: float = 200.0
    lambda_dir_cls: float = 100.0
    diff_iter: int = 50
    lambda_trg: float = 2000.0
    lambda_l2_trg: float = 3000.0
    lambda_clip: float = 2000.0
    lambda_range: float = 200.0
    lambda_id: float = 0.0
    cuts: int = 8
    noise_aug_all: bool = True
    prog_contrast: bool = False
    regularize_content: bool = False
    range_restart: bool = True
    range_limit: float = 0.01
    max_restarts: int = 10
    resample: int = 10
    ddim: bool = False
    match_colours: bool = False
    variance: Variance = "learned"
    name: str = "diffuseit"
    conditions = frozenset({"none"})
    starts_at = "t0"
    inverts = False
    reconstructs = None
    takes_region = False

    @property
    def needs(self) -> frozenset[str]:
        """With a CLIP for a text, and a network of faces where their identity has a weight."""
        more = {"clip"} if self.guided_by == "text" else set()
        return frozenset({"target", "vit"} | more | ({"identity"} if self.lambda_id else set()))

    @property
    def given(self) -> frozenset[str]:
        """What it is given of each image besides it."""
        return frozenset({"texts"} if self.guided_by == "text" else {"target_image"})

    @property
    def num_steps(self) -> int:
        """What the notation of `timesteps` asks for."""
        return count_respaced(self.timesteps)

    def __post_init__(self):
        least = 1 if self.ddim else 2
        if self.guided_by not in ("text", "image"):
            raise ValueError(f"guided_by must be text or image; got {self.guided_by!r}")
        if not least <= self.t0 <= self.num_steps:
            raise ValueError(f"t0 must be between {least} and the {self.num_steps} timesteps; got {self.t0}")
        if self.variance not in ("learned", "small", "large"):
            raise ValueError(f"variance must be learned, small or large; got {self.variance!r}")
        for key in ("cuts", "max_restarts", "diff_iter", *(f"lambda_{weight}" for weight in WEIGHTS)):
            if getattr(self, key) < 0:
                raise ValueError(f"{key} must be at least 0; got {getattr(self, key)}")
        if self.resample < 1:
            raise ValueError(f"resample must be at least 1, which makes the first step once; got {self.resample}")
        if self.range_restart and (self.ddim or not self.range_limit > 0):
            raise ValueError(
                f"range_restart needs ddim=false and a range_limit above 0; got {self.ddim} and {self.range_limit}"
            )
        if (self.guided_by == "text" and not self.clip) or (self.lambda_id and self.identity is None):
            raise ValueError("guidance by a text needs a CLIP, and lambda_id a network of faces")
        if self.match_colours and self.guided_by == "text":
            raise ValueError("match_colours needs a target image, and a text has none; set match_colours=false")

    def __call__(
        self,
        x0: Tensor,
        source: Denoiser | None,
        target: Denoiser,
        noise: NoiseSource,
        texts: Sequence[tuple[str, str]] | None = None,
        targets: Tensor | None = None,
    ) -> Tensor:
        """Edit x0 (n, 3, h, w): as a text says, or in the style of an image.

        Args:
            x0: images.
            source: not used.
            target: denoiser of the unconditional model.
            noise: source of randomness.
            texts: what each image shows, and what it should show.
            targets: of each image, in the shape of x0.

        Raises:
            ValueError: if there is no text or no target image, as `guided_by` asks for.
        """
        if (texts is None) == (self.guided_by == "text") or (targets is None) == (self.guided_by == "image"):
            what = "source and a target text" if self.guided_by == "text" else "target image"
            raise ValueError(f"{self.name} needs a {what} for each image, and nothing else beside it")
        levels = target.schedule.levels(self.timesteps, "respaced")[-self.t0 - 1 :]
        embedded = None if texts is None else [embed(clip, texts) for clip in self.clip]
        guide = guide_of(x0, self.vit, self.clip, embedded, targets, self.identity if self.lambda_id else None)
        out = diffuseit(x0, target, levels, guide, self, noise)
        return in_colours_of(targets, out) if self.match_colours and targets is not None else out


class Last(NamedTuple):
    """What the losses take from the step before: the CLS token (n, d), and how well it agreed with the text (n,)."""

    cls: Tensor
    agreed: Tensor


def losses(
    x: Tensor, x0_hat: Tensor, t: Level, index: int, guide: Guide, last: Last, how: DiffuseIT, noise: NoiseSource
) -> tuple[dict[str, Tensor], Last]:
    """The weighted losses of a step by their names, (n,) each, and what the next step takes from it.

    Args:
        x: the state (n, 3, h, w).
        x0_hat: the network's prediction of it.
        t: its level.
        index: of the step, counted from the clean end.
        guide: what guides each image.
        last: of the step before.
        how: the method.
        noise: of the cuts, one draw for each CLIP.
    """
    mix = t.b * x0_hat + (1 - t.b) * x
    seen = mix if how.noise_aug_all else x0_hat
    keys, cls = how.vit(seen)
    content, agreed = how.lambda_contra, last.agreed
    found = {}
    if guide.clip is not None:
        shown = (mix + 1) / 2
        cuts = [draw_cuts(noise, shown, how.cuts) for _ in how.clip] if how.cuts else None
        agreed = agreement(how.clip, guide.clip, shown, cuts)
        found["clip"] = -how.lambda_clip * agreed
        content = content * content_factor(last.agreed, how)
    found["ssim"] = how.lambda_ssim * structure(keys, guide.similarity)
    found["contra"] = content * contrast(keys, guide.keys)
    if index > how.diff_iter:
        found["dir_cls"] = -how.lambda_dir_cls * cls_distance(cls, last.cls)
    if guide.target is not None and guide.target_cls is not None:
        found["trg"] = how.lambda_trg * cls_distance(cls, guide.target_cls)
        found["l2_trg"] = how.lambda_l2_trg * (seen - guide.target).square().mean(dim=(1, 2, 3))
    found["range"] = how.lambda_range * (x0_hat - x0_hat.clamp(-1, 1)).square().mean(dim=(1, 2, 3))
    if how.identity is not None and guide.face is not None:
        found["id"] = how.lambda_id * (1 - (how.identity(seen) * guide.face).sum(dim=1))
    return found, Last(cls.detach(), agreed.detach())


def content_factor(agreed: Tensor, how: DiffuseIT) -> Tensor:
    """Of the contrast of keys, by how well the last step agreed with the text, (n,).

    The official code has a third case, a quarter below 0.4, which it never reaches.
    """
    factor = torch.ones_like(agreed)
    if how.prog_contrast:
        factor = torch.where(agreed < 0.5, 0.5, factor)
    return torch.where(agreed > 0.5, 2.0, factor) if how.regularize_content else factor


class Look(NamedTuple):
    """What a step sees: prediction, standard deviation of the step, minus the losses' gradient, losses, and `Last`."""

    seen: Prediction
    sigma: Tensor | float
    slope: Tensor
    losses: dict[str, Tensor]
    last: Last


def look(
    x: Tensor, denoiser: Denoiser, t: Level, s: Level, index: int, guide: Guide, last: Last, how: DiffuseIT,
    noise: NoiseSource,
) -> Look:  # fmt: skip
    """Evaluate the network once, forwards and backwards, at a state x (n, 3, h, w); see `losses`."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        seen, sigma = predict_with_sigma(leaf, denoiser, t, s, how.variance)
        found, last = losses(leaf, seen.x0, t, index, guide, last, how, noise)
        slope = -torch.autograd.grad(torch.stack(list(found.values())).sum(), leaf)[0]
    sigma = sigma.detach() if isinstance(sigma, Tensor) else sigma
    found = {name: value.detach() for name, value in found.items()}
    return Look(Prediction(seen.x0.detach(), seen.eps.detach()), sigma, slope, found, last)


def diffuseit(
    x0: Tensor, denoiser: Denoiser, levels: Sequence[Level], guide: Guide, how: DiffuseIT, noise: NoiseSource
) -> Tensor:
    """Noise x0 and sample back under the losses. Where an image must begin again, the others do not.

    As in the official code the first step is made several times. Between two of them the state is noised again, by the
    beta of the step after it. The result is the network's last prediction, without its gradient, which is not computed;
    with DDIM it is with it. Unlike there, the index of a step does not depend on how timesteps are rounded (it differs
    for 300 of them, not for 100 and 200).

    Args:
        x0: source images (n, 3, h, w).
        denoiser: of the unconditional model.
        levels: from noisy to clean.
        guide: what guides each image.
        how: the method.
        noise: in each attempt one draw to start, then for each step its noise, its cuts, and where the step is made
            again the noise between.

    Returns:
        Same shape, not clamped.

    Raises:
        ValueError: if a gradient is not finite.
    """
    steps, streams = transitions(levels), Streams.of(noise, len(x0))
    first, repeats = len(steps) - 1, 1 if how.ddim else how.resample
    visits = [(first, *steps[0])] * repeats
    visits += [(first - step, t, s) for step, (t, s) in enumerate(steps[1:], start=1)]
    agreed = guide.cls.new_zeros(len(x0)) if guide.agreed is None else guide.agreed.clone()
    last, out, waiting = Last(guide.cls.clone(), agreed), torch.empty_like(x0), list(range(len(x0)))
    attempts = how.max_restarts + 1 if how.range_restart else 1
    outside: set[int] = set()  # in the last attempt
    for attempt in range(1, attempts + 1):
        rows, waiting = waiting, []
        own, part = streams.some(rows), guide.rows(rows)
        x = q_sample(x0[rows], levels[0], own.randn_like(x0[rows]))
        for visit, (index, t, s) in enumerate(visits):
            if index == 0 and not how.ddim:
                x = denoiser(x, t).x0
                break
            n = 0.0 if how.ddim else own.randn_like(x)
            now = look(x, denoiser, t, s, index, part, Last(last.cls[rows], last.agreed[rows]), how, own)
            last.cls[rows], last.agreed[rows] = now.last
            x = moved(x, now, t, s, n, how.ddim)
            require_finite(x, rows, len(steps) - index, len(steps))
            if visit + 1 < repeats:
                again = beta(*steps[1])
                x = math.sqrt(1 - again) * x + math.sqrt(again) * own.randn_like(x)
            if not how.range_restart or index == first:
                continue
            kept = [k for k, loss in enumerate(now.losses["range"].tolist()) if loss <= how.range_limit]
            left = [row for k, row in enumerate(rows) if k not in kept]
            if attempt == attempts:
                outside.update(left)
            elif left:
                waiting += left
                x, rows = x[kept], [rows[k] for k in kept]
                own, part = streams.some(rows), guide.rows(rows)
            if not rows:
                break
        out[rows] = x
        if not waiting:
            break
    if outside:
        warnings.warn(_left(outside, attempts), stacklevel=2)
    return out


def moved(x: Tensor, now: Look, t: Level, s: Level, n: Tensor | float, ddim: bool) -> Tensor:
    """The state after a step from t to s that follows the losses' gradient, with noise n."""
    if ddim:
        eps = now.seen.eps - t.b * now.slope
        return ddim_step(Prediction((x - t.b * eps) / t.a, eps), s)
    mean = posterior_step(x, now.seen.x0, t, s, ddpm_sigma(t, s, "small"), 0.0)
    return mean + now.sigma**2 * now.slope + now.sigma * n


def require_finite(x: Tensor, rows: Sequence[int], step: int, steps: int) -> None:
    """Require that every state is finite; the sentence says which is not, and in which step it became so."""
    bad = [row for row, image in zip(rows, x, strict=True) if not image.isfinite().all()]
    if bad:
        raise ValueError(
            f"the losses of DiffuseIT led image {bad[0] + 1} of its batch to NaN or Inf in step {step} of {steps}; "
            "choose smaller weights (method.lambda_…)"
        )


def _left(rows: Collection[int], attempts: int) -> str:
    which = ", ".join(str(row + 1) for row in sorted(rows))
    return (
        f"DiffuseIT: image {which} of its batch left [-1, 1] in each of {attempts} attempts, and the last one is kept; "
        "method.max_restarts allows more of them, and a larger method.lambda_range keeps images inside"
    )
