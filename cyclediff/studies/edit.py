"""From prepared source PNGs and their texts to edited PNGs: candidates in batches, the best of each image kept."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cyclediff.data.folders import Folder
from cyclediff.data.images import from_uint8, read_batch, to_uint8
from cyclediff.diffusion.noise import Noise
from cyclediff.errors import UserError
from cyclediff.models.text_to_image import TextModel
from cyclediff.runtime.batches import each_batch
from cyclediff.runtime.execution import Setup
from cyclediff.runtime.meter import Meter
from cyclediff.runtime.precision import IMAGES
from cyclediff.runtime.record import Run
from cyclediff.studies.candidates import Edits, Unit, edit, split
from cyclediff.studies.selection import Grid, rank

POSTERIOR = -1  # the trial that keys the codec's noise, drawn once an image for all its candidates
Scores = Callable[[Sequence[str], Tensor], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Selection:
    """How the candidates of an edit are made and ranked.

    Args:
        grid: all of them.
        metric: the column of `scores` by which the best is chosen.
        scores: (ids, edited images uint8 (n, 3, h, w)) → columns of (n,), with `<metric>_defined` where a score can be
            undefined; not called where there is one candidate only.
        shared_path: see `candidates.edit`.
    """

    grid: Grid
    metric: str
    scores: Scores
    shared_path: bool


@torch.no_grad()
def edit_images(
    method: Any,
    model: TextModel,
    source: Folder,
    texts: Mapping[str, tuple[str, str]],
    selection: Selection,
    run: Run,
    setup: Setup,
) -> int:
    """Edit every source image whose batch is not complete on disk, and log candidates.

    Args:
        method: the method.
        model: the text-to-image model.
        source: prepared source images.
        texts: source and target text of each.
        selection: how candidates are made and ranked.
        run: where edited images, candidates and costs go.
        setup: how; several images share a batch of candidates where an image has fewer.

    Returns:
        The batch size that memory held.

    Raises:
        UserError: if the method cannot work with this model, or its output is not finite.
        Stopped: see `translate.each_batch`.
    """

    def make(ids: Sequence[str], images: Tensor, size: int, meter: Meter) -> list[Tensor]:
        edits = _edits(model, ids, texts, images, setup, meter)
        best = _best(method, meter.watch(model, "text-to-image"), edits, selection, size, meter)
        for image_id, (_, rows) in zip(ids, best, strict=True):
            run.log_candidates(image_id, rows)
        return [picture for picture, _ in best]

    return each_batch(method.name, source, len(selection.grid.candidates()), run, setup, make)


@torch.no_grad()
def sample(
    method: Any,
    model: TextModel,
    source: Folder,
    texts: Mapping[str, tuple[str, str]],
    selection: Selection,
    setup: Setup,
) -> Tensor:
    """The first images of a run, each edited as its first candidate, (n, 3, h, w) in [-1, 1]; see `edit_images`."""
    ids, grid = source.ids[:IMAGES], selection.grid
    images = read_batch([source.path / f"{i}.png" for i in ids])
    edits = _edits(model, ids, texts, images, setup, Meter(ids, lambda: None))
    units = [(image, grid.candidates()[0]) for image in range(len(ids))]
    return model.decode(edit(method, model, edits, grid, units, selection.shared_path))


def _edits(
    model: TextModel,
    ids: Sequence[str],
    texts: Mapping[str, tuple[str, str]],
    images: Tensor,
    setup: Setup,
    meter: Meter,
) -> Edits:
    with meter.stage("encoder"):
        pictures = from_uint8(images.to(setup.device, non_blocking=True))
        x0 = model.encode(pictures, Noise(setup.seed, ids, POSTERIOR, setup.noise_device))
    return Edits(ids, [texts[i] for i in ids], x0, setup.seed, setup.noise_device)


def _best(
    method: Any, model: TextModel, edits: Edits, selection: Selection, batch_size: int, meter: Meter
) -> list[tuple[Tensor, list[dict[str, Any]]]]:
    """For each image its best edit, uint8, and a row per candidate; no other edit is kept."""
    best: dict[int, tuple[Any, Tensor]] = {}
    rows: list[list[dict[str, Any]]] = [[] for _ in edits.ids]
    grid, metric = selection.grid, selection.metric
    for units in split(method, grid, len(edits.ids), batch_size, selection.shared_path):
        try:
            latents = edit(method, model, edits, grid, units, selection.shared_path)
        except ValueError as error:
            raise UserError(str(error)) from error
        _insist_on_finite(latents, edits, units, method.name)
        with meter.stage("decoder"):
            made = torch.cat([to_uint8(model.decode(part)) for part in latents.split(max(1, batch_size // 4))])
        ids = [edits.ids[image] for image, _ in units]
        with meter.stage("scores of candidates"):
            columns = selection.scores(ids, made) if len(grid.candidates()) > 1 else {}
        for k, (image, candidate) in enumerate(units):
            row = {key: value for key, value in vars(candidate).items() if key != "chain"}
            row |= {key: value[k].item() for key, value in columns.items()}
            rows[image].append(row)
            if image not in best or rank(row, metric) > best[image][0]:
                best[image] = rank(row, metric), made[k].cpu()
    for image, found in enumerate(rows):
        found.sort(key=lambda row: row["index"])
        for row in found:
            row["chosen"] = -best[image][0][2] == row["index"]
    return [(best[image][1], found) for image, found in enumerate(rows)]


def _insist_on_finite(latents: Tensor, edits: Edits, units: Sequence[Unit], name: str) -> None:
    bad = latents.isfinite().flatten(1).all(1).logical_not().nonzero()
    if len(bad):
        image, candidate = units[int(bad[0])]
        raise UserError(
            f"{name} gave NaN or Inf for image {edits.ids[image]} (guidance {candidate.guidance}, skip "
            f"{candidate.skip}); finished images are kept, check method.* and selection.grid"
        )


@torch.no_grad()
def evaluate(model: TextModel, rows: int, device: torch.device) -> None:
    """Evaluate the network once on so many rows, to measure what that takes."""
    side = model.size // 2 ** (len(model.vae.config.block_out_channels) - 1)
    denoiser = model.condition(["a measurement"] * rows)
    xt = torch.zeros(rows, model.vae.config.latent_channels, side, side, device=device)
    denoiser(xt, torch.full((rows,), 500, device=device)).sum().item()  # .item() waits for a GPU


def seconds_per_row(model: TextModel, rows: int, device: torch.device) -> float:
    """Time of one evaluation of the network, measured on batches of `rows`, as the run will have them."""

    def once() -> float:
        began = time.perf_counter()
        evaluate(model, rows, device)
        return time.perf_counter() - began

    return min(once(), once()) / rows
