import csv
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from cyclediff.data.edit_lists import (
    EditList,
    EditTuple,
    decode_mask,
    prepare_edits,
    read_edit_list,
    read_prompts,
)
from cyclediff.errors import UserError
from cyclediff.pets.captions import sample_edits
from cyclediff.pets.folders import PETS_SEEDS, prepare_pet_edits
from cyclediff.pets.render import FACTORS, render, sample_factors


def picture(path, colour="red", size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def written(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def as_json(path, content):
    return written(path, json.dumps(content))


def pixels(path):
    with Image.open(path) as image:
        return np.array(image)


def tuple_of(image, source="a dog", target="a cat"):
    return {"encode_text": source, "decode_text": target, "img_path": image}


def pie(image, **other):
    prompts = {"original_prompt": "a [round] cake", "editing_prompt": "a [square] cake", "editing_instruction": ""}
    return {"image_path": image, **prompts, "editing_type_id": "7", "blended_word": "", "mask": [0, 9], **other}


def refused(path, match):
    with pytest.raises(UserError, match=match) as caught:
        read_edit_list(path)
    assert "\n" not in str(caught.value)


# CycleDiffusion's list


@pytest.fixture
def official(tmp_path):
    """The layout of CycleDiffusion's repository, incompletely downloaded."""
    images = ["./data/p2p/bear.png", "./other/cat/x_1.png", "./data/dalle2/A black colored dog, Ünder snow.png"]
    for image in images[::2]:
        picture(tmp_path / "repo" / image)
    order = [images[0], images[1], images[0], images[2], images[1]]
    return as_json(tmp_path / "repo" / "data" / "list.json", [tuple_of(image) for image in order])


def test_the_official_list(official):
    edits = read_edit_list(official)
    assert edits.name == "list"
    assert [edit.id for edit in edits.found] == ["000-bear", "002-bear", "003-a-black-colored-dog-under-snow"]
    assert edits.missing == ("./other/cat/x_1.png",) * 2
    first = EditTuple("000-bear", official.parent / "p2p" / "bear.png", "a dog", "a cat")
    assert edits.found[0] == first


def test_ids_stay_when_images_are_added(official):
    before = {edit.id for edit in read_edit_list(official).found}
    picture(official.parents[1] / "other" / "cat" / "x_1.png")
    after = read_edit_list(official)
    assert {edit.id for edit in after.found} - before == {"001-x-1", "004-x-1"}
    assert not after.missing


def test_the_official_list_beside_its_data_folder(official):
    moved = official.rename(official.parents[1] / "list.json")
    assert len(read_edit_list(moved).found) == 3


def test_a_list_named_from_its_own_folder(official, monkeypatch):
    monkeypatch.chdir(official.parent)
    assert len(read_edit_list(type(official)("list.json")).found) == 3


def test_ids_of_long_and_foreign_names(tmp_path):
    for name in ("熊.png", f"{'long ' * 30}.png", "Straße Œ.png"):
        picture(tmp_path / name)
    names = ["熊.png", f"{'long ' * 30}.png", "Straße Œ.png"]
    found = read_edit_list(as_json(tmp_path / "list.json", [tuple_of(name) for name in names])).found
    assert [edit.id for edit in found] == ["000", "001-long-long-long-long-long-long-long-long", "002-strasse"]


def test_none_of_the_images_is_there(tmp_path):
    path = as_json(tmp_path / "data" / "list.json", [tuple_of("./data/a.png"), tuple_of("./data/b.png")])
    refused(path, rf"none .* of the 2 edits .* looked for at {tmp_path}/data/data/a\.png and {tmp_path}/data/a\.png;")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ([], "lists no edit; expected CycleDiffusion's"),
        ({}, "lists no edit"),
        ("", r"the columns \(none\); needed are image, source, target"),
        ("[{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        (b"\xff\xfei\0m\0", "is not text in UTF-8"),
        (["a.png"], r"tuple 0 .* should be an object with img_path, encode_text, decode_text; got \"a\.png\""),
        (
            [tuple_of("a.png"), {"img_path": "a.png"}],
            "tuple 1 .* no source prompt; write it as text under 'encode_text'",
        ),
        ([tuple_of("a.png", target="  ")], "no target prompt"),
        ([tuple_of("a.png", source="")], "no source prompt"),
        ([tuple_of("a.png", target=7)], "no target prompt"),
        ([tuple_of("")], "no image"),
        ([tuple_of("../../secret.png")], "lies outside"),
        ([tuple_of("../secret.png")], "lies outside"),
        ([tuple_of("/etc/hostname")], "lies outside"),
        ([tuple_of("a\0.png")], "the image has a null character"),
        ([tuple_of("a.png", target="a dog \ud83d")], "the target prompt has .* half a character"),
        ([tuple_of("a" * 5000)], "no usable path"),
    ],
)
def test_bad_lists(tmp_path, content, match):
    picture(tmp_path / "repo" / "data" / "a.png")
    picture(tmp_path / "secret.png")
    path = tmp_path / "repo" / "data" / "list"
    refused(written(path, content) if isinstance(content, str | bytes) else as_json(path, content), match)


def test_a_list_that_is_not_there(tmp_path):
    refused(tmp_path / "list.json", "cannot be read .No such file")
    refused(tmp_path, "cannot be read .Is a directory")


# PIE-Bench


@pytest.fixture
def pie_bench(tmp_path):
    folder = tmp_path / "PIE"
    picture(folder / "annotation_images" / "0_random_140" / "0.jpg", "blue", (512, 512))
    picture(folder / "here" / "1.jpg", "green", (512, 512))
    entries = {
        "000000000000": pie("0_random_140/0.jpg", editing_type_id="0", mask=[513, 2, 262_140, 99]),
        "111000000001": pie("here/1.jpg"),
        "211000000002": pie("9_change_style_80/2.jpg", editing_type_id=9),
    }
    return as_json(folder / "mapping_file.json", entries)


def test_pie_bench(pie_bench):
    edits = read_edit_list(pie_bench)
    image = pie_bench.parent / "annotation_images" / "0_random_140" / "0.jpg"
    mask = (513, 2, 262_140, 99)
    assert edits.found[0] == EditTuple("000000000000", image, "a round cake", "a square cake", "random", mask)
    assert edits.found[1].image == pie_bench.parent / "here" / "1.jpg"
    assert edits.found[1].category == "change-material"
    assert edits.missing == ("9_change_style_80/2.jpg",)


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        (pie("a.jpg", editing_type_id="10"), "entry '5': editing_type_id should be 0 … 9, as published; got '10'"),
        (pie("a.jpg", editing_prompt="[ ]"), "entry '5': no target prompt"),
        (pie("a.jpg", original_prompt=""), "entry '5': no source prompt"),
        (pie("a.jpg", mask=[1, 2, 3]), "entry '5': the mask should be start, length"),
        (pie("a.jpg", mask=[-1, 2]), "whole numbers from 0"),
        (pie("a.jpg", mask=["1", "2"]), "whole numbers from 0"),
        (pie("a.jpg", mask={"size": [512, 512]}), "whole numbers from 0"),
        (pie("../../a.jpg"), "lies outside"),
        (["a.jpg"], "should be an object with image_path, original_prompt, editing_prompt"),
    ],
)
def test_bad_pie_bench(tmp_path, entry, match):
    picture(tmp_path / "a.jpg")
    refused(as_json(tmp_path / "PIE" / "mapping_file.json", {"5": entry}), match)


def test_keys_of_pie_bench_become_file_names(tmp_path):
    refused(as_json(tmp_path / "m.json", {"../5": pie("a.jpg")}), r"the id '\.\./5' should be")
    refused(as_json(tmp_path / "m.json", {"A": pie("a.jpg"), "a": pie("a.jpg")}), "'a' is that of .* entry 'A' as well")
    entry = json.dumps(pie("a.jpg"))
    refused(written(tmp_path / "m.json", f'{{"1": {entry}, "1": {entry}}}'), "the key '1' twice")


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


# One's own


@pytest.fixture
def own(tmp_path):
    """Writes a CSV beside two images."""
    for name in ("a.png", "sub/Ü b.png"):
        picture(tmp_path / "own" / name)
    picture(tmp_path / "secret.png")
    return lambda content: written(tmp_path / "own" / "mine.csv", content)


def test_a_list_of_ones_own(own):
    path = own('image,source,target\na.png,"a dog, left",a cat\n\nsub/Ü b.png,a dog,a "big" dog\nno.png,x,y\n')
    edits = read_edit_list(path)
    assert edits.name == "mine"
    assert edits.found[0] == EditTuple("000-a", path.parent / "a.png", "a dog, left", "a cat")
    assert (edits.found[1].id, edits.found[1].target) == ("001-u-b", 'a "big" dog')
    assert edits.missing == ("no.png",)


def test_columns_in_any_order_with_ids_and_bom(own):
    path = own("\ufeffTarget, id ,category,image,source,note\r\na cat,K-9,animal,a.png,a dog,!\r\nb,,,a.png,a,\r\n")
    edit, other = read_edit_list(path).found
    assert (edit.id, edit.category, edit.source, edit.target) == ("K-9", "animal", "a dog", "a cat")
    assert (other.id, other.category) == ("001-a", "")


def test_an_absolute_path_and_a_link_that_stay_inside(own):
    path = own("image,source,target\n")
    os.symlink(path.parent / "a.png", path.parent / "link.png")
    own(f"image,source,target\n{path.parent / 'a.png'},a,b\nlink.png,a,b\nsub/../a.png,a,b\n")
    assert [edit.id for edit in read_edit_list(path).found] == ["000-a", "001-link", "002-a"]


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        ("image,source\na.png,a dog", "has the columns image, source; needed are image, source, target"),
        ("image;source;target\na.png;a;b", "has the columns image;source;target; needed .* separated by commas"),
        ("image,source,target,target\na.png,a,b,c", "each once"),
        ("image,source,target\n", "lists no edit"),
        ("image,source,target\na.png,a,b\na.png,a dog,", "row 3: no target prompt"),
        ("image,source,target\n\na.png,a dog", "row 3: no target prompt"),
        ("image,source,target\na.png,  ,a cat", "row 2: no source prompt"),
        ("image,source,target\n,a dog,a cat", "row 2: no image"),
        ("image,source,target\na.png,a dog, left,a cat", r'row 2: 4 cells for 3 columns; .* commas in "quotes"'),
        ('image,source,target\na.png,"a dog,a cat', "is not a valid CSV"),
        ("id,image,source,target\nx,a.png,a,b\nX,a.png,a,b", "row 3: the id 'X' is that of mine.csv, row 2 as well"),
        ("id,image,source,target\n001-a,a.png,a,b\n,a.png,a,b", "row 3: the id '001-a' is that of"),
        ("id,image,source,target\n../x,a.png,a,b", r"row 2: the id '\.\./x' should be"),
        ("image,source,target\n../secret.png,a,b", r"row 2: the image '\.\./secret\.png' lies outside .*/own; copy it"),
        ("image,source,target\nsub/../../secret.png,a,b", "row 2: .* lies outside"),
        ("image,source,target\n../own2/a.png,a,b", "row 2: .* lies outside"),
        ("image,source,target\n/etc/hostname,a,b", "row 2: the image '/etc/hostname' lies outside"),
        ("image,source,target\nout.png,a,b", r"row 2: the image 'out\.png' lies outside"),
        ("image,source,target\nup/secret.png,a,b", r"row 2: the image 'up/secret\.png' lies outside"),
        ("image,source,target\nround.png,a,b", "row 2: 'round.png' is no usable path .Symlink loop"),
        ("image,source,target\nsub,a,b", "none of the images of the 1 edits"),
    ],
)
def test_bad_lists_of_ones_own(own, lines, match):
    path = own(lines)
    for link, to in {"out.png": "../secret.png", "up": "..", "round.png": "round.png"}.items():
        os.symlink(to, path.parent / link)
    refused(path, match)


# Prepared folders


@pytest.fixture
def edits(pie_bench):
    return read_edit_list(pie_bench)


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
    assert table(folder)[1] == {**row, "category": "change-material", "mask": "masks/111000000001.png"}
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


def test_a_file_that_is_no_image_stops_before_anything_is_written(own, tmp_path):
    path = own("image,source,target\na.png,a,b\nz.png,a,b\n")
    written(path.parent / "z.png", "not an image")
    with pytest.raises(UserError, match=r"z\.png is not a readable image"):
        prepare_edits(read_edit_list(path), None, 16, "bilinear", tmp_path / "cache")
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]


# The embedded world


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
        (edit.source_text, edit.target_text, edit.trait, "") for edit in drawn
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


def test_pet_counterparts_differ_only_as_told(pet_edits):
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


def test_lists_are_read_without_torch():
    code = "import sys, cyclediff.data.edit_lists; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
