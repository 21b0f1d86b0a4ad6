"""LocalBlend of Prompt-to-Prompt (arXiv 2208.01626): an edit stays inside the part of the image that its words mean.

    LocalBlend    the settings: whose words, and how sure
    Blending      the masks of n pairs of prompts in one run of a sampler, from LocalBlend.begin
    StepMaps      takes the maps of one evaluation of the network, from Blending.maps

The maps of some layers that belong to the words, as attention control has edited them, are added up over all steps so
far. Where the sum is large, in the target or in the source, the target keeps its latent; elsewhere it takes the
source's. The masks equal those of the null-text notebook and of PnPInversion.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cyclediff.diffusion.prompt import Prompt
from cyclediff.prompt_alignment import positions_of, require_words

LISTED = "listed"  # a setting that stands for the words that each entry of a list has of its own
STORED = 32**2  # positions of the largest layer that the official store has; larger ones it does not count

Words = str | Sequence[Any]


@dataclass(frozen=True)
class LocalBlend:
    """Which latents an edit may change. A word is named as in `positions_of`; a text has words between its blanks.

    Pairs of prompts with none of the words are not blended; there the official code returns the source.

    Args:
        source: words of the source prompt whose part of the image may change.
        target: the same of the target prompt.
        threshold: a part belongs to the words where their map is above this share of its maximum.
        start: share of the steps at the noisy end after which no latent is blended yet; the maps count nevertheless.
        subtract_source: words of the source prompt whose part may not change.
        subtract_target: the same of the target prompt.
        subtract_threshold: of those words.
        down: first and one past the last of the cross-attention layers that are used, on the way down; layers with more
            than `stored` positions are not counted. For Stable Diffusion at 512 pixels these are the layers of 16².
        up: the same on the way up.
        stored: positions of the largest layers that are counted.
        listed: the words are those of each pair of its own (`Prompt.blended`), and `source` and `target` have none.
    """

    source: Words = ()
    target: Words = ()
    threshold: float = 0.3
    start: float = 0.2
    subtract_source: Words = ()
    subtract_target: Words = ()
    subtract_threshold: float = 0.3
    down: Sequence[int] = (2, 4)
    up: Sequence[int] = (0, 3)
    stored: int = STORED
    listed: bool = False

    def __post_init__(self):
        if not isinstance(self.listed, bool):
            raise ValueError(f"blend.listed must be true or false; got {self.listed!r}")
        if self.listed and (words(self.source) or words(self.target)):
            raise ValueError("blend takes its words from the list, so it has none of its own; leave out one of the two")
        if not self.listed and not words(self.source) and not words(self.target):
            raise ValueError("blend needs words: blend={source: cat, target: dog}, or blend=null")
        for name in ("threshold", "start", "subtract_threshold"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value < 1:
                raise ValueError(f"blend.{name} must be at least 0 and less than 1; got {value!r}")
        if type(self.stored) is not int or self.stored < 1:
            raise ValueError(f"blend.stored must be a whole number of at least 1; got {self.stored!r}")
        for name in ("down", "up"):
            value = getattr(self, name)
            whole = isinstance(value, list | tuple) and [type(number) for number in value] == [int, int]
            if not whole or not 0 <= value[0] <= value[1]:
                raise ValueError(f"blend.{name} must be two whole numbers from 0, as in [2, 4]; got {value!r}")

    def require_words(self, targets: Sequence[str], sources: Sequence[str] | None) -> None:
        """Require that each word is in at least one of the texts of its side, see `prompt_alignment.require_words`."""
        for side, texts in (("target", targets), ("source", sources)):
            for name in (side, f"subtract_{side}"):
                if texts is not None:
                    require_words(f"blend.{name}", words(getattr(self, name)), texts, side)

    def begin(
        self,
        sources: Sequence[Prompt],
        targets: Sequence[Prompt],
        length: int,
        num_steps: int,
        device: torch.device | str = "cpu",
    ) -> "Blending":
        """The masks of n pairs of prompts in one run of a sampler.

        Args:
            sources: n prompts.
            targets: n prompts.
            length: number of token positions that the network sees.
            num_steps: of the sampler.
            device: where the network runs.
        """
        subtracted = self.subtract_source, self.subtract_target

        def table(pair: Sequence[Prompt]) -> Tensor:
            own = [prompt.blended for prompt in pair] if self.listed else (self.source, self.target)
            return torch.stack(
                [
                    torch.stack([_marks(prompt, setting, length) for prompt, setting in zip(pair, kind, strict=True)])
                    for kind in (own, subtracted)
                ]
            )

        marks = torch.stack([table(pair) for pair in zip(sources, targets, strict=True)])
        return Blending(self, marks.to(device), num_steps)


def local_blend(settings: LocalBlend | Mapping[str, Any] | str | None) -> LocalBlend | None:
    """The settings as they are, or made from a mapping; "listed" stands for the words of each pair of its own.

    Raises:
        ValueError: if it is another word, the mapping has another key, or a value is out of range.
    """
    if isinstance(settings, str):
        if settings != LISTED:
            raise ValueError(
                f"blend must be null, {LISTED}, or settings such as {{source: cat, target: dog}}; got {settings!r}"
            )
        return LocalBlend(listed=True)
    if not isinstance(settings, Mapping):
        return settings
    known = [field.name for field in fields(LocalBlend)]
    if unknown := [key for key in settings if key not in known]:
        raise ValueError(f"blend has no setting {str(unknown[0])!r}; choose among {', '.join(known)}")
    return LocalBlend(**{str(key): value for key, value in settings.items()})


def words(value: Words | float | None) -> list[str]:
    """The single words of a setting: those of a text between its blanks, or of a list; a number is a word."""
    if isinstance(value, list | tuple):
        return [str(word) for word in value]
    return [] if value is None else str(value).split()


def _marks(prompt: Prompt, setting: Words, length: int) -> Tensor:
    """1 at the tokens of the words in a setting, else 0: float (length,)."""
    marks = torch.zeros(length)
    for word in words(setting):
        marks[positions_of(prompt, word)] = 1
    return marks


class StepMaps:
    """Takes the maps of one evaluation of the network, of e edited rows and their base rows.

    Args:
        marks: float (e, 2, 2, length): of the words and of those to subtract, in the base row's and the edited row's
            prompt.
        layers: for each part of the network the first and one past the last layer to use.
        stored: positions of the largest layers that are counted.
    """

    def __init__(self, marks: Tensor, layers: Mapping[str, Sequence[int]], stored: int = STORED):
        self.marks = marks
        self.layers = layers
        self.stored = stored
        self.seen: list[tuple[str, int]] = []  # part and number of positions of each layer
        self.taken: list[Tensor] = []

    def wants(self, place: str, queries: int) -> bool:
        """Whether the next layer's maps are used; to be asked once a layer, in the order of evaluation."""
        if queries > self.stored:
            return False
        number = sum(seen == place for seen, _ in self.seen)
        self.seen.append((place, queries))
        first, end = self.layers.get(place, (0, 0))
        return first <= number < end

    def add(self, base: Tensor, edited: Tensor) -> None:
        """Take the maps of a layer, (e, heads, q, length) each."""
        rows = torch.stack((base, edited), dim=1).float()
        self.taken.append(torch.einsum("erhqt,ekrt->ekrq", rows, self.marks.to(rows)) / rows.shape[2])

    def total(self) -> Tensor:
        """Their sum, (e, 2, 2, q), in the order of `marks`.

        Raises:
            ValueError: if no layer was used, or layers of different sizes.
        """
        if len({maps.shape[-1] for maps in self.taken}) != 1:
            seen = ", ".join(f"{place} {queries}" for place, queries in self.seen)
            raise ValueError(
                "blend.down and blend.up must choose cross-attention layers of one number of positions; this network "
                f"has, in order: {seen}"
            )
        return torch.stack(self.taken).sum(0)


class Blending:
    """The masks of n pairs of prompts in one run of a sampler: it adds up the maps of the steps.

    Args:
        settings: of the run.
        marks: float (n, 2, 2, length), see `StepMaps`.
        num_steps: of the sampler.
    """

    def __init__(self, settings: LocalBlend, marks: Tensor, num_steps: int):
        self.settings = settings
        self.marks = marks
        self.first = int(settings.start * num_steps)
        self._step: StepMaps | None = None
        self._pairs = torch.zeros(0, dtype=torch.int64)
        self._sum: Tensor | None = None

    def maps(self, pairs: Tensor) -> StepMaps:
        """What takes the maps of the next evaluation, for rows that belong to these pairs, int64 (e,)."""
        self._pairs = pairs
        layers = {"down": self.settings.down, "up": self.settings.up}
        self._step = StepMaps(self.marks[pairs], layers, self.settings.stored)
        return self._step

    def blend(self, step: int, xs: Tensor, xt: Tensor) -> Tensor:
        """Blend the states after a step.

        Args:
            step: the number of the step that was evaluated; 0 is the first.
            xs: (n, c, h, w), of the sources.
            xt: (e, c, h, w), of the edited rows.

        Returns:
            Xt where it may differ from its source, else xs; xt itself before `start`, and of a network without
            attention layers.

        Raises:
            ValueError: if the layers do not fit, see `StepMaps.total`.
        """
        if self._step is not None and self._step.seen:
            total = self._step.total()
            self._sum = total if self._sum is None else self._sum + total
        self._step = None
        if self._sum is None or step < self.first:
            return xt
        height, width = xt.shape[-2:]
        of_words, subtracted = masks(self._sum, self.settings, (height, width))
        blended = self.marks[self._pairs, 0].flatten(1).any(1)
        keeps = (of_words & ~subtracted)[:, 1] | ~blended[:, None, None]
        return torch.where(keeps[:, None], xt, xs[self._pairs])


def masks(maps: Tensor, settings: LocalBlend, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Where the maps say that the words are.

    Args:
        maps: (e, 2, 2, q): of the words and of those to subtract, in the source and in the target.
        settings: of the run.
        size: height and width of the latents.

    Returns:
        Bool (e, 2, height, width), of the source and of the target, which has the source's part, too; and the same of
        the words to subtract.

    Raises:
        ValueError: if the positions of a layer are not those of the latents, halved and rounded up some times.
    """
    rows, columns = size
    while rows * columns > max(1, maps.shape[-1]):
        rows, columns = halved(rows), halved(columns)
    if rows * columns != maps.shape[-1]:
        raise ValueError(
            f"blend.down and blend.up must choose layers with the proportions of the latents, {size[0]}×{size[1]}; got "
            f"layers of {maps.shape[-1]} positions"
        )
    maps = maps.unflatten(-1, (rows, -1))
    pooled = F.max_pool2d(maps[:, 0], 3, stride=1, padding=1)
    kinds = (pooled, settings.threshold), (maps[:, 1], settings.subtract_threshold)
    of_words, subtracted = (_above(F.interpolate(grids, size=size), threshold) for grids, threshold in kinds)
    return of_words, subtracted


def halved(side: int, times: int = 1) -> int:
    """A side of a layer behind some strided convolutions, which round up."""
    return -(-side >> times)


def _above(maps: Tensor, threshold: float) -> Tensor:
    """Where maps (e, 2, h, w) exceed a share of their maximum; the second of two has the part of the first, too."""
    above = maps > threshold * maps.amax((-2, -1), keepdim=True)
    return torch.stack((above[:, 0], above[:, 0] | above[:, 1]), dim=1)
