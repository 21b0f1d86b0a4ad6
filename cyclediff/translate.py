"""From prepared source PNGs to translated PNGs: the loop that every method and every device shares."""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from cyclediff import dist, stop
from cyclediff.data import Folder
from cyclediff.errors import UserError
from cyclediff.images import from_uint8, read_batch, to_pil, to_uint8, write_png
from cyclediff.meter import Meter
from cyclediff.method import Method
from cyclediff.models.pixel import PixelModel
from cyclediff.noise import Noise
from cyclediff.progress import ImageProgress
from cyclediff.results import Run


@torch.no_grad()
def translate(
    method: Method,
    models: Mapping[str, PixelModel],
    source: Folder,
    run: Run,
    seed: int,
    batch_size: int,
    device: torch.device,
    noise_device: torch.device,
) -> None:
    """Translate every source image whose batch is not complete on disk.

    Args:
        method: the method.
        models: the model of each domain that the method uses.
        source: prepared source images.
        run: where translations and costs go.
        seed: the run's seed.
        batch_size: images per batch.
        device: where the models are.
        noise_device: where noise is drawn.

    Raises:
        UserError: if the method cannot work with these models, or its output is not finite.
        Stopped: see `each_batch`.
    """

    def make(ids: Sequence[str], meter: Meter) -> None:
        denoisers = {side: meter.watch(model.condition(), side) for side, model in models.items()}
        image = from_uint8(read_batch([source.path / f"{i}.png" for i in ids])).to(device)
        source_denoiser: Any = denoisers.get("source")  # None where the method does not use it
        noise = Noise(seed, ids, device=noise_device)
        x0 = models["target"].encode(image, noise)
        try:
            out = method(x0, source_denoiser, denoisers["target"], noise)
        except ValueError as error:
            raise UserError(str(error)) from error
        if not out.isfinite().all():
            bad = [i for i, image in zip(ids, out, strict=True) if not image.isfinite().all()]
            raise UserError(
                f"{method.name} gave NaN or Inf for image {bad[0]}; finished images are kept, check method.*"
            )
        for image_id, picture in zip(ids, to_uint8(models["target"].decode(out)), strict=True):
            write_png(to_pil(picture), run.image(image_id))

    each_batch(method.name, source.ids, batch_size, run, device, make)


def each_batch(
    name: str,
    ids: Sequence[str],
    size: int,
    run: Run,
    device: torch.device,
    make: Callable[[Sequence[str], Meter], None],
) -> None:
    """Make this process's share of the batches that are not complete on disk, and log what each cost.

    Batches are cut from the whole list, so a resumed run, and one in more processes, computes the same batches and
    writes the same bytes.

    Args:
        name: what is running, for people.
        ids: all images of the run.
        size: images in a batch.
        run: where results and costs go.
        device: where the networks are.
        make: makes the results of some ids and writes them; it evaluates networks through the meter.

    Raises:
        Stopped: if a process was asked to stop, when all have finished the batch in hand.
    """
    batches = [ids[first : first + size] for first in range(0, len(ids), size)]
    todo, start = dist.from_first(lambda: ([batch for batch in batches if run.missing(batch)], time.time()))
    if 0 < len(todo) < dist.world():
        warnings.warn(
            f"{dist.world()} processes share {len(todo)} batches, so {dist.world() - len(todo)} have nothing to do; "
            f"batch_size={max(1, sum(map(len, todo)) // dist.world())} would give each some",
            stacklevel=2,
        )
    with ImageProgress(name, len(ids), dist.is_first()) as progress, stop.after_the_batch():
        progress.show_done(len(ids) - sum(map(len, todo)))
        for batch in todo[dist.rank() :: dist.world()]:
            if dist.stopping():
                break
            began, meter = time.perf_counter(), Meter(batch, progress.step)
            make(batch, meter)
            run.log_batch(
                batch,
                seconds=time.perf_counter() - began,
                network_seconds=meter.seconds if device.type == "cpu" else None,
                evaluations=meter.rows,
                rank=dist.rank(),
                world=dist.world(),
                start=start,
            )
            progress.finish_batch(len(batch))
            progress.show_done(_done(run, ids))
        dist.wait_for_all()
        if any(dist.gather(stop.requested())):
            told = f"stopped after {_done(run, ids)} of {len(ids)} images; the same command goes on from there"
            raise stop.Stopped(told)


def _done(run: Run, ids: Sequence[str]) -> int:
    return min(sum(1 for _ in run.images.glob("*.png")), len(ids))


def pick_device(name: str) -> torch.device:
    """A torch device; "auto" is CUDA, else MPS, else the CPU. Of several GPUs, each process has its own.

    Raises:
        UserError: if there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and dist.world() > 1 and torch.cuda.is_available():
        name = f"cuda:{dist.local_rank() % torch.cuda.device_count()}"  # SLURM can show each process one GPU only
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name} is not available here; choose auto or cpu") from error


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
