"""Kills, full and read-only disks, damaged files, a neighbour in the same folder: docs/reliability.md has the list."""

import csv
import errno
import json
import os
import random
import re
import signal
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from eval.report.tables import write_tables

from .finished_run import make_run
from .forking import At, Recording, Refusing, finish, killed, killed_half_way, start, stopped

ROOT = Path(__file__).parents[1]
COMMON = ["allow_code_change=true"]  # someone may be editing the code while these tests run
EDITS = ["experiment=pets_edit", "method=cyclediffusion", "tier=few", "data.limit=6", "batch_size=2", *COMMON]
PETS = ["task.reference_count=8", "method=sdedit", "data.limit=3", "batch_size=1", "steps=few", *COMMON]
KILLS = [  # in the order in which a run comes to them
    ("run.json", 1),  # at the start
    ("candidates.jsonl", 2),
    ("progress.jsonl", 2),
    ("images/.*.tmp", 2),
    ("images/*.png", 2),
    ("candidates.parquet", 1),
    ("per_image.csv", 1),
    ("metrics.json", 1),
    ("run.json", 2),  # at the end
    ("table.md", 1),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """For features of references."""
    return f"paths.cache={tmp_path_factory.mktemp('cache')}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache):
    """An unpaired run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    code, told = finish([*PETS, f"paths.outputs={folder / 'out'}", cache], folder / "log")
    assert code == 0, told
    return folder / "out"


def record(outputs):
    """Everything of the one run below `outputs` that may not depend on what happened to it."""
    (folder,) = (path.parent for path in outputs.glob("*/*/run.json"))
    found = {path.name: path.read_bytes() for path in folder.rglob("*.png")}
    found |= {path.name: path.read_bytes() for path in folder.glob("*.parquet")}
    found |= {
        name: (folder / name).read_bytes() for name in ("metrics.json", "bootstrap.csv") if (folder / name).exists()
    }
    with (folder / "per_image.csv").open(newline="") as file:
        found["per_image.csv"] = [{**row, "seconds": None} for row in csv.DictReader(file)]
    found["files"] = sorted(path.name for path in folder.rglob("*"))
    found["status"] = json.loads((folder / "run.json").read_bytes())["status"]
    return found


def times(folder):
    """When each file of a run was last written; the lock's is empty, and older filelocks touch it at every try."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def run_folder(outputs):
    return next(outputs.glob("*/*/config.yaml")).parent


def test_ten_kills_change_nothing(tmp_path, cache):
    """Each start is killed at a seeded moment of its own: before or half-way in the writing of some file."""
    rng = random.Random(20251125)
    code, told = finish([*EDITS, f"paths.outputs={tmp_path / 'whole'}", cache], tmp_path / "log")
    assert code == 0, told
    arguments = [*EDITS, f"paths.outputs={tmp_path / 'killed'}", cache]
    for name, most in KILLS:
        count = most if name == "run.json" else rng.randint(1, most)
        act = rng.choice([killed, killed_half_way])
        code, told = finish(arguments, tmp_path / "log", At(name, count, act))
        assert code == -signal.SIGKILL, (name, count, told)
    code, told = finish(arguments, tmp_path / "log")
    assert code == 0, told
    assert record(tmp_path / "killed") == record(tmp_path / "whole")
    assert len(list(tmp_path.glob("killed/*/*/images/*.png"))) == 6


def one_sentence(code, told):
    """The program ended with exit code 2 and one line, which is returned."""
    assert code == 2, told
    (sentence,) = (line for line in told.splitlines() if line.startswith("error: "))
    assert told.rstrip().endswith(sentence)
    assert "Traceback" not in told
    return sentence


def test_a_disk_that_is_full_at_the_very_end(tmp_path, cache, whole):
    arguments = [*PETS, f"paths.outputs={tmp_path / 'out'}", cache]
    told = one_sentence(*finish(arguments, tmp_path / "log", Refusing("/metrics.json", errno.ENOSPC)))
    assert re.search(r"/metrics\.json cannot be written \(No space left on device\); what is finished is kept", told)
    folder = run_folder(tmp_path / "out")
    assert json.loads((folder / "run.json").read_bytes())["status"] == "failed"
    assert not (folder / "metrics.json").exists()
    images = times(folder / "images")
    assert len(images) == 3
    code, told = finish(arguments, tmp_path / "log")
    assert code == 0, told
    assert times(folder / "images") == images
    assert record(tmp_path / "out") == record(whole)


@pytest.mark.parametrize("part", ["progress.jsonl", "/images/"])
def test_a_disk_that_is_full_among_the_images(part, tmp_path, cache, whole):
    arguments = [*PETS, f"paths.outputs={tmp_path / 'out'}", cache]
    told = one_sentence(*finish(arguments, tmp_path / "log", Refusing(part, errno.ENOSPC)))
    assert "cannot be written (No space left on device)" in told
    assert part.strip("/") in told
    code, told = finish(arguments, tmp_path / "log")
    assert code == 0, told
    assert record(tmp_path / "out") == record(whole)


def test_a_failed_cell_is_a_hole_and_the_others_go_on(tmp_path, cache):
    """A folder in the place of a picture lets the first of two cells fail; the same command mends it later."""
    out = tmp_path / "out"
    arguments = [*PETS, "method=sdedit,ilvr", f"paths.outputs={out}", cache]
    first = [*PETS, f"paths.outputs={out}", cache]
    assert finish(first, tmp_path / "log")[0] == 0
    folder = run_folder(out)
    obstacle = folder / "images" / "source0001.png"
    obstacle.unlink()
    obstacle.mkdir()
    (folder / "metrics.json").unlink()
    told = finish(arguments, tmp_path / "log")[1]
    assert re.search(r"(?m)^error: sdedit \(sdedit-\w+\): failed: .*source0001\.png cannot be written", told)
    records = {path.parent.name[:4]: json.loads(path.read_bytes()) for path in out.glob("*/*/run.json")}
    assert {name: record["status"] for name, record in records.items()} == {"sded": "failed", "ilvr": "finished"}
    assert "Traceback" in records["sded"]["traceback"]
    table, _, unfinished = (out / "pets_cat2dog" / "table.md").read_text().partition("## Not finished")
    assert ("| sdedit |" in table, "| ilvr |" in table, "sdedit" in unfinished) == (False, True, True)
    obstacle.rmdir()
    code, told = finish(arguments, tmp_path / "log")
    assert code == 0, told
    assert "error" not in json.loads((folder / "run.json").read_bytes())


def test_a_read_only_disk(tmp_path, cache, whole):
    """Root may write where permissions forbid it, so the error of a read-only disk is put in."""
    new = finish([*PETS, f"paths.outputs={tmp_path / 'out'}", cache], tmp_path / "log", Refusing("/out", errno.EROFS))
    assert "Read-only file system" in one_sentence(*new)
    assert not (tmp_path / "out").exists()
    before = record(whole)
    more = [*PETS, "data.limit=2", f"paths.outputs={whole}", cache]
    told = one_sentence(*finish(more, tmp_path / "log", Refusing("/out/", errno.EROFS)))
    assert "Read-only file system" in told
    assert record(whole) == before


@pytest.mark.parametrize("place", ["outputs", "outputs/pets_cat2dog"])
def test_a_file_in_the_place_of_a_folder(place, tmp_path, cache):
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("mine")
    told = one_sentence(*finish([*PETS, f"paths.outputs={tmp_path / 'outputs'}", cache], tmp_path / "log"))
    assert place in told
    assert (tmp_path / place).read_text() == "mine"


def test_a_file_in_the_place_of_the_runs_folder(tmp_path, cache, whole):
    folder = tmp_path / "out" / "pets_cat2dog" / run_folder(whole).name
    folder.parent.mkdir(parents=True)
    folder.write_text("mine")
    told = one_sentence(*finish([*PETS, f"paths.outputs={tmp_path / 'out'}", cache], tmp_path / "log"))
    assert folder.name in told
    assert folder.read_text() == "mine"


def test_what_was_damaged_after_the_end_is_made_again(tmp_path, cache, whole):
    arguments = [*PETS, f"paths.outputs={tmp_path / 'out'}", cache]
    assert finish(arguments, tmp_path / "log")[0] == 0
    folder = run_folder(tmp_path / "out")
    os.truncate(folder / "images" / "source0001.png", 100)
    (folder / "metrics.json").write_bytes(b"")
    (folder / "per_image.csv").write_bytes(b"\0\xff\0")
    (folder / "config.yaml").unlink()
    code, told = finish(arguments, tmp_path / "log")
    assert code == 0, told
    assert "warning: " in told
    assert "is missing or was changed since; it is made again" in told
    assert record(tmp_path / "out") == record(whole)
    assert "method:" in (folder / "config.yaml").read_text()
    (folder / "run.json").write_bytes(b"")
    told = one_sentence(*finish(arguments, tmp_path / "log"))
    assert f"delete {folder}" in told


def states(process):
    """Of all threads."""
    return {stat.read_text().rpartition(")")[2].split()[0] for stat in Path(f"/proc/{process}/task").glob("*/stat")}


def test_the_second_run_in_a_folder_is_refused(tmp_path, cache, whole):
    arguments = [*PETS, f"paths.outputs={tmp_path / 'out'}", cache]
    first = start(arguments, tmp_path / "first", At("progress.jsonl", 2, stopped))
    try:
        deadline = time.monotonic() + 120
        while states(first.pid) != {"T"}:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        before = times(run_folder(tmp_path / "out"))
        told = one_sentence(*finish(arguments, tmp_path / "second"))
        assert f"is being made by process {first.pid} on {os.uname().nodename} since " in told
        assert "method=sdedit" in told
        assert times(run_folder(tmp_path / "out")) == before
        os.kill(first.pid, signal.SIGCONT)
        first.join(120)
        assert first.exitcode == 0, (tmp_path / "first").read_text()
    finally:
        first.kill()
    assert record(tmp_path / "out") == record(whole)


def test_a_folder_of_a_killed_run_is_free_at_once(tmp_path, cache, whole):
    arguments = [*PETS, f"paths.outputs={tmp_path / 'out'}", cache]
    assert finish(arguments, tmp_path / "log", At("progress.jsonl", 2, killed))[0] == -signal.SIGKILL
    assert (run_folder(tmp_path / "out") / "owner.json").exists()
    code, told = finish(arguments, tmp_path / "log")
    assert code == 0, told
    assert record(tmp_path / "out") == record(whole)


@pytest.mark.parametrize("when", ["in the middle", "after the end"])
def test_other_weights_under_the_same_name_are_refused(when, tmp_path, cache):
    weights = tmp_path / "dog.safetensors"
    state = load_file(ROOT / "cyclediff" / "pets" / "weights" / "dog.safetensors")
    save_file(state, weights)
    arguments = [*PETS, f"task.target_model.path={weights}", f"paths.outputs={tmp_path / 'out'}", cache]
    fault = At("progress.jsonl", 2, killed) if when == "in the middle" else None
    assert finish(arguments, tmp_path / "log", fault)[0] == (-signal.SIGKILL if fault else 0)
    images = times(run_folder(tmp_path / "out") / "images")
    name = sorted(state)[0]
    save_file({**state, name: state[name] * 2}, weights)
    told = one_sentence(*finish(arguments, tmp_path / "log"))
    assert "was made with other weights; delete the folder, or put those weights back" in told
    assert times(run_folder(tmp_path / "out") / "images") == images


def test_a_record_from_the_future_changes_nothing(tmp_path, cache, whole):
    """Such as a machine with another clock leaves; and the clock steps back while the run goes on."""
    arguments = [*PETS, f"paths.outputs={tmp_path / 'out'}", cache]
    assert finish(arguments, tmp_path / "log", At("progress.jsonl", 2, killed))[0] == -signal.SIGKILL
    folder = run_folder(tmp_path / "out")
    content = json.loads((folder / "run.json").read_bytes()) | {"start": "2099-01-01T00:00:00+00:00"}
    (folder / "run.json").write_text(json.dumps(content))
    for path in tmp_path.glob("out/**/*"):
        os.utime(path, (4e9, 4e9))
    code, told = finish(arguments, tmp_path / "log", stepping_clock)
    assert code == 0, told
    assert record(tmp_path / "out") == record(whole)
    made = json.loads((folder / "run.json").read_bytes())
    assert made["start"] > made["end"]
    assert 0 < made["seconds_per_image"] < 60
    assert 0 < made["network_share"] <= 1


def stepping_clock():
    """Every look at the wall clock is an hour earlier than the last; the steady clock goes on."""
    real, looks = time.time, iter(range(10**9))
    time.time = lambda: real() - 3600 * next(looks)


def test_nothing_is_written_elsewhere(tmp_path, cache):
    for name in ("home", "work"):
        (tmp_path / name).mkdir()
    allowed = (tmp_path / "out", Path(cache.partition("=")[2]))
    for number, arguments in enumerate((PETS, EDITS)):
        notes = tmp_path / f"notes{number}"
        settings = [*arguments, "data.limit=2", f"paths.outputs={tmp_path / 'out'}", cache]
        code, told = finish(settings, tmp_path / "log", Recording(notes, tmp_path / "home"), tmp_path / "work")
        assert code == 0, told
        written = {Path(line) for line in notes.read_text().splitlines()}
        assert any("images" in path.parts for path in written)
        elsewhere = {path for path in written if not any(path.is_relative_to(folder) for folder in allowed)}
        elsewhere -= {tmp_path, Path(os.devnull), *allowed, *(folder.parent for folder in allowed)}
        assert not {path for path in elsewhere if "__pycache__" not in path.parts}
    assert not list((tmp_path / "home").rglob("*"))
    assert not list((tmp_path / "work").rglob("*"))


@pytest.mark.parametrize("content", [b"", b'{"status": "fin', b"null", b"\xff", None])
@pytest.mark.parametrize("name", ["run.json", "metrics.json"])
def test_a_neighbour_with_damaged_files_is_left_out_of_the_table(name, content, tmp_path):
    make_run(tmp_path / "t", "ours")
    theirs = make_run(tmp_path / "t", "theirs")
    (theirs / name).unlink()
    if content is not None:
        (theirs / name).write_bytes(content)
    if name == "run.json" and content is None:  # no run at all
        write_tables(tmp_path / "t")
    else:
        with pytest.warns(UserWarning, match=r"theirs-\w{8} is left out: its run\.json or metrics\.json is missing or"):
            write_tables(tmp_path / "t")
    table = (tmp_path / "t" / "table.md").read_text()
    assert "| ours |" in table
    assert "theirs" not in table
