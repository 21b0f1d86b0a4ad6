"""A model whose latent space is the image itself."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from cyclediff.diffusion.denoiser import Denoiser
from cyclediff.diffusion.noise import NoiseSource


@dataclass(frozen=True)
class PixelModel:
    """An unconditional pixel-space network: identity codec and one denoiser.

    Args:
        denoiser: the network with its schedule.
        size: height and width of the images it was trained on.
        multiple: of which height and width of an image must be multiples.
    """

    denoiser: Denoiser
    size: int
    multiple: int

    def encode(self, image: Tensor, noise: NoiseSource) -> Tensor:
        """x0 of images (n, 3, h, w) in [-1, 1]: the images themselves, without a draw."""
        return image

    def decode(self, x0: Tensor) -> Tensor:
        """Images of x0 (n, 3, h, w), clamped to [-1, 1]."""
        return x0.clamp(-1, 1)

    def condition(self, prompts: Sequence[str] | None = None, guidance_scale: float = 1.0) -> Denoiser:
        """The denoiser; the model has no conditions.

        Raises:
            ValueError: if there are prompts.
        """
        if prompts is not None:
            raise ValueError("an unconditional model takes no prompts; choose a text-to-image model or leave them out")
        return self.denoiser
