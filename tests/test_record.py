import csv
import json
import os
import warnings

import pytest
from PIL import Image

from cyclediff.data.images import write_atomically
from cyclediff.errors import UserError
from cyclediff.runtime.artifacts import Pictures, Rows
from cyclediff.runtime.record import Run, ScoreFolder, code_digest, provenance
from cyclediff.runtime.study import Scored

IDENTITY = {"task": "t", "method": {"name": "m", "eta": 0.1}, "seed": 1, "weights": {"target": "abc"}}
SCORING = {"protocol": {"name": "pets/2", "resize": "bilinear"}, "weights": {"judge": "def"}}
CURVE = {"title": "T", "x": {"header": "x"}, "y": {"header": "y"}, "points": [[0, 1]]}
SCORED = Scored({"psnr": {"value": 1.0}}, [{"id": "x", "psnr": 1.0}], {"fid": [1.0, 2.0], "kid": [3.0]}, {"d": CURVE})
RECORD = {"schema": 2, "code": "c0de", "revision": "r"}
ROWS = [{"index": 0, "chosen": False}, {"index": 1, "chosen": True}]


def new_run(folder, identity=IDENTITY, rows=False):
    """A run as a process sees it that has just started."""
    artifacts = {"candidates": Rows("candidates"), "images": Pictures()} if rows else {"images": Pictures()}
    return Run(folder, identity, artifacts)


def is_finished(run, record=RECORD, allow_code_change=False):
    return run.is_finished(["x"], record, allow_code_change)


def image(run, item):
    return run.path / "images" / f"{item}.png"


def make(run, item):
    """Write what a run makes of an item."""
    if "candidates" in run.artifacts:
        run.artifacts["candidates"].write(run.path, item, ROWS, run.rank)
    Image.effect_noise((16, 16), 50).save(image(run, item))


def finished(folder, rows=False):
    run = new_run(folder, rows=rows)
    run.start("a: 1\n", RECORD)
    make(run, "x")
    run.log_batch(["x"], seconds=1.0)
    run.finish({})
    ScoreFolder(run.path, SCORING).write(SCORED, "c0de")
    return new_run(folder, rows=rows)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_folder_is_named_by_the_identity(tmp_path):
    path = new_run(tmp_path).path
    assert path.parent == tmp_path
    assert path.name.startswith("m-")
    assert path == new_run(tmp_path, dict(reversed(IDENTITY.items()))).path
    for key, value in {"seed": 2, "method": {"name": "m", "eta": 0.2}, "weights": {"target": "xyz"}}.items():
        assert new_run(tmp_path, {**IDENTITY, key: value}).path != path


def test_scores_of_each_protocol_have_a_folder(tmp_path):
    path = ScoreFolder(tmp_path, SCORING).path
    assert path.parent == tmp_path / "scores"
    assert path.name.startswith("pets-2-")
    assert path == ScoreFolder(tmp_path, dict(reversed(SCORING.items()))).path
    for key, value in {"protocol": {"name": "pets/2", "resize": "bicubic"}, "weights": {"judge": "xyz"}}.items():
        assert ScoreFolder(tmp_path, {**SCORING, key: value}).path != path


def test_start_continue_finish(tmp_path):
    run = new_run(tmp_path)
    assert not is_finished(run)
    assert not run.path.exists()
    run.start("a: 1\n", RECORD)
    assert run.missing(["x", "y"]) == ["x", "y"]
    make(run, "x")
    (run.path / "images" / ".123.tmp").touch()
    (run.path / ".123.tmp").touch()
    assert not is_finished(run)
    run.start("a: 2\n", {**RECORD, "device": "other"})
    assert run.missing(["x", "y"]) == ["y"]
    assert [path.name for path in (run.path / "images").iterdir()] == ["x.png"]
    assert not list(run.path.glob(".*"))
    run.finish({"costs": {"seconds_per_image": 0.5}})
    assert is_finished(run)
    assert (run.path / "config.yaml").read_text() == "a: 1\n"
    record = json.loads((run.path / "run.json").read_bytes())
    assert (record["status"], record["costs"], record["identity"]) == ("finished", {"seconds_per_image": 0.5}, IDENTITY)
    assert "device" not in record  # what made the first image is kept


def test_a_finished_run_lacks_a_new_item(tmp_path):
    run = finished(tmp_path)
    assert is_finished(run)
    with pytest.warns(UserWarning, match="was finished, but what was made of y is missing"):
        assert not run.is_finished(["x", "y"], RECORD, False)


def test_scores_are_written_and_found(tmp_path):
    scores = ScoreFolder(tmp_path, SCORING)
    assert not scores.is_finished("c0de")
    scores.write(SCORED, "c0de")
    (scores.path / ".123.tmp").touch()
    scores.write(SCORED, "c0de")
    assert not list(scores.path.glob(".*"))
    assert ScoreFolder(tmp_path, SCORING).is_finished("c0de")
    assert not ScoreFolder(tmp_path, SCORING).is_finished("other")  # numbers of other code are made again
    with (scores.path / "per_image.csv").open() as file:
        assert list(csv.DictReader(file)) == [{"id": "x", "psnr": "1.0"}]
    assert (scores.path / "bootstrap.csv").read_text() == "fid,kid\n1.0,3.0\n2.0,\n"
    assert json.loads((scores.path / "curves.json").read_bytes()) == {"d": CURVE}
    record = json.loads((scores.path / "metrics.json").read_bytes())
    assert (record["protocol"], record["identity"], record["code"]) == ("pets/2", SCORING, "c0de")
    assert record["metrics"] == SCORED.metrics


def damage(path, how):
    content = path.read_bytes()
    path.unlink()
    if how != "removed":
        path.write_bytes(
            {"cut": content[: len(content) // 2], "emptied": b"", "garbled": b"\0\xff{" + content[:5]}[how]
        )


DAMAGES = ["cut", "emptied", "garbled", "removed"]


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("file", ["config.yaml", "candidates.parquet", "images/x.png"])
def test_damage_to_a_finished_run_is_noticed_and_repaired(tmp_path, file, how):
    """The artifact is made again, and so are the scores, which are of it."""
    run = finished(tmp_path, rows=True)
    assert is_finished(run)
    whole = {path: content for path, content in contents(run.path).items() if path.suffix in (".yaml", ".parquet")}
    damage(run.path / file, how)
    run = new_run(tmp_path, rows=True)
    what = "what was made of x" if file == "images/x.png" else file
    with pytest.warns(UserWarning, match=f"was finished, but {what} is missing or was changed since"):
        assert not is_finished(run)
    run.start("a: 1\n", RECORD)
    assert json.loads((run.path / "run.json").read_bytes())["status"] == "running"
    assert not ScoreFolder(run.path, SCORING).is_finished("c0de")
    missing = run.missing(["x"])
    assert missing == ([] if file == "config.yaml" else ["x"])
    for item in missing:
        make(run, item)
    run.finish({})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert is_finished(new_run(tmp_path, rows=True))
    assert len(whole) == 2
    for path, content in whole.items():
        assert path.read_bytes() == content


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("file", ["per_image.csv", "bootstrap.csv", "curves.json", "metrics.json"])
def test_damage_to_scores_is_noticed_and_is_no_damage_to_the_run(tmp_path, file, how):
    run = finished(tmp_path)
    scores = ScoreFolder(run.path, SCORING)
    whole = contents(run.path)
    damage(scores.path / file, how)
    assert not scores.is_finished("c0de")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert is_finished(run)
    scores.write(SCORED, "c0de")
    assert scores.is_finished("c0de")
    assert contents(run.path) == whole


@pytest.mark.parametrize("content", ["null", "[]", "7", "{}", '{"schema": 1, "files": {}}', '{"schema": 2}'])
def test_json_that_is_no_scores(tmp_path, content):
    scores = ScoreFolder(tmp_path, SCORING)
    scores.write(SCORED, "c0de")
    (scores.path / "metrics.json").write_text(content)
    assert not scores.is_finished("c0de")


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("how", DAMAGES)
def test_without_its_record_a_run_is_refused(tmp_path, how, rows):
    """Also where nothing but a table of numbers is left of it."""
    run = finished(tmp_path, rows)
    damage(run.path / "run.json", how)
    if rows:
        image(run, "x").unlink()
    left = contents(run.path)
    with pytest.raises(UserError, match=r"run\.json is missing or damaged.*delete .*m-\w{8}, and the same command"):
        is_finished(run, allow_code_change=True)
    assert left == contents(run.path)


@pytest.mark.parametrize("content", ["null", "[]", "7", '"finished"', "{}", '{"status": "finished"}'])
def test_json_that_is_no_record(tmp_path, content):
    run = finished(tmp_path)
    (run.path / "run.json").write_text(content)
    with pytest.raises(UserError, match="is missing or damaged"):
        is_finished(run, allow_code_change=True)


@pytest.mark.parametrize("schema", [None, 1, 3])
def test_a_run_of_another_version_is_refused(tmp_path, schema):
    run = finished(tmp_path)
    record = json.loads((run.path / "run.json").read_bytes())
    del record["schema"]
    (run.path / "run.json").write_text(json.dumps(record | ({"schema": schema} if schema else {})))
    left = contents(run.path)
    sentence = rf"made by another version of this program \(schema {schema}, now 2\); delete it, and the same command"
    with pytest.raises(UserError, match=sentence):
        is_finished(run, allow_code_change=True)
    assert left == contents(run.path)


@pytest.mark.parametrize("line", [b"null", b"[1]", b"\xff\xfe", b"\0\0\0", b'{"ids": ["a"]}', b'{"seconds": 9}', b"{"])
def test_lines_that_are_no_batches_are_ignored(tmp_path, line):
    run = new_run(tmp_path)
    run.start("", RECORD)
    run.log_batch(["a"], seconds=1.0)
    with (run.path / "progress.jsonl").open("ab") as file:
        file.write(b"\n" + line)
    run.log_batch(["b"], seconds=2.0)
    assert [batch["seconds"] for batch in run.batches()] == [1.0, 2.0]


def test_a_log_that_cannot_be_written(tmp_path):
    run = new_run(tmp_path, rows=True)
    run.start("", RECORD)
    for name in ("progress.jsonl", "candidates.jsonl"):
        (run.path / name).mkdir()
    with pytest.raises(UserError, match=r"progress\.jsonl cannot be written \(Is a directory\); what is finished"):
        run.log_batch(["a"], seconds=1.0)
    with pytest.raises(UserError, match=r"candidates\.jsonl cannot be written"):
        run.artifacts["candidates"].write(run.path, "a", [], 0)


def test_records_are_on_the_disk_before_they_have_their_name(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(os, "fsync", lambda handle: done.append("fsync"))
    monkeypatch.setattr(os, "replace", lambda *paths: done.append("replace"))
    write_atomically(b"{}", tmp_path / "a.json")
    assert done == ["fsync", "replace"]


def test_other_code_is_refused(tmp_path):
    run = new_run(tmp_path)
    run.start("", RECORD)
    other = {**RECORD, "code": "0ther"}
    with pytest.raises(UserError, match="allow_code_change=true"):
        is_finished(run, other)
    is_finished(run, other, allow_code_change=True)
    is_finished(run, other)  # once allowed, recorded, and not asked again
    assert json.loads((run.path / "run.json").read_bytes())["continued_by"] == "0ther"


def test_costs_survive_a_kill_in_the_middle_of_a_line(tmp_path):
    run = new_run(tmp_path)
    run.start("", RECORD)
    run.log_batch(["a"], seconds=1.0)
    with (run.path / "progress.jsonl").open("a") as file:
        file.write('\n{"ids": ["b"], "sec')
    assert run.batches() == [{"ids": ["a"], "seconds": 1.0}]
    run.log_batch(["b"], seconds=3.0)
    run.log_batch(["a"], seconds=2.0)  # done again
    assert [batch["seconds"] for batch in run.batches()] == [2.0, 3.0]


def test_a_failure_is_noted_until_the_next_start(tmp_path):
    run = new_run(tmp_path)
    run.start("", RECORD)
    run.fail(KeyError("two\nlines"))
    record = json.loads((run.path / "run.json").read_bytes())
    assert (record["status"], record["error_type"]) == ("failed", "KeyError")
    assert "\n" not in record["error"]
    assert record["traceback"].startswith("KeyError")
    run.start("", RECORD)
    assert not {"error", "error_type", "traceback"} & json.loads((run.path / "run.json").read_bytes()).keys()


def test_provenance_names_what_computed():
    record = provenance("baselines.sdedit.SDEdit")
    assert record["code"] == code_digest()
    assert record["schema"] == 2
    assert record["versions"]["torch"]


def test_code_of_a_method_from_elsewhere_counts(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    digests = []
    for content in ("x = 1\n", "x = 2\n"):
        (tmp_path / "foreign_method.py").write_text(content)
        code_digest.cache_clear()
        digests.append(provenance("foreign_method.Method")["code"])
    code_digest.cache_clear()
    assert len({*digests, code_digest()}) == 3
