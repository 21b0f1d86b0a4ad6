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
from eval.metrics.pictures import Pairing, by_stem, pair

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


def passed_over(folder, recwarn):
    """What is said of files that are passed over; listed twice, as a run does."""
    for _ in range(2):
        files.list_images(folder)
    return [str(warning.message).removeprefix(f"{folder}: ") for warning in recwarn.list]


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (["b.heic", "c.HEIC", "d.txt"], "3 files passed over (2 .heic, 1 .txt)"),
        (["b.heic", "sub/"], "1 file passed over (1 .heic) and 1 subfolder"),
        (["sub/", "other.png/"], "2 subfolders passed over"),
        (["LICENSE", "b."], "2 files passed over (2 without a suffix)"),
        (["1.a", "1.b", "1.c", "1.d", "1.e", "1.f", "2.f", "1.g"],
         "8 files passed over (2 .f, 1 .a, 1 .b, 1 .c, 1 .d, 2 other kinds)"),
        (["x.\n", "y.a suffix that is a sentence"], "2 files passed over (1 ._, 1 .a suffix th)"),
    ],
)  # fmt: skip
def test_what_is_passed_over_is_said_once(names, line, tmp_path, recwarn):
    (tmp_path / "a.png").write_bytes(WHOLE["a.png"])
    for name in names:
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).touch()
    assert passed_over(tmp_path, recwarn) == [line]


def test_what_systems_and_this_project_leave_is_not_worth_a_word(tmp_path, recwarn):
    for name in ("a.png", ".DS_Store", "._a.png", "Thumbs.db", "desktop.ini", "edits.csv", "manifest.json"):
        (tmp_path / name).touch()
    for name in (".git", "masks", "__MACOSX"):
        (tmp_path / name).mkdir()
    assert passed_over(tmp_path, recwarn) == []


def test_a_link_in_a_circle_without_an_image_s_name_is_passed_over(tmp_path, recwarn):
    (tmp_path / "a.png").write_bytes(WHOLE["a.png"])
    (tmp_path / "loop").symlink_to("loop")
    assert passed_over(tmp_path, recwarn) == ["1 file passed over (1 without a suffix)"]


COMPOSED, DECOMPOSED = "\u00e9", "e\u0301"  # é, as Windows and Linux write it, and as macOS may


@pytest.mark.parametrize("spellings", [(COMPOSED, DECOMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED, COMPOSED)])
def test_both_spellings_of_a_name_are_paired(spellings, tmp_path):
    source, generated, truth = (tmp_path / name for name in ("source", "generated", "truth"))
    for folder, stem in zip((source, generated, truth), spellings, strict=True):
        folder.mkdir()
        for name in (stem, "z"):
            (folder / f"{name}.png").write_bytes(WHOLE["a.png"])
    folders, pairing = pair(generated, source, truth)
    assert pairing == Pairing(sorted([spellings[0], "z"]), [], [])  # under the source's name
    assert folders.generated[spellings[0]] == generated / f"{spellings[1]}.png"
    assert folders.source[spellings[0]] == source / f"{spellings[0]}.png"
    assert folders.ground_truth == {
        name: truth / f"{s}.png" for name, s in zip([spellings[0], "z"], [spellings[2], "z"], strict=True)
    }


def test_both_spellings_in_one_folder_are_refused(tmp_path):
    for stem in (COMPOSED, DECOMPOSED):
        (tmp_path / f"{stem}.png").write_bytes(WHOLE["a.png"])
    with pytest.raises(ValueError, match="have one stem, which pairs images; rename one"):
        by_stem(tmp_path)


def test_the_ids_of_a_folder_are_the_names_on_the_disk(tmp_path):
    """Runs that are there keep their images: neither spelling is changed."""
    for stem in (DECOMPOSED, "\u00fc"):
        (tmp_path / f"{stem}.png").write_bytes(WHOLE["a.png"])
    assert prepared(tmp_path, tmp_path / "cache").ids == (DECOMPOSED, "\u00fc")


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
