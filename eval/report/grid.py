"""The first images of a table side by side: source, each method, and the ground truth where there is one."""

from collections.abc import Mapping
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

TILE = 128  # pixels of an image's longer side on the page; small images are enlarged to it without smoothing
GAP = 6
LABEL = 150  # at least
FONT = 17
LINE = 21


def draw_grid(rows: list[tuple[str, Path]], count: int = 8, captions: Mapping[str, str] | None = None) -> Image.Image:
    """A labelled row per folder, a column per image.

    Args:
        rows: label and folder of PNGs; all folders hold the stems of the first one.
        count: number of images, the first in the order of their names.
        captions: by stem, a text above its column.
    """
    stems = sorted(path.stem for path in rows[0][1].glob("*.png"))[:count]
    font = ImageFont.load_default(size=FONT)
    texts = [label.replace(" (", "\n(").replace(", ", ",\n") for label, _ in rows]
    left = max(LABEL, *(round(font.getlength(line)) + 4 * GAP for text in texts for line in text.split("\n")))
    above = [wrap((captions or {}).get(stem, ""), font, TILE) for stem in stems]
    head = max(map(len, above), default=0) * LINE
    size = left + len(stems) * (TILE + GAP) + GAP, head + len(rows) * (TILE + GAP) + GAP
    page = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(page)
    for column, lines in enumerate(above):
        for up, line in enumerate(reversed(lines)):
            place = left + column * (TILE + GAP) + TILE / 2, head - up * LINE
            draw.text(place, line, "black", font, anchor="md")
    for row, (text, (_, folder)) in enumerate(zip(texts, rows, strict=True)):
        top = head + GAP + row * (TILE + GAP)
        draw.text((left - 2 * GAP, top + TILE / 2), text, "black", font, anchor="rm", align="right")
        for column, stem in enumerate(stems):
            with Image.open(folder / f"{stem}.png") as file:
                longer = max(file.size)
                how = Image.Resampling.NEAREST if longer < TILE else Image.Resampling.LANCZOS
                width, height = (max(1, round(side * TILE / longer)) for side in file.size)
                place = left + column * (TILE + GAP) + (TILE - width) // 2, top + (TILE - height) // 2
                page.paste(file.convert("RGB").resize((width, height), how), place)
    return page


def wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Lines of at most `width` pixels, broken between words; a word that is wider is broken between letters."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines
