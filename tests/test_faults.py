"""Kills, full and read-only disks, two runs in one folder, wrong clocks: docs/reliability.md has the list."""

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
    ("run.json", 2),  # when the images are finished
    ("per_image.csv", 1),
    ("metrics.json", 1),
    ("table.md", 1),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """For features of references."""
    return f"paths.cache={tmp_path_factory.mktemp('cache')}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache):
    """A translation that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    code, printed = finish([*PETS, f"paths.outputs={folder / 'out'}", cache], folder / "log")
    assert code == 0, printed
    return folder / "out"


def record(outputs):
    """Everything of the one run below `outputs` that may not depend on what happened to it."""
    folder = run_folder(outputs)
    found = {path.name: path.read_bytes() for path in folder.rglob("*.png")}
    found |= {path.name: path.read_bytes() for path in folder.glob("*.parquet")}
    for path in folder.glob("scores/*/*"):
        name = str(path.relative_to(folder))
        if path.name == "metrics.json":
            found[name] = {**json.loads(path.read_bytes()), "files": None, "code": None}  # files: seconds are in one
        elif path.name == "per_image.csv":
            with path.open(newline="") as file:
                found[name] = [{**row, "seconds": None} for row in csv.DictReader(file)]
        else:
            found[name] = path.read_bytes()
    found["files"] = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    found["status"] = json.loads((folder / "run.json").read_bytes())["status"]
    return found


def times(folder):
    """When each file of a run was last written; the lock's is empty, and older filelocks touch it at every try."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def run_folder(outputs):
    (config,) = outputs.glob("*/*/config.yaml")
    return config.parent


def test_ten_kills_change_nothing(tmp_path, cache):
    """Each start is killed at a seeded moment of its own: before or half-way in the writing of some file."""
    rng = random.Random(20251125)
    code, printed = finish([*EDITS, f"paths.outputs={tmp_path / 'whole'}", cache], tmp_path / "log")
    assert code == 0, printed
    arguments = [*EDITS, f"paths.outputs={tmp_path / 'killed'}", cache]
    for name, most in KILLS:
        count = most if name == "run.json" else rng.randint(1, most)
        act = rng.choice([killed, killed_half_way])
        code, printed = finish(arguments, tmp_path / "log", At(name, count, act))
        assert code == -signal.SIGKILL, (name, count, printed)
    code, printed = finish(arguments, tmp_path / "log")
    assert code == 0, printed
    assert record(tmp_path / "killed") == record(tmp_path / "whole")
    assert len(list(tmp_path.glob("killed/*/*/images/*.png"))) == 6


def one_sentence(code, printed):
    """The program ended with exit code 2 and one line, which is returned."""
    assert code == 2, printed
    (sentence,) = (line for line in printed.splitlines() if line.startswith("error: "))
    assert printed.rstrip().endswith(sentence)
    assert "Traceback" not in printed
    return sentence


def test_a_disk_that_is_full_at_the_very_end(tmp_path, cache, whole):
    arguments = [*PETS, f"paths.outputs={tmp_path / 'out'}", cache]
    printed = one_sentence(*finish(arguments, tmp_path / "log", Refusing("/metrics.json", errno.ENOSPC)))
    assert re.search(
        r"scores/.*/metrics\.json cannot be written \(No space left on device\); what is finished", printed
    )
    folder = run_folder(tmp_path / "out")
    noted = json.loads((folder / "run.json").read_bytes())
    (reason,) = noted["unscored"].values()
    assert noted["status"] == "finished"  # the images are; the next start makes the numbers alone
    assert "No space left on device" in reason["error"]
    assert not list(folder.glob("scores/*/metrics.json"))
    images = times(folder / "images")
    assert len(images) == 3
    code, printed = finish(arguments, tmp_path / "log")
    assert code == 0, printed
    assert times(folder / "images") == images
    assert record(tmp_path / "out") == record(whole)


@pytest.mark.parametrize("part", ["progress.jsonl", "/images/"])
def test_a_disk_that_is_full_among_the_images(part, tmp_path, cache, whole):
    arguments = [*PETS, f"paths.outputs={tmp_path / 'out'}", cache]
    printed = one_sentence(*finish(arguments, tmp_path / "log", Refusing(part, errno.ENOSPC)))
    assert "cannot be written (No space left on device)" in printed
    assert part.strip("/") in printed
    code, printed = finish(arguments, tmp_path / "log")
    assert code == 0, printed
    assert record(tmp_path / "out") == record(whole)


def test_a_disk_that_is_full_while_scores_are_made_again(tmp_path, cache):
    """Images and the numbers that were there stay."""
    arguments = [*PETS, f"paths.outputs={tmp_path / 'out'}", cache]
    code, printed = finish(arguments, tmp_path / "log")
    assert code == 0, printed
    before = times(run_folder(tmp_path / "out"))
    note = before.pop(run_folder(tmp_path / "out") / "run.json")
    again = [*arguments, "protocol.resize=bicubic"]
    printed = one_sentence(*finish(again, tmp_path / "log", Refusing("/metrics.json", errno.ENOSPC)))
    assert "metrics.json cannot be written" in printed
    after = times(run_folder(tmp_path / "out"))
    assert {path: after.get(path) for path in before} == before
    assert after[run_folder(tmp_path / "out") / "run.json"] > note  # it says why there are no numbers
    assert finish(again, tmp_path / "log")[0] == 0
    assert not json.loads((run_folder(tmp_path / "out") / "run.json").read_bytes())["unscored"]
    assert len(list(tmp_path.glob("out/*/*/scores/*/metrics.json"))) == 2


def test_runs_that_cannot_be_scored_again_do_not_end_a_sweep(tmp_path, cache):
    """Both stay in the table with their first numbers, and both failures are printed."""
    sweep = [*PETS, "method=sdedit,ilvr", f"paths.outputs={tmp_path / 'out'}", cache]
    code, printed = finish(sweep, tmp_path / "log")
    assert code == 0, printed
    refusing = Refusing("/metrics.json", errno.ENOSPC)
    code, printed = finish([*sweep, "protocol.resize=bicubic"], tmp_path / "log", refusing)
    assert code == 2
    assert re.search(r"error: sdedit \(sdedit-\w+, pets-2-\w+\): failed: .*No space left", printed)
    assert re.search(r"error: ilvr \(ilvr-\w+, pets-2-\w+\): failed: .*No space left", printed)
    table, _, unfinished = (tmp_path / "out/pets_cat2dog/table.md").read_text().partition("## Not finished")
    assert ("| sdedit |" in table, "| ilvr |" in table) == (True, True)
    assert unfinished.count("not scored") == 2


def test_a_failed_run_is_missing_from_the_table_and_the_others_are_made(tmp_path, cache):
    """A folder in the place of a picture lets the first of two runs fail; the same command completes it later."""
    out = tmp_path / "out"
    arguments = [*PETS, "method=sdedit,ilvr", f"paths.outputs={out}", cache]
    first = [*PETS, f"paths.outputs={out}", cache]
    assert finish(first, tmp_path / "log")[0] == 0
    folder = run_folder(out)
    obstacle = folder / "images" / "source0001.png"
    obstacle.unlink()
    obstacle.mkdir()
    code, printed = finish(arguments, tmp_path / "log")
    assert code == 2
    assert re.search(r"(?m)^error: sdedit \(sdedit-\w+\): failed: .*source0001\.png cannot be written", printed)
    records = {path.parent.name[:4]: json.loads(path.read_bytes()) for path in out.glob("*/*/run.json")}
    assert {name: record["status"] for name, record in records.items()} == {"sded": "failed", "ilvr": "finished"}
    assert "Traceback" in records["sded"]["traceback"]
    table, _, unfinished = (out / "pets_cat2dog" / "table.md").read_text().partition("## Not finished")
    assert ("| sdedit |" in table, "| ilvr |" in table, "sdedit" in unfinished) == (False, True, True)
    obstacle.rmdir()
    code, printed = finish(arguments, tmp_path / "log")
    assert code == 0, printed
    assert "error" not in json.loads((folder / "run.json").read_bytes())


def test_a_read_only_disk(tmp_path, cache, whole):
    """Root may write where permissions forbid it, so the error of a read-only disk is put in."""
    new = finish([*PETS, f"paths.outputs={tmp_path / 'out'}", cache], tmp_path / "log", Refusing("/out", errno.EROFS))
    assert "Read-only file system" in one_sentence(*new)
    assert not (tmp_path / "out").exists()
    before = record(whole)
    more = [*PETS, "data.limit=2", f"paths.outputs={whole}", cache]
    printed = one_sentence(*finish(more, tmp_path / "log", Refusing("/out/", errno.EROFS)))
    assert "Read-only file system" in printed
    assert record(whole) == before


@pytest.mark.parametrize("place", ["outputs", "outputs/pets_cat2dog"])
def test_a_file_in_the_place_of_a_folder(place, tmp_path, cache):
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("mine")
    printed = one_sentence(*finish([*PETS, f"paths.outputs={tmp_path / 'outputs'}", cache], tmp_path / "log"))
    assert place in printed
    assert (tmp_path / place).read_text() == "mine"


def test_a_file_in_the_place_of_the_runs_folder(tmp_path, cache, whole):
    folder = tmp_path / "out" / "pets_cat2dog" / run_folder(whole).name
    folder.parent.mkdir(parents=True)
    folder.write_text("mine")
    printed = one_sentence(*finish([*PETS, f"paths.outputs={tmp_path / 'out'}", cache], tmp_path / "log"))
    assert folder.name in printed
    assert folder.read_text() == "mine"


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
        printed = one_sentence(*finish(arguments, tmp_path / "second"))
        assert f"is being made by process {first.pid} on {os.uname().nodename} since " in printed
        assert "method=sdedit" in printed
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
    code, printed = finish(arguments, tmp_path / "log")
    assert code == 0, printed
    assert record(tmp_path / "out") == record(whole)


def test_a_record_from_the_future_changes_nothing(tmp_path, cache, whole):
    """Such as a machine with another clock leaves; and the clock steps back while the run works."""
    arguments = [*PETS, f"paths.outputs={tmp_path / 'out'}", cache]
    assert finish(arguments, tmp_path / "log", At("progress.jsonl", 2, killed))[0] == -signal.SIGKILL
    folder = run_folder(tmp_path / "out")
    content = json.loads((folder / "run.json").read_bytes()) | {"start": "2099-01-01T00:00:00+00:00"}
    (folder / "run.json").write_text(json.dumps(content))
    for path in tmp_path.glob("out/**/*"):
        os.utime(path, (4e9, 4e9))
    code, printed = finish(arguments, tmp_path / "log", stepping_clock)
    assert code == 0, printed
    assert record(tmp_path / "out") == record(whole)
    made = json.loads((folder / "run.json").read_bytes())
    assert made["start"] > made["end"]
    assert 0 < made["costs"]["seconds_per_image"] < 60
    assert 0 < made["costs"]["network_share"] <= 1


def stepping_clock():
    """The wall clock is an hour earlier each time it is read; the steady clock is right."""
    real, reads = time.time, iter(range(10**9))
    time.time = lambda: real() - 3600 * next(reads)


def test_nothing_is_written_elsewhere(tmp_path, cache):
    for name in ("home", "work"):
        (tmp_path / name).mkdir()
    allowed = (tmp_path / "out", Path(cache.partition("=")[2]))
    for number, arguments in enumerate((PETS, EDITS)):
        notes = tmp_path / f"notes{number}"
        settings = [*arguments, "data.limit=2", f"paths.outputs={tmp_path / 'out'}", cache]
        code, printed = finish(settings, tmp_path / "log", Recording(notes, tmp_path / "home"), tmp_path / "work")
        assert code == 0, printed
        written = {Path(line) for line in notes.read_text().splitlines()}
        assert any("images" in path.parts for path in written)
        elsewhere = {path for path in written if not any(path.is_relative_to(folder) for folder in allowed)}
        elsewhere -= {tmp_path, Path(os.devnull), *allowed, *(folder.parent for folder in allowed)}
        assert not {path for path in elsewhere if "__pycache__" not in path.parts}
    assert not list((tmp_path / "home").rglob("*"))
    assert not list((tmp_path / "work").rglob("*"))
