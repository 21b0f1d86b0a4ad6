import numpy as np
import pytest
import torch
from PIL import Image

from cyclediff.data.folders import Expected, Folder, cached_folder, check_dataset, prepare_photos, raw_folder
from cyclediff.errors import UserError
from cyclediff.pets.folders import prepare_pets
from cyclediff.pets.render import render, sample_factors
from cyclediff.studies.sources import Sources


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


def test_pets_have_a_ground_truth_and_splits_differ(tmp_path):
    cat, dog = (prepare_pets(species, "source", 2, 32, tmp_path) for species in ("cat", "dog"))
    assert cat.ids == dog.ids
    factors = sample_factors(2, torch.Generator().manual_seed(1001))
    for folder, species in ((cat, "cat"), (dog, "dog")):
        with Image.open(folder.path / f"{cat.ids[1]}.png") as image:
            drawn = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        assert (drawn - (render(factors, species, 32)[1] + 1) * 127.5).abs().max() <= 0.51
    assert prepare_pets("dog", "reference", 2, 32, tmp_path).digest != dog.digest


@pytest.mark.parametrize("use", [raw_folder, lambda folder: prepare_photos(folder, None, 16, "bilinear", folder)])
def test_an_animation_is_found_before_a_run_starts(photos, use):
    Image.new("RGB", (8, 8)).save(photos / "c.gif", save_all=True, append_images=[Image.new("RGB", (8, 8), "red")])
    with pytest.raises(UserError) as refusal:
        use(photos)
    assert str(refusal.value) == (
        f"{photos / 'c.gif'} has several pictures in it (an animation, or pages); save the one you mean as a PNG, or "
        "remove it"
    )


def test_a_damaged_header_of_a_raw_reference_is_found_before_a_run_starts(photos):
    (photos / "z.png").write_bytes(b"\x89PNG")
    with pytest.raises(UserError, match=r"z\.png is not a readable image"):
        raw_folder(photos)


V1 = Expected("afhq_v1", ".jpg", 32, 3)


@pytest.fixture
def afhq(tmp_path):
    folder = tmp_path / "val" / "cat"
    folder.mkdir(parents=True)
    for i in range(3):
        Image.new("RGB", (32, 32), (i, i, i)).save(folder / f"flickr_cat_{i}.jpg")
    return folder


def test_a_data_set_that_is_what_it_should_be(afhq):
    check_dataset(afhq, V1)
    (afhq / "Thumbs.db").write_text("not an image")
    check_dataset(afhq, V1)


def test_a_mix_up_of_versions_is_caught(afhq):
    with pytest.raises(UserError, match=r"should hold afhq_v2, \.png files; got flickr_cat_0\.jpg; check the protocol"):
        check_dataset(afhq, Expected("afhq_v2", ".png", 32, 3))
    with pytest.raises(UserError, match=r"the 5 images of afhq_v1; got 3;.*data\.check=false"):
        check_dataset(afhq, Expected("afhq_v1", ".jpg", 32, 5))
    with pytest.raises(UserError, match=r"64×64 pixels; flickr_cat_0\.jpg has 32×32"):
        check_dataset(afhq, Expected("afhq_v1", ".jpg", 64, 3))


def test_one_wrong_file_among_many_is_caught(afhq):
    (afhq / "flickr_cat_1.jpg").unlink()
    Image.new("RGB", (30, 32)).save(afhq / "flickr_cat_1.jpg")
    with pytest.raises(UserError, match=r"flickr_cat_1\.jpg has 30×32"):
        check_dataset(afhq, V1)


def test_what_is_not_known_is_not_checked(afhq):
    check_dataset(afhq, Expected("celeba_hq", None, None, None))


def test_a_raw_folder_is_named_by_its_content(afhq):
    before = raw_folder(afhq)
    assert (before.path, before.ids, before.name) == (afhq, ("flickr_cat_0", "flickr_cat_1", "flickr_cat_2"), "cat")
    Image.new("RGB", (32, 32), "red").save(afhq / "flickr_cat_1.jpg")
    assert raw_folder(afhq).digest != before.digest


def test_a_record_names_what_is_missing(tmp_path):
    folder = Folder(tmp_path, ("a", "b"), "mine", "0123abcd")
    whole = Sources(folder, None, None, None).record()
    assert set(whole) == {"name", "dataset", "digest", "n", "source", "ground_truth"}
    missing = {"missing": ["./x.png", "./x.png"]}
    assert Sources(folder, None, None, None, ("./x.png",) * 2).record() == whole | missing | {"of": 4}
    assert Sources(folder, None, None, None, ("./x.png",) * 2, found=70).record() == whole | missing | {"of": 72}
    assert Sources(folder, None, None, None, found=70).record() == whole


def test_other_files_of_a_prepared_folder_are_watched(tmp_path):
    def draw(target):
        (target / "a.png").write_text("image")
        (target / "more").mkdir(exist_ok=True)
        (target / "more" / "b.txt").write_text("text")

    def prepare():
        cached_folder(tmp_path / "folder", ("a",), "mine", "0123abcd", draw, ("more/b.txt",))
        return (tmp_path / "folder" / "manifest.json").stat().st_mtime_ns

    first = prepare()
    assert prepare() == first
    (tmp_path / "folder" / "more" / "b.txt").write_text("tex")
    prepare()
    assert (tmp_path / "folder" / "more" / "b.txt").read_text() == "text"


@pytest.mark.parametrize("photo", ["astronaut", "chelsea", "coffee"])
@pytest.mark.parametrize("resize", ["bilinear", "bicubic"])
def test_prepared_photos_equal_torchvision(photo, resize, tmp_path):
    """The official codes resize with torchvision on PIL images: the same bytes, on real photos."""
    from skimage import data
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import resize as torchvision_resize

    image = Image.fromarray(getattr(data, photo)())
    (tmp_path / "photos").mkdir()
    image.save(tmp_path / "photos" / "a.png")
    prepared = prepare_photos(tmp_path / "photos", None, 256, resize, tmp_path / "cache")
    left, top = ((length - min(image.size)) // 2 for length in image.size)
    square = image.crop((left, top, left + min(image.size), top + min(image.size)))
    theirs = torchvision_resize(square, [256, 256], InterpolationMode(resize))
    with Image.open(prepared.path / "a.png") as mine:
        assert np.array_equal(np.array(mine), np.array(theirs))
