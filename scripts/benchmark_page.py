"""How long report.html takes to write and how large it is, for 6 runs of 500 photos: part of `make bench`."""

import io
import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image
from rich.table import Table

from eval.metrics.metric import Metric
from eval.records import SCHEMA, MetricRecord, RunRecord, ScoresRecord, write_scores
from eval.report.tables import write_page

METHODS = ("cyclediffusion", "sdedit", "ddib", "ilvr", "egsde", "egsde_dagger")
COUNT, SIDE = 500, 256


def rows_of_page(table: Table) -> None:
    """Seconds and megabytes of one page, and seconds of the next ones."""
    with TemporaryDirectory() as place:
        task = Path(place) / "photos"
        make_runs(task)
        first, size = seconds_of_page(task), (task / "report.html").stat().st_size / 1e6
        unchanged = seconds_of_page(task)
        save(draw(np.random.default_rng(1)), task / f"{METHODS[-1]}-0" / "images")
        again = seconds_of_page(task)
    what = f"report.html, {len(METHODS)} runs × {COUNT} images of {SIDE}×{SIDE}"
    table.add_row(what, f"{first:.1f} s", "≤ 20 s on 2 cores")
    table.add_row("  its size", f"{size:.1f} MB", "≤ 15 MB")
    table.add_row("  again, when one run has other images", f"{again:.1f} s", "")
    table.add_row("  again, when nothing has changed", f"{unchanged:.1f} s", "")


def seconds_of_page(task: Path) -> float:
    """Write the page and its picture once."""
    began = time.perf_counter()
    write_page(task)
    return time.perf_counter() - began


def make_runs(task: Path) -> None:
    """Finished runs with images that compress about as well as photos do, numbers drawn at random."""
    generator = np.random.default_rng(0)
    pictures = draw(generator)
    ids = [*pictures]
    save(pictures, task / "data" / "source")
    for shift, method in enumerate(METHODS, 1):
        folder = task / f"{method}-0"
        save(
            dict(zip(ids, [*pictures.values()][shift:] + [*pictures.values()][:shift], strict=True)), folder / "images"
        )
        values = {"psnr": generator.normal(20, 2, COUNT), "ssim": generator.uniform(0.3, 0.9, COUNT)}
        values |= {"l2": generator.normal(50, 5, COUNT), "seconds": generator.normal(2, 0.1, COUNT)}
        rows = [dict(zip(["id", *values], row, strict=True)) for row in zip(ids, *values.values(), strict=True)]
        entries = {"fid": entry("FID", 60.0 - shift), "kid": entry("KID", 0.01 + 0.001 * shift)}
        entries |= {key: entry(key, float(row.mean())) for key, row in values.items() if key != "seconds"}
        record: ScoresRecord = {
            "schema": SCHEMA, "protocol": "benchmark/1", "identity": {}, "metrics": entries, "random_weights": [],
            "reference": None,
        }  # fmt: skip
        write_scores(folder / "scores" / "benchmark-1-0", record, rows, {})
        (folder / "run.json").write_text(json.dumps(run_record(method)))


def draw(generator: np.random.Generator) -> dict[str, bytes]:
    """PNGs by their ids: parts of one scene."""
    scene, pictures = texture(generator, 2 * SIDE), {}
    for k in range(COUNT):
        left, top = generator.integers(0, SIDE, 2)
        stream = io.BytesIO()
        scene.crop((left, top, left + SIDE, top + SIDE)).save(stream, "PNG", compress_level=1)
        pictures[f"photo{k:04d}"] = stream.getvalue()
    return pictures


def texture(generator: np.random.Generator, side: int) -> Image.Image:
    """Smooth noise of many scales, each weaker the finer it is, as the spectrum of photos falls off."""
    total = np.zeros((side, side, 3))
    for octave in range(2, 9):
        coarse = generator.integers(0, 256, (2**octave, 2**octave, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
        total += (np.asarray(smooth, dtype=float) - 128) * 2 ** (-0.55 * (octave - 2))
    return Image.fromarray(np.uint8(np.clip(128 + 0.5 * total, 0, 255)))


def save(pictures: dict[str, bytes], folder: Path) -> None:
    """Write PNGs by their ids."""
    folder.mkdir(parents=True, exist_ok=True)
    for image, content in pictures.items():
        (folder / f"{image}.png").write_bytes(content)


def entry(header: str, value: float) -> MetricRecord:
    """A number of metrics.json."""
    ends = [0.99 * value, 1.01 * value]
    return Metric(header, 3, True).entry("benchmark", value=value, ci95=ends, n=COUNT, n_reference=None)


def run_record(method: str) -> RunRecord:
    """The run.json of a method."""
    return {
        "schema": SCHEMA,
        "study": "translate",
        "status": "finished",
        "identity": {"method": {"name": method}, "seed": 1},
        "task": "photos",
        "method": method,
        "seed": 1,
        "synthetic": False,
        "data": {
            "name": "photos", "dataset": None, "digest": "0", "n": COUNT, "source": "source", "ground_truth": None
        },
        "weights": {},
        "random_weights": [],
        "published_settings": True,
        "start": "2026-01-01T00:00:00+00:00",
        "costs": {"forwards_per_image": 100, "seconds_per_image": 2.0, "images_per_second": 0.5},
    }  # fmt: skip


if __name__ == "__main__":
    shown = Table("measured", "here", "promised")
    rows_of_page(shown)
    from rich.console import Console

    Console(file=sys.stdout).print(shown)
