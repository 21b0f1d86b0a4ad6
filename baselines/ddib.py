"""DDIB, dual diffusion implicit bridges (arXiv 2203.08382): invert with the source's ODE, sample with the target's."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from cyclediff.diffusion.denoiser import Denoiser
from cyclediff.diffusion.levels import CLEAN, NOISE, Level
from cyclediff.diffusion.noise import NoiseSource
from cyclediff.diffusion.paired import Control, has_region, inside_region, paired_evaluation, plan_control
from cyclediff.diffusion.schedule import Spacing, count_respaced
from cyclediff.diffusion.steps import ddim_step, transitions, truth


@dataclass(frozen=True)
class DDIB:
    """DDIB with DDIM at eta 0 as the ODE solver, as in the official code.

    Args:
        timesteps: in the respacing notation of `respaced_timesteps`, for example "100"; with latent spacing a number.
        clip_denoised: clamp x0_hat to [-1, 1] while decoding; for pixel-space models.
        spacing: "uniform" for pixel space, "latent" for latent diffusion (see `DiffusionSchedule`).
        attention: cross-attention control, for text-to-image models: the attention follows that of a second sampling
            from the same latent, under the source prompt.
        name: the stem of its file in conf/method.
    """

    timesteps: str
    clip_denoised: bool
    spacing: Spacing = "uniform"
    attention: Control | None = None
    name: str = "ddib"
    needs = frozenset({"source", "target"})
    starts_at = None
    inverts = False
    reconstructs = "approximately"  # DDIM inversion
    takes_region = True

    @property
    def conditions(self) -> frozenset[str]:
        """Attention control needs texts."""
        return frozenset({"text"} if self.attention else {"none", "text"})

    @property
    def num_steps(self) -> int:
        """What the notation of `timesteps` asks for."""
        return count_respaced(self.timesteps)

    def __call__(self, x0: Tensor, source: Denoiser, target: Denoiser, noise: NoiseSource) -> Tensor:
        """Translate x0 (n, c, h, w); draws no noise."""
        states: deque[Tensor] = deque(maxlen=None if has_region(target) else 1)  # only these edits need the way back
        states.extend(ascend(x0, source, self._levels(source)))
        levels, latent = self._levels(target), states[-1]
        kept = [*list(states)[len(levels) - 3 :: -1], x0] if has_region(target) else []
        if not self.attention:
            return sample(latent, target, levels, self.clip_denoised, kept)
        steps = transitions(levels)
        plan = plan_control(self.attention, source, target, len(steps))
        evaluate = paired_evaluation(source, target, plan)
        xs = xt = latent
        for step, (t, s) in enumerate(steps):
            xs, xt = (ddim_step(seen, s) for seen in evaluate(xs, xt, t, step))
            xt = plan.blend(step, xs, xt) if plan else xt
            xt = inside_region(target, xt, kept[step]) if kept else xt
        return xt

    def _levels(self, model: Denoiser) -> list[Level]:
        return model.schedule.levels(self.timesteps, "respaced" if self.spacing == "uniform" else self.spacing)


def invert(x0: Tensor, source: Denoiser, levels: Sequence[Level]) -> Tensor:
    """The latent of x0: DDIM's ODE from the clean end up (Algorithm 1, first line).

    As in the official code the clean image is taken as the state at the lowest noise level, and a sampler that ends at
    the clean image is inverted up to pure noise: the latent is then the last predicted eps. Latent diffusion's first
    level still holds 7 % of the image, and this step would remove it, so its inversion has none. A flow's first level
    is pure noise already.

    Args:
        x0: (n, c, h, w).
        source: denoiser of the source domain.
        levels: of the sampler, from noisy to clean.

    Returns:
        The latent, (n, c, h, w).
    """
    return deque(ascend(x0, source, levels), maxlen=1)[0]


def ascend(x0: Tensor, source: Denoiser, levels: Sequence[Level]) -> Iterator[Tensor]:
    """The states of `invert`, (n, c, h, w) each, from x0 at the lowest level up to the latent."""
    ascending = [level for level in reversed(levels[:-1])]
    if levels[-1] == CLEAN and levels[0].a > 0:
        ascending.append(NOISE)
    x = x0
    yield x
    for lower, higher in transitions(ascending):
        x = ddim_step(source(x, lower), higher)
        yield x


def sample(
    latent: Tensor,
    target: Denoiser,
    levels: Sequence[Level],
    clip_denoised: bool = False,
    kept: Sequence[Tensor] = (),
) -> Tensor:
    """DDIM's ODE from a latent down to the image (Algorithm 1, last line).

    Args:
        latent: (n, c, h, w).
        target: denoiser of the target domain.
        levels: from noisy to clean.
        clip_denoised: clamp x0_hat to [-1, 1]; eps is then that of the clamped x0_hat.
        kept: what is outside the target's region after each step.

    Returns:
        The image, (n, c, h, w), not clamped.
    """
    x = latent
    for step, (t, s) in enumerate(transitions(levels)):
        seen = target(x, t)
        x = ddim_step(truth(x, seen.x0.clamp(-1, 1), t) if clip_denoised else seen, s)
        x = inside_region(target, x, kept[step]) if kept else x
    return x
