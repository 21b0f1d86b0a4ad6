"""Who has a run's folder: processes of one machine, and what a file says of those on others."""

import json
import os
import signal
import socket
import threading
import time

import pytest

from cyclediff.errors import UserError
from cyclediff.runtime import lock
from cyclediff.runtime.lock import LOCK, OWNER, claimed

from .forking import fork


def hold(folder, ready):
    """Take a folder and keep it until killed."""
    with claimed(folder, "python run.py seed=7"):
        ready.set()
        time.sleep(600)


def holder(folder, ready):
    process = fork(hold, folder, ready)
    assert ready.wait(120)
    return process


@pytest.fixture
def ready():
    from .forking import FORKS

    return FORKS.Event()


@pytest.fixture
def quick(monkeypatch):
    """A second of patience instead of a minute."""
    monkeypatch.setattr(lock, "PATIENCE", 1.0)
    monkeypatch.setattr(lock, "BEAT", 0.1)


def left_by(folder, host, **more):
    folder.mkdir(exist_ok=True)
    owner = {"host": host, "pid": 4, "start": "2025-01-01T00:00:00+00:00", "command": "python run.py seed=9", **more}
    (folder / OWNER).write_text(json.dumps(owner))


def test_the_owner_is_named_and_the_folder_is_free_afterwards(tmp_path):
    with claimed(tmp_path / "run", "python run.py"):
        owner = json.loads((tmp_path / "run" / OWNER).read_bytes())
        assert (owner["host"], owner["pid"], owner["command"]) == (socket.gethostname(), os.getpid(), "python run.py")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]
    with pytest.raises(KeyError), claimed(tmp_path / "run", ""):
        raise KeyError
    with claimed(tmp_path / "run", ""):
        pass


def test_a_living_process_is_respected_and_a_killed_one_is_not(tmp_path, ready):
    process = holder(tmp_path, ready)
    sentence = (
        rf"{tmp_path} is being made by process {process.pid} on {socket.gethostname()} since .*\(python run.py seed=7\)"
    )
    with pytest.raises(UserError, match=sentence), claimed(tmp_path, ""):
        pass
    with pytest.raises(UserError, match=sentence), claimed(tmp_path, ""):  # the refused one has broken nothing
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert (tmp_path / OWNER).exists()
    with claimed(tmp_path, "mine"):
        assert json.loads((tmp_path / OWNER).read_bytes())["command"] == "mine"


def test_another_folder_is_free(tmp_path, ready):
    process = holder(tmp_path / "a", ready)
    with claimed(tmp_path / "b", ""):
        pass
    process.kill()


def test_a_machine_that_gives_signs_of_life_is_respected(tmp_path, quick):
    """Its lock is not seen here, as on a network disk that keeps locks to each machine."""
    left_by(tmp_path, "elsewhere")
    ended = threading.Event()
    beating = threading.Thread(target=lock._beat, args=(tmp_path / OWNER, ended), daemon=True)
    beating.start()
    sentence = r"by process 4 on elsewhere since 2025-.*\(python run\.py seed=9\)"
    with pytest.raises(UserError, match=sentence), claimed(tmp_path, ""):
        pass
    assert json.loads((tmp_path / OWNER).read_bytes())["host"] == "elsewhere"
    ended.set()
    beating.join()
    with claimed(tmp_path, ""):  # it has fallen silent
        assert json.loads((tmp_path / OWNER).read_bytes())["host"] == socket.gethostname()


@pytest.mark.parametrize("clock", [-4e8, 4e8])
def test_clocks_need_not_agree(tmp_path, quick, monkeypatch, clock):
    """This machine's clock is years off the file system's; an owner silent for long is ignored at once."""
    left_by(tmp_path, "elsewhere")
    old = time.time() - 10
    os.utime(tmp_path / OWNER, (old, old))
    monkeypatch.setattr(time, "time", lambda real=time.time: real() + clock)
    began = time.perf_counter()
    with claimed(tmp_path, ""):
        pass
    assert time.perf_counter() - began < 0.5


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_an_owner_file_that_says_nothing(tmp_path, quick, content):
    (tmp_path / OWNER).write_bytes(content)
    old = time.time() - 10
    os.utime(tmp_path / OWNER, (old, old))
    with claimed(tmp_path, "mine"):
        assert json.loads((tmp_path / OWNER).read_bytes())["command"] == "mine"


def test_an_owner_that_ends_while_it_is_watched(tmp_path, quick):
    left_by(tmp_path, "elsewhere")
    threading.Timer(0.2, (tmp_path / OWNER).unlink).start()
    with claimed(tmp_path, "mine"):
        assert json.loads((tmp_path / OWNER).read_bytes())["command"] == "mine"


def test_the_owner_gives_signs_of_life(tmp_path, quick):
    with claimed(tmp_path, ""):
        seen = set()
        for _ in range(50):
            seen.add((tmp_path / OWNER).stat().st_mtime_ns)
            time.sleep(0.02)
    assert len(seen) >= 3


@pytest.mark.parametrize("place", ["run", "."])
def test_where_nothing_can_be_written(tmp_path, place):
    (tmp_path / "file").write_text("mine")
    sentence = r"file.* cannot be written \((File exists|Not a directory)\)"
    with pytest.raises(UserError, match=sentence), claimed(tmp_path / "file" / place, ""):
        pass
    assert (tmp_path / "file").read_text() == "mine"


def test_ten_at_once_have_it_one_after_the_other(tmp_path, ready):
    results = [fork(take_briefly, tmp_path, ready) for _ in range(10)]
    ready.set()
    for process in results:
        process.join(60)
    outcomes = [process.exitcode for process in results]
    assert set(outcomes) <= {0, 3}
    assert outcomes.count(0) == len((tmp_path / "journal").read_text().split()) // 2
    assert (tmp_path / "journal").read_text().split() == ["in", "out"] * outcomes.count(0)


def take_briefly(folder, ready):
    ready.wait()
    try:
        with claimed(folder, "brief"):
            for word in ("in ", "out "):
                with (folder / "journal").open("a") as file:
                    file.write(word)
                time.sleep(0.05)
    except UserError:
        raise SystemExit(3) from None
