"""A run writes below its output folder and its cache, and nowhere else: every file that Python opens is looked at."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
WATCH = """
import os, runpy, sys
allowed = [os.path.realpath(folder) + os.sep for folder in sys.argv.pop(1).split(os.pathsep)]
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {"os.mkdir": 1, "os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.link": 2, "os.symlink": 2}
def watch(event, args):
    count = CHANGES.get(event, event == "open" and bool((args[2] or 0) & WRITES))
    for path in args[:count]:
        if isinstance(path, (str, bytes)):
            place = os.path.realpath(os.fsdecode(path))
            here = event == "os.mkdir" and os.path.isdir(place)  # asked for in case it is not there
            if not here and not place.startswith((*allowed, "/dev/", "/proc/")):
                os.write(2, f"OUTSIDE {event} {place}\\n".encode(errors="replace"))
sys.addaudithook(watch)
sys.argv[0] = "run.py"
if sys.argv[1] == "escape":
    open("escaped", "w")
else:
    runpy.run_path(os.environ["PROGRAM"], run_name="__main__")
"""


def watched(tmp_path, *arguments):
    """Run the program with a home, a working folder and a temporary folder of its own; returns what it printed."""
    for name in ("home", "here", "tmp"):
        (tmp_path / name).mkdir()
    allowed = os.pathsep.join(str(tmp_path / name) for name in ("outputs", "cache", "tmp"))
    own = {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp"), "PROGRAM": str(ROOT / "run.py")}
    own["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path / "tmp" / "inductor")  # else torch makes one in /tmp
    environment = os.environ | own | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(ROOT)}
    environment = {key: value for key, value in environment.items() if not key.startswith("XDG_")}
    (tmp_path / "outputs").mkdir()
    (tmp_path / "cache").mkdir()
    command = [sys.executable, "-c", WATCH, allowed, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path / "here", env=environment, timeout=300, check=False
    )


@pytest.mark.slow
def test_a_run_stays_in_its_folders(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("-a b.png", "ü.jpg"):
        Image.effect_noise((40, 30), 50).save(photos / name)
    before = {path: path.read_bytes() for path in photos.iterdir()}
    settings = ["method=sdedit", "task.reference_count=8", "steps=few", f"data.source={photos}"]
    paths = [f"paths.outputs={tmp_path / 'outputs'}", f"paths.cache={tmp_path / 'cache'}"]
    done = watched(tmp_path, *settings, *paths)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("OUTSIDE")] == []
    assert not list((tmp_path / "here").iterdir())
    assert not list((tmp_path / "home").iterdir())
    assert {path: path.read_bytes() for path in photos.iterdir()} == before
    assert len(list((tmp_path / "outputs").glob("*/*/images/-a b.png"))) == 1
    assert list((tmp_path / "cache").iterdir())


def test_the_watch_sees_an_escape(tmp_path):
    assert f"OUTSIDE open {tmp_path / 'here' / 'escaped'}" in watched(tmp_path, "escape").stderr
