"""Does a long run's memory grow? 5,000 pets in one run, watched from outside: part of `make bench` (Linux).

python scripts/benchmark_soak.py 300    fewer images, to see that it works
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
COUNT, BATCH = 5000, 32
WARM = 0.1  # share of the images after which memory should stand still
PHASES = {"start": "imports and sources", "translating": "translating", "scoring": "scoring", "showing": "table, page"}


@dataclass(frozen=True)
class Sample:
    """What a process had at one moment.

    Args:
        seconds: since its start.
        phase: a key of PHASES.
        images: finished so far.
        memory: resident, MiB.
        descriptors: open files, pipes and sockets.
    """

    seconds: float
    phase: str
    images: int
    memory: float
    descriptors: int


def rows_of_soak(table: Table, count: int = COUNT) -> None:
    """Make a run of so many images, and show its memory and descriptors."""
    samples, peak = watch(count)
    made = [sample for sample in samples if sample.phase == "translating" and sample.images >= WARM * count]
    if len({sample.images for sample in made}) < 3:
        raise ValueError(f"a run of {count} images is over too soon to see a slope; take more")
    slope = 1000 * np.polyfit([sample.images for sample in made], [sample.memory for sample in made], 1)[0]
    what = f"a run of {count} images (sdedit, few steps), memory while translating"
    table.add_row(what, f"{slope:+.2f} MiB per 1000 images", "≤ 1 MiB per 1000 images")
    shown = f"{made[0].descriptors} at the start, {made[-1].descriptors} at the end"
    table.add_row("  open descriptors", shown, "constant")
    before = 0.0
    for phase, name in PHASES.items():
        part = [sample for sample in samples if sample.phase == phase]
        if part:
            seconds, before = part[-1].seconds - before, part[-1].seconds
            shown = f"{max(sample.memory for sample in part):.0f} MiB at most, {seconds:.0f} s"
            table.add_row(f"  {name}", shown, "")
    table.add_row("  peak of the process", f"{peak:.0f} MiB", "")


def watch(count: int) -> tuple[list[Sample], float]:
    """Make a run in a process of its own; returns what it had each second, and its peak memory in MiB.

    Raises:
        RuntimeError: if the run fails.
    """
    arguments = ["method=sdedit", "steps=few", f"data.limit={count}", f"batch_size={BATCH}"]
    with TemporaryDirectory() as place:
        outputs, log, samples = Path(place) / "outputs", Path(place) / "log", []
        command = [sys.executable, str(ROOT / "run.py"), *arguments, f"paths.outputs={outputs}"]
        with log.open("w") as file:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        began = time.monotonic()
        while True:
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
            if ended:
                break
            images, phase = progress(outputs, count)
            with contextlib.suppress(OSError, StopIteration):  # it may have ended just now
                memory, descriptors = resident(process.pid), len(os.listdir(f"/proc/{process.pid}/fd"))
                samples.append(Sample(time.monotonic() - began, phase, images, memory, descriptors))
            time.sleep(1)
        if status:
            raise RuntimeError(f"the run failed:\n{log.read_text()}")
    return samples, usage.ru_maxrss / 2**10


def progress(outputs: Path, count: int) -> tuple[int, str]:
    """How many images are finished, and the phase of the run."""
    logs = list(outputs.glob("*/*/progress.jsonl"))
    if not logs:
        return 0, "start"
    lines = logs[0].read_text().split("\n")[1:]  # a line is begun with its break
    images = sum(len(json.loads(line)["ids"]) for line in lines if line.endswith("}"))
    if images < count:
        return images, "translating"
    return images, "showing" if list(logs[0].parent.glob("scores/*/metrics.json")) else "scoring"


def resident(pid: int) -> float:
    """Resident memory of a process, MiB."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 2**10


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", nargs="?", type=int, default=COUNT, help="images")
    table = Table("what", "measured", "promised")
    rows_of_soak(table, parser.parse_args().count)
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
