"""Files of runs that were damaged, replaced, or made by an earlier version: what is made again, and what is refused."""

import json
import os
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from eval.report.tables import write_tables

from .finished_run import make_run, read_json, rewrite, scores_of
from .forking import At, finish, killed
from .test_faults import PETS, one_sentence, record, run_folder, times

ROOT = Path(__file__).parents[1]


@pytest.fixture
def arguments(tmp_path):
    return [*PETS, f"paths.outputs={tmp_path / 'out'}", f"paths.cache={tmp_path / 'cache'}"]


def done(arguments, folder):
    code, printed = finish(arguments, folder / "log")
    assert code == 0, printed
    return printed


def test_damaged_images_are_made_again_and_all_scores_of_the_run(arguments, tmp_path):
    bicubic, out = [*arguments, "protocol.resize=bicubic"], tmp_path / "out"
    done(arguments, tmp_path)
    done(bicubic, tmp_path)
    folder, whole = run_folder(out), record(out)
    assert len(list(folder.glob("scores/*/metrics.json"))) == 2
    images = times(folder / "images")
    os.truncate(folder / "images" / "source0001.png", 100)
    (folder / "config.yaml").unlink()
    printed = done(arguments, tmp_path)
    assert "warning: " in printed
    assert "config.yaml is missing or was changed since; it is made again" in printed
    again = times(folder / "images")
    assert [path.stem for path in images if again[path] != images[path]] == ["source0001"]
    assert "method:" in (folder / "config.yaml").read_text()
    (scores,) = (read_json(path) for path in folder.glob("scores/*/metrics.json"))  # the others were of other images
    assert scores["identity"]["protocol"]["resize"] == "bilinear"
    done(bicubic, tmp_path)
    assert times(folder / "images") == again
    assert record(out) == whole


@pytest.mark.parametrize("file", ["metrics.json", "per_image.csv", "bootstrap.csv"])
def test_damaged_scores_are_made_again_and_no_image(file, arguments, tmp_path):
    done(arguments, tmp_path)
    folder, whole = run_folder(tmp_path / "out"), record(tmp_path / "out")
    before = times(folder)
    (damaged,) = folder.glob(f"scores/*/{file}")
    damaged.write_bytes(b"\0\xff\0")
    done(arguments, tmp_path)
    assert record(tmp_path / "out") == whole
    after = times(folder)
    assert {path.parent.parent.name for path in after if after[path] != before[path]} == {"scores"}


def test_a_run_without_its_record_is_refused(arguments, tmp_path):
    done(arguments, tmp_path)
    folder = run_folder(tmp_path / "out")
    (folder / "run.json").write_bytes(b"")
    assert f"delete {folder}" in one_sentence(*finish(arguments, tmp_path / "log"))


@pytest.mark.parametrize("schema", [1, None])
def test_a_run_of_an_earlier_version_is_refused(schema, arguments, tmp_path):
    done(arguments, tmp_path)
    folder = run_folder(tmp_path / "out")
    content = read_json(folder / "run.json") | {"schema": schema}
    if schema is None:
        del content["schema"]
    (folder / "run.json").write_text(json.dumps(content))
    before = times(folder)
    sentence = one_sentence(*finish(arguments, tmp_path / "log"))
    assert f"{folder} was made by another version of this program (schema {schema}, now 2); delete it" in sentence
    assert times(folder) == before


@pytest.mark.parametrize("when", ["in the middle", "after the end"])
def test_other_weights_under_the_same_name_are_another_run(when, arguments, tmp_path):
    weights = tmp_path / "dog.safetensors"
    state = load_file(ROOT / "cyclediff" / "pets" / "weights" / "dog.safetensors")
    save_file(state, weights)
    arguments = [*arguments, f"task.target_model.path={weights}"]
    fault = At("progress.jsonl", 2, killed) if when == "in the middle" else None
    assert finish(arguments, tmp_path / "log", fault)[0] == (-signal.SIGKILL if fault else 0)
    first = run_folder(tmp_path / "out")
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    name = sorted(state)[0]
    save_file({**state, name: state[name] * 2}, weights)
    done(arguments, tmp_path)
    assert {path: path.read_bytes() for path in first.rglob("*") if path.is_file()} == before
    (second,) = (path.parent for path in tmp_path.glob("out/*/*/run.json") if path.parent != first)
    assert len(list(second.glob("images/*.png"))) == 3
    digests = [read_json(folder / "run.json")["weights"]["target"] for folder in (first, second)]
    assert digests[0] != digests[1]
    assert (second / "images/source0000.png").read_bytes() != before[first / "images" / "source0000.png"]


def table_of(task):
    table, _, unfinished = (task / "table.md").read_text().partition("## Not finished")
    assert "| ours |" in table
    assert "theirs" not in table
    return unfinished


@pytest.mark.parametrize("content", [b"", b'{"status": "fin', b"null", b"\xff"])
@pytest.mark.parametrize("name", ["run.json", "metrics.json"])
def test_a_run_with_damaged_files_is_left_out_of_the_table(name, content, tmp_path):
    make_run(tmp_path / "t", "ours")
    theirs = make_run(tmp_path / "t", "theirs")
    (theirs if name == "run.json" else scores_of(theirs)).joinpath(name).write_bytes(content)
    with pytest.warns(UserWarning, match=rf"theirs-.* is left out: its {name} is missing or damaged"):
        write_tables(tmp_path / "t")
    assert "theirs" not in table_of(tmp_path / "t")


@pytest.mark.parametrize("name", ["run.json", "metrics.json"])
def test_folders_without_a_run_or_without_scores(name, tmp_path):
    make_run(tmp_path / "t", "ours")
    theirs = make_run(tmp_path / "t", "theirs")
    (theirs if name == "run.json" else scores_of(theirs)).joinpath(name).unlink()
    write_tables(tmp_path / "t")
    assert ("theirs" in table_of(tmp_path / "t")) == (name == "metrics.json")


@pytest.mark.parametrize("change", [lambda run: run.update(schema=1), lambda run: run.pop("schema")])
def test_a_run_of_an_earlier_version_is_left_out_of_the_table(change, tmp_path):
    make_run(tmp_path / "t", "ours")
    rewrite(make_run(tmp_path / "t", "theirs") / "run.json", change)
    with pytest.warns(UserWarning, match=r"theirs-\w{8} (was made by an earlier version|is left out)"):
        write_tables(tmp_path / "t")
    assert "theirs" not in table_of(tmp_path / "t")
