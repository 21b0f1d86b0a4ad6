import csv
import json
import os
import time
import warnings

import pytest
from PIL import Image

from cyclediff.data.images import write_atomically
from cyclediff.errors import UserError
from cyclediff.runtime.record import Run, Scored, code_digest, provenance

IDENTITY = {"task": "t", "method": {"name": "m", "eta": 0.1}, "seed": 1, "data": {"digest": "d", "n": 2}}
EDITING = {**IDENTITY, "selection": {"candidates": 2}}
SCORED = Scored({"psnr": {"value": 1.0}}, [{"id": "x", "psnr": 1.0}], {"fid": [1.0, 2.0]})
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
    picture(run, "x")
    (run.images / ".123.tmp").touch()
    (run.path / ".123.tmp").touch()
    assert not run.is_finished(RECORD, allow_code_change=False)
    run.start("a: 2\n", RECORD)
    assert run.missing(["x", "y"]) == ["y"]
    assert [path.name for path in run.images.iterdir()] == ["x.png"]
    assert not list(run.path.glob(".*"))
    run.finish(SCORED, {"seconds_per_image": 0.5})
    assert run.is_finished(RECORD, allow_code_change=False)
    assert (run.path / "config.yaml").read_text() == "a: 1\n"
    record = json.loads((run.path / "run.json").read_bytes())
    assert (record["status"], record["seconds_per_image"], record["identity"]) == ("finished", 0.5, IDENTITY)
    with (run.path / "per_image.csv").open() as file:
        assert list(csv.DictReader(file)) == [{"id": "x", "psnr": "1.0"}]
    assert (run.path / "bootstrap.csv").read_text() == "fid\n1.0\n2.0\n"


def picture(run, image_id):
    Image.effect_noise((16, 16), 50).save(run.image(image_id))


def finished(task_folder, identity=IDENTITY):
    run = Run(task_folder, identity)
    run.start("a: 1\n", RECORD)
    if "selection" in identity:
        run.log_candidates("x", [{"index": 0, "chosen": False}, {"index": 1, "chosen": True}])
        run.write_candidates()
    picture(run, "x")
    run.log_batch(["x"], seconds=1.0)
    run.finish(SCORED, {})
    return Run(task_folder, identity)  # as the next process sees it


def damage(path, how):
    content = path.read_bytes()
    path.unlink()
    if how != "removed":
        path.write_bytes(
            {"cut": content[: len(content) // 2], "emptied": b"", "garbled": b"\0\xff{" + content[:5]}[how]
        )


DAMAGES = ["cut", "emptied", "garbled", "removed"]


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize(
    "file", ["config.yaml", "per_image.csv", "bootstrap.csv", "metrics.json", "candidates.parquet", "images/x.png"]
)
def test_damage_to_a_finished_run_is_noticed_and_mended(tmp_path, file, how):
    run = finished(tmp_path, EDITING)
    assert run.is_finished(RECORD, allow_code_change=False)
    whole = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file() and path.suffix != ".png"}
    damage(run.path / file, how)
    run = Run(tmp_path, EDITING)
    with pytest.warns(UserWarning, match=f"was finished, but {file} is missing or was changed since"):
        assert not run.is_finished(RECORD, allow_code_change=False)
    run.start("a: 1\n", RECORD)
    assert json.loads((run.path / "run.json").read_bytes())["status"] == "running"
    missing = run.missing(["x"])
    assert missing == (["x"] if file in ("images/x.png", "candidates.parquet") else [])
    if missing:
        run.log_candidates("x", [{"index": 0, "chosen": False}, {"index": 1, "chosen": True}])
        picture(run, "x")
    run.write_candidates()
    run.finish(SCORED, {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Run(tmp_path, EDITING).is_finished(RECORD, allow_code_change=False)
    for path in whole.keys() - {run.path / "run.json"}:
        assert path.read_bytes() == whole[path]


@pytest.mark.parametrize("how", DAMAGES)
def test_without_its_record_a_run_is_not_guessed_at(tmp_path, how):
    run = finished(tmp_path)
    damage(run.path / "run.json", how)
    left = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"run\.json is missing or damaged.*delete .*m-\w{8}, and the same command"):
        run.is_finished(RECORD, allow_code_change=True)
    assert left == {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


@pytest.mark.parametrize("content", ["null", "[]", "7", '"finished"', "{}", '{"status": "finished"}'])
def test_json_that_is_no_record(tmp_path, content):
    run = finished(tmp_path)
    (run.path / "run.json").write_text(content)
    with pytest.raises(UserError, match="is missing or damaged"):
        run.is_finished(RECORD, allow_code_change=True)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_picture_that_is_cut_is_missing(tmp_path, share):
    run = finished(tmp_path)
    content = run.image("x").read_bytes()
    run.image("x").write_bytes(content[: int(share * len(content))])
    assert run.missing(["x"]) == ["x"]
    run.image("x").write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))  # a power cut
    assert run.missing(["x"]) == ["x"]
    run.image("x").write_bytes(bytes(8) + content[8:])
    assert run.missing(["x"]) == ["x"]
    run.image("x").write_bytes(content)
    assert run.missing(["x"]) == []


def test_five_thousand_pictures_are_looked_at_in_two_seconds(tmp_path):
    run = Run(tmp_path, IDENTITY)
    run.start("", RECORD)
    picture(run, "0")
    for i in range(1, 5000):
        os.link(run.image("0"), run.image(str(i)))
    began = time.perf_counter()
    assert run.missing([str(i) for i in range(5001)]) == ["5000"]
    assert time.perf_counter() - began < 2


def test_a_picture_without_its_candidates_is_made_again(tmp_path):
    run = Run(tmp_path, EDITING)
    run.start("", RECORD)
    for image_id in "abc":
        run.log_candidates(image_id, [{"index": 0, "chosen": True}])
        picture(run, image_id)
    log = run.path / "candidates.jsonl"
    lines = log.read_bytes().splitlines()
    log.write_bytes(b"\n".join([lines[0], lines[1], b"\0" * len(lines[2]), lines[3][:-1] + b"\xff"]))
    again = Run(tmp_path, EDITING)
    assert again.missing("abc") == ["b", "c"]
    again.log_candidates("b", [{"index": 0, "chosen": True}])
    assert again.missing("abc") == ["c"]
    assert [row["id"] for row in again.candidates()] == ["a", "b"]


@pytest.mark.parametrize("line", [b"null", b"[1]", b"\xff\xfe", b"\0\0\0", b'{"ids": ["a"]}', b'{"seconds": 9}', b"{"])
def test_lines_that_are_no_batches_are_passed_over(tmp_path, line):
    run = Run(tmp_path, IDENTITY)
    run.start("", RECORD)
    run.log_batch(["a"], seconds=1.0)
    with (run.path / "progress.jsonl").open("ab") as file:
        file.write(b"\n" + line)
    run.log_batch(["b"], seconds=2.0)
    assert [batch["seconds"] for batch in run.batches()] == [1.0, 2.0]


def test_a_log_that_cannot_be_written_is_told(tmp_path):
    run = Run(tmp_path, EDITING)
    run.start("", RECORD)
    for name in ("progress.jsonl", "candidates.jsonl"):
        (run.path / name).mkdir()
    with pytest.raises(UserError, match=r"progress\.jsonl cannot be written \(Is a directory\); what is finished"):
        run.log_batch(["a"], seconds=1.0)
    with pytest.raises(UserError, match=r"candidates\.jsonl cannot be written"):
        run.log_candidates("a", [])


def test_records_are_on_the_disk_before_they_have_their_name(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(os, "fsync", lambda handle: done.append("fsync"))
    monkeypatch.setattr(os, "replace", lambda *paths: done.append("replace"))
    write_atomically(b"{}", tmp_path / "a.json")
    assert done == ["fsync", "replace"]


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
    with pytest.raises(UserError, match="other weights"):
        finished(tmp_path / "b").is_finished({**RECORD, "checkpoints": {"target": "xyz"}}, allow_code_change=True)


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
