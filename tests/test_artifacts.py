"""What a run leaves of each item: which of it counts as whole, and which is made again."""

import os
import time

import pytest

from cyclediff.runtime.artifacts import Rows

from .test_record import RECORD, ROWS, finished, image, make, new_run


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_picture_that_is_cut_is_missing(tmp_path, share):
    run = finished(tmp_path)
    content = image(run, "x").read_bytes()
    image(run, "x").write_bytes(content[: int(share * len(content))])
    assert run.missing(["x"]) == ["x"]
    image(run, "x").write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))  # a power cut
    assert run.missing(["x"]) == ["x"]
    image(run, "x").write_bytes(bytes(8) + content[8:])
    assert run.missing(["x"]) == ["x"]
    image(run, "x").write_bytes(content)
    assert run.missing(["x"]) == []


def test_five_thousand_pictures_are_checked_in_two_seconds(tmp_path):
    run = new_run(tmp_path)
    run.start("", RECORD)
    make(run, "0")
    for i in range(1, 5000):
        os.link(image(run, "0"), image(run, str(i)))
    began = time.perf_counter()
    assert run.missing([str(i) for i in range(5001)]) == ["5000"]
    assert time.perf_counter() - began < 2


def test_a_picture_without_its_candidates_is_made_again(tmp_path):
    run = new_run(tmp_path, rows=True)
    run.start("", RECORD)
    for item in "abc":
        make(run, item)
    log = run.path / "candidates.jsonl"
    lines = log.read_bytes().splitlines()
    log.write_bytes(b"\n".join([lines[0], lines[1], b"\0" * len(lines[2]), lines[3][:-1] + b"\xff"]))
    again = new_run(tmp_path, rows=True)
    assert again.missing("abc") == ["b", "c"]
    again.artifacts["candidates"].write(again.path, "b", ROWS, 0)
    assert again.missing("abc") == ["c"]
    assert [row["id"] for row in again.artifacts["candidates"].read(again.path)] == ["a", "a", "b", "b"]


def test_of_rows_that_are_made_twice_the_last_count(tmp_path):
    """Also where the first are in the file of an earlier finish, and the last in the log of another process."""
    table = Rows("numbers")
    table.write(tmp_path, "a", [{"value": 1}], rank=0)
    table.write(tmp_path, "b", [{"value": 2}], rank=0)
    assert table.close(tmp_path) == "numbers.parquet"
    assert [path.name for path in tmp_path.iterdir()] == ["numbers.parquet"]
    table.write(tmp_path, "a", [{"value": 3}, {"value": 4}], rank=1)
    expected = [{"id": "a", "value": 3}, {"id": "a", "value": 4}, {"id": "b", "value": 2}]
    assert Rows("numbers").read(tmp_path) == expected
    table.close(tmp_path)
    assert Rows("numbers").read(tmp_path) == expected
