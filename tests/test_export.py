"""Runs as a zip for others: it gives the same tables and page, says nothing of the machine, and is not trusted."""

import hashlib
import json
import stat
import zipfile
from pathlib import Path

import pytest

from eval.report import export, exported
from eval.report.export import INDEX, command_without_paths, without_paths
from eval.report.exported import open_export
from eval.report.tables import main

from .finished_run import CONFIG, make_run, rewrite

HOME = "/home/me/some where"


@pytest.fixture
def task(tmp_path):
    folder = tmp_path / "outputs" / "cats"
    for method in ("ddib", "sdedit"):
        run = make_run(folder, method, command=f"python run.py method={method} 'paths.outputs={HOME}/outputs'")
        (run / "config.yaml").write_text(CONFIG.replace("/home/me", HOME))
        rewrite(run / "run.json", lambda record: record.update(unscored={"x": {"error": "e", "traceback": HOME}}))
    make_run(folder, "ilvr", finish=False)
    (folder / "claims.json").write_text("[]")
    return folder


@pytest.fixture
def zipped(task, tmp_path):
    main([str(task), "--export", str(tmp_path / "all.zip")])
    return tmp_path / "all.zip"


def fails(capsys, *arguments):
    """The one sentence of a refusal; nothing is left of it."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert shown.count("\n") == 1
    return shown


def test_someone_elses_tables_and_page_are_the_same(task, zipped, tmp_path, capsys):
    main([str(zipped)])
    unpacked = tmp_path / "all" / "cats"
    assert "cats" in capsys.readouterr().out
    with zipfile.ZipFile(zipped) as archive:
        for name in ("table.md", "table.csv", "table.tex", "report.html"):
            assert (unpacked / name).read_bytes() == archive.read(name), name
    assert (unpacked / "table.tex").read_bytes() == (task / "table.tex").read_bytes()
    pictures = sorted(path.relative_to(task) for path in task.glob("*/images/*.png") if "ilvr" not in str(path))
    assert len(pictures) == 6
    for path in [*pictures, *(p.relative_to(task) for p in task.glob("data/*/*.png"))]:
        assert (unpacked / path).read_bytes() == (task / path).read_bytes()
    main([str(unpacked)])  # an unpacked folder is a task's folder


def test_every_file_is_listed_with_its_sha256(zipped):
    with zipfile.ZipFile(zipped) as archive:
        index = json.loads(archive.read(INDEX))
        assert {*index["files"], INDEX} == set(archive.namelist())
        for name, digest in index["files"].items():
            assert hashlib.sha256(archive.read(name)).hexdigest() == digest
        record = json.loads(archive.read(next(name for name in index["files"] if name.endswith("run.json"))))
    assert not any("ilvr" in name for name in index["files"])  # an unfinished run
    assert "unscored" not in record


def test_nothing_says_where_it_was_made(task, zipped, tmp_path):
    with zipfile.ZipFile(zipped) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    for name, text in content.items():
        for place in (HOME, "/home", str(tmp_path)):
            assert place.encode() not in text, (name, place)
    (config,) = {text for name, text in content.items() if name.endswith("config.yaml")}
    assert b"outputs: PATH/" in config
    assert b"eta: 0.1" in config


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/me/x.pt", "PATH/x.pt"),
        ("~/x.pt", "PATH/x.pt"),
        ("/home/My Name/x y.pt", "PATH/x y.pt"),
        ("C:\\Users\\me\\x.pt", "PATH/x.pt"),
        ("file:///home/me/x", "PATH/x"),
        ("reading /data/me/a.png failed: /data/me/b.png", "reading PATH/a.png failed: PATH/b.png"),
        ("pets/2", "pets/2"),
        ("CompVis/stable-diffusion-v1-4@0123", "CompVis/stable-diffusion-v1-4@0123"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("clean-fid, bilinear / PIL", "clean-fid, bilinear / PIL"),
        ("outputs/cats", "outputs/cats"),
    ],
)
def test_paths(text, expected):
    assert without_paths(text) == expected


def test_a_command_keeps_its_settings():
    command = "python run.py method=ddib 'paths.outputs=/home/My Name/out' task.size=64"
    assert command_without_paths(command) == "python run.py method=ddib paths.outputs=PATH/out task.size=64"


def test_equal_runs_give_equal_bytes(task, zipped, tmp_path):
    main([str(task), "--export", str(tmp_path / "again.zip")])
    assert (tmp_path / "again.zip").read_bytes() == zipped.read_bytes()


def test_some_runs_only(task, tmp_path):
    run = next(task.glob("ddib-*"))
    main([str(run), "--output", str(tmp_path / "o"), "--export", str(tmp_path / "one.zip")])
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        assert b"sdedit" not in archive.read("table.md")
        assert not any(name.startswith("sdedit") for name in archive.namelist())


def test_an_export_is_whole_or_not_there(task, tmp_path, monkeypatch, capsys):
    target = tmp_path / "all.zip"
    target.write_bytes(b"before")
    full = OSError(28, "No space left on device", str(target))
    monkeypatch.setattr(export.zipfile.ZipFile, "open", lambda *_, **__: (_ for _ in ()).throw(full))
    assert "No space left" in fails(capsys, task, "--export", target)
    assert target.read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.zip", "outputs"]


def test_mistakes_of_exporting(task, tmp_path, capsys):
    assert "--export writes a zip; got" in fails(capsys, task, "--export", tmp_path / "all.tar")
    unfinished = next(task.glob("ilvr-*"))
    assert "nothing to export" in fails(capsys, unfinished, "--export", tmp_path / "x.zip")


# From anyone


def rebuilt(zipped, change, extra=()):
    """The same zip with other content: `change(index, contents)`, and files that the index does not list."""
    with zipfile.ZipFile(zipped) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    index = json.loads(contents.pop(INDEX))
    change(index, contents)
    target = zipped.with_name("evil.zip")
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr(INDEX, json.dumps(index))
        for name, content in [*contents.items(), *extra]:
            archive.writestr(name, content)
    return target


def put(name, content=b"x"):
    def change(index, contents):
        index["files"][name if isinstance(name, str) else name.filename] = hashlib.sha256(content).hexdigest()
        contents[name] = content

    return change


def link():
    info = zipfile.ZipInfo("data/x.png")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


def other_bytes(index, contents):
    name = next(name for name in contents if name.endswith("a.png"))
    contents[name] = contents[name][:-1] + bytes([contents[name][-1] ^ 1])


def lost(index, contents):
    del contents[next(name for name in contents if name.endswith("a.png"))]


def elsewhere(index, contents):
    name = next(name for name in contents if name.endswith("run.json"))
    record = json.loads(contents[name])
    record["data"]["source"] = "../../../etc"
    put(name, json.dumps(record).encode())(index, contents)


EVIL = {
    "above": (put("../x.json"), "a file named '../x.json', which no export has"),
    "inside above": (put("data/../../x.png"), "which no export has"),
    "absolute": (put("/tmp/x.json"), "which no export has"),
    "drive": (put("C:/x.json"), "which no export has"),
    "backslash": (put("a\\..\\x.json"), "which no export has"),
    "hidden": (put("data/.x.png"), "which no export has"),
    "program": (put("x.py"), "which no export has"),
    "link": (put(link()), "is a link or a folder"),
    "other bytes": (other_bytes, "has another sha256 than export.json says"),
    "lost": (lost, "does not hold what its export.json lists"),
    "a source elsewhere": (elsewhere, "names a folder elsewhere"),
    "task": (lambda index, _: index.update(task="../x"), "its task is no plain name"),
    "format": (lambda index, _: index.update(format=2), "is of another version"),
}


@pytest.mark.parametrize("evil", EVIL)
def test_untrusted_zips_are_refused_and_leave_nothing(evil, zipped, tmp_path, capsys):
    change, sentence = EVIL[evil]
    target = rebuilt(zipped, change)
    before = {path for path in tmp_path.rglob("*")}
    assert sentence in fails(capsys, target)
    assert {path for path in tmp_path.rglob("*")} - before <= {tmp_path / "evil"}
    assert not list((tmp_path / "evil").glob("*"))


def test_a_file_that_is_not_listed(zipped, capsys):
    target = rebuilt(zipped, lambda *_: None, [("more.json", b"{}")])
    assert "does not hold what its export.json lists ('more.json')" in fails(capsys, target)


@pytest.mark.parametrize(("limit", "value"), [("MOST_OF_ONE", 10), ("MOST_BYTES", 1000), ("MOST_FILES", 3)])
def test_sizes_are_bounded(limit, value, zipped, capsys, monkeypatch):
    monkeypatch.setattr(exported, limit, value)
    assert "are read" in fails(capsys, zipped)


def test_no_zip(tmp_path, capsys):
    (tmp_path / "x.zip").write_bytes(b"PK nothing")
    assert "is no readable zip" in fails(capsys, tmp_path / "x.zip")
    with zipfile.ZipFile(tmp_path / "y.zip", "w") as archive:
        archive.writestr("a.json", "{}")
    assert "is no export of this program: it has no export.json" in fails(capsys, tmp_path / "y.zip")


def test_what_is_there_stays(zipped, tmp_path, capsys):
    (tmp_path / "all" / "cats").mkdir(parents=True)
    assert "is there already; give --output DIR, or remove it" in fails(capsys, zipped)
    assert open_export(zipped, tmp_path / "other") == tmp_path / "other" / "cats"


def test_a_folder_that_was_changed_after_unpacking(zipped, tmp_path, capsys):
    folder = open_export(zipped)
    main([str(folder)])
    scores = next(folder.glob("*/scores/*/metrics.json"))
    rewrite(scores, lambda content: content["metrics"]["fid"].update(value=1.0))
    assert "is not as it was exported (sha256)" in fails(capsys, folder)
    scores.unlink()
    assert "is missing, and" in fails(capsys, folder)


def test_paths_of_the_project_are_no_paths(tmp_path):
    assert without_paths(str(Path(__file__))) == "PATH/test_export.py"
