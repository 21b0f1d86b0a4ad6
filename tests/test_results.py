import csv
import json

import pytest

from cyclediff.errors import UserError
from cyclediff.results import Run, code_digest, provenance

IDENTITY = {"task": "t", "method": {"name": "m", "eta": 0.1}, "seed": 1, "data": {"digest": "d", "n": 2}}
RECORD = {"code": "c0de", "revision": "r", "checkpoints": {"target": "abc"}}


def test_the_folder_is_named_by_what_was_asked_for(tmp_path):
    path = Run(tmp_path, IDENTITY).path
    assert path == Run(tmp_path, dict(reversed(IDENTITY.items()))).path
    for key, value in {"seed": 2, "method": {"name": "m", "eta": 0.2}, "data": {"digest": "e", "n": 2}}.items():
        assert Run(tmp_path, {**IDENTITY, key: value}).path != path


def test_start_continue_finish(tmp_path):
    run = Run(tmp_path, IDENTITY)
    assert not run.is_finished(RECORD, allow_code_change=False)
    assert not run.path.exists()
    run.start("a: 1\n", RECORD)
    assert run.missing(["x", "y"]) == ["x", "y"]
    run.image("x").touch()
    (run.images / ".123.tmp").touch()
    assert not run.is_finished(RECORD, allow_code_change=False)
    run.start("a: 2\n", RECORD)
    assert run.missing(["x", "y"]) == ["y"]
    assert [path.name for path in run.images.iterdir()] == ["x.png"]
    run.finish({"psnr": {"value": 1.0}}, [{"id": "x", "psnr": 1.0}], {"seconds_per_image": 0.5})
    assert run.is_finished(RECORD, allow_code_change=False)
    assert (run.path / "config.yaml").read_text() == "a: 1\n"
    record = json.loads((run.path / "run.json").read_bytes())
    assert (record["status"], record["seconds_per_image"], record["identity"]) == ("finished", 0.5, IDENTITY)
    with (run.path / "per_image.csv").open() as file:
        assert list(csv.DictReader(file)) == [{"id": "x", "psnr": "1.0"}]


def test_other_code_or_weights_are_refused(tmp_path):
    run = Run(tmp_path, IDENTITY)
    run.start("", RECORD)
    other = {**RECORD, "code": "0ther"}
    with pytest.raises(UserError, match="allow_code_change=true"):
        run.is_finished(other, allow_code_change=False)
    run.is_finished(other, allow_code_change=True)
    run.is_finished(other, allow_code_change=False)  # once allowed, recorded, and not asked again
    assert json.loads((run.path / "run.json").read_bytes())["continued_by"] == "0ther"
    with pytest.raises(UserError, match="other weights"):
        run.is_finished({**RECORD, "checkpoints": {"target": "xyz"}}, allow_code_change=True)


def test_costs_survive_a_kill_in_mid_line(tmp_path):
    run = Run(tmp_path, IDENTITY)
    run.start("", RECORD)
    run.log_batch(["a"], seconds=1.0)
    with (run.path / "progress.jsonl").open("a") as file:
        file.write('\n{"ids": ["b"], "sec')
    assert run.batches() == [{"ids": ["a"], "seconds": 1.0}]
    run.log_batch(["b"], seconds=3.0)
    run.log_batch(["a"], seconds=2.0)  # done again
    assert [batch["seconds"] for batch in run.batches()] == [2.0, 3.0]


def test_provenance_names_what_computed():
    record = provenance()
    assert record["code"] == code_digest()
    assert record["versions"]["torch"]
