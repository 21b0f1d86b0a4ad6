"""What a method is."""

from typing import Protocol

from torch import Tensor

from cyclediff.diffusion.denoiser import Denoiser


class NoiseSource(Protocol):
    """The only source of randomness that a method may use; `cyclediff.diffusion.noise.Noise` in a run."""

    def randn_like(self, x: Tensor) -> Tensor:
        """Standard normal noise in the shape, type and place of x (n, ...)."""
        ...

    def rows(self, start: int, stop: int) -> "NoiseSource":
        """The source of some images of the batch."""
        ...


class Method(Protocol):
    """A row of the table: a frozen dataclass of hyper-parameters around a pure function.

    It touches no file, configuration, device placement or global random state, and changes none of its inputs.
    """

    @property
    def name(self) -> str:
        """The stem of its file in conf/method."""
        ...

    @property
    def uses(self) -> frozenset[str]:
        """Which denoisers it needs, a subset of {"source", "target"}; the other one may be None."""
        ...

    def __call__(self, x0: Tensor, source: Denoiser, target: Denoiser, noise: NoiseSource) -> Tensor:
        """Translate x0, float (n, c, h, w), to the target domain; same shape, not clamped."""
        ...
