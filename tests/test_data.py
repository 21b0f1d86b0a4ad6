import numpy as np
import pytest
import torch
from PIL import Image

from cyclediff.data import prepare_pets, prepare_photos
from cyclediff.errors import UserError
from cyclediff.pets.render import render, sample_factors


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, level in {"b.png": 10, "a.JPG": 100, "ü 1.webp": 200}.items():
        Image.new("RGB", (40, 30), (level,) * 3).save(folder / name)
    (folder / "notes.txt").write_text("not an image")
    (folder / ".hidden.png").write_text("not an image either")
    return folder


def test_photos_are_sorted_cut_and_kept(photos, tmp_path):
    prepared = prepare_photos(photos, None, 16, "bilinear", tmp_path / "cache")
    assert prepared.ids == ("a", "b", "ü 1")
    with Image.open(prepared.path / "ü 1.png") as image:
        assert (image.size, image.mode) == ((16, 16), "RGB")
    times = [path.stat().st_mtime_ns for path in sorted(prepared.path.iterdir())]
    assert prepare_photos(photos, None, 16, "bilinear", tmp_path / "cache") == prepared
    assert times == [path.stat().st_mtime_ns for path in sorted(prepared.path.iterdir())]


def test_limit_takes_the_first(photos, tmp_path):
    assert prepare_photos(photos, 2, 16, "bilinear", tmp_path / "cache").ids == ("a", "b")


@pytest.mark.parametrize("change", ["content", "size", "resize", "limit"])
def test_whatever_changes_pixels_is_another_digest(photos, tmp_path, change):
    before = prepare_photos(photos, None, 16, "bilinear", tmp_path / "cache")
    if change == "content":
        Image.new("RGB", (40, 30), "red").save(photos / "b.png")
    size, resize = 8 if change == "size" else 16, "bicubic" if change == "resize" else "bilinear"
    after = prepare_photos(photos, 2 if change == "limit" else None, size, resize, tmp_path / "cache")
    assert after.digest != before.digest
    assert after.path != before.path


def test_the_place_of_the_photos_does_not_matter(photos, tmp_path):
    before = prepare_photos(photos, None, 16, "bilinear", tmp_path / "cache")
    moved = photos.rename(tmp_path / "elsewhere")
    assert prepare_photos(moved, None, 16, "bilinear", tmp_path / "cache").digest == before.digest


def test_a_damaged_cache_is_made_anew(photos, tmp_path):
    prepared = prepare_photos(photos, None, 16, "bilinear", tmp_path / "cache")
    whole = (prepared.path / "a.png").read_bytes()
    (prepared.path / "a.png").write_bytes(whole[:20])
    prepare_photos(photos, None, 16, "bilinear", tmp_path / "cache")
    assert (prepared.path / "a.png").read_bytes() == whole


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        prepare_photos(tmp_path / "nowhere", None, 16, "bilinear", tmp_path / "cache")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="there is no image in"):
        prepare_photos(tmp_path / "empty", None, 16, "bilinear", tmp_path / "cache")


def test_two_sources_with_one_stem(photos, tmp_path):
    Image.new("RGB", (4, 4)).save(photos / "A.png")
    with pytest.raises(UserError, match=r"A\.png and a\.JPG .* rename one"):
        prepare_photos(photos, None, 16, "bilinear", tmp_path / "cache")


def test_a_corrupt_photo_stops_before_anything_is_written(photos, tmp_path):
    (photos / "z.png").write_bytes(b"\x89PNG")
    with pytest.raises(UserError, match=r"z\.png is not a readable image"):
        prepare_photos(photos, None, 16, "bilinear", tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.png"))


def test_pets_are_counterparts_and_splits_differ(tmp_path):
    cat, dog = (prepare_pets(species, "source", 2, 32, tmp_path) for species in ("cat", "dog"))
    assert cat.ids == dog.ids
    factors = sample_factors(2, torch.Generator().manual_seed(1001))
    for folder, species in ((cat, "cat"), (dog, "dog")):
        with Image.open(folder.path / f"{cat.ids[1]}.png") as image:
            drawn = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        assert (drawn - (render(factors, species, 32)[1] + 1) * 127.5).abs().max() <= 0.51
    assert prepare_pets("dog", "reference", 2, 32, tmp_path).digest != dog.digest
