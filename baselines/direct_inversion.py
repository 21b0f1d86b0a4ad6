"""Direct inversion, also PnP inversion (arXiv 2310.01506): DDIM inversion whose source is pinned to its own path."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from cyclediff.diffusion.denoiser import Denoiser
from cyclediff.diffusion.levels import Level
from cyclediff.diffusion.noise import NoiseSource
from cyclediff.diffusion.paired import Control, Plan, for_attention, inside_region, paired_evaluation, plan_control
from cyclediff.diffusion.schedule import Spacing
from cyclediff.diffusion.steps import ddim_step, transitions


@dataclass(frozen=True)
class DirectInversion:
    """Direct inversion: the target is sampled beside a source that returns to its image, and follows its attention.

    The latents of the inversion are kept: T + 1 for each image, until sampling has passed them.

    Args:
        T: number of timesteps of the sampler.
        spacing: the official grid is "leading", of which the last step down and the first step up change nothing.
        attention: cross-attention control; without it the source is not evaluated while sampling.
        name: the stem of its file in conf/method.
    """

    T: int
    spacing: Spacing = "leading"
    attention: Control | None = None
    name: str = "direct_inversion"
    needs = frozenset({"source", "target"})
    conditions = frozenset({"text"})
    starts_at = None
    inverts = False
    reconstructs = "approximately"  # DDIM inversion: the target is not pinned
    takes_region = True

    def __post_init__(self):
        if self.T < 1:
            raise ValueError(f"T must be at least 1; got {self.T}")

    @property
    def num_steps(self) -> int:
        """T."""
        return self.T

    def __call__(self, x0: Tensor, source: Denoiser, target: Denoiser, noise: NoiseSource) -> Tensor:
        """Edit x0 (n, c, h, w); draws no noise."""
        levels = source.schedule.levels(self.T, self.spacing)
        plan = plan_control(self.attention, source, target, self.T)
        return sample(invert(x0, source, levels), source, target, levels, plan)


def invert(x0: Tensor, source: Denoiser, levels: Sequence[Level]) -> list[Tensor]:
    """The path of x0 under DDIM's ODE, from the clean end up.

    In each step the network is given the timestep of the level above its state, as in the official code.

    Args:
        x0: (n, c, h, w).
        source: denoiser of the source; the official code gives it no guidance.
        levels: of the sampler, from noisy to clean.

    Returns:
        A state (n, c, h, w) for each level, from clean to noisy; the first is x0.
    """
    path = [x0]
    for lower, higher in transitions(levels[::-1]):
        path.append(ddim_step(source(path[-1], replace(lower, t=higher.t)), higher))
    return path


def sample(
    path: list[Tensor], source: Denoiser, target: Denoiser, levels: Sequence[Level], plan: Plan | None = None
) -> Tensor:
    """DDIM's ODE of the target from the end of a path, beside a source that is on the path at every level.

    The official code adds to the source's step what it misses of the path (Algorithm 1), which it computes before, with
    guidance, and also for the target, where it is not used: 9 rows a step. A state on the path is all that comes out of
    it, so here the source is evaluated for its attention only: 4 rows, with those of the inversion.

    Args:
        path: of `invert`; it is used up.
        source: denoiser of the source.
        target: denoiser of the target.
        levels: from noisy to clean.
        plan: of attention control.

    Returns:
        The edit, (n, c, h, w), not clamped.
    """
    evaluate = paired_evaluation(for_attention(source), target, plan)
    xt = path[-1]
    for step, (t, s) in enumerate(transitions(levels)):
        xs = path.pop()
        seen = evaluate(xs, xt, t, step)[1] if plan else target(xt, t)
        xt = ddim_step(seen, s)
        xt = inside_region(target, plan.blend(step, path[-1], xt) if plan else xt, path[-1])
    return xt
