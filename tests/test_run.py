"""The program as a person meets it: whole runs, kills, and mistakes, each in a process of its own.

Most of them are forks, with imports made; `alone` starts Python anew, as a person does.
"""

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

from .forking import run

ROOT = Path(__file__).parents[1]


def command(*arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "run.py"), *arguments]


def alone(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=900, **options)


METHODS = ["cut", "cyclediffusion", "ddib", "egsde", "egsde_dagger", "ilvr", "sdedit"]
SMALL = "task.reference_count=8"  # rendering all 512 takes most of a test's time


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*/*/images/*.png"))}


def times(task: Path) -> dict[Path, int]:
    """When files of runs were last written."""
    files = [path for path in task.rglob("*") if path.is_file() and path.parent != task and path.name != ".lock"]
    return {path: path.stat().st_mtime_ns for path in files}


def scores_of(folder: Path) -> Path:
    (scores,) = (folder / "scores").iterdir()
    return scores


def metrics_of(folder: Path) -> dict[str, dict]:
    return json.loads((scores_of(folder) / "metrics.json").read_bytes())["metrics"]


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (90, 70, 4), dtype=np.uint8)
    Image.fromarray(noise[..., :3]).save(folder / "rgb.jpg")
    Image.fromarray(noise).save(folder / "alpha.png")
    Image.fromarray(noise[..., 0]).save(folder / "grey.png")
    return folder


def test_pets(tmp_path):
    row = [SMALL, f"paths.outputs={tmp_path}", "data.limit=2", "batch_size=2", "steps=few", "allow_code_change=true"]
    done = alone(*row)
    assert done.returncode == 0, done.stderr
    folders = sorted(path.parent for path in tmp_path.glob("pets_cat2dog/*/run.json"))
    assert [folder.name.rpartition("-")[0] for folder in folders] == METHODS
    costs = []
    for folder in folders:
        record = json.loads((folder / "run.json").read_bytes())
        assert (record["schema"], record["status"], record["study"]) == (2, "finished", "translate")
        assert (record["task"], record["seed"], record["synthetic"]) == ("pets_cat2dog", 1, True)
        assert record["method"] == folder.name.rpartition("-")[0]
        assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in record["weights"].values())
        assert record["data"]["n"] == len(list((folder / "images").iterdir())) == 2
        scores = scores_of(folder)
        with (scores / "per_image.csv").open() as file:
            rows = list(csv.DictReader(file))
        metrics = metrics_of(folder)
        for key in ("psnr", "ssim", "l2", "ground_truth_psnr", "attribute_error"):
            assert np.mean([float(row[key]) for row in rows]) == pytest.approx(metrics[key]["value"])
        assert set(metrics) == {"fid", "kid", "psnr", "ssim", "l2", "ground_truth_psnr", "attribute_error"}
        assert all(re.fullmatch(r"[\w.@-]+(/[\w.@-]+)+", entry["protocol"]) for entry in metrics.values())
        assert f"| {record['method']} |" in (tmp_path / "pets_cat2dog/table.md").read_text()
        costs.append((record["costs"]["forwards_per_image"], record["costs"]["backwards_per_image"]))
    assert costs == [(1, 0), (2 * 3 - 1 + 1, 0), (8, 0), (2 * 3, 2), (3 * 3, 3), (4, 0), (2, 0)]
    assert "Pets, a synthetic benchmark" in done.stdout

    before = times(tmp_path / "pets_cat2dog")
    again = run(*row)
    assert again.returncode == 0, again.stderr
    printed = [output.partition("pets_cat2dog: 2 images of")[2] for output in (done.stdout, again.stdout)]
    assert printed[0] == printed[1] != ""
    assert before == times(tmp_path / "pets_cat2dog")


def test_guidance_networks_are_counted(tmp_path):
    """EGSDE at its settings for pets: 25 steps, each with its denoiser and the extractor on two images."""
    done = run(SMALL, "method=egsde", "data.limit=1", f"paths.outputs={tmp_path}")
    assert done.returncode == 0, done.stderr
    (record,) = (json.loads(path.read_bytes()) for path in tmp_path.glob("*/*/run.json"))
    assert record["costs"]["forwards_per_image"] == 75
    assert record["costs"]["backwards_per_image"] == 25


def test_scores_under_other_settings_of_the_protocol(tmp_path):
    """No image is made again, the first numbers stay, and no table mixes the two."""
    arguments = [SMALL, "method=sdedit", "steps=few", "data.limit=9", f"paths.outputs={tmp_path}"]
    arguments += ["allow_code_change=true"]
    assert run(*arguments).returncode == 0
    (folder,) = (path.parent for path in tmp_path.glob("*/*/run.json"))
    before = times(folder)
    first = metrics_of(folder)
    for setting in ("protocol.resize=bicubic", "protocol.infinity=true"):
        done = run(*arguments, setting)
        assert done.returncode == 0, done.stderr
        assert "images ·" not in done.stdout  # no progress of images
    after = times(folder)
    assert {path: after.get(path) for path in before} == before
    assert len(list(tmp_path.glob("*/*/run.json"))) == 1
    found = [json.loads(path.read_bytes()) for path in folder.glob("scores/*/metrics.json")]
    by_setting = {(s["identity"]["protocol"]["resize"], s["identity"]["protocol"]["infinity"]): s for s in found}
    assert by_setting.keys() == {("bilinear", False), ("bicubic", False), ("bilinear", True)}
    assert by_setting["bilinear", False]["metrics"] == first
    assert "fid_infinity" in by_setting["bilinear", True]["metrics"]
    assert "bicubic" in by_setting["bicubic", False]["metrics"]["psnr"]["protocol"]

    tables = (folder.parent / "table.md").read_text().split("## pets_cat2dog")[1:]
    strings = [set(re.findall(r"psnr/png64/(\w+)/per-image-mean/vs-source", table)) for table in tables]
    assert all(len(found) == 1 for found in strings)
    assert {*strings[0], *strings[-1]} == {"bilinear", "bicubic"}
    assert sum(table.count("| sdedit") for table in tables) == 3
    assert "FD∞" in "".join(tables)
    with (folder.parent / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["scores"] for row in rows} == {path.parent.name for path in folder.glob("scores/*/metrics.json")}
    for table in tables:  # printed as they are written
        assert table.splitlines()[0].partition(",")[0].strip(" :") in done.stdout


@pytest.mark.slow  # test_faults.py kills at ten other places
def test_a_killed_run_continues_to_the_same_bytes(tmp_path):
    arguments = [SMALL, "method=sdedit", "data.limit=8", "batch_size=2", "method.T=100", "method.t0=60"]
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
    assert record["costs"]["forwards_per_image"] == 60


def test_photos(tmp_path, photos):
    done = run(SMALL, "method=sdedit", f"data.source={photos}", f"paths.outputs={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    folder = next((tmp_path / "out" / "pets_cat2dog").glob("sdedit-*"))
    assert sorted(path.stem for path in (folder / "images").iterdir()) == ["alpha", "grey", "rgb"]
    assert "ground_truth_psnr" not in metrics_of(folder)
    assert "3 images of photos" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["metod=sdedit"], "did you mean method"),
        (["method=sdedt"], "sdedit, sdedit_cac, splice, transfer_grid, unguided (did you mean sdedit?)"),
        (["protocol=egsde"], "protocol egsde/1 does not score task pets_cat2dog; choose protocol=pets"),
        (["experiment=male2female", "method=ddib"], "needs a source model, and none is known for male2female"),
        (["experiment=cat2dog", "protocol=pets"], "choose protocol=cyclediffusion or egsde"),
        (["experiment=cat2dgo"], "did you mean cat2dog?"),
        (["method.etaa=1"], "T, T_es"),
        (["task.nmae=x"], "did you mean name"),
        (["data.limt=3"], "did you mean limit"),
        (["sdedit"], "KEY=VALUE"),
        (["batch_size=0"], "batch_size must be a whole number of at least 1, or auto; got 0"),
        (["batch_size=many"], "got many"),
        (["device=warp", "method=sdedit"], "device warp is not available here"),
        (["data.limit=0"], "at least 1"),
        (["data.source=nowhere"], "nowhere does not exist"),
        (["method=cyclediffusion", "method.eta=0"], "eta > 0"),
        (["method=cyclediffusion", "method.T_es=101"], "between 1 and T = 50; got 101"),
        (["method=cyclediffusion", "method.T=many"], "method.T must be of type int; got 'many'"),
        (["paths.outputs=/dev/null/x"], "/dev/null"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_mistake_gets_one_sentence_and_exit_code_2(arguments, expected, tmp_path):
    small = [] if "experiment" in arguments[0] else [SMALL, "data.limit=1"]
    outputs = [] if "paths" in arguments[0] else [f"paths.outputs={tmp_path / 'out'}"]
    start = alone if arguments == ["method=sdedt"] else run
    done = start(*small, *arguments, *outputs, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert expected in done.stderr
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


def test_help_lists_what_exists():
    done = alone("--help")
    assert done.returncode == 0
    for word in ("cyclediffusion", "pets_cat2dog", "batch_size", "data.source"):
        assert word in done.stdout
