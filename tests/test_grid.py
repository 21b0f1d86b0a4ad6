"""The picture of a table's first images."""

import numpy as np
import pytest
from PIL import Image, ImageFont

from eval.report.grid import GAP, LABEL, LINE, TILE, draw_grid, wrap

LONG = (
    "a photograph of a Donaudampfschifffahrtsgesellschaftskapitän with a very large umbrella, standing on the pier in "
    "the evening, gjpqy"
)


@pytest.fixture
def folder(tmp_path):
    for stem, colour in {"b": "blue", "a": "red", "c": "lime"}.items():
        Image.new("RGB", (4, 4), colour).save(tmp_path / f"{stem}.png")
    return tmp_path


def test_the_grid_takes_the_first_images(folder):
    page = draw_grid([("x", folder)], count=2)
    assert [page.getpixel((LABEL + k * (TILE + GAP) + 9, 20)) for k in range(2)] == [(255, 0, 0), (0, 0, 255)]


def test_captions_are_wrapped_and_not_cut(folder):
    page = draw_grid([("x", folder)], captions={"a": "short", "b": LONG})
    font = ImageFont.load_default(size=17)
    lines = wrap(LONG, font, TILE)
    assert "".join(lines).replace(" ", "") == LONG.replace(" ", "")
    assert all(font.getlength(line) <= TILE for line in lines)
    assert page.height == len(lines) * LINE + TILE + 2 * GAP
    ink = np.array(page.convert("L").crop((0, 0, page.width, len(lines) * LINE))) < 128
    left, own = LABEL + TILE + GAP, ink[:, LABEL + TILE + GAP : LABEL + 2 * TILE + GAP]
    assert own[: len(lines) * LINE].any(axis=1).reshape(len(lines), LINE).any(axis=1).all()
    assert not own[0].any()
    assert not ink[:, left - GAP + 1 : left - 1].any()  # the gaps between columns stay free
    assert not ink[:, left + TILE + 1 :].any()
    assert not ink[:-LINE, LABEL : left - GAP].any()  # a short caption stands right above its picture
    assert page.getpixel((LABEL + 9, page.height - GAP - 9)) == (255, 0, 0)
