"""Batches of edits: images and texts in, every candidate made and scored, the best of each image out."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor

from cyclediff.data.images import from_uint8, to_uint8
from cyclediff.diffusion.noise import Noise
from cyclediff.errors import UserError
from cyclediff.models.text_to_image import TextModel
from cyclediff.runtime import distributed
from cyclediff.runtime.meter import Meter
from cyclediff.runtime.progress import format_duration
from cyclediff.runtime.study import Execution
from cyclediff.shared_encoding import Pruning
from cyclediff.studies.candidates import Edits, Unit, edit, split
from cyclediff.studies.selection import Grid, Prune, rank

POSTERIOR = -1  # the trial that keys the codec's noise, drawn once an image for all its candidates
Scores = Callable[[Sequence[str], Tensor], Mapping[str, Tensor]]


def encoded(
    model: TextModel,
    ids: Sequence[str],
    texts: Mapping[str, tuple[str, str]],
    images: Tensor,
    masks: Tensor | None,
    execution: Execution,
    meter: Meter,
    words: Mapping[str, tuple[str, str]] | None = None,
) -> Edits:
    """The latents of source images, uint8 (n, 3, h, w), with their texts, masks, bool (n, 1, h, w), and listed words.

    A latent may change if any of its pixels may.
    """
    with meter.stage("encoder"):
        pictures = from_uint8(images.to(execution.device, non_blocking=True))
        x0 = model.encode(pictures, Noise(execution.seed, ids, POSTERIOR, execution.noise_device))
    region = masks
    if masks is not None:
        region = F.max_pool2d(masks.to(x0), masks.shape[-1] // x0.shape[-1]).bool()
    listed = [words.get(i, ("", "")) for i in ids] if words else None
    return Edits(ids, [texts[i] for i in ids], x0, execution.seed, execution.noise_device, region, listed)


def best_candidates(
    method: Any,
    model: TextModel,
    edits: Edits,
    grid: Grid,
    shared_encoding: bool,
    metric: str,
    scores: Scores | None,
    size: int,
    meter: Meter,
) -> list[tuple[Tensor, list[dict[str, Any]]]]:
    """For each image its best edit, uint8 (3, h, w), and a row per candidate; no other edit is kept.

    Args:
        method: a method that works on texts.
        model: the text-to-image model.
        edits: the images.
        grid: the candidates of each; rows of those that are dropped have no scores, and `dropped` is true.
        shared_encoding: see `candidates.edit`.
        metric: the column of `scores` by which the best is chosen.
        scores: (ids, edited images uint8 (n, 3, h, w)) → columns of (n,), with `<metric>_defined` where a score can be
            undefined, and NaN where an image can have none; None where there is one candidate only.
        size: candidates that go through the network at once.
        meter: measures stages.

    Raises:
        UserError: if the method cannot work with this model, or its output is not finite.
    """
    best: dict[int, tuple[Any, Tensor]] = {}
    rows: list[list[dict[str, Any]]] = [[] for _ in edits.ids]

    def judged(latents: Tensor, units: Sequence[Unit]) -> tuple[Tensor, list[dict[str, Any]]]:
        """Pictures of some candidates' latents, uint8, and their rows."""
        _require_finite(latents, edits, units, method.name)
        with meter.stage("decoder"):
            decoded = torch.cat([model.decode(part) for part in latents.split(max(1, size // 4))])
        ids = [edits.ids[image] for image, _ in units]
        made = to_uint8(decoded, ids)
        with meter.stage("scores of candidates"):
            columns = scores(ids, made) if scores else {}
        numbers = [{key: value[k].item() for key, value in columns.items()} for k in range(len(units))]
        kept = [{key: None if x != x else x for key, x in each.items()} for each in numbers]  # x != x: NaN
        return made, [candidate.record() | each for (_, candidate), each in zip(units, kept, strict=True)]

    for units in split(method, grid, len(edits.ids), size, shared_encoding):
        dropped: set[int] = set()
        pruning = grid.prune and _pruning(grid.prune, method.num_steps, units, judged, metric, dropped)
        try:
            latents = edit(method, model, edits, grid, units, shared_encoding, pruning)
        except ValueError as error:
            raise UserError(str(error)) from error
        ended = [i for i in range(len(units)) if i not in dropped]
        made, found = judged(latents if not dropped else latents[ended], [units[i] for i in ended])
        for picture, row, i in zip(made, found, ended, strict=True):
            image = units[i][0]
            rows[image].append(row | ({"dropped": False} if grid.prune else {}))
            if image not in best or rank(row, metric) > best[image][0]:
                best[image] = rank(row, metric), picture.cpu()
        for i in sorted(dropped):
            rows[units[i][0]].append(dict.fromkeys(found[0]) | units[i][1].record() | {"dropped": True})
    for image, found in enumerate(rows):
        found.sort(key=lambda row: row["index"])
        for row in found:
            row["chosen"] = -best[image][0][2] == row["index"]
    return [(best[image][1], found) for image, found in enumerate(rows)]


def _pruning(
    prune: Prune,
    num_steps: int,
    units: Sequence[Unit],
    judged: Callable[[Tensor, Sequence[Unit]], tuple[Tensor, list[dict[str, Any]]]],
    metric: str,
    dropped: set[int],
) -> Pruning:
    """Rank candidates by the picture that they would become; notes the numbers of those that are dropped."""

    def keep(x0_hat: Tensor, numbers: Sequence[int]) -> set[int]:
        _, rows = judged(x0_hat, [units[i] for i in numbers])
        of_image: dict[int, list[tuple[Any, int]]] = {}
        for i, row in zip(numbers, rows, strict=True):
            of_image.setdefault(units[i][0], []).append((rank(row, metric), i))
        best = [sorted(group, reverse=True)[: prune.count(len(group))] for group in of_image.values()]
        kept = {i for group in best for _, i in group}
        dropped.update(set(numbers) - kept)
        return kept

    return Pruning(prune.steps(num_steps), keep)


def _require_finite(latents: Tensor, edits: Edits, units: Sequence[Unit], name: str) -> None:
    bad = latents.isfinite().flatten(1).all(1).logical_not().nonzero()
    if len(bad):
        image, candidate = units[int(bad[0])]
        raise UserError(
            f"{name} gave NaN or Inf for image {edits.ids[image]} (guidance {candidate.guidance}, skip "
            f"{candidate.skip}); finished images are kept, check method.* and selection.grid"
        )


@torch.no_grad()
def first_candidates(
    method: Any,
    model: TextModel,
    ids: Sequence[str],
    texts: Mapping[str, tuple[str, str]],
    images: Tensor,
    masks: Tensor | None,
    grid: Grid,
    shared_encoding: bool,
    execution: Execution,
    words: Mapping[str, tuple[str, str]] | None = None,
) -> Tensor:
    """Images, each edited as its first candidate, (n, 3, h, w) in [-1, 1]."""
    edits = encoded(model, ids, texts, images, masks, execution, Meter(ids, lambda: None), words)
    units = [(image, grid.candidates()[0]) for image in range(len(ids))]
    return model.decode(edit(method, model, edits, grid, units, shared_encoding))


@torch.no_grad()
def evaluate(model: TextModel, rows: int, size: int, device: torch.device) -> None:
    """Evaluate the network once on so many rows for images of a size, to measure what that takes."""
    side = size // model.factor
    denoiser = model.condition(["a measurement"] * rows)
    xt = torch.zeros(rows, model.vae.config.latent_channels, side, side, device=device)
    denoiser(xt, model.schedule.at(model.schedule.num_train // 2)).x0.sum().item()  # .item() waits for a GPU


def require_patience(
    cfg: DictConfig,
    model: TextModel,
    device: torch.device,
    candidates: int,
    rows: int,
    missing: int,
    size: int,
    side: int,
) -> None:
    """Print how long the run will take, and require a confirmation where that is long.

    Args:
        cfg: of the run.
        model: the text-to-image model.
        device: where it is.
        candidates: of an image.
        rows: evaluations of the network that an image takes.
        missing: images to be made.
        size: candidates that go through the network at once.
        side: height and width of the images, on an average.

    Raises:
        UserError: if it takes longer than `confirm_above` hours and is not confirmed.
    """

    def seconds_per_row(together: int) -> float:
        def once() -> float:
            began = time.perf_counter()
            evaluate(model, together, side, device)
            return time.perf_counter() - began

        return min(once(), once()) / together

    seconds = missing and missing * rows * seconds_per_row(min(rows, 3 * size)) / distributed.world()
    about = f"{candidates} candidate{'s' * (candidates > 1)}, {rows} network rows an image, {missing} images to do"
    print(f"{cfg.method.name}: {about}: about {format_duration(seconds)} on this {device.type}")
    hours = seconds / 3600
    if hours > cfg.confirm_above and not cfg.confirm:
        raise UserError(
            f"{cfg.method.name} would take about {hours:.1f} hours, more than confirm_above={cfg.confirm_above}; "
            "start it with confirm=true, or choose a smaller tier (tier=quick, tier=single)"
        )
