"""Does a method give an image back where the target is the source? A run makes one image so, before the slow part.

A method says with `reconstructs` what its mathematics promises: "exact" up to rounding, "approximately" (a solver's
steps are not small, or the last step is predicted), or None. A round trip leaves out what changes images by design:
attention control, refinement and guidance. Latents are compared after the decoder, with what it makes of the image's
own latents. So an autoencoder's losses count for nothing; they are reported beside it.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from cyclediff.runtime.study import Execution
from cyclediff.studies.selection import Grid

if TYPE_CHECKING:
    from torch import Tensor

    from cyclediff.models.text_to_image import TextModel

EXACT, APPROXIMATE = "exact", "approximately"
BOUNDS = {EXACT: 60.0, APPROXIMATE: 15.0}  # dB; on pets 140 and more, and 19 (direct inversion) to 50
OF_16_BITS = 35.0  # dB, of what is exact: below the 40 dB at which such a run is refused, as two errors add up
HIGHEST = 150.0  # dB, of float32's rounding and better
FEWEST_STEPS = 20  # of a sampler, below which "approximately" promises nothing
FEWEST = 16  # images to be made, from which a run pays for one more
LEFT_OUT = {"attention": None, "refine_steps": 0}  # settings, and what they are without their effect


@dataclass(frozen=True)
class RoundTrip:
    """What came back of an image.

    Args:
        psnr: dB, to what the model can show of the image.
        bound: dB, below which something is wrong.
        codec_psnr: dB, of the autoencoder's own round trip; None for models on pixels.
        image: its id.
    """

    psnr: float
    bound: float
    codec_psnr: float | None
    image: str

    @property
    def is_low(self) -> bool:
        """Whether it is lower than it should be."""
        return not self.psnr >= self.bound  # NaN is low, too

    @property
    def verdict(self) -> str:
        """In words."""
        return "lower than it should be" if self.is_low else "as it should"

    def record(self) -> dict[str, Any]:
        """For run.json."""
        found = {"psnr": round(self.psnr, 2), "bound": self.bound, "image": self.image}
        return found if self.codec_psnr is None else found | {"codec_psnr": round(self.codec_psnr, 2)}


def promise(method: Any) -> str | None:
    """What a method promises of a round trip; None also of one that says nothing."""
    said = getattr(neutral(method), "reconstructs", None)
    return None if said == APPROXIMATE and method.num_steps < FEWEST_STEPS else said


def neutral(method: Any) -> Any:
    """A method without what changes images by design."""
    names = {field.name for field in fields(method)}
    return replace(method, **{key: value for key, value in LEFT_OUT.items() if key in names})


def neutral_guidance(method: Any) -> float:
    """The guidance scale under which a method does nothing of its own to a source under its own text."""
    return getattr(method, "neutral_guidance", 1.0)


def compare(method: Any, image: str, got: "Tensor", shown: "Tensor", original: "Tensor", is_float32: bool) -> RoundTrip:
    """Judge a round trip.

    Args:
        method: it promises something.
        image: its id.
        got: what came back, (1, 3, h, w) in [-1, 1].
        shown: what the model can show of the image, same shape: itself, or its latents decoded.
        original: the image, same shape.
        is_float32: whether the networks computed in float32.
    """
    said = promise(method)
    bound = OF_16_BITS if said == EXACT and not is_float32 else BOUNDS[str(said)]
    codec = None if shown is original else psnr(shown, original)
    return RoundTrip(psnr(got, shown), bound, codec, image)


def edited_to_itself(
    method: Any, model: "TextModel", item: str, text: str, image: "Tensor", grid: Grid, execution: Execution
) -> "tuple[Tensor, Tensor, Tensor]":
    """An image edited to its own text without guidance, its latents decoded, and the image: (1, 3, h, w) in [-1, 1].

    Args:
        method: see `neutral`.
        model: the text-to-image model.
        item: the image's id.
        text: what it shows.
        image: uint8 (1, 3, h, w).
        grid: its candidates, of which the first says where the path starts.
        execution: of the run.
    """
    import torch

    from cyclediff.data.images import from_uint8
    from cyclediff.runtime.meter import Meter
    from cyclediff.studies.candidates import edit
    from cyclediff.studies.editing import encoded

    plain = Grid(1, (1.0,), grid.skip[:1], (neutral_guidance(method),))
    with torch.no_grad():
        edits = encoded(model, [item], {item: (text, text)}, image, None, execution, Meter([item], lambda: None))
        got = edit(method, model, edits, plain, [(0, plain.candidates()[0])], shared_encoding=False)
        return model.decode(got), model.decode(edits.x0), from_uint8(image.to(execution.device))


def psnr(got: "Tensor", expected: "Tensor") -> float:
    """Of images in [-1, 1], in dB; at most `HIGHEST`."""
    error = (got.double() - expected.double()).square().mean().item()
    return min(10 * math.log10(4 / error), HIGHEST) if error else HIGHEST


def noted(name: str, found: RoundTrip | None) -> Mapping[str, Any]:
    """What run.json says of a round trip, with a warning where it is lower than it should be."""
    if found is None:
        return {}
    if found.is_low:
        warnings.warn(
            f"{name} gives {found.image} back with {found.psnr:.1f} dB where source and target are the same, and "
            f"{found.bound:g} dB are expected; check weights, steps and dtype before you trust its images",
            stacklevel=2,
        )
    return {"round_trip": found.record()}
