"""What study=edit checks of its images before the slow part, and how their shapes follow them through a batch."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from math import ceil, sqrt
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from cyclediff.data.fitting import NATIVE
from cyclediff.data.folders import Folder
from cyclediff.data.pie_bench import read_blended_words
from cyclediff.errors import UserError
from cyclediff.runtime import distributed
from cyclediff.studies.context import require_image_size
from cyclediff.studies.sources import Sources

if TYPE_CHECKING:
    from torch import Tensor

    from eval.edits import Edit

SHOWN = 5  # names in a message


def listed_words(
    settings: Sequence[str], source: Folder, texts: Mapping[str, tuple[str, str]]
) -> dict[str, tuple[str, str]]:
    """By id the words that each entry of a list is about; a warning names those that its texts do not have.

    Args:
        settings: of attention control, which ask for them.
        source: the prepared images of the list.
        texts: by id, source and target.

    Raises:
        UserError: if the list names none.
    """
    from cyclediff.diffusion.prompt import is_named

    found = read_blended_words(source)
    if not found:
        asked = " with ".join(f"method.attention.{setting}=listed" for setting in settings)
        instead = " ".join(f"method.attention.{setting}=null" for setting in settings)
        raise UserError(
            f"{asked} asks for blended words, and {source.name} names none; give PIE-Bench's mapping_file.json, or "
            f"{instead}"
        )
    absent = [
        f"{word!r} of {item}"
        for item, words in found.items()
        for word, text in zip(words, texts[item], strict=True)
        if not any(is_named(other, word) for other in text.split())
    ]
    if absent and distributed.is_first():
        warnings.warn(
            f"blended words that are not in their text do nothing: {', '.join(absent[:SHOWN])}"
            f"{f' and {len(absent) - SHOWN} more' if len(absent) > SHOWN else ''}",
            stacklevel=2,
        )
    return found


def require_masks(cfg: DictConfig, takes_region: bool, edits: "Mapping[str, Edit]") -> None:
    """Require that each image has a mask and the method keeps to it, where edits stay inside masks.

    Raises:
        UserError: if not.
    """
    if not cfg.inside_masks:
        return
    if not takes_region:
        raise UserError(
            f"{cfg.method.name} cannot keep an edit inside a mask; choose another method, as cyclediffusion, "
            "or inside_masks=false"
        )
    without = [item for item, edit in edits.items() if edit.mask is None]
    if without:
        raise UserError(
            f"inside_masks=true needs a mask of each image, and {len(without)} of {len(edits)} have "
            f"none, the first {without[0]}; give them one (column mask), or leave it out"
        )


def require_shapes(model: Any, sources: Sources, what: str) -> None:
    """Require that a text-to-image model can work on images of these shapes; say where it was trained on others.

    Raises:
        UserError: if it cannot.
    """
    if sources.fit != NATIVE:
        return require_image_size(model, sources.size, what, "task.size")
    if model.dynamic is not None:
        raise UserError(
            f"the noise levels of {what} follow the size of an image, and one run has one set of them; choose "
            "data.fit=pad or data.fit=crop"
        )
    largest, (item, shape) = model.backbone.largest, max(sources.shapes.items(), key=lambda entry: max(entry[1]))
    if largest is not None and max(sources.frame(item, model.multiple)) > largest:
        raise UserError(
            f"{what} has positions for images of up to {largest} pixels, and {item} has {shape[1]}×{shape[0]}; make it "
            "smaller, or choose data.fit=pad or data.fit=crop"
        )
    if distributed.is_first():
        longest = [max(shape) for shape in sources.shapes.values()]
        print(
            f"note: {what} was trained on squares of {model.size} pixels, and the longer sides of these images have "
            f"{min(longest)} to {max(longest)}"
        )


def square_like(sources: Sources, multiple: int, pick: Callable[[list[int]], float] = max) -> int:
    """Side of a square, a multiple of `multiple`, with as many pixels as a model sees of an image of a run.

    Args:
        sources: of the run.
        multiple: of what the model halves.
        pick: which of the numbers of pixels; by default the largest.
    """
    areas = [height * width for height, width in (sources.frame(i, multiple) for i in sources.source.ids)]
    return ceil(sqrt(pick(areas)) / multiple) * multiple


def shaped_scores(
    scores: "Callable[[Sequence[str], Tensor], Mapping[str, Tensor]]", sources: Sources
) -> "Callable[[Sequence[str], Tensor], Mapping[str, Tensor]]":
    """Scores of what a model has made, in the shapes of the source images; `scores` takes images of one shape."""
    import torch

    def of_shapes(ids: Sequence[str], pictures: "Tensor") -> "Mapping[str, Tensor]":
        if not sources.shapes:
            return scores(ids, pictures)
        groups: dict[tuple[int, int], list[int]] = {}
        for place, item in enumerate(ids):
            groups.setdefault(sources.shapes[item], []).append(place)
        found = []
        for places in groups.values():
            names = [ids[place] for place in places]
            found.append(scores(names, torch.stack(sources.shaped([pictures[place] for place in places], names))))
        back = torch.tensor([place for places in groups.values() for place in places]).argsort()
        return {key: torch.cat([columns[key] for columns in found])[back] for key in found[0]}

    return of_shapes
