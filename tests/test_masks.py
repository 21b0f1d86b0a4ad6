"""Where an edit may change its image: masks of PIE-Bench, masks of a person's own, and runs that keep to them."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from cyclediff.data.edit_lists import prepare_edits, read_edit_list
from cyclediff.data.masks import decode_mask
from cyclediff.errors import UserError
from cyclediff.pets.folders import prepare_pet_edits
from cyclediff.runtime.meter import Meter
from cyclediff.runtime.study import Execution
from cyclediff.studies.editing import encoded

from .forking import run
from .test_run import scores_of

EDIT = "experiment=pets_edit"
FEW = ("tier=few", "selection.grid.skip=[0]")


def test_masks_by_hand():
    expected = ["#####", "##..#", "#...#", "#..##", "#####"]
    mask = decode_mask([6, 1, 18, 1, 23, 100, 999, 1], size=5)
    assert mask.dtype == bool
    assert ["".join("#" if cell else "." for cell in row) for row in mask] == expected
    assert decode_mask([], size=4).sum() == 12
    assert decode_mask([0, 512 * 512]).all()


@pytest.mark.parametrize("runs", [[1], [1, 2, 3], [0, -1], [0.5, 1], [True, 1], "12", None])
def test_malformed_masks(runs):
    with pytest.raises(UserError, match="a mask should be start, length"):
        decode_mask(runs)


def pixels(path):
    return np.array(Image.open(path))


def own(tmp_path, mask, size=(40, 30), cell="m.png"):
    """A list of one edit, whose image is red and whose mask is the given array."""
    Image.new("RGB", size, "red").save(tmp_path / "a.png")
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "m.png")
    (tmp_path / "own.csv").write_text(f"image,source,target,mask\na.png,a cat,a dog,{cell}\n")
    return tmp_path / "own.csv"


def test_own_mask_is_cut_and_resized_as_its_image(tmp_path):
    mask = np.zeros((30, 40), dtype=bool)
    mask[:, 20:] = True  # the right half; of the middle square, columns 15 … 29 of 5 … 34
    folder = prepare_edits(read_edit_list(own(tmp_path, mask)), None, 60, "bilinear", tmp_path / "cache")
    (row,) = csv.DictReader((folder.path / "edits.csv").open())
    found = pixels(folder.path / row["mask"])
    assert (found[:, :30] == 0).all()
    assert (found[:, 30:] == 255).all()


def test_other_pixels_of_a_mask_are_other_data(tmp_path):
    digests = set()
    for column in (10, 20):
        mask = np.zeros((30, 40), dtype=bool)
        mask[:, column] = True
        edits = read_edit_list(own(tmp_path, mask))
        digests.add(prepare_edits(edits, None, 60, "bilinear", tmp_path / "cache").digest)
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("shape", "marked", "sentence"),
    [
        ((40, 30), np.s_[:], "m.png has 30×40 pixels, its image 40×30; draw it at the size of the image"),
        ((60, 80), np.s_[:], "m.png has 80×60 pixels, its image 40×30"),
        ((30, 40), np.s_[:, :3], "m.png marks no pixel of its image's centred square; white is what may change"),
    ],
)
def test_masks_that_do_not_fit(tmp_path, shape, marked, sentence):
    mask = np.zeros(shape, dtype=bool)
    mask[marked] = True
    edits = read_edit_list(own(tmp_path, mask))
    with pytest.raises(UserError, match=sentence):
        prepare_edits(edits, None, 64, "bilinear", tmp_path / "cache")


@pytest.mark.parametrize(
    ("cell", "sentence"),
    [
        ("no.png", r"own.csv, row 2: the mask 'no.png' is not there; put it below .*, or leave the cell empty"),
        ("../m.png", r"own.csv, row 2: the mask '../m.png' lies outside"),
    ],
)
def test_masks_that_are_not_there(tmp_path, cell, sentence):
    with pytest.raises(UserError, match=sentence):
        read_edit_list(own(tmp_path, np.ones((30, 40), dtype=bool), cell=cell))


def test_masks_of_pets_mark_what_truly_changes(tmp_path):
    source, target = prepare_pet_edits(8, 64, tmp_path)
    for item in source.ids:
        before, after = (pixels(folder.path / f"{item}.png") for folder in (source, target))
        mask = pixels(source.path / "masks" / f"{item}.png")
        assert np.array_equal(mask, np.repeat((before != after).any(2, keepdims=True), 3, 2) * 255)
        assert 0 < (mask > 0).mean() < 1


class Quarters:
    """A codec whose latents have a quarter of the pixels' height and width."""

    def encode(self, image, noise):
        return image[:, :, ::4, ::4]


def test_a_latent_may_change_if_any_of_its_pixels_may():
    masks = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    masks[0, 0, 3, 4] = masks[0, 0, 8:12, 8:13] = True
    images = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    execution = Execution(1, 1, torch.device("cpu"), torch.device("cpu"))
    edits = encoded(Quarters(), ["a"], {"a": ("b", "c")}, images, masks, execution, Meter(["a"], lambda: None))
    assert edits.region[0, 0].int().tolist() == [[0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]]


def background(folder, source):
    """Mean absolute error, in grey levels, of results where their masks are black."""
    errors = []
    for row in csv.DictReader((source.path / "edits.csv").open()):
        kept = pixels(source.path / row["mask"])[..., 0] == 0
        found, before = (pixels(f / f"{row['id']}.png").astype(int) for f in (folder / "images", source.path))
        errors.append(np.abs(found - before)[kept].mean())
    return np.mean(errors)


def test_a_run_keeps_what_is_outside(tmp_path):
    few = ("data.limit=3", *FEW, "method=sdedit", f"paths.outputs={tmp_path}")
    for inside in ("false", "true"):
        done = run(EDIT, *few, f"inside_masks={inside}")
        assert done.returncode == 0, done.stderr
    found = {}
    for record in tmp_path.glob("pets_edit/*/run.json"):
        settings = (record.parent / "config.yaml").read_text()
        found["inside_masks: true" in settings] = background(record.parent, prepare_pet_edits(3, 64, tmp_path / "p")[0])
    assert set(found) == {False, True}  # two folders
    assert found[True] < 0.6 * found[False]  # what is left is the codec's error


def test_scores_of_the_background_need_masks_in_the_list(tmp_path):
    source, _ = prepare_pet_edits(2, 64, tmp_path / "pets")
    rows = list(csv.DictReader((source.path / "edits.csv").open()))
    lines = ['{id}.png,"{source}","{target}",{mask}\n'.format(**row) for row in rows]
    listed = source.path / "own.csv"
    listed.write_text("image,source,target,mask\n" + "".join(lines))
    common = ("task=pets_edit", "task.synthetic=false", "protocol.judge=null", f"data.source={listed}")
    done = run(EDIT, *common, *FEW, "method=ddib", "inside_masks=true", f"paths.outputs={tmp_path}")
    assert done.returncode == 0, done.stderr
    (record,) = tmp_path.glob("pets_edit/*/run.json")
    metrics = json.loads((scores_of(record.parent) / "metrics.json").read_text())["metrics"]
    assert {"background_psnr", "background_ssim", "background_mse"} <= metrics.keys()
    listed.write_text("image,source,target,mask\n" + lines[0] + lines[1].rpartition(",")[0] + ",\n")
    refused = run(EDIT, *common, *FEW, "method=ddib", "inside_masks=true", f"paths.outputs={tmp_path}")
    assert refused.returncode == 2
    assert (
        "inside_masks=true needs a mask of each image, and 1 of 2 have none, the first 001-edit0001" in refused.stderr
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((EDIT, "method=transfer_grid"), "transfer_grid cannot keep an edit inside a mask; choose another method"),
        (("experiment=pets_cat2dog",), "inside_masks is for editing tasks; leave it out"),
    ],
)
def test_what_cannot_keep_to_masks_says_so(tmp_path, arguments, sentence):
    done = run(*arguments, "inside_masks=true", "data.limit=2", f"paths.outputs={tmp_path}")
    assert done.returncode == 2
    assert sentence in done.stderr
