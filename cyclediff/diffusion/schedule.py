"""Noise schedules: which levels a model knows, and which of them a sampler visits.

alpha_bar[t] = prod_{s <= t} (1 - beta_s) for t = 0 … T-1 (DDPM, arXiv 2006.11239, Eq. 4). Index 0 is the level with the
least noise. The clean image, with alpha_bar 1, has no index.
"""

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from cyclediff.diffusion.levels import CLEAN, Level

Spacing = Literal["uniform", "latent", "leading", "respaced", "lcm", "scheduler"]
LCM_TIMESTEPS = 50


class Schedule(Protocol):
    """The levels of a model."""

    @property
    def num_train(self) -> int:
        """Number of timesteps that the model was trained on; times are in these units."""
        ...

    def at(self, t: int) -> Level:
        """The level of a timestep, 0 … num_train - 1; 0 has the least noise."""
        ...

    def levels(self, steps: int | str, spacing: Spacing = "uniform") -> list[Level]:
        """The levels that a sampler visits, from noisy to clean: one more than it has steps.

        Args:
            steps: their number; with spacing "respaced" guided-diffusion's notation, see `respaced_timesteps`.
            spacing: which, see `DiffusionSchedule` and `FlowSchedule`.

        Raises:
            ValueError: if there is no such spacing, or so many steps do not fit it.
        """
        ...

    def time(self, level: Level, x: Tensor) -> Tensor:
        """The time that the network is given at a level, for each image of x: (n,)."""
        ...


@dataclass(frozen=True, eq=False)
class DiffusionSchedule:
    """The table of levels of a diffusion model: a = sqrt(alpha_bar), b = sqrt(1 - alpha_bar).

    The last level is where the last step ends. With "uniform" and "respaced" spacing it is the clean image, as in the
    pixel-space codes. With "latent" it is timestep 0, as in latent diffusion's code (and in diffusers with
    set_alpha_to_one false): there the last step has noise, so it can be encoded too. With "leading" (diffusers with
    steps_offset 0) timestep 0 is both where the last step begins and where it ends, so that step changes nothing. "lcm"
    is for latent consistency models, and ends at the clean image.

    Args:
        alpha_bar: (num_train,) float64.
    """

    alpha_bar: Tensor

    @property
    def num_train(self) -> int:
        """See `Schedule`."""
        return len(self.alpha_bar)

    def at(self, t: int) -> Level:
        """See `Schedule`."""
        alpha_bar = self.alpha_bar[t].item()
        return Level(math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar), t)

    def levels(self, steps: int | str, spacing: Spacing = "uniform") -> list[Level]:
        """See `Schedule`."""
        if spacing == "respaced":
            timesteps, end = respaced_timesteps(self.num_train, steps), CLEAN
        elif spacing == "uniform":
            timesteps, end = spaced_timesteps(self.num_train, _number(steps, spacing)), CLEAN
        elif spacing == "latent":
            timesteps, end = latent_timesteps(self.num_train, _number(steps, spacing)), self.at(0)
        elif spacing == "leading":
            timesteps, end = leading_timesteps(self.num_train, _number(steps, spacing)), self.at(0)
        elif spacing == "lcm":
            timesteps, end = lcm_timesteps(self.num_train, _number(steps, spacing)), CLEAN
        else:
            raise ValueError(
                f"spacing must be uniform, latent, leading, respaced or lcm with a diffusion model; got {spacing!r}"
            )
        return [*(self.at(t) for t in timesteps.tolist()), end]

    def time(self, level: Level, x: Tensor) -> Tensor:
        """See `Schedule`; int64."""
        return torch.full((x.shape[0],), int(level.t), dtype=torch.int64, device=x.device)


@dataclass(frozen=True)
class FlowSchedule:
    """The levels of a rectified flow (arXiv 2209.03003): a = 1 - sigma, b = sigma, and the time is num_train sigma.

    A sampler visits equidistant u from 1 to 0, shifted towards the noise: sigma = shift u / (1 + (shift - 1) u) (arXiv
    2403.03206, Eq. 23). The first level has no signal. The last is the clean image, or with "latent" spacing sigma =
    1 / num_train, so that the last step can be encoded. "scheduler" spacing is that of diffusers'
    FlowMatchEulerDiscreteScheduler, with which SD3 is sampled: u ends at the shifted 1 / num_train, not at 1 / steps.
    So the low end is shifted twice. diffusers' pipeline of FLUX gives the scheduler u itself, as in "uniform" spacing:
    with `double_shift` false, "scheduler" is that.

    Args:
        shift: 1 leaves u as it is.
        num_train: units of the time that the network is given.
        double_shift: whether the model's own pipeline shifts the low end twice.
    """

    shift: float = 1.0
    num_train: int = 1000
    double_shift: bool = True

    def at(self, t: int) -> Level:
        """See `Schedule`; timestep t is sigma = (t + 1) / num_train, so the last one is pure noise."""
        return self._level((t + 1) / self.num_train)

    def levels(self, steps: int | str, spacing: Spacing = "uniform") -> list[Level]:
        """See `Schedule`; "leading" and "respaced" are "uniform" here."""
        if spacing not in ("uniform", "latent", "leading", "respaced", "scheduler"):
            raise ValueError(f"spacing must be uniform, latent or scheduler with a flow; got {spacing!r}")
        number, end = _number(steps, "flow"), self.at(0) if spacing == "latent" else CLEAN
        gap = 1 / number
        if spacing == "scheduler" and self.double_shift and number > 1:
            gap = (1 - self._shifted(1 / self.num_train)) / (number - 1)
        return [*(self._level(self._shifted(1 - i * gap)) for i in range(number)), end]

    def time(self, level: Level, x: Tensor) -> Tensor:
        """See `Schedule`; float32."""
        return torch.full((x.shape[0],), level.t, dtype=torch.float32, device=x.device)

    def _shifted(self, u: float) -> float:
        return self.shift * u / (1 + (self.shift - 1) * u)

    def _level(self, sigma: float) -> Level:
        return Level(1 - sigma, sigma, self.num_train * sigma)


@dataclass(frozen=True)
class DynamicShift:
    """How the shift of FLUX's levels follows the size of an image: mu is linear in the tokens, the shift is exp(mu).

    Args:
        base: mu at `base_tokens`.
        top: mu at `top_tokens`.
        base_tokens: 2×2 latents in a small image.
        top_tokens: 2×2 latents in a large image.
    """

    base: float = 0.5
    top: float = 1.15
    base_tokens: int = 256
    top_tokens: int = 4096

    def shift(self, tokens: int) -> float:
        """Of the levels of an image of so many tokens."""
        slope = (self.top - self.base) / (self.top_tokens - self.base_tokens)
        return math.exp(self.base + slope * (tokens - self.base_tokens))


def _number(steps: int | str, spacing: str) -> int:
    if not str(steps).isdigit() or int(steps) < 1:
        raise ValueError(f"with {spacing} spacing the number of timesteps must be a whole number; got {steps!r}")
    return int(steps)


def linear_betas(num_train: int = 1000, start: float = 1e-4, end: float = 0.02) -> Tensor:
    """Linear betas of DDPM (arXiv 2006.11239, section 4); float64 (num_train,)."""
    return torch.linspace(start, end, num_train, dtype=torch.float64)


def scaled_linear_betas(num_train: int = 1000, start: float = 0.00085, end: float = 0.0120) -> Tensor:
    """Betas with equidistant square roots, as latent diffusion has them (arXiv 2112.10752); float64 (num_train,)."""
    return torch.linspace(start**0.5, end**0.5, num_train, dtype=torch.float64) ** 2


def cosine_betas(num_train: int = 1000) -> Tensor:
    """Betas of the cosine schedule (arXiv 2102.09672, Eq. 17), none above 0.999; float64 (num_train,)."""
    u = torch.arange(num_train + 1, dtype=torch.float64) / num_train
    alpha_bar = ((u + 0.008) / 1.008 * math.pi / 2).cos() ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)


def named_betas(schedule: str, num_train: int) -> Tensor:
    """Betas of guided-diffusion's named schedules; float64 (num_train,).

    "linear": DDPM's, whose ends are scaled by 1000 / num_train, so that other numbers of timesteps end at about the
    same noise. "cosine": see `cosine_betas`.

    Raises:
        ValueError: if there is no such schedule, or num_train is no number of timesteps for it.
    """
    if not isinstance(num_train, int) or num_train < 2:
        raise ValueError(f"num_train_timesteps must be a whole number from 2; got {num_train}")
    if schedule == "cosine":
        return cosine_betas(num_train)
    if schedule != "linear":
        raise ValueError(f"schedule must be linear or cosine; got {schedule}")
    scale = 1000 / num_train
    if scale * 0.02 >= 1:
        raise ValueError(f"the linear schedule needs more than 20 timesteps; got {num_train}")
    return linear_betas(num_train, scale * 1e-4, scale * 0.02)


def alpha_bar_from_betas(betas: Tensor) -> Tensor:
    """Cumulative product of 1 - beta (arXiv 2006.11239, Eq. 4); float64, same shape."""
    return torch.cumprod(1 - betas.double(), dim=0)


def spaced_timesteps(num_train: int, T: int) -> Tensor:
    """T timesteps of a schedule of `num_train`, as CycleDiffusion's official code spaces them.

    A whole stride where T divides num_train (0, 20, 40, … for 50 of 1000), otherwise floor(u (num_train - 1)) for T
    equidistant u in [0, 1].

    Returns:
        int64 (T,), decreasing.

    Raises:
        ValueError: if T is not in 1 … num_train.
    """
    if not 1 <= T <= num_train:
        raise ValueError(f"T must be between 1 and the {num_train} training timesteps of the network; got {T}")
    if num_train % T == 0:
        steps = torch.arange(0, num_train, num_train // T)
    else:
        steps = (torch.linspace(0, 1, T, dtype=torch.float64) * (num_train - 1)).floor().long()
    return steps.flip(0)


def latent_timesteps(num_train: int, T: int) -> Tensor:
    """T timesteps of a schedule of `num_train`, as latent diffusion's DDIM sampler spaces them.

    They are 1, 1 + c, 1 + 2 c, … with a stride c of num_train // T. diffusers' "leading" spacing with Stable
    Diffusion's steps_offset of 1 is the same. 99 of 1000 is the published setting of text-guided CycleDiffusion: 1, 11,
    …, 981.

    Returns:
        int64 (T,), decreasing.

    Raises:
        ValueError: if T is not in 1 … num_train - 1.
    """
    if not 1 <= T < num_train:
        raise ValueError(f"T must be between 1 and {num_train - 1} with latent spacing; got {T}")
    return (1 + torch.arange(T) * (num_train // T)).flip(0)


def leading_timesteps(num_train: int, T: int) -> Tensor:
    """T timesteps of a schedule of `num_train` from 0 up: 0, c, 2 c, … with a stride c of num_train // T.

    Returns:
        int64 (T,), decreasing.

    Raises:
        ValueError: if T is not in 1 … num_train.
    """
    if not 1 <= T <= num_train:
        raise ValueError(f"T must be between 1 and {num_train} with leading spacing; got {T}")
    return (torch.arange(T) * (num_train // T)).flip(0)


def lcm_timesteps(num_train: int, T: int) -> Tensor:
    """T of the 50 timesteps that latent consistency models are trained on (arXiv 2310.04378), as diffusers takes them.

    The 50 are c - 1, 2 c - 1, … with a stride c of num_train // 50: 19, 39, …, 999 of 1000. Counted from the largest,
    those with the numbers floor(50 m / T) are taken.

    Returns:
        int64 (T,), decreasing.

    Raises:
        ValueError: if T is not in 1 … 50, or num_train is less than 50.
    """
    if not 1 <= T <= LCM_TIMESTEPS <= num_train:
        raise ValueError(
            f"T must be between 1 and {LCM_TIMESTEPS} with lcm spacing, of {LCM_TIMESTEPS} or more training timesteps; "
            f"got {T} of {num_train}"
        )
    number = LCM_TIMESTEPS * torch.arange(T) // T
    return (LCM_TIMESTEPS - number) * (num_train // LCM_TIMESTEPS) - 1


def respaced_timesteps(num_train: int, spacing: str | int) -> Tensor:
    """Timesteps in guided-diffusion's respacing notation, which ILVR and DDIB use.

    "100": 100 equidistant timesteps from 0 to num_train - 1. "ddim50": the first whole stride that gives 50.
    "10,20": equal sections of the schedule with 10 and 20 timesteps.

    Returns:
        int64, decreasing.

    Raises:
        ValueError: if the notation cannot be satisfied.
    """
    spacing = str(spacing)
    if spacing.startswith("ddim"):
        count = _positive(spacing.removeprefix("ddim"), spacing)
        for stride in range(1, num_train + 1):
            if math.ceil(num_train / stride) == count:
                return torch.arange(0, num_train, stride).flip(0)
        raise ValueError(f"no whole stride gives {count} of {num_train} timesteps; got {spacing!r}, try {count!r}")
    counts = [_positive(count, spacing) for count in spacing.split(",")]
    size, longer = divmod(num_train, len(counts))
    steps: list[int] = []
    start = 0
    for section, count in enumerate(counts):
        length = size + (section < longer)
        if count > length:
            raise ValueError(f"a section of {length} timesteps cannot hold {count}; got {spacing!r}, ask for fewer")
        stride = (length - 1) / (count - 1) if count > 1 else 1.0
        position = 0.0
        for _ in range(count):  # accumulated as the official code does: k * stride can round differently
            steps.append(start + round(position))
            position += stride
        start += length
    return torch.tensor(steps).flip(0)


def count_respaced(spacing: str | int) -> int:
    """Number of timesteps that a respacing notation asks for, see `respaced_timesteps`.

    Raises:
        ValueError: if the notation is unknown.
    """
    spacing = str(spacing)
    return sum(_positive(count, spacing) for count in spacing.removeprefix("ddim").split(","))


def _positive(text: str, spacing: str) -> int:
    if not text.strip().isdigit() or int(text) == 0:
        raise ValueError(f"timesteps must read like 100, ddim50 or 10,20; got {spacing!r}")
    return int(text)
