"""Archives: what they hold stays inside its folder, and a data set is counted before it gets its name."""

import io
import tarfile
import zipfile

import pytest

from cyclediff.data.archives import unpack
from cyclediff.errors import UserError


def archive(path, names):
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as file:
            for name in names:
                file.writestr(name, "content")
    else:
        with tarfile.open(path, "w:gz") as file:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = 7
                file.addfile(info, io.BytesIO(b"content"))
    return path


@pytest.mark.parametrize("kind", ["a.zip", "a.tgz"])
def test_unpack(kind, tmp_path):
    path = archive(tmp_path / kind, ["test/cat/1.png", "test/dog/2.png"])
    assert unpack(path, tmp_path / "data") == 2
    assert (tmp_path / "data/test/dog/2.png").read_text() == "content"


@pytest.mark.parametrize("kind", ["a.zip", "a.tgz"])
@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "..\\evil", "C:/evil"])
def test_an_archive_cannot_leave_its_folder(kind, name, tmp_path):
    path = archive(tmp_path / kind, ["good", name])
    with pytest.raises(UserError, match="would leave the folder"):
        unpack(path, tmp_path / "in" / "data")
    assert not (tmp_path / "in").exists()
    assert not list(tmp_path.rglob("evil"))


def test_links_in_archives_are_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        info = tarfile.TarInfo("link")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc"
        file.addfile(info)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        file.writestr(link, "/etc")
    for name in ("a.tar", "a.zip"):
        with pytest.raises(UserError, match="is a link"):
            unpack(tmp_path / name, tmp_path / "data")


def test_no_archive(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK but no")
    with pytest.raises(UserError, match="neither zip nor tar"):
        unpack(tmp_path / "a.zip", tmp_path / "data")


HOLDS = {"train/cat": 2, "val/cat": 1, "val/dog": 1}
AFHQ = ["train/cat/1.jpg", "train/cat/2.jpg", "val/cat/1.jpg", "val/dog/1.jpg"]


@pytest.mark.parametrize("parent", ["", "afhq/", "any name/"])
@pytest.mark.parametrize("kind", ["a.zip", "a.tgz"])
def test_a_data_set_with_and_without_a_folder_around_it(kind, parent, tmp_path):
    """afhq.zip has a folder of its own and afhq_v2.zip has none; tasks find both in their places."""
    beside = ["README", "__MACOSX/._1.jpg", f"{parent}LICENSE", f"{parent}more/x.jpg"]
    path = archive(tmp_path / kind, [parent + name for name in AFHQ] + beside)
    assert unpack(path, tmp_path / "data" / "afhq", HOLDS) == 4
    found = {p.relative_to(tmp_path / "data").as_posix() for p in (tmp_path / "data").rglob("*") if p.is_file()}
    assert found == {f"afhq/{name}" for name in AFHQ}


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ([*AFHQ[:-1], "val/dog/x.txt"], r"is another version or incomplete: val/dog has 0 images, not 1; get it again"),
        ([*AFHQ, "afhq/val/cat/2.jpg", "val/cat/2.jpg"], r"val/cat has 2 images, not 1"),
        (["test/cat/1.png"], r"does not hold the folders train/cat, val/cat, val/dog, neither at its top nor in one"),
        (["a/b/" + name for name in AFHQ], r"does not hold the folders"),
    ],
    ids=["one is missing", "one more", "AFHQ v2", "too deep"],
)
def test_another_data_set_is_refused_and_leaves_nothing(names, sentence, tmp_path):
    path = archive(tmp_path / "a.zip", names)
    with pytest.raises(UserError, match=sentence):
        unpack(path, tmp_path / "data" / "afhq", HOLDS)
    assert not list((tmp_path / "data").iterdir())
