"""Untrusted pictures: the right pixels, or one sentence."""

import contextlib
import io
import re
import struct
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from cyclediff.data.folders import prepare_photos
from cyclediff.data.images import read_photo
from cyclediff.errors import UserError
from eval import files

ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / "conf")
few = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def sentence(error):
    text = str(error)
    assert text
    assert "\n" not in text
    assert len(text) < 1000
    return text


def photo(size=(40, 30)):
    """A picture whose corners differ, so that a turn or a wrong channel shows."""
    image = Image.new("RGB", size, (200, 120, 40))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, size[0] // 2, size[1] // 2), (20, 60, 220))
    draw.ellipse((size[0] // 2, size[1] // 3, size[0] - 2, size[1] - 2), (10, 200, 30))
    return image


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def readers(path):
    """Ours and the evaluation's reading of a file: pixels, or None and one sentence that names the file."""
    found = []
    for read, error in ((read_photo, UserError), (files.read_picture, ValueError)):
        image = None
        with contextlib.suppress(error):
            image = read(path)
        if image is None:
            with pytest.raises(error, match=re.escape(path.name)) as refusal:
                read(path)
            sentence(refusal.value)
        assert image is None or image.mode == "RGB"
        found.append(None if image is None else np.asarray(image))
    return found


def prepared(folder, cache, size=8):
    return prepare_photos(folder, None, size, "bilinear", cache)


def left(cache):
    return [path for path in cache.rglob("*") if path.is_file()]


WHOLE = {
    "a.png": encoded(photo(), "png"),
    "a.jpg": encoded(photo(), "jpeg", quality=90),
    "p.jpg": encoded(photo(), "jpeg", progressive=True),
    "a.webp": encoded(photo(), "webp", lossless=True),
    "a.bmp": encoded(photo(), "bmp"),
    "a.tif": encoded(photo(), "tiff", compression="tiff_lzw"),
    "a.gif": encoded(photo(), "gif"),
    "a.ppm": encoded(photo(), "ppm"),
}


# Damaged files


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Truncated File Read")  # Pillow's remarks on cut TIFFs
def test_a_file_cut_anywhere_is_refused_or_whole(name, tmp_path):
    """What is read of a cut file has all of its pixels; at most what comes after them is missing."""
    path, content = tmp_path / name, WHOLE[name]
    path.write_bytes(content)
    whole = [pixels for pixels in readers(path) if pixels is not None]
    assert len(whole) == 2
    cuts = sorted({*range(0, len(content), max(1, len(content) // 60)), *range(len(content) - 14, len(content))})
    refused = 0
    for cut in cuts:
        path.write_bytes(content[:cut])
        for pixels, expected in zip(readers(path), whole, strict=True):
            refused += pixels is None
            assert pixels is None or np.array_equal(pixels, expected), cut
    assert refused > len(cuts)  # of two readers


@few
@given(st.sampled_from(sorted(WHOLE)), st.integers(0, 10**6), st.binary(min_size=1, max_size=8))
def test_overwritten_bytes_end_in_pixels_or_a_sentence(tmp_path, name, place, noise):
    content = bytearray(WHOLE[name])
    place %= len(content)
    content[place : place + len(noise)] = noise
    path = tmp_path / name
    path.write_bytes(content)
    with warnings.catch_warnings(action="ignore"):
        readers(path)


@few
@given(st.sampled_from([".png", ".jpg", ".webp", ".bmp", ".tif"]), st.binary(max_size=300))
@example(".png", b"")
@example(".png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
def test_random_bytes_are_refused(tmp_path, suffix, content):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    assert readers(path) == [None, None]


def test_pictures_that_are_programs_reach_no_interpreter(tmp_path):
    """PostScript would be drawn by Ghostscript; formats whose decoders are rarely looked at are left out, too."""
    for kind in ("eps", "pcx", "tga", "ico"):
        (tmp_path / "a.png").write_bytes(encoded(photo(), kind))
        assert readers(tmp_path / "a.png") == [None, None]


def test_a_damaged_photo_leaves_nothing(tmp_path):
    for name in ("a.png", "c.png"):
        (tmp_path / "photos").mkdir(exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(WHOLE["a.png"])
    (tmp_path / "photos" / "b.jpg").write_bytes(WHOLE["a.jpg"][:-200])
    with pytest.raises(UserError, match=r"b\.jpg is not a readable image") as refusal:
        prepared(tmp_path / "photos", tmp_path / "cache")
    sentence(refusal.value)
    assert not list((tmp_path / "cache").iterdir())


def test_a_damaged_manifest_is_drawn_again(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(WHOLE["a.png"])
    folder = prepared(tmp_path / "photos", tmp_path / "cache")
    manifest = folder.path / "manifest.json"
    whole = manifest.read_bytes()
    for content in (b"", whole[:9], b"[]", b"\xff"):
        manifest.write_bytes(content)
        prepared(tmp_path / "photos", tmp_path / "cache")
        assert manifest.read_bytes() == whole


# Bombs


def png_header(width, height):
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def jpeg_header(width, height):
    content = bytearray(WHOLE["a.jpg"])
    place = content.index(b"\xff\xc0")
    content[place + 5 : place + 9] = struct.pack(">HH", height, width)
    return bytes(content)


def bmp_header(width, height):
    content = bytearray(WHOLE["a.bmp"])
    content[18:26] = struct.pack("<ii", width, height)
    return bytes(content)


@pytest.mark.parametrize("size", [(60_000, 60_000), (65_000, 2_000), (9_460, 9_460)])
@pytest.mark.parametrize(("name", "header"), [("a.png", png_header), ("a.jpg", jpeg_header), ("a.bmp", bmp_header)])
def test_bombs_are_refused_before_memory_is_taken(size, name, header, tmp_path, recwarn):
    import tracemalloc

    (tmp_path / name).write_bytes(header(*size))
    tracemalloc.start()
    before = resident()
    assert readers(tmp_path / name) == [None, None]
    assert resident() - before < 2**26
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()
    with pytest.raises(UserError, match="has more than 89 million pixels; make it smaller"):
        prepared(tmp_path, tmp_path / "cache")
    with pytest.raises(ValueError, match="has more than 89 million pixels; make it smaller"):
        files.read_picture(tmp_path / name)


def resident():
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def test_the_limit_itself_is_allowed(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(WHOLE["a.png"])
    assert files.MOST_PIXELS == Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(files, "MOST_PIXELS", 40 * 30)
    assert all(pixels is not None for pixels in readers(tmp_path / "a.png"))
    monkeypatch.setattr(files, "MOST_PIXELS", 40 * 30 - 1)
    assert readers(tmp_path / "a.png") == [None, None]


# Kinds of pictures


def both(path):
    ours, theirs = readers(path)
    assert np.array_equal(ours, theirs)
    return ours


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".PNG"])
def test_content_counts_not_the_suffix(suffix, tmp_path):
    (tmp_path / f"a{suffix}").write_bytes(WHOLE["a.png"])
    assert np.array_equal(both(tmp_path / f"a{suffix}"), np.asarray(photo()))
    assert prepared(tmp_path, tmp_path / "cache").ids == ("a",)


def test_cmyk(tmp_path):
    photo().convert("CMYK").save(tmp_path / "a.jpg", quality=95, subsampling=0)
    assert np.abs(both(tmp_path / "a.jpg").astype(int) - np.asarray(photo())).mean() < 3


def test_one_bit_and_grey(tmp_path):
    black = np.asarray(photo().convert("L")) < 110
    Image.fromarray(~black).save(tmp_path / "a.png")
    assert np.array_equal(both(tmp_path / "a.png"), np.where(black, 0, 255)[..., None].repeat(3, -1))
    photo().convert("L").save(tmp_path / "b.png")
    assert np.array_equal(both(tmp_path / "b.png")[..., 1], np.asarray(photo().convert("L")))


def test_sixteen_bits(tmp_path):
    ramp = np.arange(256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(ramp * 257).save(tmp_path / "a.png")
    Image.fromarray(ramp * 257).save(tmp_path / "b.tif")
    for name in ("a.png", "b.tif"):
        assert np.array_equal(both(tmp_path / name)[..., 2], ramp)


def test_thirty_two_bits_have_no_known_range(tmp_path):
    Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)).save(tmp_path / "a.tif")
    Image.fromarray(np.arange(64, dtype=np.int32).reshape(8, 8)).save(tmp_path / "b.tif")
    for name in ("a.tif", "b.tif"):
        assert readers(tmp_path / name) == [None, None]
    with pytest.raises(UserError, match="save it with 8 or 16 bits"):
        read_photo(tmp_path / "a.tif")


def test_transparency_is_white(tmp_path):
    clear = photo().convert("RGBA")
    clear.putalpha(Image.fromarray(np.where(np.arange(40) < 20, 0, 255)[None].repeat(30, 0).astype(np.uint8)))
    palette = photo().quantize(8)
    index = palette.getpixel((0, 0))
    clear.save(tmp_path / "a.png")
    clear.save(tmp_path / "b.webp", lossless=True)
    palette.save(tmp_path / "c.png", transparency=index)
    clear.convert("LA").save(tmp_path / "d.png")
    for name in ("a.png", "b.webp", "c.png", "d.png"):
        pixels = both(tmp_path / name)
        assert pixels[0, 0].tolist() == [255] * 3
        assert pixels[-1, -1].tolist() != [255] * 3
    assert np.array_equal(both(tmp_path / "a.png")[:, 20:], np.asarray(photo())[:, 20:])


@pytest.mark.parametrize("kind", ["png", "webp", "tiff", "gif"])
def test_of_animations_no_picture_is_chosen(kind, tmp_path):
    others = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if kind == "webp" else {}
    path = tmp_path / f"a.{kind}"
    photo().save(path, save_all=True, append_images=others, **options)
    with Image.open(path) as file:
        assert file.n_frames == 3
    assert readers(path) == [None, None]


@pytest.mark.parametrize(
    ("orientation", "undo"),
    [(3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_90), (8, Image.Transpose.ROTATE_270)],
)
@pytest.mark.parametrize("kind", ["png", "webp", "tiff", "jpeg"])
def test_turned_cameras(kind, orientation, undo, tmp_path):
    """Orientation 6: turned a quarter clockwise for viewing, so the file holds it turned back (EXIF 2.3, 4.6.4 A)."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"webp": {"lossless": True}, "jpeg": {"quality": 95, "subsampling": 0}}.get(kind, {})
    photo().transpose(undo).save(tmp_path / f"a.{kind}", exif=exif, **options)
    pixels = both(tmp_path / f"a.{kind}")
    assert pixels.shape == (30, 40, 3)
    assert np.abs(pixels.astype(int) - np.asarray(photo())).mean() < 3


@few
@given(st.binary(max_size=60))
@example(b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\xff\xff\xff\xff\0\0\0\0")
def test_any_exif_is_read_or_refused(tmp_path, content):
    (tmp_path / "a.jpg").write_bytes(encoded(photo(), "jpeg", exif=b"Exif\0\0" + content))
    with warnings.catch_warnings(action="ignore"):
        readers(tmp_path / "a.jpg")


def test_plain_files_are_read_as_the_published_evaluators_do(tmp_path):
    for name in ("a.png", "a.jpg", "a.bmp"):
        (tmp_path / name).write_bytes(WHOLE[name])
        with Image.open(tmp_path / name) as file:
            assert np.array_equal(both(tmp_path / name), np.asarray(file.convert("RGB")))


def test_an_unreadable_reference_gets_a_sentence(tmp_path):
    """Of a reference folder every file counts, so damage ends with the sentence and not with Pillow's error."""
    (tmp_path / "a.png").write_bytes(WHOLE["a.png"][:50])
    with pytest.raises(ValueError, match=r"a\.png is not a readable image"):
        files.read_picture(tmp_path / "a.png")
