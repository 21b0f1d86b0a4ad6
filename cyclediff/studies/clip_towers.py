"""CLIPs whose features guide sampling: images and texts in, features with a gradient out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cyclediff.errors import UserError


@dataclass(frozen=True, eq=False)
class ClipTower:
    """A CLIP, as the losses of `cyclediff.diffusion.clip_views` use it.

    Args:
        network: normalised images (n, 3, size, size) → features (n, d).
        encode_texts: texts → features (n, d).
        size: height and width of what it reads.
        mean: of each channel, in [0, 1].
        std: of each channel.
    """

    network: Callable[[Tensor], Tensor]
    encode_texts: Callable[[Sequence[str]], Tensor]
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def images(self, views: Tensor) -> Tensor:
        """Features (n, d) of images (n, 3, size, size) in [0, 1]."""
        mean, std = (views.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return self.network((views - mean) / std)

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Features of texts, (n, d), as long as CLIP makes them."""
        return self.encode_texts(texts)


def load_towers(path: str, models: Sequence[str] | None = None, device: str = "cpu") -> list[ClipTower]:
    """One or several CLIPs of open_clip, in float32.

    Args:
        path: of one CLIP, as `eval.metrics.clip.open_clip_scorer` reads it; with `models` the folder of their files.
        models: open_clip's names; the file of each is named as OpenAI names it, ViT-B-32.pt.
        device: where they run.

    Raises:
        UserError: if one is not there, or does not fit.
    """
    from eval.metrics.clip import open_clip_scorer

    places = [(path, None)] if models is None else [(str(Path(path, f"{_file(name)}.pt")), name) for name in models]
    try:
        return [_tower(open_clip_scorer(place, name, device), device) for place, name in places]
    except ValueError as error:
        raise UserError(str(error)) from error


def _file(model: str) -> str:
    return model.removesuffix("-quickgelu")


def _tower(scorer: Any, device: str) -> ClipTower:
    network, how = scorer.network, scorer.network.visual.preprocess_cfg
    size = how["size"] if isinstance(how["size"], int) else how["size"][0]

    @torch.no_grad()
    def encode(texts: Sequence[str]) -> Tensor:
        return network.encode_text(scorer.tokenize(list(texts)).to(device)).float()

    return ClipTower(network.encode_image, encode, size, tuple(how["mean"]), tuple(how["std"]))
