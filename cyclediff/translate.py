"""From prepared source PNGs to translated PNGs: the loop that every method and every device shares."""

import time
from collections.abc import Mapping
from typing import Any

import torch

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
    """Translate every source image whose batch is not complete on disk, and log what each batch cost.

    Batches are cut from the whole list, so a resumed run computes the same batches and writes the same bytes.

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
    """
    with ImageProgress(method.name, len(source.ids)) as progress:
        for first in range(0, len(source.ids), batch_size):
            ids = source.ids[first : first + batch_size]
            if not run.missing(ids):
                progress.skip(len(ids))
                continue
            began, meter = time.perf_counter(), Meter(ids, progress.step)
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
            run.log_batch(
                ids,
                seconds=time.perf_counter() - began,
                network_seconds=meter.seconds if device.type == "cpu" else None,
                evaluations=meter.rows,
            )
            progress.finish_batch(len(ids))


def pick_device(name: str) -> torch.device:
    """A torch device; "auto" is CUDA, else MPS, else the CPU.

    Raises:
        UserError: if there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name} is not available here; choose auto or cpu") from error


def summarise(run: Run, n: int) -> dict[str, float | None]:
    """Costs per image over all batches of a run, also those of earlier, interrupted starts."""
    batches = run.batches()
    images = sum(len(batch["ids"]) for batch in batches) or n
    seconds = sum(batch["seconds"] for batch in batches)
    inside = [batch["network_seconds"] for batch in batches]
    return {
        "images_per_second": images / seconds if seconds else None,
        "seconds_per_image": seconds / images,
        "network_evaluations_per_image": sum(batch["evaluations"] for batch in batches) / images,
        "network_share": sum(inside) / seconds if seconds and None not in inside else None,
    }
