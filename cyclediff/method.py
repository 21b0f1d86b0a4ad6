"""What a method is."""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from cyclediff.diffusion.denoiser import Denoiser
from cyclediff.diffusion.noise import NoiseSource


class Method(Protocol):
    """A line of the table: a frozen dataclass of hyper-parameters around a pure function.

    It touches no file, configuration, device placement or global random state, and changes none of its inputs. It
    declares what it needs and can do, so that a run need not know its class. `needs` and `conditions` are also in its
    file in conf/method, where the command line reads them.
    """

    @property
    def name(self) -> str:
        """The stem of its file in conf/method."""
        ...

    @property
    def needs(self) -> frozenset[str]:
        """The networks that it evaluates: "source", "target", and guidance networks such as "extractor".

        A source or target that is not needed may be None. A guidance network is a setting: the dataclass field of that
        name holds it.
        """
        ...

    @property
    def conditions(self) -> frozenset[str]:
        """Under which conditions of the model it works: a subset of {"none", "text", "image"}."""
        ...

    @property
    def starts_at(self) -> str | None:
        """Name of the setting that counts the timesteps it starts from; None if it always starts at pure noise."""
        ...

    @property
    def inverts(self) -> bool:
        """Whether several candidates can share one encoding; it is then an `InvertingMethod`."""
        ...

    @property
    def reconstructs(self) -> str | None:
        """Whether it returns x0 where the target is the source: "exact", "approximately" (see `round_trip`), or None.

        Attention control and refinement, which change images by design, count for nothing.
        """
        ...

    @property
    def takes_region(self) -> bool:
        """Whether it keeps the source outside the `region` of a text-conditional target."""
        ...

    @property
    def num_steps(self) -> int:
        """Number of timesteps of its sampler."""
        ...

    def __call__(self, x0: Tensor, source: Denoiser, target: Denoiser, noise: NoiseSource) -> Tensor:
        """Translate x0, float (n, c, h, w), to the target domain; same shape, not clamped."""
        ...


class InvertingMethod(Method, Protocol):
    """A method that encodes the source, so that several candidates of an edit can share one encoding."""

    def candidates(
        self,
        x0: Tensor,
        source: Denoiser,
        target: Denoiser,
        noise: NoiseSource,
        candidates: Sequence[tuple[int, int]],
        pruning: Any = None,
    ) -> Tensor:
        """Translate each encoding in many ways, see `cyclediff.shared_encoding.decode_candidates`."""
        ...
