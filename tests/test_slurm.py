"""Sweeps on a cluster that answers `sinfo`: a job for each run, requeued jobs, failed runs, several ranks."""

import csv
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .forking import run

ROOT = Path(__file__).parents[1]
ANSWERS = shutil.which("sinfo") and subprocess.run(["sinfo"], capture_output=True).returncode == 0
pytestmark = [pytest.mark.slurm, pytest.mark.skipif(not ANSWERS, reason="no cluster answers sinfo")]
SLURM = ("hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "task.reference_count=8", "data.limit=3")


def command(folder, *arguments):
    return [sys.executable, str(ROOT / "run.py"), *SLURM, f"paths.outputs={folder}", *arguments]


def sweep(folder, *arguments):
    return subprocess.run(command(folder, *arguments), capture_output=True, text=True, timeout=900)


def pictures(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.glob("*/*/images/*.png")}


def records(folder):
    return [json.loads(path.read_bytes()) for path in sorted(folder.glob("*/*/run.json"))]


def test_a_sweep_is_an_array_and_ends_in_one_table(tmp_path):
    """With two ranks for each run, and the pictures of a run without a cluster."""
    done = sweep(tmp_path / "a", "steps=few", "method=sdedit,ilvr", "hydra.launcher.tasks_per_node=2", "batch_size=1")
    assert done.returncode == 0, done.stderr
    assert [record["status"] for record in records(tmp_path / "a")] == ["finished"] * 2
    assert [record["world_size"] for record in records(tmp_path / "a")] == [2, 2]
    table = list(csv.DictReader((tmp_path / "a/pets_cat2dog/table.csv").open()))
    assert sorted(row["method"] for row in table) == ["ilvr", "sdedit"]
    for shown in ("ilvr", "sdedit", "FD ↓"):
        assert shown in done.stdout
    local = run(*SLURM[2:], "steps=few", "method=sdedit,ilvr", "batch_size=1", f"paths.outputs={tmp_path / 'b'}")
    assert local.returncode == 0, local.stderr
    assert pictures(tmp_path / "a") == pictures(tmp_path / "b")


def test_a_failed_run_is_missing_from_the_table_and_the_others_are_made(tmp_path):
    """A folder in the place of a picture lets one run fail."""
    assert run(*SLURM[2:], "steps=few", "method=ilvr", f"paths.outputs={tmp_path}").returncode == 0
    (ilvr,) = tmp_path.glob("pets_cat2dog/ilvr-*")
    record = json.loads((ilvr / "run.json").read_bytes())
    (ilvr / "run.json").write_text(json.dumps({**record, "status": "running"}))
    (ilvr / "images" / "source0001.png").unlink()
    (ilvr / "images" / "source0001.png").mkdir()
    done = sweep(tmp_path, "steps=few", "method=ilvr,sdedit")
    assert done.returncode == 2
    assert re.search(r"(?m)^error: ilvr \(ilvr-\w+\): failed: .*source0001\.png", done.stdout + done.stderr)
    assert [record["status"] for record in records(tmp_path)] == ["failed", "finished"]
    assert "Traceback" in records(tmp_path)[0]["traceback"]
    table = (tmp_path / "pets_cat2dog/table.md").read_text()
    assert "| sdedit |" in table
    assert "| ilvr |" not in table
    assert "- ilvr" in table.partition("## Not finished")[2]


@pytest.mark.slow
def test_a_requeued_job_continues_to_the_same_bytes(tmp_path):
    """SIGUSR2 is what the cluster sends before it takes a machine; the queue waits 10 s then, elsewhere two minutes."""
    settings = ("method=cyclediffusion", "batch_size=1")
    with subprocess.Popen(command(tmp_path / "a", *settings), stdout=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 300
        while not list(tmp_path.glob("a/pets_cat2dog/*/images/*.png")):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        jobs = subprocess.run(["squeue", "-h", "-o", "%A"], capture_output=True, text=True, check=True).stdout.split()
        subprocess.run(["scancel", "--signal=USR2", "--full", jobs[-1]], check=True)
        process.communicate(timeout=600)
        assert process.returncode == 0
    log = "".join(path.read_text() for path in tmp_path.glob("a/.hydra/.submitit/*/*.out"))
    assert "requeue" in log.lower()
    assert run(*SLURM[2:], *settings, f"paths.outputs={tmp_path / 'b'}").returncode == 0
    assert len(pictures(tmp_path / "a")) == 3
    assert pictures(tmp_path / "a") == pictures(tmp_path / "b")
