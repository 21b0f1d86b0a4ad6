"""One run in several processes: the same images and numbers, and one message when one of them fails."""

import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from pyarrow import parquet

from cyclediff.runtime import distributed
from cyclediff.runtime.batches import costs
from cyclediff.runtime.record import Run

from .forking import At, Refusing, finish, killed, start
from .test_run import ROOT, SMALL, contents

RUN = [SMALL, "method=sdedit", "steps=few", "data.limit=6", "batch_size=1", "allow_code_change=true"]
EDITS = ["experiment=pets_edit", "method=sdedit", "data.limit=3", "tier=few", "batch_size=2"]
EDITS += ["allow_code_change=true"]  # someone may be editing the code while these tests run
COSTS = {"seconds_per_image", "images_per_second"}  # columns that depend on the machine


@dataclass(frozen=True)
class Rank:
    """Makes a process one of several, as torchrun's environment does, and puts a fault into it."""

    rank: int
    world: int
    port: int
    fault: Callable[[], None] | None = None

    def __call__(self):
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(self.port)}
        os.environ |= {"RANK": str(self.rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(self.world), **place}
        if self.fault:
            self.fault()


def ranks(arguments, folder, faults=(None, None)):
    """Run run.py in so many processes as there are faults. Returns their exit codes, and what they printed."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    logs = [folder / f"{rank}.log" for rank in range(len(faults))]
    begun = [
        start([*arguments, f"paths.outputs={folder}"], log, Rank(rank, len(faults), port, fault))
        for rank, (log, fault) in enumerate(zip(logs, faults, strict=True))
    ]
    for process in begun:
        process.join(60)
    codes = [process.exitcode for process in begun]
    for process in begun:
        process.kill()
    return codes, [log.read_text() for log in logs]


def one(arguments, folder, fault=None):
    folder.mkdir(exist_ok=True)
    return finish([*arguments, f"paths.outputs={folder}"], folder / "one.log", fault)


def record(folder):
    return json.loads(next(folder.glob("*/*/run.json")).read_bytes())


def table(folder):
    """The texts, and the numbers, of all cells of a table but times."""
    texts, numbers = {}, {}
    with next(folder.glob("*/table.csv")).open() as file:
        for row in csv.DictReader(file):
            for key in row.keys() - COSTS:
                try:
                    numbers[row["method"], key] = float(row[key])
                except ValueError:
                    texts[row["method"], key] = row[key]
    return texts, numbers


def assert_same_tables(folder, other):
    """Batches of the networks that judge are cut otherwise, so numbers agree to float32's digits."""
    texts, numbers = table(folder)
    assert len(numbers) > 15
    assert texts == table(other)[0]
    assert numbers == pytest.approx(table(other)[1], rel=1e-4, abs=1e-5)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The images and tables that one process makes."""
    folder = tmp_path_factory.mktemp("alone")
    assert one(RUN, folder)[0] == 0
    return folder


def test_two_processes_make_what_one_makes(alone, tmp_path):
    codes, (printed, silent) = ranks(RUN, tmp_path)
    assert codes == [0, 0], printed
    assert contents(tmp_path) == contents(alone)
    assert len(contents(tmp_path)) == 6
    assert_same_tables(tmp_path, alone)
    assert silent == ""
    assert "2 processes made 6 images in" in printed
    assert printed.count("pets_cat2dog: 6 images") == 1
    found = record(tmp_path)
    assert found["world_size"] == 2
    assert [share["images"] for share in found["ranks"]] == [3, 3]
    assert found["costs"]["forwards_per_image"] == record(alone)["costs"]["forwards_per_image"] == 2
    seconds = [share["seconds"] for share in found["ranks"]]
    assert found["costs"]["seconds_per_image"] == pytest.approx(sum(seconds) / 6)
    assert found["costs"]["images_per_second"] == pytest.approx(6 / max(seconds))


def test_editing_in_two_processes_and_a_second_run(tmp_path):
    both = [*EDITS, "method=sdedit,ddib"]
    assert ranks(both, tmp_path / "two")[0] == [0, 0]
    assert one(both, tmp_path / "one")[0] == 0
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert len(contents(tmp_path / "two")) == 3  # of either run, by name
    assert_same_tables(tmp_path / "two", tmp_path / "one")
    places = sorted(path.relative_to(tmp_path / "one") for path in tmp_path.glob("one/*/*/candidates.parquet"))
    assert len(places) == 2
    for place in places:
        assert parquet.read_table(tmp_path / "two" / place).equals(parquet.read_table(tmp_path / "one" / place))
    assert not list(tmp_path.glob("*/*/*/candidates*.jsonl"))


def test_a_killed_process_ends_the_others_and_two_finish_what_one_began(alone, tmp_path):
    assert one(RUN, tmp_path, At("images/source0001.png", 1, killed))[0] == -signal.SIGKILL
    assert len(contents(tmp_path)) == 1
    began = time.monotonic()
    codes, printed = ranks(RUN, tmp_path, (None, At("images/source0004.png", 1, killed)))
    assert time.monotonic() - began < 50
    assert codes == [1, -signal.SIGKILL]
    assert printed[0].count(distributed.LOST) == 1
    assert "Traceback" not in printed[0]
    kept = contents(tmp_path)
    assert kept.keys() < contents(alone).keys()
    assert len(kept) == 5  # the first process made all of its part
    assert ranks(RUN, tmp_path)[0] == [0, 0]
    assert contents(tmp_path) == contents(alone)
    assert_same_tables(tmp_path, alone)
    assert record(tmp_path)["costs"]["forwards_per_image"] == 2


def broken(*_):
    raise KeyError("its own error")


def without_evaluation():
    import eval.evaluate

    eval.evaluate.evaluate = broken


@pytest.mark.parametrize(
    ("faulty", "fault"),
    [(0, At("images/source0002.png", 1, broken)), (1, At("images/source0003.png", 1, broken)), (1, without_evaluation)],
    ids=["first", "second", "in the evaluation"],
)
def test_an_error_is_printed_by_its_process_alone(faulty, fault, tmp_path):
    faults = [None, None]
    faults[faulty] = fault
    codes, printed = ranks(RUN, tmp_path, faults)
    assert codes == [1, 1]
    assert printed[faulty].count("KeyError: 'its own error'") == 1
    assert "Traceback" in printed[faulty]
    assert not re.search("Traceback|error: ", printed[1 - faulty])
    assert len(contents(tmp_path)) >= 2
    noted = record(tmp_path)
    if fault is without_evaluation:  # the images are finished, and the reason stands beside them
        (reason,) = noted["unscored"].values()
        assert (noted["status"], reason["error_type"]) == ("finished", "KeyError")
    else:
        assert (noted["status"], noted["error_type"]) == ("failed", "KeyError")


def test_a_mistake_of_one_process(tmp_path):
    codes, printed = ranks(RUN, tmp_path, (None, Refusing("images/source0003.png", 28)))
    assert codes[1] == 2
    assert codes[0] in (1, 2)
    assert printed[1].splitlines()[-1].startswith("error: ")
    assert "cannot be written (No space left on device)" in printed[1]
    assert not re.search("Traceback|error: ", printed[0])


@pytest.mark.parametrize("mistake", ["method=sdedt", "batch_size=0", "method.t0=0", "data.source=nowhere"])
def test_a_mistake_of_all_is_printed_once(mistake, tmp_path):
    codes, printed = ranks([*RUN, mistake], tmp_path)
    assert 2 in codes
    assert set(codes) <= {1, 2}
    assert sum(text.count("error: ") for text in printed) == 1
    assert not any("Traceback" in text for text in printed)


def test_more_processes_than_batches(tmp_path):
    codes, printed = ranks([*RUN, "data.limit=2", "batch_size=2"], tmp_path)
    assert codes == [0, 0]
    assert (
        printed[0].count("2 processes share 1 batches, so 1 have nothing to do; batch_size=1 would give each some") == 1
    )
    assert printed[1] == ""


def test_costs_of_several_starts_and_processes(tmp_path):
    """One process made two images in 6 s; later two made the other four at once, the slower in 9 s."""
    logs = [Run(tmp_path, {"method": {"name": "m"}}, {}, rank) for rank in (0, 1)]
    logs[0].path.mkdir(parents=True)
    for log, ids, seconds, world, begun in [
        (logs[0], "ab", 6.0, 1, 10.5),
        (logs[1], "cd", 9.0, 2, 20.5),
        (logs[0], "e", 2.0, 2, 20.5),
        (logs[0], "f", 3.0, 2, 20.5),
    ]:
        forwards, backwards, inside = len(ids) * 7, len(ids) * 2, seconds / 2
        about = {"rank": log.rank, "world": world, "start": begun, "seconds": seconds, "network_seconds": inside}
        log.log_batch(ids, forwards=forwards, backwards=backwards, **about)
    found = costs(logs[0], 6)
    assert found["costs"]["seconds_per_image"] == pytest.approx(20 / 6)
    assert found["costs"]["images_per_second"] == pytest.approx(6 / (6 + 9))
    assert found["costs"]["forwards_per_image"] == 7
    assert found["costs"]["backwards_per_image"] == 2
    assert found["costs"]["network_share"] == 0.5
    assert found["ranks"] == [{"seconds": 5.0, "images": 2}, {"seconds": 9.0, "images": 2}]


def exchanged():
    distributed.start()
    return (
        distributed.rank(),
        distributed.world(),
        distributed.gather(distributed.rank()),
        distributed.from_first(lambda: f"of {distributed.rank()}"),
    )


@pytest.mark.slow
def test_tasks_of_submitit_find_one_another(tmp_path):
    submitit = pytest.importorskip("submitit")
    executor = submitit.AutoExecutor(tmp_path, cluster="local")
    executor.update_parameters(tasks_per_node=2, timeout_min=2)
    found = executor.submit(exchanged).results()
    assert found == [(0, 2, [0, 1], "of 0"), (1, 2, [0, 1], "of 0")]


def torchrun(*arguments):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return [*launcher, str(ROOT / "run.py"), *arguments]


@pytest.mark.slow
def test_torchrun(alone, tmp_path):
    done = subprocess.run(torchrun(*RUN, f"paths.outputs={tmp_path}"), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path) == contents(alone)
    assert_same_tables(tmp_path, alone)


@pytest.mark.slow
def test_torchrun_prints_a_mistake_once_before_its_own_report(tmp_path):
    done = subprocess.run(
        torchrun(*RUN, "batch_size=0", f"paths.outputs={tmp_path}"), capture_output=True, text=True, timeout=300
    )
    assert done.returncode != 0
    assert done.stderr.count("error: batch_size must be a whole number of at least 1, or auto; got 0") == 1


@pytest.mark.slow
def test_sigterm_to_torchrun(tmp_path):
    arguments = [SMALL, "method=sdedit", "data.limit=40", "batch_size=1", f"paths.outputs={tmp_path}"]
    process = subprocess.Popen(torchrun(*arguments), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while len(contents(tmp_path)) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    printed = process.communicate(timeout=60)[1]
    found = re.search(r"stopped after (\d+) of 40 images; the same command continues from there", printed)
    assert found
    assert int(found[1]) == len(contents(tmp_path)) < 40
    assert record(tmp_path)["status"] == "running"
