"""FlowEdit (arXiv 2412.08629): an ODE from the source image to the target's, along the difference of two flows."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from cyclediff.diffusion.denoiser import Denoiser
from cyclediff.diffusion.levels import Level
from cyclediff.diffusion.noise import NoiseSource
from cyclediff.diffusion.paired import inside_region
from cyclediff.diffusion.schedule import Spacing
from cyclediff.diffusion.steps import ddim_step, q_sample, transitions
from cyclediff.diffusion.transfer import independent, shared_levels, transfer


@dataclass(frozen=True)
class FlowEdit:
    """FlowEdit (Algorithm 1) on a rectified flow.

    The official code for SD3 stops with an error if n_min is above 0, or if the target's guidance scale is 1 or less;
    here both work.

    Args:
        T: number of timesteps of the sampler.
        n_max: how many of them, from the clean end, are run.
        n_min: how many of these, the last ones, sample the target alone, from the edited image noised once.
        n_avg: draws of noise over which each step averages.
        spacing: "scheduler" for SD3's timesteps, "uniform" for those of FLUX, see `FlowSchedule`.
        name: the stem of its file in conf/method.
    """

    T: int
    n_max: int
    n_min: int = 0
    n_avg: int = 1
    spacing: Spacing = "scheduler"
    name: str = "flowedit"
    needs = frozenset({"source", "target"})
    conditions = frozenset({"none", "text"})
    starts_at = "n_max"
    inverts = False
    takes_region = True

    def __post_init__(self):
        if not 1 <= self.n_max <= self.T:
            raise ValueError(f"n_max must be between 1 and T = {self.T}; got {self.n_max}")
        if not 0 <= self.n_min < self.n_max:
            raise ValueError(f"n_min must be between 0 and n_max - 1 = {self.n_max - 1}; got {self.n_min}")
        if self.n_avg < 1:
            raise ValueError(f"n_avg must be at least 1; got {self.n_avg}")

    @property
    def reconstructs(self) -> str | None:
        """Equal networks make no difference; the last n_min steps sample anew."""
        return None if self.n_min else "exact"

    @property
    def num_steps(self) -> int:
        """T."""
        return self.T

    def __call__(self, x0: Tensor, source: Denoiser, target: Denoiser, noise: NoiseSource) -> Tensor:
        """Translate x0 (n, c, h, w)."""
        middle = target.schedule.at(target.schedule.num_train // 2)
        if abs(middle.a + middle.b - 1) > 1e-6:
            raise ValueError(
                f"{self.name} needs a rectified flow, and this is a diffusion model; choose a flow, or for diffusion "
                "models method=edit_friendly"
            )
        levels = shared_levels(source, target, self.T, self.spacing)[-self.n_max - 1 :]
        return flowedit(x0, source, target, levels, noise, self.n_min, self.n_avg)


def flowedit(
    x0: Tensor,
    source: Denoiser,
    target: Denoiser,
    levels: Sequence[Level],
    noise: NoiseSource,
    n_min: int = 0,
    n_avg: int = 1,
) -> Tensor:
    """Algorithm 1, with Euler steps: `transfer` at sigma 0 on states that are drawn independently of each other.

    Args:
        x0: (n, c, h, w).
        source: denoiser of the source.
        target: denoiser of the target.
        levels: of both, from noisy to clean.
        noise: source of randomness; `n_avg` draws for each step, then one if `n_min` is not 0.
        n_min: see `FlowEdit`; fewer than there are steps.
        n_avg: see `FlowEdit`.

    Returns:
        The edited image, same shape, not clamped.
    """
    first = levels[: len(levels) - n_min]
    edited = transfer(x0, source, target, first, independent, lambda t, s: 0.0, noise, draws=n_avg)
    if n_min == 0:
        return edited
    e = noise.randn_like(x0)
    x = q_sample(x0, first[-1], e) + edited - x0
    for t, s in transitions(levels[-n_min - 1 :]):
        x = inside_region(target, ddim_step(target(x, t), s), q_sample(x0, s, e))
    return x
