"""Candidates of edits, many in one batch: latents and prompts in, latents out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby
from typing import Any, Protocol

import torch
from torch import Tensor

from cyclediff.diffusion.conditioning import OF_UNETS, Abilities, Conditioning
from cyclediff.diffusion.denoiser import GuidedDenoiser
from cyclediff.diffusion.noise import Noise
from cyclediff.diffusion.prompt import Prompt
from cyclediff.diffusion.schedule import Schedule
from cyclediff.shared_encoding import Pruning
from cyclediff.studies.selection import Candidate, Grid

Unit = tuple[int, Candidate]  # number of the image in its batch, and how to edit it


class Conditional(Protocol):
    """What is needed of a text-to-image model here."""

    def condition(self, prompts: Sequence[str], guidance_scale: Sequence[float]) -> GuidedDenoiser:
        """The denoiser under a prompt and a guidance scale an image."""
        ...


@dataclass(frozen=True)
class Edits:
    """A batch of images to edit.

    Args:
        ids: image ids, which key the noise.
        texts: (source, target) prompt of each.
        x0: (n, c, h, w), their latents.
        region: bool (n, 1, h, w), where each may change; None for everywhere.
        words: the (source, target) words that each is about, "" where there are none; None for none at all.
        seed: the run's seed.
        noise_device: where noise is drawn.
    """

    ids: Sequence[str]
    texts: Sequence[tuple[str, str]]
    x0: Tensor
    seed: int
    noise_device: torch.device | str = "cpu"
    region: Tensor | None = None
    words: Sequence[tuple[str, str]] | None = None


def split(method: Any, grid: Grid, images: int, size: int, shared_encoding: bool) -> list[list[Unit]]:
    """All candidates of some images in pieces of about `size`, each fit for one `edit`.

    Candidates that share an encoding stay together. Without attention control, CycleDiffusion takes candidates of any
    skip in one piece; other methods take one skip at a time.
    """
    units = [(image, candidate) for image in range(images) for candidate in grid.candidates()]
    lockstep = method.inverts and not method.attention
    pieces = []
    for _, same in groupby(
        sorted(units, key=lambda u: 0 if lockstep else u[1].skip), lambda u: 0 if lockstep else u[1].skip
    ):
        groups = [
            list(group) for _, group in groupby(same, key=lambda u: (u[0], _encoding(u[1], grid, shared_encoding)))
        ]
        if lockstep and not shared_encoding:
            groups.sort(key=lambda group: group[0][1].skip)  # a piece of like skips keeps its batch full for longer
        count = max(1, size // len(groups[0]))
        pieces += [list(chain(*groups[start : start + count])) for start in range(0, len(groups), count)]
    return pieces


def edit(
    method: Any,
    model: Conditional,
    edits: Edits,
    grid: Grid,
    units: Sequence[Unit],
    shared_encoding: bool,
    pruning: Pruning | None = None,
) -> Tensor:
    """Edit latents.

    Args:
        method: a method that works on texts, see `Method`.
        model: the text-to-image model.
        edits: the images.
        grid: all candidates.
        units: the candidates to make, a piece of `split`.
        shared_encoding: whether candidates of one trial that differ in skip share one encoding.
        pruning: which candidates are dropped on the way, by their number in `units`.

    Returns:
        (len(units), c, h, w), in their order. Outside the region they are the source's.
    """
    found = _edit(method, model, edits, grid, units, shared_encoding, pruning)
    if edits.region is None:
        return found
    images = [image for image, _ in units]
    return torch.where(edits.region[images], found, edits.x0[images])


def _edit(
    method: Any, model: Conditional, edits: Edits, grid: Grid, units: Sequence[Unit], shared_encoding: bool,
    pruning: Pruning | None,
) -> Tensor:  # fmt: skip
    if not method.inverts:
        skip = units[0][1].skip
        some = replace(method, **{method.starts_at: method.num_steps - skip}) if method.starts_at else method
        source, target = (_condition(model, edits, units, side) for side in (0, 1))
        noise = Noise(edits.seed, [edits.ids[b] for b, _ in units], [c.encoding for _, c in units], edits.noise_device)
        return some(edits.x0[[b for b, _ in units]], source, target, noise)
    order = sorted(range(len(units)), key=lambda i: units[i][1].skip)
    keys = [(units[i][0], _encoding(units[i][1], grid, shared_encoding)) for i in order]
    first = {key: units[i] for key, i in reversed(list(zip(keys, order, strict=True)))}
    encodings = [first[key] for key in dict.fromkeys(keys)]
    place = {key: k for k, key in enumerate(dict.fromkeys(keys))}
    noise = Noise(
        edits.seed,
        [edits.ids[b] for b, _ in encodings],
        [_encoding(c, grid, shared_encoding) for _, c in encodings],
        edits.noise_device,
    )
    found = method.candidates(
        edits.x0[[b for b, _ in encodings]],
        _condition(model, edits, encodings, 0),
        _condition(model, edits, [units[i] for i in order], 1),
        noise,
        [(place[key], method.num_steps - units[i][1].skip) for key, i in zip(keys, order, strict=True)],
        pruning and _of_sorted(pruning, order),
    )
    return found[torch.tensor(order, device=found.device).argsort()]


def _of_sorted(pruning: Pruning, order: Sequence[int]) -> Pruning:
    """The same for candidates that are numbered in another order."""
    place = {number: k for k, number in enumerate(order)}

    def keep(x0_hat: Tensor, candidates: Sequence[int]) -> set[int]:
        return {place[i] for i in pruning.keep(x0_hat, [order[k] for k in candidates])}

    return Pruning(pruning.at, keep)


def count_rows(
    method: Any,
    schedule: Schedule,
    grid: Grid,
    size: int,
    shared_encoding: bool,
    regional: bool = False,
    abilities: Abilities = OF_UNETS,
) -> int:
    """Evaluations of the network that all candidates of an image take.

    Those of one trial are counted, by making them with an empty network; every trial takes as many. So what a method
    refuses, it refuses here, before the slow part.

    Args:
        method: a method that works on texts.
        schedule: levels of the network.
        grid: all candidates.
        size: see `split`.
        shared_encoding: see `edit`.
        regional: whether edits stay inside a region.
        abilities: what a method may ask of the network.

    Raises:
        ValueError: if the method cannot work with such a network.
    """
    prune = grid.prune  # the last candidates are dropped here
    pruning = prune and Pruning(prune.steps(method.num_steps), lambda _, some: set(some[: prune.count(len(some))]))
    counter, once = _Counter(schedule, abilities), replace(grid, trials=1)
    region = torch.ones(1, 1, 1, 1, dtype=torch.bool) if regional else None
    edits = Edits(["counted"], [("a b", "a c")], torch.zeros(1, 1, 1, 1), 0, region=region)
    for units in split(method, once, 1, size, shared_encoding):
        edit(method, counter, edits, once, units, shared_encoding, pruning)
    return counter.rows * grid.trials


def _encoding(candidate: Candidate, grid: Grid, shared_encoding: bool) -> int:
    """Number of the encoding, which keys its noise."""
    return candidate.encoding // len(grid.skip) if shared_encoding else candidate.encoding


def _condition(model: Conditional, edits: Edits, units: Sequence[Unit], side: int) -> GuidedDenoiser:
    scales = [candidate.guidance if side else candidate.source_guidance for _, candidate in units]
    denoiser = model.condition([edits.texts[image][side] for image, _ in units], scales)
    if edits.words:
        of_units = [edits.words[image][side] for image, _ in units]
        prompts = [replace(p, blended=word) for p, word in zip(denoiser.prompts, of_units, strict=True)]
        denoiser = replace(denoiser, prompts=tuple(prompts))
    if edits.region is None or not side:
        return denoiser
    return replace(denoiser, region=edits.region[[image for image, _ in units]])


class _Counter:
    """A text-to-image model whose network counts its rows and predicts zeros."""

    def __init__(self, schedule: Schedule, abilities: Abilities):
        self.rows, self.schedule, self.abilities = 0, schedule, abilities

    def condition(self, prompts: Sequence[str], guidance_scale: Sequence[float]) -> GuidedDenoiser:
        """A denoiser under prompts of three words that any attention control can align."""
        prompt = Prompt("a b c", (0, 1, 2, 3, 4), ((0, 0), (0, 1), (2, 3), (4, 5), (0, 0)))
        n = len(prompts)
        context, empty = Conditioning(torch.zeros(n, 5, 1)), Conditioning(torch.zeros(1, 5, 1))
        return GuidedDenoiser(
            self._count, self.schedule, "flow", context, empty, tuple(guidance_scale), (prompt,) * n, "counter",
            abilities=self.abilities,
        )  # fmt: skip

    def _count(self, xt: Tensor, t: Tensor, context: Conditioning, edit: Any) -> Tensor:
        self.rows += len(xt)
        return torch.zeros_like(xt)
