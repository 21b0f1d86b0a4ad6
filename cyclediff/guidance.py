"""Plug-and-play guidance (CycleDiffusion, arXiv 2210.05559, section 4.3): Langevin dynamics on a generator's code.

A generator G turns a code z ~ N(0, I) into an image. Images with low energy are sampled from

    p(z) ~ exp(-E(z)),   E(z) = sum_k w_k E_k(G(z)) + ||z||^2 / 2
    z <- z - h/2 grad E(z) + sqrt(h) n,   n ~ N(0, I)

G is `WhiteBox`, or anything else that is differentiable. Start from `draw_code`, or from `WhiteBox.encode` of an image
(editing by guidance).
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from cyclediff.diffusion.energies import weighted_gradient
from cyclediff.diffusion.noise import NoiseSource

Generator = Callable[[Tensor, NoiseSource], Tensor]  # (codes, noise) → images in [-1, 1]
Energy = Callable[[Tensor, NoiseSource], Tensor]  # (images in [0, 1], noise) → (n,)
PRIOR, TOTAL = "prior", "total"
FAR = 100.0  # root mean square of a code, which is 1 under N(0, I), from which a chain counts as diverged


@dataclass(frozen=True)
class Guidance:
    """How a chain runs.

    Args:
        step_size: h; published: 0.05, with the identity energy 0.005.
        steps: number of updates; published: 200.
        weights: of each energy, by its name; a negative one makes the energy large.
        prior_weight: of ||z||^2 / 2; published: 1.
        best_by: whose lowest value chooses the code of the result: the name of an energy, "prior", or "total" for E.
            None takes the last code. Published: the classifier's energy where there is one, else None.
        judge_last: whether the last code of the chain can be chosen. Published: false, because the official code judges
            a code before it is updated. It has no effect where best_by is None.
    """

    step_size: float
    steps: int
    weights: Mapping[str, float]
    prior_weight: float = 1.0
    best_by: str | None = None
    judge_last: bool = False

    def __post_init__(self):
        if not 0 < self.step_size < math.inf:
            raise ValueError(f"step_size must be positive; got {self.step_size}")
        if self.steps < 1:
            raise ValueError(f"steps must be 1 or more; got {self.steps}")
        if not self.weights:
            raise ValueError("guidance needs an energy; got none")
        wrong = {name: weight for name, weight in self.weights.items() if not math.isfinite(weight) or weight == 0}
        if wrong:
            name = next(iter(wrong))
            raise ValueError(f"the weight of {name} must be a number other than 0; got {wrong[name]}")
        if reserved := self.weights.keys() & {PRIOR, TOTAL}:
            raise ValueError(f"no energy can be called {PRIOR} or {TOTAL}; got {min(reserved)}, give it another name")
        if not 0 <= self.prior_weight < math.inf:
            raise ValueError(f"prior_weight must be 0 or more; got {self.prior_weight}")
        judges = (*self.weights, PRIOR, TOTAL)
        if self.best_by is not None and self.best_by not in judges:
            raise ValueError(f"best_by must be null or one of {', '.join(judges)}; got {self.best_by!r}")


@dataclass(frozen=True, eq=False)
class State:
    """Where a chain is. `step`, `z`, `best_z` and `best` are all that it needs to go on.

    Args:
        step: number of updates so far.
        z: the codes after them, (n, ...).
        best_z: the codes with the lowest value of `best_by` among those that were judged; z itself at the start.
        best: these values, (n,); infinity at the start, and always where nothing is judged.
        energies: of the codes *before* the last update, by name, (n,) each: every energy without its weight, "prior"
            (||z||^2 / 2), and "total" (E). Empty at the start.
    """

    step: int
    z: Tensor
    best_z: Tensor
    best: Tensor
    energies: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def start(cls, z: Tensor) -> "State":
        """The start of a chain at codes z (n, ...)."""
        return cls(0, z, z, torch.full((len(z),), math.inf, device=z.device))

    def tensors(self) -> dict[str, Tensor]:
        """What a chain needs to go on, for a file of tensors."""
        return {"step": torch.tensor(self.step), "z": self.z, "best_z": self.best_z, "best": self.best}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "State":
        """The state of `tensors`."""
        return cls(int(tensors["step"]), tensors["z"], tensors["best_z"], tensors["best"])


class Result(NamedTuple):
    """What a chain found.

    Args:
        z: the chosen codes, (n, ...).
        images: of them, (n, c, h, w) in [-1, 1].
        energies: of these images, as in `State`.
    """

    z: Tensor
    images: Tensor
    energies: dict[str, Tensor]


def draw_code(noise: NoiseSource, like: Tensor, white_box_steps: int) -> Tensor:
    """Codes z ~ N(0, I) for images like `like` (n, c, h, w): (n, white_box_steps, c, h, w), a draw for each slot."""
    return torch.stack([noise.randn_like(like) for _ in range(white_box_steps)], dim=1)


def langevin(
    state: State,
    guidance: Guidance,
    generator: Generator,
    energies: Mapping[str, Energy],
    noise_of: Callable[[int], NoiseSource],
) -> Iterator[State]:
    """Run a chain from a state to its end.

    Args:
        state: `State.start`, or a state that this function gave, to go on with.
        guidance: the settings.
        generator: (codes, noise) → images in [-1, 1].
        energies: those of guidance.weights: (images in [0, 1], noise) → (n,), in the images' order.
        noise_of: the randomness of step k = 0 … steps - 1, and of the result's evaluation, k = steps. A step's draws:
            of the generator, of the energies in the order of their names, and the noise of the update. Give a fresh
            source for each k, such as `lambda k: Noise(seed, ids, trial=k)`; then a chain that is resumed is the same.

    Yields:
        The state after each update.

    Raises:
        ValueError: if energies and weights do not match; if an energy does not depend on the code; if an energy or its
            gradient is not finite, or the chain diverges (names the step).
    """
    _require_energies(guidance, energies)
    for k in range(state.step, guidance.steps):
        noise = noise_of(k)
        values, slope = weighted_gradient(
            lambda z, noise=noise: _evaluate(z, generator, energies, noise)[1], guidance.weights, state.z
        )
        values = _with_sums(values, state.z, guidance)
        _require_finite(values, slope, k)
        if k == 0 and not slope.any():
            raise ValueError("no energy changes with the code, so they cannot guide; choose other energies")
        best_z, best = _judge(state, values, guidance)
        h, n = guidance.step_size, noise.randn_like(state.z)
        z = state.z - h / 2 * (slope + guidance.prior_weight * state.z) + math.sqrt(h) * n
        _require_near(z, k)
        state = State(k + 1, z, best_z, best, values)
        yield state


@torch.no_grad()
def result(
    state: State,
    guidance: Guidance,
    generator: Generator,
    energies: Mapping[str, Energy],
    noise_of: Callable[[int], NoiseSource],
) -> Result:
    """The images of a chain at its end; the arguments are those of `langevin`.

    The noise that is not in the code is drawn anew, so the energies are not those that the chain saw of the same code.
    """
    _require_energies(guidance, energies)
    z = state.z
    if guidance.best_by is not None:
        z = state.best_z
        if guidance.judge_last:
            _, values = _evaluate(state.z, generator, energies, noise_of(guidance.steps))
            z, _ = _judge(state, _with_sums(values, state.z, guidance), guidance)
    images, values = _evaluate(z, generator, energies, noise_of(guidance.steps))
    values = _with_sums(values, z, guidance)
    _require_finite(values, z, guidance.steps)
    return Result(z, images, values)


def _evaluate(
    z: Tensor, generator: Generator, energies: Mapping[str, Energy], noise: NoiseSource
) -> tuple[Tensor, dict[str, Tensor]]:
    images = generator(z, noise)
    shown = (images + 1) / 2
    return images, {name: energies[name](shown, noise) for name in sorted(energies)}


def _with_sums(values: Mapping[str, Tensor], z: Tensor, guidance: Guidance) -> dict[str, Tensor]:
    prior = z.square().flatten(1).sum(1) / 2
    guided = sum((guidance.weights[name] * value for name, value in values.items()), torch.zeros_like(prior))
    return {**values, PRIOR: prior, TOTAL: guided + guidance.prior_weight * prior}


def _judge(state: State, values: Mapping[str, Tensor], guidance: Guidance) -> tuple[Tensor, Tensor]:
    """The best codes and values of each image so far, with the code that the values are of."""
    if guidance.best_by is None:
        return state.best_z, state.best
    value = values[guidance.best_by]
    better = value < state.best
    rows = better.reshape(-1, *[1] * (state.z.dim() - 1))
    return torch.where(rows, state.z, state.best_z), torch.where(better, value, state.best)


def _require_energies(guidance: Guidance, energies: Mapping[str, Energy]) -> None:
    if energies.keys() != guidance.weights.keys():
        raise ValueError(
            f"each energy needs a weight; got energies {', '.join(sorted(energies)) or 'none'} and weights of "
            f"{', '.join(sorted(guidance.weights))}"
        )


def _require_finite(values: Mapping[str, Tensor], slope: Tensor, k: int) -> None:
    wrong = [f"energy {name}" for name, value in values.items() if not value.isfinite().all()]
    if wrong or not slope.isfinite().all():
        what = wrong[0] if wrong else "gradient of the energies"
        raise ValueError(f"the {what} is NaN or Inf in step {k} of the chain; choose a smaller step_size or weight")


def _require_near(z: Tensor, k: int) -> None:
    size = z.square().flatten(1).mean(1).max().sqrt().item()
    if not size < FAR:
        raise ValueError(
            f"the chain diverges in step {k}: its codes have a root mean square of {size:.3g}, where 1 is usual; "
            "choose a smaller step_size or weight"
        )
