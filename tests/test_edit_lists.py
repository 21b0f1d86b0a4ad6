import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from cyclediff.data.edit_lists import EditTuple, read_edit_list
from cyclediff.errors import UserError


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


def write_pie_bench(folder):
    """Two of three images are there."""
    picture(folder / "annotation_images" / "0_random_140" / "0.jpg", "blue", (512, 512))
    picture(folder / "here" / "1.jpg", "green", (512, 512))
    entries = {
        "000000000000": pie("0_random_140/0.jpg", editing_type_id="0", mask=[513, 2, 262_140, 99]),
        "111000000001": pie("here/1.jpg"),
        "211000000002": pie("9_change_style_80/2.jpg", editing_type_id=9),
    }
    return as_json(folder / "mapping_file.json", entries)


@pytest.fixture
def pie_bench(tmp_path):
    return write_pie_bench(tmp_path / "PIE")


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


@pytest.mark.parametrize(("written", "there"), [("\u00dc b", "U\u0308 b"), ("U\u0308 b", "\u00dc b")])
def test_both_spellings_of_a_file_s_name(tmp_path, written, there):
    """Also of a folder's, on the way to it; a third name is not found."""
    picture(tmp_path / there / f"{there}.png")
    text = f"image,source,target\n{written}/{written}.png,a,b\n{written}/U b.png,a,b\n"
    (tmp_path / "mine.csv").write_text(text, encoding="utf-8")
    edits = read_edit_list(tmp_path / "mine.csv")
    assert [edit.image for edit in edits.found] == [tmp_path / there / f"{there}.png"]
    assert edits.missing == (f"{written}/U b.png",)


SHORT = "mine.csv, row 2: 3 cells for 4 columns; write the empty ones, too: …,…,…,"
CUT = (
    "mine.csv, row 2: a space follows some of its commas only, as in a text that has commas; put such a text in "
    '"quotes", or remove the space'
)


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("image,source,target,category\na.png,a dog, left,a cat", CUT),  # "left" was the target, "a cat" the category
        ("image,source,target,category\na.png,a dog,a cat, right", CUT),
        ("image,source,target\na.png,a dog, left", CUT),
        ("image,source,target,category\na.png,a dog,a cat", SHORT),
        ("image,source,target,category\na.png,a dog,left,a cat,animal",
         'mine.csv, row 2: 5 cells for 4 columns; put a text that has commas in "quotes"'),
        ('image,source,target\na.png,"a\ndog",b\na.png,a,b,c',
         'mine.csv, row 3 (line 4): 4 cells for 3 columns; put a text that has commas in "quotes"'),
        ("image,category,source,target\na.png,a dog,a cat",
         "mine.csv, row 2: no target prompt; write it as text under 'target', or remove the entry"),
    ],
)  # fmt: skip
def test_a_comma_without_quotes_moves_no_text(own, lines, sentence):
    with pytest.raises(UserError) as refusal:
        read_edit_list(own(lines))
    assert str(refusal.value) == sentence


@pytest.mark.parametrize(
    "lines",
    [
        "image, source, target, category\na.png,a dog, left,a cat",  # the header has spaces: they mean nothing
        "image,source,target,category\na.png, a dog, a cat, animal",
        'image,source,target,category\na.png,"a dog, left"," a cat",animal',
        'image,source,target,category\na.png, "a dog, left",a cat,animal',
        "image,source,target,category\na.png,a dog,a cat,",
    ],
)
def test_spaces_that_say_nothing(own, lines):
    assert len(read_edit_list(own(lines)).found) == 1


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
        ("image,source,target\na.png,\u00a0,a cat", "row 2: no source prompt"),
        ("image,source,target\na.png,a dog,\u200b", "row 2: no target prompt"),
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


def test_lists_are_read_without_torch():
    code = "import sys, cyclediff.data.edit_lists; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
