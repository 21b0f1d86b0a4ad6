"""Untrusted archives and lists: nothing is written or read outside of their folder."""

import csv
import io
import tarfile
import zipfile

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from cyclediff.data import archives
from cyclediff.data.archives import unpack
from cyclediff.data.edit_lists import read_edit_list
from cyclediff.errors import UserError
from eval.edits import read_edits

from .test_untrusted_input import few, sentence


def tar(path, *members):
    with tarfile.open(path, "w") as file:
        for name, kind, link in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            info.size = 4 if kind == tarfile.REGTYPE else 0
            file.addfile(info, io.BytesIO(b"evil") if info.size else None)
    return path


def refused(path, folder, match):
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(UserError, match=match) as refusal:
        unpack(path, folder)
    sentence(refusal.value)
    assert sorted(folder.parent.rglob("*")) == before


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"Z"]
)
def test_members_of_a_tar_that_are_no_files(kind, tmp_path):
    path = tar(tmp_path / "a.tar", ("good", tarfile.REGTYPE, ""), ("x", kind, "/etc/passwd"))
    refused(path, tmp_path / "data", "is a link or a device")


def test_a_link_and_a_file_through_it(tmp_path):
    members = ("x", tarfile.SYMTYPE, str(tmp_path / "out")), ("x/evil", tarfile.REGTYPE, "")
    (tmp_path / "out").mkdir()
    refused(tar(tmp_path / "a.tar", *members), tmp_path / "data", "is a link")


@pytest.mark.parametrize("mode", [0o120777, 0o020666, 0o060666, 0o010666, 0o140777])
def test_members_of_a_zip_that_are_no_files(mode, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        info = zipfile.ZipInfo("x")
        info.external_attr = mode << 16
        file.writestr(info, "/etc/passwd")
    refused(tmp_path / "a.zip", tmp_path / "data", "is a link or a device")


@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/evil", "..\\evil", "C:\\evil", "//host/evil", "a\\..\\..\\b"]
)
def test_names_that_lead_out(name, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("good", "")
        file.writestr(name, "evil")
    refused(tmp_path / "a.zip", tmp_path / "data", "would leave the folder")
    refused(tar(tmp_path / "a.tar", (name, tarfile.REGTYPE, "")), tmp_path / "data", "would leave the folder")


def test_a_link_that_was_there_before_is_not_written_through(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "data" / "val").symlink_to(tmp_path / "out")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("a", "good")
        file.writestr("val/cat/1.png", "evil")
    refused(tmp_path / "a.zip", tmp_path / "data", "through a link")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as file:
        file.writestr("val", "a file of the link's name takes its place")
    assert unpack(tmp_path / "b.zip", tmp_path / "data") == 1
    assert not list((tmp_path / "out").iterdir())


def test_the_folder_itself_as_a_member(tmp_path):
    """`tar -C folder .` writes it."""
    path = tar(tmp_path / "a.tar", (".", tarfile.DIRTYPE, ""), ("./val/1.png", tarfile.REGTYPE, ""))
    assert unpack(path, tmp_path / "data") == 1
    assert (tmp_path / "data" / "val" / "1.png").read_bytes() == b"evil"


@pytest.mark.parametrize("name", ["a.zip", "a.tgz", "a.txz", "a.tbz"])
def test_a_damaged_archive_leaves_nothing(name, tmp_path):
    noise = np.random.default_rng(0).bytes(50_000)
    if name == "a.zip":
        with zipfile.ZipFile(tmp_path / name, "w") as file:
            file.writestr("first", "whole")
            file.writestr("second", noise)
    else:
        with tarfile.open(tmp_path / name, f"w:{ {'a.tgz': 'gz', 'a.txz': 'xz', 'a.tbz': 'bz2'}[name] }") as file:
            for member in ("first", "second"):
                info = tarfile.TarInfo(member)
                info.size = len(noise)
                file.addfile(info, io.BytesIO(noise))
    content = bytearray((tmp_path / name).read_bytes())
    for start, stop in ((30_000, 30_009), (30_000, len(content))):
        damaged = content[:start] + bytes(9) + content[stop:] if stop < len(content) else content[:start]
        (tmp_path / name).write_bytes(damaged)
        refused(tmp_path / name, tmp_path / "data", "is damaged or neither zip nor tar")
    (tmp_path / name).write_bytes(content)
    assert unpack(tmp_path / name, tmp_path / "data") == 2


def test_an_encrypted_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("a", "secret")
    content = (tmp_path / "a.zip").read_bytes()
    for header, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        place = content.index(header) + flags
        content = content[:place] + b"\1" + content[place + 1 :]
    (tmp_path / "a.zip").write_bytes(content)
    refused(tmp_path / "a.zip", tmp_path / "data", "cannot be extracted here .*password")


def test_an_archive_that_the_disk_cannot_hold(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("zeros", bytes(10**7))
    usage = type("Usage", (), {"free": 10**7 - 1})
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: usage)
    refused(tmp_path / "a.zip", tmp_path / "data", r"holds 0\.0 GB, and the disk has 0\.0 GB left; make room")
    usage.free += 1
    assert unpack(tmp_path / "a.zip", tmp_path / "data") == 1


# Lists of edits


@few
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
@example("../secret.png")
@example("/etc/hostname")
@example("data/../../secret.png")
@example("~/x.png")
@example("a.png\n../secret.png")
def test_no_path_of_a_list_leads_out(tmp_path, image):
    folder = tmp_path / "own"
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    with (folder / "list.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "source", "target"), ("a.png", "a", "b"), (image, "a", "b")])
    try:
        found = read_edit_list(folder / "list.csv").found
    except UserError as error:
        sentence(error)
    else:
        assert all(edit.image.resolve().is_relative_to(folder.resolve()) for edit in found)


@pytest.mark.parametrize(
    "mask", ["../secret.png", "/etc/hostname", "masks/../../secret.png", "out.png", "loop.png", "a\0"]
)
def test_no_mask_of_a_prepared_folder_leads_out(mask, tmp_path):
    folder = tmp_path / "prepared"
    folder.mkdir()
    (tmp_path / "secret.png").touch()
    (folder / "out.png").symlink_to("../secret.png")
    (folder / "loop.png").symlink_to("loop.png")
    with (folder / "edits.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("id", "source", "target", "category", "mask"), ("x", "a", "b", "", mask)])
    with pytest.raises(ValueError, match="is not a path inside the folder"):
        read_edits(folder)


def test_an_edits_csv_of_a_spreadsheet(tmp_path):
    """With a byte order mark; of two rows with one id neither is chosen."""
    rows = "id,source,target,category,mask\r\nx,a dog,a cat,,\r\n"
    (tmp_path / "edits.csv").write_text(rows, encoding="utf-8-sig", newline="")
    assert read_edits(tmp_path)["x"].target == "a cat"
    (tmp_path / "edits.csv").write_text(rows + "x,a dog,a bird,,\r\n", encoding="utf-8-sig", newline="")
    with pytest.raises(ValueError, match=r"edits\.csv has two rows with the id 'x'; remove one"):
        read_edits(tmp_path)


@pytest.mark.parametrize("content", [b"\xff\xfe", b'id,source\n"' + b"x" * 200_000, b"id\n\0,\n"])
def test_a_damaged_edits_csv_is_refused(content, tmp_path):
    (tmp_path / "edits.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"edits\.csv (is no readable CSV|has no column)") as refusal:
        read_edits(tmp_path)
    sentence(refusal.value)
