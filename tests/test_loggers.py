"""Loggers show what the files of a run say; W&B has tests of its own."""

import csv
import json
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from cyclediff.errors import UserError
from cyclediff.loggers.log import check, log
from cyclediff.loggers.view import Point, read_view
from eval.report.sections import read_task
from eval.report.tables import to_csv

from .finished_run import (
    COSTS,
    make_run,
    metric,
    only_warning,
    read_json,
    scores_of,
    set_fid,
    write_run,
    write_scores,
)

CONF = Path(__file__).parents[1] / "conf" / "logger"
WANDB = {"project": "p", "entity": None, "mode": "auto", "images": 2, "timeout": 60, "name": "wandb"}
TENSORBOARD = {"name": "tensorboard", "images": 2}


def view_of(folder, images=0):
    return read_view(folder, scores_of(folder), images)


@pytest.fixture
def task(tmp_path):
    return tmp_path / "outputs" / "t"


def test_the_view_is_what_the_files_say(task):
    folder = make_run(task, "m")
    scores = scores_of(folder)
    view = read_view(folder, scores, 2)
    assert (view.name, view.task, view.method, view.seed) == (f"{folder.name}-{scores.name}", "t", "m", 1)
    assert view.config == {"seed": 1, "method": {"eta": 0.1}}
    assert view.metrics == read_json(scores / "metrics.json")["metrics"]
    assert view.costs == {key: value for key, value in COSTS.items() if value is not None} | {"peak_memory_mib": 9}
    assert (view.provenance["code"], view.provenance["schema"], view.provenance["synthetic"]) == ("c0de", 2, True)
    assert view.provenance["scores"]["protocol"] == "pets/2"
    assert [row.id for row in view.images] == ["a", "b"]
    assert view.images[1].values == {"psnr": 1.5, "ssim": None}
    row = view.images[0]
    assert (row.source, row.result) == (task / "data" / "cats-d1" / "a.png", folder / "images" / "a.png")
    assert row.ground_truth == task / "data" / "dogs-d1" / "a.png"


def test_texts_of_edits_come_with_the_images(task):
    folder = make_run(task, "m")
    with (task / "data" / "cats-d1" / "edits.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "source", "target", "category", "mask"], ["a", "a cat", "a dog", "", ""]])
    first, second = view_of(folder, 2).images
    assert first.values == {"source text": "a cat", "target text": "a dog", "psnr": 0.5, "ssim": 0.1}
    assert second.values == {"psnr": 1.5, "ssim": None}


def test_the_tradeoff_has_comparable_finished_runs_only(task):
    folder = make_run(task, "m", fid=20.0, psnr=18.0)
    make_run(task, "n", fid=30.0, psnr=19.0)
    make_run(task, "other-images", data="d2")
    make_run(task, "other-protocol", protocol="fid/y")
    make_run(task, "random", random_weights=["source"])
    make_run(task, "no-fid", fid=None)
    make_run(task, "another-selection", selection={"candidates": 2, "metric": "dclip", "asked": {"trials": 2}})
    make_run(task, "unfinished", finish=False)
    (task / "table.csv").write_text(to_csv(read_task(task)[0]))
    chart = view_of(folder).tradeoff
    assert (chart.x, chart.y, chart.x_protocol, chart.y_protocol) == ("psnr", "fid", "psnr/x", "fid/x")
    assert chart.points == (Point("m", "m", 18.0, 20.0), Point("n", "n", 19.0, 30.0))


def test_other_axes_where_a_run_has_no_psnr_or_fid(task):
    ssim, dclip, fid = metric("ssim", 0.5), metric("dclip", 0.25), metric("fid", None)
    folder = make_run(task, "m", metrics={"fid": fid, "ssim": ssim, "dclip": dclip})
    chart = view_of(folder).tradeoff
    assert (chart.x, chart.y, chart.points) == ("ssim", "dclip", (Point(folder.name, "m", 0.5, 0.25),))
    assert view_of(make_run(task, "n", metrics={"fid": fid, "ssim": ssim})).tradeoff is None


def test_numbers_that_are_not_real_are_labelled(task):
    assert list(view_of(make_run(task, "m")).labels) == ["synthetic"]
    assert view_of(make_run(task, "n", synthetic=False)).labels == {}
    labels = view_of(make_run(task, "o", random_weights=["target"], synthetic=False)).labels
    assert list(labels) == ["random-weights"]
    assert "target" in labels["random-weights"]
    assert list(view_of(make_run(task, "p", protocol="fid/RANDOM-x")).labels) == ["synthetic", "random-weights"]


def test_an_analysis_has_numbers_and_no_images(task):
    folder = write_run(task, "m", images=False, study="similarity", costs={})
    write_scores(folder, {"psnr": metric("psnr", 18.0)}, per_image=[["id", "psnr"], ["a", 18.0]])
    (row,) = view_of(folder, 2).images
    assert (row.source, row.result, row.ground_truth, row.values) == (None, None, None, {"psnr": 18.0})
    log(folder, scores_of(folder), TENSORBOARD)
    assert (task / ".tensorboard" / f"{folder.name}-{scores_of(folder).name}").is_dir()


def test_an_unfinished_run_is_not_shown(task):
    folder = write_run(task, "m", status="running")
    write_scores(folder, {})
    with pytest.raises(UserError, match="not finished"):
        read_view(folder, scores_of(folder), 0)


def test_tensorboard_shows_the_run(task):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = make_run(task, "m", fid=40.0)
    scores = scores_of(folder)
    log(folder, scores, TENSORBOARD)
    set_fid(folder, 20.0)
    log(folder, scores, TENSORBOARD)
    (file,) = (task / ".tensorboard" / f"{folder.name}-{scores.name}").iterdir()
    events = EventAccumulator(str(file), size_guidance={"tensors": 0, "images": 0})
    events.Reload()
    tags = events.Tags()
    said = {tag: events.Scalars(tag)[0].value for tag in tags["scalars"]}
    assert said == pytest.approx(
        {"fid/value": 20.0, "psnr/value": 18.0, "psnr/low": 17.0, "psnr/high": 20.0, "ssim/value": 0.25}
        | {"ssim/low": 0.125, "ssim/high": 0.5, "costs/images_per_second": 2.0, "costs/seconds_per_image": 0.5}
        | {"costs/forwards_per_image": 50, "costs/backwards_per_image": 0, "costs/peak_memory_mib": 9}
    )
    assert tags["images"] == ["images/a", "images/b"]
    with Image.open(BytesIO(events.Images("images/b")[0].encoded_image_string)) as shown:
        row = np.array(shown)
    parts = [task / "data" / "cats-d1", folder / "images", task / "data" / "dogs-d1"]
    pictures = [np.array(Image.open(part / "b.png")) for part in parts]
    assert row.shape[1] > 24
    assert np.array_equal(row[:, :8], pictures[0])
    assert np.array_equal(row[:, -8:], pictures[2])
    middle = row.shape[1] // 2
    assert np.array_equal(row[:, middle - 4 : middle + 4], pictures[1])
    texts = {
        tag.split("/text_summary")[0]: events.Tensors(tag)[0].tensor_proto.string_val[0].decode()
        for tag in tags["tensors"]
    }
    assert "**synthetic**" in texts["metrics"]
    assert "| psnr | 18 | 17 … 20 | – | 3 | – | psnr/x |" in texts["metrics"]
    assert "| fid | 20 | – | – | 3 | 7 | fid/x |" in texts["metrics"]
    assert "| ssim | 0.25 | 0.125 … 0.5 | 0.2 | 3 | – | ssim/x |" in texts["metrics"]
    assert json.loads(texts["record/config"]) == {"seed": 1, "method": {"eta": 0.1}}
    assert json.loads(texts["record/provenance"])["code"] == "c0de"


def test_a_failure_of_tensorboard_is_a_warning(task):
    folder = make_run(task, "m")
    (task / ".tensorboard").write_text("a file where a folder should be")
    assert "the same command logs them" in only_warning(folder, TENSORBOARD)


@pytest.mark.parametrize("file", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_settings_of_each_logger_are_whole(file):
    settings = OmegaConf.to_container(OmegaConf.load(file))
    assert settings["name"] == file.stem
    assert set(settings) == set({"wandb": WANDB, "tensorboard": TENSORBOARD}.get(file.stem, {"name": "none"}))
    check(settings["name"], settings)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (WANDB | {"mode": "on"}, "logger.mode must be one of auto, online, offline, disabled; got on"),
        (WANDB | {"timeout": 0}, "logger.timeout"),
        (WANDB | {"timeout": "long"}, "logger.timeout"),
        (WANDB | {"images": -1}, "logger.images"),
        (TENSORBOARD | {"images": True}, "logger.images"),
    ],
)
def test_a_wrong_setting_is_refused_early(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        check(settings["name"], settings)


@pytest.mark.parametrize(("name", "advice"), [("wandb", "wandb"), ("tensorboard", r"'cyclediff\[tensorboard\]'")])
def test_a_missing_package_is_named_early(monkeypatch, tmp_path, name, advice):
    (tmp_path / name).mkdir()  # as wandb leaves one beside its runs
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(UserError, match=f"pip install {advice}"):
        check(name, {"images": 0})
