"""The disk is full while a table, picture or page is written: what was there stays."""

import errno
import os
import resource
import time
from pathlib import Path

import pytest

from eval.files import write_atomically
from eval.report import tables as report
from eval.report.tables import main, write_page, write_tables

from .finished_run import make_run

WRITTEN = {  # in the order of their writing, by the function of eval.report.tables that is called just before
    "table.md": "to_markdown",
    "table.csv": "to_csv",
    "table.tex": "to_latex",
    "grid-d1.png": "draw_grid",
    "report.html": "write_html",
}


@pytest.fixture
def fill_the_disk():
    """A function after which files can have 10 bytes: the kernel writes these, and refuses the others."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def write_report(task):
    write_tables(task)
    write_page(task)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != ".table.lock"}


@pytest.mark.filterwarnings("ignore:thumbnails cannot be kept")
@pytest.mark.parametrize("name", WRITTEN)
def test_a_full_disk_leaves_what_was_there(name, tmp_path, monkeypatch, fill_the_disk):
    task = tmp_path / "t"
    make_run(task, "m")
    write_report(task)
    before = contents(task)
    assert before.keys() == {*WRITTEN, ".thumbnails.json"}
    make_run(task, "another")
    real = getattr(report, WRITTEN[name])

    def full(*arguments, **settings):
        fill_the_disk()
        return real(*arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(report, WRITTEN[name], full)
        with pytest.raises(OSError, match=name) as caught:
            write_report(task)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(task / name))
    after = contents(task)
    assert after.keys() == before.keys()
    earlier = [*WRITTEN][: [*WRITTEN].index(name)]
    assert {key for key in after if after[key] != before[key]} == set(earlier)


def test_the_command_says_so(tmp_path, capsys, fill_the_disk):
    make_run(tmp_path / "t", "m")
    write_report(tmp_path / "t")
    before = contents(tmp_path / "t")
    fill_the_disk()
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path / "t")])
    assert caught.value.code == 2
    assert f"File too large: '{tmp_path / 't' / 'table.md'}'" in capsys.readouterr().err
    assert contents(tmp_path / "t") == before


def test_what_a_kill_left_is_removed_when_it_is_old(tmp_path):
    """A new one may belong to another process, which is writing it."""
    task = tmp_path / "t"
    make_run(task, "m")
    for name, age in ((".old.tmp", 7200), (".new.tmp", 0)):
        (task / name).write_bytes(b"half")
        os.utime(task / name, (time.time() - age,) * 2)
    write_report(task)
    assert {path.name for path in task.glob(".*.tmp")} == {".new.tmp"}


def test_the_disk_has_it_before_its_name_says_so(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr("os.fsync", lambda handle: done.append("fsync"))
    monkeypatch.setattr("os.replace", lambda written, path: done.append(Path(written).read_bytes()))
    write_atomically(b"whole", tmp_path / "table.md")
    assert done == ["fsync", b"whole"]
