"""This version against an earlier one, one after the other in the same minutes: part of `make bench`.

python scripts/benchmark.py versions     against the last commit, or the one that BEFORE names
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.table import Table

ROOT = Path(__file__).parents[1]
RUNS = (  # what, arguments, rounds
    ("pets_cat2dog, 8 images, six methods, from start to end", ["data.limit=8"], 1),
    ("the same again, finished", ["data.limit=8"], 3),
    ("one finished run", ["data.limit=8", "method=sdedit"], 3),
    ("pets_edit, 2 images, six methods", ["experiment=pets_edit", "data.limit=2"], 1),
    ("python run.py --help", ["--help"], 3),
    ("a misspelt key", ["metod=x"], 3),
)


def rows_of_versions(table: Table) -> None:
    """Wall time of whole commands, alternating between the two versions; the fastest of a few rounds counts."""
    revision = os.environ.get("BEFORE", "HEAD")
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder, "before")
        subprocess.run(
            ["git", "-C", str(ROOT), "worktree", "add", "--quiet", "--detach", str(before), revision], check=True
        )
        try:
            for what, arguments, rounds in RUNS:
                times: dict[Path, list[float]] = {before: [], ROOT: []}
                for _ in range(rounds):
                    for version, found in times.items():
                        outputs = f"paths.outputs={Path(folder, 'out', str(version is ROOT))}"
                        cache = f"paths.cache={Path(folder, 'cache', str(version is ROOT))}"
                        own = [] if "--help" in arguments else [outputs, cache]
                        found.append(seconds([sys.executable, str(version / "run.py"), *arguments, *own]))
                one, other = min(times[before]), min(times[ROOT])
                table.add_row(what, f"{one:.2f} s at {revision}, {other:.2f} s now: {other / one:.2f} ×", "≤ 1.05 ×")
        finally:
            subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(before)], check=True)


def seconds(command: list[str]) -> float:
    """Of a command; it runs in a folder of nothing, so that the version's own modules are found first."""
    with tempfile.TemporaryDirectory() as place:
        began = time.perf_counter()
        subprocess.run(command, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        return time.perf_counter() - began
