import os

import numpy as np
import pytest
import torch
from PIL import Image

from cyclediff.data.images import (
    from_uint8,
    read_batch,
    read_rgb,
    square,
    to_pil,
    to_uint8,
    write_atomically,
    write_png,
)
from cyclediff.errors import UserError
from eval import files

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def test_grey_becomes_equal_channels(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    assert (np.asarray(read_rgb(tmp_path / "a.png")) == RAMP[..., None]).all()


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(tmp_path / "a.png")
    assert (np.asarray(read_rgb(tmp_path / "a.png")) == RAMP[..., None]).all()


def test_transparency_shows_white(tmp_path):
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[..., 3] = [0, 255, 0, 255]
    Image.fromarray(rgba).save(tmp_path / "a.png")
    assert np.asarray(read_rgb(tmp_path / "a.png"))[0, :, 0].tolist() == [255, 0, 255, 0]


def test_palettes_with_and_without_transparency(tmp_path):
    image = Image.fromarray((RAMP > 127).astype(np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "clear.png", transparency=0)
    assert np.asarray(read_rgb(tmp_path / "plain.png"))[0, 0].tolist() == [10, 20, 30]
    clear = np.asarray(read_rgb(tmp_path / "clear.png"))
    assert clear[0, 0].tolist() == [255, 255, 255]
    assert clear[-1, -1].tolist() == [200, 100, 50]


def test_exif_rotation_is_applied(tmp_path):
    image = Image.new("RGB", (8, 4), "black")
    image.paste("white", (0, 0, 4, 4))  # white on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate 90° clockwise to show"
    image.save(tmp_path / "a.png", exif=exif)
    shown = np.asarray(read_rgb(tmp_path / "a.png"))
    assert shown.shape == (8, 4, 3)
    assert shown[0].mean() == 255
    assert shown[-1].mean() == 0


@pytest.mark.parametrize("suffix", ["gif", "jfif", "jpe", "ppm", "pgm", "pbm", "pnm", "webp", "bmp", "tif"])
def test_formats_of_still_pictures(tmp_path, suffix):
    """A ramp of grey (of two levels in .pbm) in every format that is read; JPEG may be off by two levels."""
    ramp = (RAMP > 127) * np.uint8(255) if suffix == "pbm" else RAMP
    image = Image.fromarray(ramp).convert({"ppm": "RGB", "pbm": "1"}.get(suffix, "L"))
    kind = {"jfif": "jpeg", "jpe": "jpeg", "tif": "tiff"}.get(suffix) or ("ppm" if suffix[0] == "p" else suffix)
    image.save(tmp_path / f"a.{suffix}", kind, **{"webp": {"lossless": True}, "jpeg": {"quality": 100}}.get(kind, {}))
    assert [path.name for path in files.list_images(tmp_path)] == [f"a.{suffix}"]
    pixels = np.asarray(read_rgb(tmp_path / f"a.{suffix}")).astype(int)
    assert np.abs(pixels - ramp[..., None]).max() <= (2 if kind == "jpeg" else 0)


def test_sixteen_bits_of_a_portable_grey_map(tmp_path):
    """PGM's own definition: two bytes a pixel, the larger first; 65535 is white."""
    (tmp_path / "a.pgm").write_bytes(b"P5 3 1 65535\n" + bytes.fromhex("0000 8080 ffff"))
    assert np.asarray(read_rgb(tmp_path / "a.pgm"))[0, :, 1].tolist() == [0, 128, 255]


@pytest.mark.parametrize("name", ["a.gif", "a.ppm", "b.ppm"])
def test_a_cut_picture_of_the_newer_formats_is_refused_or_whole(tmp_path, name):
    path, image = tmp_path / name, Image.effect_noise((12, 8), 50)
    (image.convert("RGB") if name == "b.ppm" else image).save(path)
    content, whole = path.read_bytes(), np.asarray(read_rgb(path))
    refused = 0
    for cut in range(len(content)):
        path.write_bytes(content[:cut])
        try:
            assert np.array_equal(read_rgb(path), whole), cut
        except UserError:
            refused += 1
    assert refused > len(content) - 10


@pytest.mark.parametrize("kind", ["gif", "png", "webp", "tiff"])
def test_several_pictures_in_one_file_are_refused_by_name(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    first, *others = (Image.new("RGB", (8, 8), colour) for colour in ("green", "red", "blue"))
    first.save(path, save_all=True, append_images=others)
    with pytest.raises(UserError) as refusal:
        read_rgb(path)
    assert str(refusal.value) == (
        f"{path} has several pictures in it (an animation, or pages); save the one you mean as a PNG, or remove it"
    )
    first.save(path, save_all=True)  # one
    assert np.abs(np.asarray(read_rgb(path))[0, 0].astype(int) - [0, 128, 0]).max() <= 1


def test_a_photo_with_a_preview_is_one_picture(tmp_path):
    """Cameras write JPEGs with another picture behind the first (CIPA DC-007); viewers show the first."""
    photo, preview = Image.new("RGB", (16, 16), "white"), Image.new("RGB", (8, 8), "black")
    photo.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[preview])
    with Image.open(tmp_path / "a.jpg") as file:
        assert file.n_frames == 2
    assert np.asarray(read_rgb(tmp_path / "a.jpg")).min() == 255


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 50])
def test_what_is_no_image_is_named(tmp_path, content):
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.png is not a readable image"):
        read_rgb(tmp_path / "broken.png")


def test_a_truncated_image_is_named(tmp_path):
    Image.effect_noise((64, 64), 50).save(tmp_path / "cut.png")
    content = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"cut\.png is not a readable image"):
        read_rgb(tmp_path / "cut.png")


def test_square_takes_the_centre():
    image = Image.new("RGB", (12, 4), "black")
    image.paste("white", (4, 0, 8, 4))
    assert np.asarray(square(image, 2, "bilinear")).min() == 255


def test_a_png_holds_what_was_written(tmp_path):
    pixels = torch.randint(256, (3, 7, 5), dtype=torch.uint8)
    write_png(to_pil(pixels), tmp_path / "a.png")
    assert read_batch([tmp_path / "a.png"])[0].equal(pixels)
    assert os.listdir(tmp_path) == ["a.png"]


def test_uint8_round_trip_and_clamping():
    levels = torch.arange(256, dtype=torch.uint8)
    assert to_uint8(from_uint8(levels)).equal(levels)
    assert to_uint8(torch.tensor([-7.0, 7.0])).tolist() == [0, 255]
    assert (from_uint8(levels)[0], from_uint8(levels)[-1]) == (-1, 1)


@pytest.mark.parametrize("obstacle", ["missing folder", "folder is a file", "name is taken by a folder"])
def test_a_failed_write_is_reported_and_leaves_nothing(tmp_path, obstacle):
    target = tmp_path / "a" / "b.json"
    if obstacle == "folder is a file":
        (tmp_path / "a").touch()
    if obstacle == "name is taken by a folder":
        (target / "c").mkdir(parents=True)
    with pytest.raises(UserError, match=r"b\.json cannot be written"):
        write_atomically(b"{}", target)
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_failed_write_keeps_the_old_content(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_bytes(b"old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match="No space left on device"):
        write_atomically(b"new", tmp_path / "a.json")
    assert (tmp_path / "a.json").read_bytes() == b"old"
