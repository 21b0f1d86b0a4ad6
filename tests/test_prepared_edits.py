"""Folders of images with their texts, prepared from a list or drawn."""

import csv
import shutil

import numpy as np
import pytest
import torch

from cyclediff.data.edit_lists import EditList, EditTuple, prepare_edits, read_edit_list, read_prompts
from cyclediff.data.masks import decode_mask
from cyclediff.errors import UserError
from cyclediff.pets.captions import sample_edits
from cyclediff.pets.folders import PETS_SEEDS, prepare_pet_edits
from cyclediff.pets.render import FACTORS, render, sample_factors

from .test_edit_lists import picture, pixels, write_pie_bench, written


@pytest.fixture
def edits(tmp_path):
    return read_edit_list(write_pie_bench(tmp_path / "PIE"))


def table(folder):
    with (folder.path / "edits.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")}


def test_a_prepared_folder(edits, tmp_path):
    folder = prepare_edits(edits, None, 64, "bilinear", tmp_path / "cache")
    assert folder.ids == ("000000000000", "111000000001")
    assert folder.name == "mapping_file"
    assert pixels(folder.path / "000000000000.png").shape == (64, 64, 3)
    row = {"id": "111000000001", "source": "a round cake", "target": "a square cake"}
    more = {"category": "change-material", "mask": "masks/111000000001.png", "target_image": ""}
    assert table(folder)[1] == row | more
    assert read_prompts(folder) == dict.fromkeys(folder.ids, ("a round cake", "a square cake"))
    before = times(folder)
    assert prepare_edits(edits, None, 64, "bilinear", tmp_path / "cache") == folder
    assert times(folder) == before


def test_masks_at_the_published_size_and_smaller(edits, tmp_path):
    full, small = (prepare_edits(edits, None, size, "bilinear", tmp_path) for size in (512, 64))
    runs = edits.found[0].mask
    assert np.array_equal(pixels(full.path / table(full)[0]["mask"]), decode_mask(runs) * 255)
    mask = pixels(small.path / table(small)[0]["mask"])
    assert (mask.shape, mask.dtype) == ((64, 64), np.uint8)
    assert set(np.unique(mask)) <= {0, 255}


def test_texts_survive(tmp_path):
    text = 'a "red", round\ncake – ü \r 熊'
    image = picture(tmp_path / "a.png", size=(3, 5))
    edits = EditList("x", (EditTuple("b", image, text, "t"), EditTuple("a", image, "s", text)), ())
    folder = prepare_edits(edits, None, 16, "bicubic", tmp_path / "cache")
    assert list(read_prompts(folder).items()) == [("a", ("s", text)), ("b", (text, "t"))]
    assert table(folder)[0]["mask"] == ""
    assert not (folder.path / "masks").exists()
    assert prepare_edits(edits, 1, 16, "bicubic", tmp_path / "cache").ids == ("b",)  # the first of the list


@pytest.mark.parametrize("damage", ["cut table", "edited table", "edited mask", "no mask", "cut image"])
def test_damage_is_noticed(edits, tmp_path, damage):
    folder = prepare_edits(edits, None, 16, "bilinear", tmp_path)
    files = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    csv_file, mask = folder.path / "edits.csv", folder.path / "masks" / "000000000000.png"
    if damage == "cut table":
        csv_file.write_bytes(files[csv_file][:40])
    elif damage == "edited table":
        csv_file.write_bytes(files[csv_file].replace(b"square", b"oblong"))
    elif damage == "edited mask":
        shutil.copy(folder.path / "000000000000.png", mask)
    elif damage == "no mask":
        shutil.rmtree(mask.parent)
    else:
        (folder.path / "111000000001.png").write_bytes(b"")
    assert prepare_edits(edits, None, 16, "bilinear", tmp_path) == folder
    assert {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()} == files


@pytest.mark.parametrize("change", ["source", "target", "category", "mask", "pixels", "size", "resize", "limit"])
def test_whatever_changes_the_task_is_another_digest(tmp_path, change):
    image = picture(tmp_path / "a.png")
    base = {"source": "a", "target": "b", "category": "c", "mask": (0, 9)}
    second = EditTuple("2", image, "a", "b")

    def prepared(values, limit=None, size=16, resize="bilinear"):
        return prepare_edits(
            EditList("x", (EditTuple("1", image, **values), second), ()), limit, size, resize, tmp_path
        )

    before = prepared(base)
    if change == "pixels":
        picture(image, "blue")
    values = base | {change: (0, 8) if change == "mask" else "new"} if change in base else base
    settings = {"size": 8, "resize": "bicubic", "limit": 1}
    after = prepared(values, **{change: settings[change]} if change in settings else {})
    assert after.digest != before.digest
    assert after.path != before.path


def test_a_file_that_is_no_image_stops_before_anything_is_written(tmp_path):
    path = written(tmp_path / "own" / "mine.csv", "image,source,target\na.png,a,b\nz.png,a,b\n")
    picture(path.parent / "a.png")
    written(path.parent / "z.png", "not an image")
    with pytest.raises(UserError, match=r"z\.png is not a readable image"):
        prepare_edits(read_edit_list(path), None, 16, "bilinear", tmp_path / "cache")
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]


# Pets


@pytest.fixture(scope="module")
def pet_edits(tmp_path_factory):
    count, size = 10, 64
    factors = sample_factors(count, torch.Generator().manual_seed(PETS_SEEDS["edits"]))
    drawn = sample_edits(factors, torch.Generator().manual_seed(PETS_SEEDS["edits"] + 1))
    return *prepare_pet_edits(count, size, tmp_path_factory.mktemp("pets")), drawn


def test_pet_edits(pet_edits):
    source, target, drawn = pet_edits
    assert source.ids == target.ids == tuple(f"edit{i:04d}" for i in range(10))
    assert (source.name, target.name) == ("pets-edits-source", "pets-edits-target")
    assert source.digest != target.digest
    assert [(row["source"], row["target"], row["category"], row["mask"]) for row in table(source)] == [
        (edit.source_text, edit.target_text, edit.trait, f"masks/edit{i:04d}.png") for i, edit in enumerate(drawn)
    ]
    assert {row["category"] for row in table(source)} == {"animal", "size", "fur", "background", "gaze"}
    assert not (target.path / "edits.csv").exists()
    for i in (0, 4, 9):
        for folder, animal in ((source, drawn[i].source), (target, drawn[i].target)):
            mine = pixels(folder.path / f"{folder.ids[i]}.png").transpose(2, 0, 1)
            alone = (render(animal.factors[None], animal.species, 64)[0].numpy() + 1) * 127.5
            assert np.abs(mine - alone).max() <= 0.51


def test_pet_texts_differ_in_one_word(pet_edits):
    for before, after in read_prompts(pet_edits[0]).values():
        pairs = list(zip(before.split(), after.split(), strict=True))
        assert sum(a != b for a, b in pairs) == 1


def test_pet_edits_change_what_they_say_and_nothing_else(pet_edits):
    source, target, drawn = pet_edits
    columns = [factor.name for factor in FACTORS]
    for image_id, edit in zip(source.ids, drawn, strict=True):
        before, after = (pixels(folder.path / f"{image_id}.png").astype(int) for folder in (source, target))
        changed = np.abs(before - after).max(-1) > 1
        assert changed.any()
        column, row = (((edit.source.factors[columns.index(axis)].item() + 1) * 32) for axis in ("x", "y"))
        head = changed[int(row) - 1 : int(row) + 2, int(column) - 1 : int(column) + 2]
        if edit.trait == "background":
            assert not head.any()
            assert changed[0].all()
        elif edit.trait == "fur":
            assert head.all()
            assert not changed[0].all()
        elif edit.trait == "gaze":  # only the eyes
            assert changed.mean() < 0.1


def test_pet_edits_are_drawn_once(pet_edits):
    source, target, _ = pet_edits
    before = times(source) | times(target)
    assert prepare_pet_edits(10, 64, source.path.parent) == (source, target)
    assert times(source) | times(target) == before
    assert prepare_pet_edits(1, 16, source.path.parent)[0].digest != source.digest
