"""Two processes on two cores against one on one core, the pets experiment: part of `make bench` (Linux).

The images must be the same bytes, and the tables the same but for times. Nothing else should run on the two cores.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
TIMES = ("s/image", "images/s")  # columns of the table that may differ


def timed(processes: int, cores: Sequence[int], arguments: Sequence[str], outputs: Path) -> float:
    """Seconds that the experiment takes with one thread in each process, on the named cores only."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), str(ROOT / "run.py"), *arguments]
    began = time.perf_counter()
    subprocess.run(
        [*command, f"paths.outputs={outputs}"],
        check=True,
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=partial(os.sched_setaffinity, 0, cores),
    )
    return time.perf_counter() - began


def work_seconds(outputs: Path) -> float:
    """Seconds from the first to the last image of all runs, each as long as its slowest process."""
    records = [json.loads(path.read_bytes()) for path in outputs.glob("*/*/run.json")]
    return sum(record["data"]["n"] / record["costs"]["images_per_second"] for record in records)


def images(outputs: Path) -> dict[str, bytes]:
    """All results, by run and name."""
    return {path.relative_to(outputs).as_posix(): path.read_bytes() for path in outputs.glob("*/*/images/*.png")}


def printed(outputs: Path) -> list[list[str]]:
    """The rows of the table as they are shown, without times."""
    lines = next(outputs.glob("*/table.md")).read_text().splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    return [[cell for name, cell in zip(rows[0], row, strict=True) if name not in TIMES] for row in rows]


def rows_of_scale(table: Table, arguments: Sequence[str] = ("batch_size=16",)) -> None:
    """Measure both, and compare what they made."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    with TemporaryDirectory() as name:
        one, two = Path(name) / "one", Path(name) / "two"
        alone = timed(1, cores[:1], arguments, one)
        together = timed(2, cores, arguments, two)
        work = work_seconds(one), work_seconds(two)
        same = "identical" if images(one) == images(two) and len(images(one)) else "DIFFERENT"
        rows = "identical" if printed(one) == printed(two) else "DIFFERENT"
    shown = f"{alone:.0f} s against {together:.0f} s: {alone / together:.2f} ×"
    table.add_row("experiment=pets_cat2dog, one process on one core against two on two", shown, "≥ 1.5 ×")
    shown = f"{work[0]:.0f} s against {work[1]:.0f} s: {work[0] / work[1]:.2f} ×"
    table.add_row("  making the images, without imports, metrics and pictures", shown, "")
    table.add_row("  images, table", f"{same}, {rows}", "identical, identical")


def main() -> None:
    """Measure and print; arguments of run.py choose another size, for example data.limit=8 steps=few."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("arguments", nargs="*", default=["batch_size=16"])
    table = Table("what", "measured", "promised")
    rows_of_scale(table, parser.parse_args().arguments)
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
