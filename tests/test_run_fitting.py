"""Whole runs on images of several shapes: their results have these shapes, and the same numbers everywhere."""

import csv
import shutil

import numpy as np
import pytest
from PIL import Image

from eval.evaluate import main
from eval.metrics.pairwise import L2, PSNR, SSIM
from eval.records import read_scores

from .forking import run
from .test_fitting import SHAPES, photos, picture, pixels  # noqa: F401
from .tiny_clip import SHIPPED
from .tiny_sd import stable_diffusion


@pytest.fixture
def own(photos, tmp_path):  # noqa: F811
    """A model, and a list of images with masks."""
    stable_diffusion(tmp_path / "model")
    rows = [("image", "id", "source", "target", "mask")]
    for name, (width, height) in SHAPES.items():
        mask = np.zeros((height, width), np.uint8)
        mask[5:20, 8:30] = 255
        Image.fromarray(mask).save(photos / f"mask-{name}.png")
        rows.append((f"{name}.png", name, "a cat", "a dog", f"mask-{name}.png"))
    with (photos / "mine.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return tmp_path


def edit(own, out, method, *arguments):
    places = [f"data.source={own / 'photos' / 'mine.csv'}", f"task.model.path={own / 'model'}"]
    places += [f"paths.clip_vit_b32={SHIPPED}", f"paths.outputs={own / out}"]
    done = run("experiment=zero_shot_sd14", "confirm=true", "tier=few", f"method={method}", *places, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (own / out / "zero_shot_sd14").glob(f"{method}-*")
    return folder


def evaluate(generated, source):
    """The command line's metrics."""
    out = generated.parent / "evaluated"
    command = ["--generated", generated, "--source", source, "--protocol", "zero_shot", "--clip", SHIPPED]
    main([*map(str, command), "--output", str(out), "--device", "cpu"])
    return read_scores(out)["metrics"]


BLEND = "method.attention.blend={source:cat,target:dog}"


@pytest.mark.parametrize(
    ("fit", "string", "settings"),
    [
        ("native", "native-size", ("sdedit_cac", BLEND, "task.size=32")),
        ("pad", "pad48/bilinear", ("sdedit", "task.size=48", "inside_masks=true")),
    ],
)
def test_an_edit_keeps_shapes(own, fit, string, settings):
    """Of any batch size, again after what was made is lost, inside of masks, and with attention control."""
    settings = (*settings, f"data.fit={fit}")
    one = edit(own, "one", *settings, "batch_size=1")
    four = edit(own, "four", *settings, "batch_size=4")
    (source,) = (own / "four" / "zero_shot_sd14" / "data").glob("mine-*")
    found = {name: pixels(four / "images" / f"{name}.png").astype(int) for name in SHAPES}
    for name, (width, height) in SHAPES.items():
        assert np.abs(found[name] - pixels(one / "images" / f"{name}.png")).max() <= 1
        assert found[name].shape == pixels(source / f"{name}.png").shape
        assert fit == "pad" or found[name].shape[:2] == (height, width)
    metrics = read_scores(next(four.glob("scores/*")))["metrics"]
    assert metrics["background_psnr"]["protocol"] == f"psnr/png-{string}/per-image-mean/image×(1-mask)/vs-source"
    of_command = evaluate(four / "images", source)
    assert {k: e["value"] for k, e in of_command.items()} == pytest.approx(
        {k: e["value"] for k, e in metrics.items()}, abs=1e-6
    )
    (four / "images" / "c.png").unlink()
    assert edit(own, "four", *settings, "batch_size=4") == four
    assert np.abs(found["c"] - pixels(four / "images" / "c.png")).max() == 0


def test_unchanged_images_are_perfect(own):
    """Of every shape: the best value that each metric has."""
    generated = own / "generated" / "images"
    generated.mkdir(parents=True)
    source = own / "source"
    shutil.copytree(own / "photos", source / "masks", ignore=lambda *_: ["mine.csv"])
    rows = [("id", "source", "target", "category", "mask")]
    for name in SHAPES:
        for folder in (generated, source):
            shutil.copy(own / "photos" / f"{name}.png", folder / f"{name}.png")
        rows.append((name, "a cat", "a dog", "", f"masks/mask-{name}.png"))
    with (source / "edits.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    metrics = evaluate(generated, source)
    best = {"psnr": 100, "ssim": 1, "l2": 0, "background_psnr": 100, "background_ssim": 1, "background_mse": 0}
    assert {PSNR.higher_is_better, SSIM.higher_is_better} == {True}
    assert L2.higher_is_better is False
    assert {key: metrics[key]["value"] for key in best} == pytest.approx(best, abs=1e-6)
    assert {entry["n"] for entry in metrics.values()} == {5}


def test_a_translation_of_whole_photos(photos, tmp_path):  # noqa: F811
    """Networks on pixels see squares; what they make has the photos' shapes, and is scored so."""
    places = (f"data.source={photos}", "data.reference=null", "protocol.judge=null", f"paths.outputs={tmp_path}")
    real = ("task.synthetic=false", "data.check=false", "protocol.features=null")
    done = run("data.fit=pad", "method=sdedit", "method.T=4", "method.t0=2", *places, *real)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = tmp_path.glob("pets_cat2dog/sdedit-*")
    shapes = {name: Image.open(folder / "images" / f"{name}.png").size for name in SHAPES}
    assert shapes == {"a": (64, 64), "b": (64, 43), "c": (64, 47), "d": (64, 43), "e": (47, 64)}
    metrics = read_scores(next(folder.glob("scores/*")))["metrics"]
    assert metrics["psnr"]["protocol"] == "psnr/png-pad64/bilinear/per-image-mean/vs-source"
    assert metrics["psnr"]["value"] > 5


def test_a_reason_for_squares_is_one_sentence():
    done = run("data.fit=pad", "method=sdedit")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: data.fit=pad is not for this run, because the images of pets are squares already; choose data.fit=crop"
    )
