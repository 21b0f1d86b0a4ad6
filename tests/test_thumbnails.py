import base64
import io
import os
from pathlib import Path

import pytest
from PIL import Image

from eval.report import thumbnails
from eval.report.thumbnails import LEVELS, make_thumbnails

from .finished_run import picture

PLENTY = 10**9


def saved(folder, side, count=6, first=0):
    folder.mkdir(exist_ok=True)
    for k in range(count):
        picture(first + k, side).save(folder / f"{k}.png")
    return sorted(folder.glob("*.png"))


def size_of(data):
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        return image.size


@pytest.fixture
def kept(tmp_path):
    return tmp_path / "kept"


@pytest.fixture
def encoded(monkeypatch):
    """The pictures that were encoded, one entry each time."""
    contents, encode = [], thumbnails._encode

    def note(content, level):
        contents.append(content)
        return encode(content, level)

    monkeypatch.setattr(thumbnails, "_encode", note)
    return contents


def afresh(paths, budget=PLENTY):
    """What a call gives that knows of no earlier one."""
    return make_thumbnails(paths, budget, Path("/proc/none"))


def test_large_pictures_shrink_to_the_budget(tmp_path, kept):
    paths = saved(tmp_path, 256)
    sizes = []
    for budget in (10**9, 50_000, 1):
        made = make_thumbnails(paths, budget, kept)
        assert list(made) == paths
        sizes.append({size_of(data) for data in made.values()})
        if budget == 50_000:
            assert sum(map(len, made.values())) <= budget
    assert sizes[0] == {(LEVELS[0][0],) * 2}
    assert sizes[2] == {(LEVELS[-1][0],) * 2}
    assert sizes[1] not in (sizes[0], sizes[2])


def test_small_pictures_keep_their_size(tmp_path, kept):
    paths = saved(tmp_path, 64)
    assert {size_of(data) for data in make_thumbnails(paths, 1, kept).values()} == {(64, 64)}


def test_a_picture_that_is_not_there_is_left_out(tmp_path, kept):
    paths = saved(tmp_path, 16, 2)
    assert list(make_thumbnails([*paths, tmp_path / "no.png"], 10**6, kept)) == paths
    assert make_thumbnails([tmp_path / "no.png"], 10**6, kept) == {}


def test_only_new_pictures_are_encoded(tmp_path, kept, encoded):
    old = saved(tmp_path / "old", 256)
    make_thumbnails(old, PLENTY, kept)
    assert sorted(encoded) == sorted(path.read_bytes() for path in old)
    encoded.clear()
    new = saved(tmp_path / "new", 256, count=2, first=50)
    made = make_thumbnails([*old, *new], PLENTY, kept)
    assert sorted(encoded) == sorted(path.read_bytes() for path in new)
    encoded.clear()
    assert make_thumbnails([*old, *new], PLENTY, kept) == made
    assert encoded == []


@pytest.mark.filterwarnings("ignore:thumbnails cannot be kept")
def test_another_picture_of_the_same_name_size_and_time_is_noticed(tmp_path, kept):
    (path,) = saved(tmp_path / "a", 64, count=1)
    first, about = make_thumbnails([path], PLENTY, kept)[path], path.stat()
    (other,) = saved(tmp_path / "b", 64, count=1, first=9)
    size = max(about.st_size, other.stat().st_size)
    path.write_bytes(other.read_bytes().ljust(size, b"\0"))
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    second = make_thumbnails([path], PLENTY, kept)[path]
    assert second != first
    assert second == afresh([path])[path]


def flip(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.filterwarnings("ignore:thumbnails cannot be kept")
@pytest.mark.parametrize(
    "damage",
    [flip, lambda content: content[:-9], lambda content: b"", lambda content: b"{}", lambda content: b"\xff\n[]"],
    ids=["one bit", "cut", "empty", "other contents", "no text"],
)
def test_a_damaged_file_is_made_anew(damage, tmp_path, kept, encoded):
    paths = saved(tmp_path / "a", 64)
    make_thumbnails(paths, PLENTY, kept)
    whole = afresh(paths)
    kept.write_bytes(damage(kept.read_bytes()))
    assert make_thumbnails(paths, PLENTY, kept) == whole
    encoded.clear()
    assert make_thumbnails(paths, PLENTY, kept) == whole
    assert encoded == []
    assert {path.name for path in tmp_path.iterdir()} == {"a", "kept"}


def test_what_is_kept_does_not_grow(tmp_path, kept):
    for first in (0, 20, 40):
        paths = saved(tmp_path / "a", 64, first=first)
        make_thumbnails(paths, PLENTY, kept)
    make_thumbnails(paths, PLENTY, tmp_path / "alone")
    assert kept.stat().st_size == (tmp_path / "alone").stat().st_size


def test_without_room_there_is_a_warning(tmp_path, kept):
    paths = saved(tmp_path / "a", 64, count=1)
    made = make_thumbnails(paths, PLENTY, kept)
    (tmp_path / "file").write_text("no folder")
    with pytest.warns(UserWarning, match=r"cannot be kept in .*kept \(Not a directory\)"):
        assert make_thumbnails(paths, PLENTY, tmp_path / "file" / "kept") == made
