"""From prepared source PNGs to translated PNGs: the loop that every method and every device shares."""

import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from cyclediff.data.folders import Folder
from cyclediff.data.images import from_uint8, read_batch, to_uint8
from cyclediff.diffusion.noise import Noise
from cyclediff.errors import UserError
from cyclediff.method import Method
from cyclediff.models.pixel import PixelModel
from cyclediff.runtime import distributed, stop
from cyclediff.runtime.async_io import Writer, ahead
from cyclediff.runtime.batch_size import is_out_of_memory, no_room, release_memory
from cyclediff.runtime.execution import Setup
from cyclediff.runtime.meter import Meter
from cyclediff.runtime.precision import IMAGES, exact
from cyclediff.runtime.profiling import Profile
from cyclediff.runtime.progress import ImageProgress
from cyclediff.runtime.record import Run

Make = Callable[[Sequence[str], Tensor, int, Meter], Sequence[Tensor]]


@torch.no_grad()
def translate(method: Method, models: Mapping[str, PixelModel], source: Folder, run: Run, setup: Setup) -> int:
    """Translate every source image whose batch is not complete on disk.

    Args:
        method: the method.
        models: the model of each domain that the method uses.
        source: prepared source images.
        run: where translations and costs go.
        setup: how.

    Returns:
        The batch size that memory held.

    Raises:
        UserError: if the method cannot work with these models, or its output is not finite.
        Stopped: see `each_batch`.
    """

    def make(ids: Sequence[str], images: Tensor, size: int, meter: Meter) -> list[Tensor]:
        denoisers = {side: meter.watch(model.condition(), side) for side, model in models.items()}
        return list(to_uint8(_translated(method, models["target"], denoisers, ids, images, setup, meter)))

    return each_batch(method.name, source, 1, run, setup, make)


@torch.no_grad()
def sample(method: Method, models: Mapping[str, PixelModel], source: Folder, setup: Setup, exactly: bool) -> Tensor:
    """The first images of a run, translated, (n, 3, h, w) in [-1, 1]; see `translate`.

    Args:
        method: the method.
        models: the model of each domain that the method uses.
        source: prepared source images.
        setup: how.
        exactly: with networks in float32 and not compiled, whatever was asked for.
    """
    ids = source.ids[:IMAGES]
    denoisers = {side: exact(m.condition()) if exactly else m.condition() for side, m in models.items()}
    images = _read(source, ids, setup.device)
    return _translated(method, models["target"], denoisers, ids, images, setup, Meter(ids, lambda: None))


@torch.no_grad()
def evaluate(models: Iterable[PixelModel], size: int, device: torch.device, images: int) -> None:
    """Evaluate networks once on so many images of `size` pixels, to measure what that takes."""
    xt, t = torch.zeros(images, 3, size, size, device=device), torch.full((images,), 500, device=device)
    for model in models:
        model.condition()(xt, t).sum().item()  # .item() waits for a GPU


def _translated(
    method: Method,
    model: PixelModel,
    denoisers: Mapping[str, Any],
    ids: Sequence[str],
    images: Tensor,
    setup: Setup,
    meter: Meter,
) -> Tensor:
    noise = Noise(setup.seed, ids, device=setup.noise_device)
    with meter.stage("encoder"):
        x0 = model.encode(from_uint8(images.to(setup.device, non_blocking=True)), noise)
    source: Any = denoisers.get("source")  # None where the method does not use it
    try:
        out = method(x0, source, denoisers["target"], noise)
    except ValueError as error:
        raise UserError(str(error)) from error
    if not out.isfinite().all():
        bad = [i for i, image in zip(ids, out, strict=True) if not image.isfinite().all()]
        raise UserError(f"{method.name} gave NaN or Inf for image {bad[0]}; finished images are kept, check method.*")
    with meter.stage("decoder"):
        return model.decode(out)


def each_batch(name: str, source: Folder, candidates: int, run: Run, setup: Setup, make: Make) -> int:
    """Make this process's share of the batches that are not complete on disk, and log what each cost.

    Batches are cut from the whole list, so a resumed run, and one in more processes, computes the same batches and
    writes the same bytes. The next batch is read, and the last one is written, while the networks work.

    Args:
        name: what is running, for people.
        source: prepared source images.
        candidates: of each image, which count in the size of a batch.
        run: where results and costs go.
        setup: how.
        make: (ids, images uint8 (n, 3, h, w), batch size, meter) → results, uint8 (3, h, w) each; it evaluates
            networks through the meter. Where memory runs out it is called again for half of the images or with half
            the size.

    Returns:
        The batch size that memory held.

    Raises:
        UserError: if a result cannot be written, or memory is not enough for one image.
        Stopped: if a process was asked to stop, when all have finished the batch in hand.
    """
    ids, size = source.ids, setup.batch_size
    batches = _cut(ids, size, candidates)
    todo, start = distributed.from_first(lambda: ([batch for batch in batches if run.missing(batch)], time.time()))
    mine = todo[distributed.rank() :: distributed.world()]
    if 0 < len(todo) < distributed.world():
        warnings.warn(
            f"{distributed.world()} processes share {len(todo)} batches, so {distributed.world() - len(todo)} have nothing to do; "
            f"batch_size={max(1, sum(map(len, todo)) // distributed.world())} would give each some",
            stacklevel=2,
        )
    profile = Profile(setup.trace, setup.device) if setup.trace and mine else None
    with ImageProgress(name, len(ids), distributed.is_first()) as progress, stop.after_the_batch():
        progress.show_done(len(ids) - sum(map(len, todo)))
        with ThreadPoolExecutor(1) as reader, Writer() as writer, profile or nullcontext():
            read = ahead(mine, lambda batch: _read(source, batch, setup.device), reader)
            for batch in mine:
                if distributed.stopping():
                    break
                began, meters = time.perf_counter(), [Meter(batch, progress.step, profile)]
                with meters[0].stage("waiting for images to be read"):
                    _, images = next(read)
                results, size = _within_memory(make, batch, images, size, candidates, meters)
                with meters[0].stage("waiting for images to be written"):
                    writer.write(results, [run.image(image_id) for image_id in batch])
                run.log_batch(
                    batch,
                    seconds=time.perf_counter() - began,
                    network_seconds=sum(m.seconds for m in meters) if setup.device.type == "cpu" else None,
                    evaluations=sum(m.rows for m in meters),
                    rank=distributed.rank(),
                    world=distributed.world(),
                    start=start,
                )
                progress.finish_batch(len(batch))
                progress.show_done(_done(run, ids))
        distributed.wait_for_all()
        progress.show_done(_done(run, ids))
        if any(distributed.gather(stop.requested())):
            told = f"stopped after {_done(run, ids)} of {len(ids)} images; the same command goes on from there"
            raise stop.Stopped(told)
    if profile and distributed.is_first():
        profile.show(name, sum(map(len, mine)))
    return size


def _within_memory(
    make: Make, ids: Sequence[str], images: Tensor, size: int, candidates: int, meters: list[Meter]
) -> tuple[list[Tensor], int]:
    """Results of a batch, in pieces where memory runs out, and the size that it held; each piece has a meter."""
    results: list[Tensor] = []
    while len(results) < len(ids):
        first = len(results)
        part = _cut(ids[first:], size, candidates)[0]
        meters.append(meters[0].again(part))
        try:
            results += make(part, images[first : first + len(part)], size, meters[-1])
            continue
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if size == 1:
                raise no_room() from error
        meters.pop()
        size //= 2
        warnings.warn(f"memory was not enough for a batch, so its size is {size} from now on", stacklevel=2)
        release_memory()  # after the handler, whose traceback holds what did not fit
    return results, size


def _cut(ids: Sequence[str], size: int, candidates: int) -> list[Sequence[str]]:
    images = max(1, size // candidates)
    return [ids[first : first + images] for first in range(0, len(ids), images)]


def _read(source: Folder, ids: Sequence[str], device: torch.device) -> Tensor:
    images = read_batch([source.path / f"{i}.png" for i in ids])
    return images.pin_memory() if device.type == "cuda" else images


def _done(run: Run, ids: Sequence[str]) -> int:
    return min(sum(1 for _ in run.images.glob("*.png")), len(ids))


def summarise(run: Run, n: int) -> dict[str, Any]:
    """Costs per image over all batches of a run, also those of earlier, interrupted starts.

    Args:
        run: whose batches are logged.
        n: number of its images.

    Returns:
        seconds_per_image, which is time of one process; images_per_second of all processes together, each start as long
        as its slowest process; network_evaluations_per_image; network_share of the time, None where it is not measured;
        ranks, seconds and images of each process in the last start that made images.
    """
    batches = run.batches()
    images = sum(len(batch["ids"]) for batch in batches) or n
    seconds = sum(batch["seconds"] for batch in batches)
    inside = [batch["network_seconds"] for batch in batches]
    starts: dict[float, list[dict[str, Any]]] = {}
    for batch in batches:
        nothing = [{"seconds": 0.0, "images": 0} for _ in range(batch["world"])]
        share = starts.setdefault(batch["start"], nothing)[batch["rank"]]
        share["seconds"] += batch["seconds"]
        share["images"] += len(batch["ids"])
    elapsed = sum(max(rank["seconds"] for rank in ranks) for ranks in starts.values())
    return {
        "images_per_second": images / elapsed if elapsed else None,
        "seconds_per_image": seconds / images,
        "network_evaluations_per_image": sum(batch["evaluations"] for batch in batches) / images,
        "network_share": sum(inside) / seconds if seconds and None not in inside else None,
        "ranks": starts[max(starts)] if starts else [],
    }
