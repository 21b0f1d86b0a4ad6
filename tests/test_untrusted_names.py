"""Untrusted names and folders of pictures: they work, or there is one sentence."""

import os
import random
import re
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cyclediff.data import folders as data
from cyclediff.data.folders import list_images, raw_folder
from cyclediff.errors import UserError
from eval import files

from .test_untrusted_input import WHOLE, few, prepared, sentence


@few
@given(st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60))
@example("-rf")
@example("--")
@example("a\nb")
@example("ü 熊 🐕 e\u0301")
@example("\u202fscreen shot")
@example(" a ")
@example("a.b")
@example("%s{}$[bold]")
@example("‮gnp")
def test_any_name_works_or_is_refused(tmp_path, stem):
    if len(f"{stem}.png".encode()) > 255 or stem in (".", ".."):
        return
    folder = tmp_path / "".join(f"{byte:02x}" for byte in stem.encode())[:100]
    folder.mkdir(exist_ok=True)
    (folder / f"{stem}.png").write_bytes(WHOLE["a.png"])
    control = re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029]", stem)
    if stem.startswith("."):
        match = "there is no image"
    elif control:
        match = "has control characters"
    else:
        found = prepared(folder, tmp_path / "cache")
        assert found.ids == (f"{stem}.png".removesuffix(".png"),)
        assert (found.path / f"{stem}.png").is_file()
        return
    with pytest.raises(UserError, match=match) as refusal:
        prepared(folder, tmp_path / "cache")
    sentence(refusal.value)


def test_names_that_are_no_text(tmp_path):
    with open(os.fsencode(tmp_path) + b"/\xff\xfe.png", "wb") as file:
        file.write(WHOLE["a.png"])
    with pytest.raises(UserError, match=r"'\\udcff\\udcfe\.png' .* has control characters or no text in it; rename it"):
        prepared(tmp_path, tmp_path / "cache")


@pytest.mark.parametrize("suffix", [".png", ".webp", ".JPG"])
@pytest.mark.parametrize("letter", ["a", "熊", "é"])
def test_the_longest_names(letter, suffix, tmp_path):
    stem = letter * ((255 - len(suffix)) // len(letter.encode()))
    folder = tmp_path / (letter * (255 // len(letter.encode())))
    folder.mkdir()
    (folder / f"{stem}{suffix}").write_bytes(WHOLE["a.png"])
    found = prepared(folder, tmp_path / "cache")
    assert found.ids == (stem,)
    assert (found.path / f"{stem}.png").is_file()
    assert prepared(folder, tmp_path / "cache") == found


def test_folders_and_hidden_files_are_ignored(tmp_path):
    (tmp_path / "a.png").write_bytes(WHOLE["a.png"])
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "folder.png" / "inside.png").write_bytes(WHOLE["a.png"])
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "linked.png").symlink_to("folder.png")
    (tmp_path / "notes.txt").write_bytes(b"")
    for listed in (list_images, files.list_images):
        assert [path.name for path in listed(tmp_path)] == ["a.png"]


def test_a_link_to_a_photo_is_followed(tmp_path):
    (tmp_path / "elsewhere.png").write_bytes(WHOLE["a.png"])
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").symlink_to("../elsewhere.png")
    assert prepared(tmp_path / "photos", tmp_path / "cache").ids == ("a",)
    assert [path.name for path in files.list_images(tmp_path / "photos")] == ["a.png"]


@pytest.mark.parametrize("kind", ["loop", "dangling", "pipe", "device"])
def test_what_is_no_file_is_refused_and_not_opened(kind, tmp_path):
    (tmp_path / "a.png").write_bytes(WHOLE["a.png"])
    odd = tmp_path / "b.png"
    if kind == "pipe":
        os.mkfifo(odd)  # reading it would wait forever
    else:
        odd.symlink_to({"loop": "b.png", "dangling": "nowhere.png", "device": "/dev/zero"}[kind])
    for use in (list_images, raw_folder, lambda folder: prepared(folder, tmp_path / "cache")):
        with pytest.raises(UserError, match=r"b\.png is a link to nowhere or no plain file") as refusal:
            use(tmp_path)
        sentence(refusal.value)
    with pytest.raises(ValueError, match=r"b\.png is a link to nowhere or no plain file"):
        files.list_images(tmp_path)


def test_a_folder_that_is_a_loop(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match="does not exist or is no folder"):
        list_images(tmp_path / "loop")


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(WHOLE["a.png"])

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(data, "file_sha256", refuse)
    with pytest.raises(UserError, match=r"a\.png cannot be read \(Permission denied\)"):
        prepared(tmp_path, tmp_path / "cache")


def test_stems_that_are_one_name_on_some_file_systems(tmp_path):
    for name in ("\u00e9.png", "e\u0301.png"):
        (tmp_path / name).write_bytes(WHOLE["a.png"])
    with pytest.raises(UserError, match="would both become"):
        prepared(tmp_path, tmp_path / "cache")


def test_a_hundred_thousand_files_are_listed_quickly(tmp_path):
    """At most 2 s for 100,000 files; 20,000 are tried here."""
    names = [f"{i:06d}.png" for i in range(20_000)]
    random.Random(0).shuffle(names)
    for name in names:
        os.close(os.open(tmp_path / name, os.O_CREAT))
    for listed in (list_images, files.list_images):
        seconds = []
        for _ in range(3):  # the best of three: someone else may be at work
            start = time.process_time()
            found = listed(tmp_path)
            seconds.append(time.process_time() - start)
        assert min(seconds) < 0.4
        assert [path.name for path in found] == sorted(names)
