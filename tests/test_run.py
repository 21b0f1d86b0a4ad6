"""The program as a person meets it: whole runs, kills, and mistakes, each in a process of its own."""

import csv
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]


def run(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=900, **options)


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "run.py"), *arguments]


SMALL = "task.reference_count=8"  # rendering all 512 takes most of a test's time


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*/*/images/*.png"))}


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (90, 70, 4), dtype=np.uint8)
    Image.fromarray(noise[..., :3]).save(folder / "rgb.jpg")
    Image.fromarray(noise).save(folder / "alpha.png")
    Image.fromarray(noise[..., 0]).save(folder / "grey.png")
    return folder


def test_the_embedded_row(tmp_path):
    done = run(f"paths.outputs={tmp_path}", "data.limit=3", "batch_size=2")
    assert done.returncode == 0, done.stderr
    folders = sorted(path.parent for path in tmp_path.glob("pets_cat2dog/*/run.json"))
    assert [folder.name.rpartition("-")[0] for folder in folders] == ["cyclediffusion", "ddib", "sdedit"]
    for folder in folders:
        record = json.loads((folder / "run.json").read_bytes())
        assert record["status"] == "finished"
        assert record["data"]["n"] == len(list((folder / "images").iterdir())) == 3
        with (folder / "per_image.csv").open() as file:
            rows = list(csv.DictReader(file))
        metrics = json.loads((folder / "metrics.json").read_bytes())["metrics"]
        for key in ("psnr", "ssim", "l2", "counterpart_psnr", "factor_error"):
            assert np.mean([float(row[key]) for row in rows]) == pytest.approx(metrics[key]["value"])
        assert set(metrics) == {"fid", "kid", "psnr", "ssim", "l2", "counterpart_psnr", "factor_error"}
        assert all(re.fullmatch(r"[\w.-]+(/[\w.-]+)+", entry["protocol"]) for entry in metrics.values())
        assert f"| {folder.name.rpartition('-')[0]} |" in (tmp_path / "pets_cat2dog/table.md").read_text()
    evaluations = {
        json.loads((folder / "run.json").read_bytes())["network_evaluations_per_image"] for folder in folders
    }
    assert evaluations == {2 * 85 - 1 + 10, 200, 50}
    assert "Embedded world" in done.stdout

    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("pets_cat2dog/*/*.*")}
    again = run(f"paths.outputs={tmp_path}", "data.limit=3", "batch_size=2")
    assert again.returncode == 0
    assert re.findall(r"(?m)^.*cyclediffusion .*$", again.stdout) == re.findall(
        r"(?m)^  cyclediffusion +[\d].*$", done.stdout
    )
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("pets_cat2dog/*/*.*")}


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path):
    arguments = [SMALL, "method=sdedit", "data.limit=8", "batch_size=2", "method.T=200", "method.t0=150"]
    process = subprocess.Popen(command(*arguments, f"paths.outputs={tmp_path / 'killed'}"), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while len(contents(tmp_path / "killed")) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = contents(tmp_path / "killed")
    assert 3 <= len(left) < 8
    assert run(*arguments, f"paths.outputs={tmp_path / 'killed'}").returncode == 0
    assert run(*arguments, f"paths.outputs={tmp_path / 'whole'}").returncode == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert len(contents(tmp_path / "whole")) == 8
    record = json.loads(next((tmp_path / "killed").glob("*/*/run.json")).read_bytes())
    assert record["network_evaluations_per_image"] == 150


def test_photos(tmp_path, photos):
    done = run(SMALL, "method=sdedit", f"data.source={photos}", f"paths.outputs={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    folder = next((tmp_path / "out" / "pets_cat2dog").glob("sdedit-*"))
    assert sorted(path.stem for path in (folder / "images").iterdir()) == ["alpha", "grey", "rgb"]
    metrics = json.loads((folder / "metrics.json").read_bytes())["metrics"]
    assert "counterpart_psnr" not in metrics
    assert "3 images of photos" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["metod=sdedit"], "did you mean method"),
        (["method=sdedt"], "cyclediffusion, ddib, sdedit"),
        (["method.etaa=1"], "T, T_es"),
        (["task.nmae=x"], "did you mean name"),
        (["data.limt=3"], "did you mean limit"),
        (["sdedit"], "KEY=VALUE"),
        (["batch_size=0"], "batch_size must be a whole number of at least 1; got 0"),
        (["batch_size=many"], "got many"),
        (["device=warp", "method=sdedit"], "device warp is not available here"),
        (["data.limit=0"], "at least 1"),
        (["data.source=nowhere"], "nowhere does not exist"),
        (["method=cyclediffusion", "method.eta=0"], "eta > 0"),
        (["method=cyclediffusion", "method.T_es=101"], "between 1 and T = 100; got 101"),
        (["method=cyclediffusion", "method.T=many"], "method.T must be of type int; got 'many'"),
        (["paths.outputs=/dev/null/x"], "/dev/null"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_mistake_gets_one_sentence_and_exit_code_2(arguments, told, tmp_path):
    done = run(
        SMALL, *arguments, *([] if "paths" in arguments[0] else [f"paths.outputs={tmp_path / 'out'}"]), cwd=tmp_path
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert told in done.stderr
    assert not done.stdout


def test_a_corrupt_photo_is_named_before_anything_starts(tmp_path, photos):
    (photos / "bad.png").write_bytes(b"\x89PNG\r\n")
    done = run(SMALL, f"data.source={photos}", f"paths.outputs={tmp_path / 'out'}")
    assert done.returncode == 2
    assert "bad.png is not a readable image" in done.stderr
    assert not list(tmp_path.glob("out/*/*/run.json"))


def test_two_photos_with_one_stem(tmp_path, photos):
    (photos / "rgb.png").write_bytes((photos / "grey.png").read_bytes())
    done = run(SMALL, f"data.source={photos}", f"paths.outputs={tmp_path / 'out'}")
    assert done.returncode == 2
    assert "rgb.jpg and rgb.png" in done.stderr


def test_a_full_disk_is_told_and_finished_images_stay(tmp_path):
    """A limit on the size of files stands in for a full disk: both make a write fail half-way."""
    arguments = [SMALL, "method=sdedit", "data.limit=2", "method.t0=2", "batch_size=1", f"paths.outputs={tmp_path}"]
    assert run(*arguments, "method.t0=1").returncode == 0  # prepares the sources
    limited = ["bash", "-c", 'ulimit -f 5; exec "$@"', "bash", *command(*arguments)]
    done = subprocess.run(limited, capture_output=True, text=True, timeout=900)
    assert done.returncode == 2
    assert "cannot be written (File too large)" in done.stderr
    assert not list(tmp_path.rglob("*.tmp"))
    assert run(*arguments).returncode == 0
    assert len(contents(tmp_path)) == 2


def test_help_lists_what_exists():
    done = run("--help")
    assert done.returncode == 0
    for word in ("cyclediffusion", "pets_cat2dog", "batch_size", "data.source"):
        assert word in done.stdout
