"""W&B is shown what the files of a run say, and what goes wrong there costs a warning."""

import json
import os
import socket
import struct
import time
import warnings
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cyclediff.loggers import wandb_logger
from cyclediff.loggers.log import log

from .finished_run import make_run, only_warning, read_json, scores_of, set_fid

WANDB = {"name": "wandb", "project": "p", "entity": None, "mode": "auto", "images": 2, "timeout": 60}


@pytest.fixture
def task(tmp_path):
    return tmp_path / "outputs" / "t"


@contextmanager
def wandb_world(home):
    """No login, nothing of this machine's settings, and a server that takes connections and never answers."""
    home.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as server:
        for name in [name for name in os.environ if name.startswith("WANDB")]:
            patch.delenv(name)
        for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "WANDB_CONFIG_DIR"):
            patch.setenv(name, str(home))
        patch.setenv("NETRC", str(home / "netrc"))
        patch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        server.setblocking(False)
        yield patch, server


def records(path):
    """The records of a .wandb file: a header of 7 bytes, then LevelDB's log format in blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2

    data, place, parts = path.read_bytes(), 7, []
    assert data[:4] == b":W&B"
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        parts.append(data[place + 7 : place + 7 + length])
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(b"".join(parts))
            parts = []
            yield record


def items(updates):
    return {"/".join(update.nested_key) or update.key: json.loads(update.value_json) for update in updates}


def tables(found):
    """Per artifact of a table its rows as dicts, and the bytes of its files by name."""
    tables = {}
    for record in (record.artifact for record in found if record.WhichOneof("record_type") == "artifact"):
        files = {content.path: Path(content.local_path).read_bytes() for content in record.manifest.contents}
        table = json.loads(next(data for name, data in files.items() if name.endswith(".table.json")))
        rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
        tables[record.name.rpartition("-")[2]] = rows, files
    return tables


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """A run logged twice, without a login; its numbers are others the second time."""
    place = tmp_path_factory.mktemp("wandb")
    task = place / "outputs" / "t"
    folder = make_run(task, "m", selection={"candidates": 2, "metric": "ssim", "asked": {"trials": 2}})
    home, warned = task.parent / ".wandb", []
    with wandb_world(place / "home") as (_, server):
        for fid in (40.0, 20.0):
            set_fid(folder, fid)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                log(folder, scores_of(folder), WANDB)
            kept = [path.name for path in home.glob("offline-run-*")]
            warned.append(([str(warning.message) for warning in caught], kept))
        with pytest.raises(BlockingIOError):  # nobody called the server
            server.accept()
    (file,) = home.glob("offline-run-*/*.wandb")
    return folder, list(records(file)), warned


def of_kind(found, kind):
    return [getattr(record, kind) for record in found if record.WhichOneof("record_type") == kind]


def test_a_run_says_what_it_is(logged):
    folder, found, _ = logged
    (run,) = of_kind(found, "run")
    assert (run.project, run.run_group, run.job_type) == ("p", "t", "m")
    assert run.display_name == f"{folder.name}-{scores_of(folder).name}"
    assert (run.run_id, run.resume, list(run.tags)) == (f"t-{run.display_name}", True, ["synthetic"])
    assert "not comparable with any paper" in run.notes
    config = items(run.config.update)
    assert (config["seed"], config["method"], config["provenance"]["code"]) == (1, {"eta": 0.1}, "c0de")
    assert "paths" not in config
    assert of_kind(found, "exit")[0].exit_code == 0


def test_a_run_logged_again_takes_the_place_of_the_first(logged):
    folder, found, ((_, first), (_, second)) = logged
    assert len(first) == len(second) == 1
    assert first[0].split("-", 3)[3] == second[0].split("-", 3)[3] == f"t-{folder.name}-{scores_of(folder).name}"
    (run,) = of_kind(found, "run")
    assert run.run_id == wandb_logger.id_of(Path("/elsewhere/t") / folder.name, scores_of(folder))


def test_every_number_has_its_interval_and_protocol(logged):
    folder, found, _ = logged
    summary = {key: value for update in of_kind(found, "summary") for key, value in items(update.update).items()}
    metrics = read_json(scores_of(folder) / "metrics.json")["metrics"]
    assert summary["fid"] == 20.0
    for key, said in metrics.items():
        assert summary[key] == said["value"]
        assert (summary[f"{key}/protocol"], summary[f"{key}/n"]) == (said["protocol"], 3)
        assert [summary.get(f"{key}/{part}") for part in ("low", "high")] == (said["ci95"] or [None, None])
    assert (summary["fid/n_reference"], summary["fid/low"], summary["ssim/unselected"]) == (7, None, 0.2)
    assert (summary["costs/seconds_per_image"], summary["costs/peak_memory_mib"]) == (0.5, 9)
    rows, _ = tables(found)["metrics"]
    assert [row["metric"] for row in rows] == ["fid", "psnr", "ssim"]
    for row in rows:
        said = metrics[row["metric"]]
        assert [row["low"], row["high"]] == (said["ci95"] or [None, None])
        for key in ("value", "n", "n_reference", "protocol"):
            assert row[key] == said[key]


def test_the_first_images_are_in_a_table(logged):
    folder, found, _ = logged
    rows, files = tables(found)["images"]
    assert [(row["id"], row["psnr"], row["ssim"]) for row in rows] == [("a", 0.5, 0.1), ("b", 1.5, None)]
    folders = {
        part: folder.parent / "data" / name for part, name in (("source", "cats-d1"), ("ground_truth", "dogs-d1"))
    }
    for row in rows:
        for part, place in {**folders, "result": folder / "images"}.items():
            with Image.open(BytesIO(files[row[part]["path"]])) as sent, Image.open(place / f"{row['id']}.png") as mine:
                assert np.array_equal(np.array(sent), np.array(mine))


def test_the_tradeoff_is_a_scatter_chart(logged):
    folder, found, _ = logged
    config = {key: value for update in of_kind(found, "config") for key, value in items(update.update).items()}
    panel = config["_wandb/visualize/tradeoff"]["panel_config"]
    assert panel["panelDefId"] == "wandb/scatter/v0"
    assert panel["fieldSettings"] == {"x": "psnr", "y": "fid"}
    (row,), _ = tables(found)["tradeoff_table"]
    assert (row["label"], row["psnr"], row["fid"], row["fid/protocol"]) == (folder.name, 18.0, 20.0, "fid/x")


def test_without_a_login_a_sentence_says_where_the_files_are(logged):
    folder, _, warned = logged
    home = folder.parent.parent / ".wandb"
    for sentences, _ in warned:
        (sentence,) = sentences
        assert f"`wandb sync {home}/offline-run-*`" in sentence


def test_nothing_is_written_elsewhere(logged):
    folder, _, _ = logged
    place = folder.parents[2]
    assert sorted(path.name for path in place.iterdir()) == ["home", "outputs"]
    assert not [path for path in (place / "home").rglob("*") if path.is_file()]
    assert sorted(path.name for path in folder.parent.parent.iterdir()) == [".wandb", "t"]


@pytest.mark.slow
def test_a_server_that_hangs_costs_its_time_limit(task, tmp_path):
    folder = make_run(task, "m")
    with wandb_world(tmp_path / "home") as (patch, server):
        patch.setenv("WANDB_API_KEY", "0" * 40)
        sentence = only_warning(folder, WANDB | {"timeout": 20})
        server.accept()  # somebody called it
    (kept,) = (task.parent / ".wandb").glob("offline-run-*")
    assert "within 20 s" in sentence
    assert f"`wandb sync {kept}`" in sentence
    (file,) = kept.glob("*.wandb")
    assert len(of_kind(list(records(file)), "exit")) == 1


FAKE = """
import pathlib, time
class Settings:
    def __init__(self, **settings): pass
def login(**settings): return True
"""
HANGS_ONLINE = """
def init(*, mode, dir, id, **settings):
    kept = pathlib.Path(dir, ".wandb", f"offline-run-20260101_000000-{id}")
    kept.mkdir()
    if mode == "online":
        time.sleep(600)
    time.sleep(2)
    kept.joinpath("mode").write_text(mode)
    raise SystemExit(0)
"""
HANGS_AND_FAILS = HANGS_ONLINE.replace("SystemExit(0)", "OSError('no room')")


def fake_wandb(patch, folder, code):
    (folder / "wandb").mkdir(parents=True)
    (folder / "wandb" / "__init__.py").write_text(code)
    patch.setenv("PYTHONPATH", str(folder))


def test_what_takes_too_long_is_stopped_and_kept_offline(task, tmp_path):
    folder = make_run(task, "m")
    with wandb_world(tmp_path / "home") as (patch, _):
        fake_wandb(patch, tmp_path / "fake", FAKE + HANGS_ONLINE)
        began = time.monotonic()
        sentence = only_warning(folder, WANDB | {"timeout": 2})
        assert time.monotonic() - began < 60
    (kept,) = (task.parent / ".wandb").glob("offline-run-*")
    assert (kept / "mode").read_text() == "offline"
    assert "within 2 s" in sentence
    assert f"`wandb sync {kept}`" in sentence


def test_what_is_not_whole_is_not_offered(task, tmp_path):
    folder = make_run(task, "m")
    with wandb_world(tmp_path / "home") as (patch, _):
        fake_wandb(patch, tmp_path / "fake", FAKE + HANGS_AND_FAILS)
        sentence = only_warning(folder, WANDB | {"timeout": 2})
    assert "the same command tries again" in sentence


INIT_RAISES = (
    FAKE
    + """
def init(**settings): raise RuntimeError("no room\\nleft")
"""
)


@pytest.mark.parametrize(
    ("code", "reason"),
    [(INIT_RAISES, "RuntimeError: no room left;"), ("raise ImportError('gone')", "ImportError: gone;")],
    ids=["init raises", "not importable"],
)
def test_what_goes_wrong_inside_wandb_is_a_warning(task, tmp_path, code, reason):
    folder = make_run(task, "m")
    with wandb_world(tmp_path / "home") as (patch, _):
        fake_wandb(patch, tmp_path / "fake", code)
        sentence = only_warning(folder, WANDB)
    assert reason in sentence
    assert "the same command tries again" in sentence


def test_no_room_for_offline_files_is_a_warning(task):
    folder = make_run(task, "m")
    (task.parent / ".wandb").write_text("a file where a folder should be")
    assert "the same command tries again" in only_warning(folder, WANDB)


def test_modes_none_and_disabled_do_nothing(task):
    folder = make_run(task, "m")
    before = sorted(task.parent.rglob("*"))
    log(folder, scores_of(folder), {"name": "none"})
    log(folder, scores_of(folder), WANDB | {"mode": "disabled"})
    assert sorted(task.parent.rglob("*")) == before
