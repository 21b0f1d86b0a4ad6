"""SIGTERM, as schedulers send it: the batch in hand is kept, and the same command continues."""

import json
import os
import signal
import threading
import time

import pytest

from cyclediff.runtime import stop

from .forking import At, start
from .test_distributed import assert_same_tables, one, ranks
from .test_run import SMALL, contents

RUN = [SMALL, "method=sdedit", "steps=few", "data.limit=6", "batch_size=2", "allow_code_change=true"]
AGAIN = "images; the same command continues from there"


def asked(path):
    os.kill(os.getpid(), signal.SIGTERM)


def interrupted(path):
    os.kill(os.getpid(), signal.SIGINT)


def records(folder):
    return [json.loads(path.read_bytes()) for path in folder.glob("*/*/run.json")]


def test_the_batch_in_hand_is_finished(tmp_path):
    code, printed = one(RUN, tmp_path / "stopped", At("progress.jsonl", 2, asked))
    assert code == 0
    assert printed.count(f"stopped after 4 of 6 {AGAIN}") == 1
    assert "error" not in printed
    assert len(contents(tmp_path / "stopped")) == 4
    assert [record["status"] for record in records(tmp_path / "stopped")] == ["running"]
    assert not list(tmp_path.rglob("metrics.json"))
    assert not list(tmp_path.rglob("table.md"))
    assert one(RUN, tmp_path / "stopped")[0] == one(RUN, tmp_path / "whole")[0] == 0
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")
    assert_same_tables(tmp_path / "stopped", tmp_path / "whole")


def test_a_signal_after_the_last_check_is_not_lost(monkeypatch):
    monkeypatch.setattr(stop, "_asked", threading.Event())

    @stop.after_the_batch()
    def batch():
        stop._handle()
        continued.append(stop.requested())

    continued = []
    with pytest.raises(stop.Stopped):
        batch()
    assert continued == [True]
    with pytest.raises(stop.Stopped):  # outside it is not held
        stop._handle()


def test_the_runs_that_follow_are_not_started(tmp_path):
    code, printed = one([*RUN, "method=ddib,sdedit,ilvr"], tmp_path, At("images/source0004.png", 2, asked))
    assert code == 0
    assert f"stopped after 6 of 6 {AGAIN}" in printed
    assert sorted(record["status"] for record in records(tmp_path)) == ["finished", "running"]


def test_outside_of_batches_it_ends_at_once(tmp_path):
    """While scores are written the images are finished; the same command makes the scores."""
    code, printed = one(RUN, tmp_path, At("per_image.csv", 1, asked))
    assert code == 0
    assert stop.STOPPED in printed
    assert [record["status"] for record in records(tmp_path)] == ["finished"]
    assert not list(tmp_path.rglob("metrics.json"))
    assert not list(tmp_path.rglob("table.md"))
    assert one(RUN, tmp_path)[0] == 0
    assert len(list(tmp_path.rglob("metrics.json"))) == len(list(tmp_path.rglob("table.md"))) == 1


def test_a_signal_from_another_process(tmp_path):
    arguments = [SMALL, "method=sdedit", "data.limit=40", "batch_size=1", f"paths.outputs={tmp_path}"]
    process = start(arguments, tmp_path / "log")
    deadline = time.monotonic() + 60
    while len(contents(tmp_path)) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    process.join(30)
    assert process.exitcode == 0
    assert f"stopped after {len(contents(tmp_path))} of 40 {AGAIN}" in (tmp_path / "log").read_text()
    assert len(contents(tmp_path)) < 40


@pytest.mark.parametrize("who", [0, 1])
def test_a_signal_to_one_of_two_processes_stops_both(who, tmp_path):
    """The first has images 0, 2, 4 …, the second 1, 3, 5 …"""
    faults = [None, None]
    faults[who] = At(f"images/source000{who}.png", 1, asked)
    codes, printed = ranks([*RUN, "data.limit=60", "batch_size=1"], tmp_path, faults)
    assert codes == [0, 0]
    made = len(contents(tmp_path))
    assert made < 20
    assert sum(text.count(f"stopped after {made} of 60 {AGAIN}") for text in printed) == 1
    assert not any("rror" in text for text in printed)
    assert [record["status"] for record in records(tmp_path)] == ["running"]


def at_ctrl_c():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background, and their children, ignore it
    At("progress.jsonl", 2, interrupted)()


def test_ctrl_c_is_as_it_was(tmp_path):
    code, printed = one(RUN, tmp_path, at_ctrl_c)
    assert code == 130
    assert f"error: {stop.STOPPED}" in printed
    assert len(contents(tmp_path)) == 4  # what was made is written


def taken_by_another():
    signal.signal(signal.SIGTERM, lambda *_: print("requeued"))
    At("images/source0002.png", 1, asked)()


def test_an_earlier_handler_of_sigterm_keeps_it(tmp_path):
    """As submitit does, which requeues the job."""
    code, printed = one(RUN, tmp_path, taken_by_another)
    assert code == 0
    assert "requeued" in printed
    assert "stopped" not in printed
    assert len(contents(tmp_path)) == 6
