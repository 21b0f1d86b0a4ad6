"""DDIB, dual diffusion implicit bridges (arXiv 2203.08382): invert with the source's ODE, sample with the target's."""

from dataclasses import dataclass

from torch import Tensor

from cyclediff.diffusion.denoiser import Denoiser
from cyclediff.diffusion.paired import Control, paired_evaluation, plan_control
from cyclediff.diffusion.schedule import Spacing, count_respaced, respaced_timesteps, sampling_path
from cyclediff.diffusion.steps import batch_of, ddim_step, predict_eps, predict_x0, transitions
from cyclediff.method import NoiseSource


@dataclass(frozen=True)
class DDIB:
    """DDIB with DDIM at eta 0 as the ODE solver, as in the official code.

    Args:
        timesteps: in the respacing notation of `respaced_timesteps`, for example "100"; with latent spacing a number.
        clip_denoised: clamp x0_hat to [-1, 1] while decoding; for pixel-space models.
        spacing: "uniform" for pixel space, "latent" for latent diffusion (see `sampling_path`).
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
        latent = invert(x0, source, self._path(source)[0], to_noise=self.spacing == "uniform")
        timesteps, end = self._path(target)
        if not self.attention:
            return sample(latent, target, timesteps, self.clip_denoised, end)
        evaluate = paired_evaluation(source, target, plan_control(self.attention, source, target, len(timesteps)))
        xs = xt = latent
        for step, (t, ab, ab_prev) in enumerate(transitions(target.alpha_bar, timesteps, end)):
            eps_s, eps_t = evaluate(xs, xt, t, step)
            xs, xt = ddim_step(xs, eps_s, ab, ab_prev), ddim_step(xt, eps_t, ab, ab_prev)
        return xt

    def _path(self, model: Denoiser) -> tuple[Tensor, float]:
        if self.spacing == "uniform":
            return respaced_timesteps(len(model.alpha_bar), self.timesteps), 1.0
        if not self.timesteps.isdigit():
            raise ValueError(f"with latent spacing timesteps must be a number; got {self.timesteps!r}")
        return sampling_path(model.alpha_bar, int(self.timesteps), self.spacing)


def invert(x0: Tensor, source: Denoiser, timesteps: Tensor, to_noise: bool = True) -> Tensor:
    """The latent of x0: DDIM's ODE from the clean end up (Algorithm 1, first line).

    As in the official code the clean image is taken as the state at the first noise level.

    Args:
        x0: (n, c, h, w).
        source: denoiser of the source domain.
        timesteps: int64, decreasing.
        to_noise: take one more step, from the last timestep to alpha_bar = 0, as the official code does; the latent is
            then the last predicted eps. Latent diffusion's last timestep still holds 7 % of the image, and this step
            would remove it, so its inversion has none.

    Returns:
        The latent, (n, c, h, w).
    """
    x = x0
    ascending = timesteps.flip(0)
    levels = source.alpha_bar[ascending].tolist()
    ends = [*levels[1:], 0.0] if to_noise else levels[1:]
    for t, alpha_bar, alpha_bar_next in zip(ascending.tolist(), levels, ends, strict=False):
        x = ddim_step(x, source(x, batch_of(t, x)), alpha_bar, alpha_bar_next)
    return x


def sample(
    latent: Tensor, target: Denoiser, timesteps: Tensor, clip_denoised: bool = False, end: float = 1.0
) -> Tensor:
    """DDIM's ODE from a latent down to the image (Algorithm 1, last line).

    Args:
        latent: (n, c, h, w).
        target: denoiser of the target domain.
        timesteps: int64, decreasing.
        clip_denoised: clamp x0_hat to [-1, 1]; eps is then that of the clamped x0_hat.
        end: alpha_bar where the last step ends.

    Returns:
        The image, (n, c, h, w), not clamped.
    """
    x = latent
    for t, alpha_bar, alpha_bar_prev in transitions(target.alpha_bar, timesteps, end):
        eps = target(x, batch_of(t, x))
        if clip_denoised:
            eps = predict_eps(x, predict_x0(x, eps, alpha_bar).clamp(-1, 1), alpha_bar)
        x = ddim_step(x, eps, alpha_bar, alpha_bar_prev)
    return x
