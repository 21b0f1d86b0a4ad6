"""How far source and target are apart while CycleDiffusion runs: why images stay similar (arXiv 2210.05559)."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from cyclediff.diffusion.denoiser import Denoiser
from cyclediff.diffusion.levels import Level, Prediction
from cyclediff.diffusion.noise import NoiseSource
from cyclediff.diffusion.schedule import Schedule
from cyclediff.method import Method


@dataclass(frozen=True, eq=False)
class Recorder:
    """A denoiser that keeps the states it is asked about.

    Args:
        denoiser: what answers.
        states: (level, state) of each call.
    """

    denoiser: Denoiser
    states: list[tuple[Level, Tensor]] = field(default_factory=list)

    @property
    def schedule(self) -> Schedule:
        """The denoiser's."""
        return self.denoiser.schedule

    def __call__(self, x: Tensor, level: Level) -> Prediction:
        """See `Denoiser`."""
        self.states.append((level, x.detach()))
        return self.denoiser(x, level)


def distances(
    method: Method, x0: Tensor, source: Denoiser, target: Denoiser, noise: NoiseSource
) -> tuple[list[int], Tensor]:
    """The distance between the source's state x_t and the target's, at each timestep that both are evaluated at.

    Args:
        method: CycleDiffusion, or another method that evaluates both at equal timesteps, in this order.
        x0: (n, c, h, w).
        source: denoiser of the source domain.
        target: denoiser of the target domain.
        noise: source of randomness.

    Returns:
        The timesteps, decreasing, and the root mean squared difference per value, float64 (n, number of timesteps), in
        units of x0. It is 0 at the first timestep, where both states are one.

    Raises:
        ValueError: if the timesteps of source and target differ.
    """
    watched = Recorder(source), Recorder(target)
    method(x0, *watched, noise)
    pairs = list(zip(*(recorder.states for recorder in watched), strict=False))  # the target alone takes the last steps
    if not pairs or any(s[0] != t[0] for s, t in pairs):
        raise ValueError(f"{method.name} does not evaluate source and target at equal timesteps; choose cyclediffusion")
    apart = [(s[1].double() - t[1].double()).square().mean((1, 2, 3)).sqrt() for s, t in pairs]
    return [int(s[0].t) for s, _ in pairs], torch.stack(apart, dim=1)
