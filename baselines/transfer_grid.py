"""The grid of inversion-based editing: path of the source, noise of a step, and whether its residual is kept.

Most methods that invert an image are one point of it, see `cyclediff.diffusion.transfer`. The rest shows which of the
three choices matters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from cyclediff.diffusion.denoiser import Denoiser
from cyclediff.diffusion.levels import Level
from cyclediff.diffusion.noise import NoiseSource
from cyclediff.diffusion.paired import paired_evaluation
from cyclediff.diffusion.schedule import Spacing
from cyclediff.diffusion.steps import ddim_sigma, ddim_step, mean, q_sample, transitions
from cyclediff.diffusion.transfer import chain, independent, shared_levels

PATHS = {"chain": chain, "independent": independent}


@dataclass(frozen=True)
class TransferGrid:
    """y_s = mean_target(y_t) + r_s with the source's residual r_s, or with fresh noise.

    Args:
        T: number of timesteps of the sampler.
        t0: how many of them, from the clean end, are run.
        source_path: states of the source: "chain" (CycleDiffusion), "independent" (edit-friendly inversion, FlowEdit),
            or "ddim" (DDIM inversion: DDIB, direct inversion).
        sigma: noise of a step: eta of DDIM from 0 to 1, or "full": as much as the level has (DDCM).
        residual: add what the source's step misses of its path; False adds fresh noise (SDEdit with "chain", DDIB with
            "ddim" and sigma 0).
        spacing: see `DiffusionSchedule`.
        name: the stem of its file in conf/method.
    """

    T: int
    t0: int
    source_path: Literal["chain", "independent", "ddim"]
    sigma: float | Literal["full"]
    residual: bool
    spacing: Spacing = "latent"
    name: str = "transfer_grid"
    needs = frozenset({"source", "target"})
    conditions = frozenset({"none", "text"})
    starts_at = "t0"
    inverts = False
    takes_region = False

    def __post_init__(self):
        if not 1 <= self.t0 <= self.T:
            raise ValueError(f"t0 must be between 1 and T = {self.T}; got {self.t0}")
        if self.source_path not in (*PATHS, "ddim"):
            raise ValueError(f"source_path must be chain, independent or ddim; got {self.source_path!r}")
        if self.sigma != "full" and not (isinstance(self.sigma, int | float) and 0 <= self.sigma <= 1):
            raise ValueError(f"sigma must be full, or from 0 to 1; got {self.sigma!r}")

    @property
    def reconstructs(self) -> str | None:
        """With residuals; DDIM inversion without them; else the result is sampled anew."""
        return "exact" if self.residual else "approximately" if (self.source_path, self.sigma) == ("ddim", 0) else None

    @property
    def num_steps(self) -> int:
        """T."""
        return self.T

    def __call__(self, x0: Tensor, source: Denoiser, target: Denoiser, noise: NoiseSource) -> Tensor:
        """Translate x0 (n, c, h, w)."""
        levels = shared_levels(source, target, self.T, self.spacing)[-self.t0 - 1 :]
        inverted = inversion(x0, source, levels) if self.source_path == "ddim" else []
        xs = xt = inverted.pop() if inverted else q_sample(x0, levels[0], noise.randn_like(x0))
        evaluate, steps = paired_evaluation(source, target), transitions(levels)
        for step, (t, s) in enumerate(steps):
            std = s.b if self.sigma == "full" else ddim_sigma(t, s, self.sigma)
            if not self.residual:
                xt = ddim_step(target(xt, t), s, std, noise.randn_like(x0) if std else 0.0)
                continue
            seen_s, seen_t = evaluate(xs, xt, t, step)
            if step == len(steps) - 1:
                after = x0
            else:
                after = inverted.pop() if inverted else PATHS[self.source_path](x0, xs, t, s, std, noise)
            xs, xt = after, after + mean(seen_t, s, std) - mean(seen_s, s, std)
        return xt


def inversion(x0: Tensor, source: Denoiser, levels: Sequence[Level]) -> list[Tensor]:
    """DDIM's ODE from x0 up (arXiv 2010.02502, section 4.3): the states at all levels but the last, the noisiest last.

    x0 is taken as the state at the lowest level at which the network is evaluated, as in DDIB's official code.
    """
    states = [x0]
    for lower, higher in transitions(list(reversed(levels[:-1]))):
        states.append(ddim_step(source(states[-1], lower), higher))
    return states
