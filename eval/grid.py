"""The first images of a table side by side: source, each method, and the true translation where there is one."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

TILE = 128  # pixels on the page; small images are enlarged to it without smoothing
GAP = 6
LABEL = 150  # at least


def draw_grid(rows: list[tuple[str, Path]], count: int = 8) -> Image.Image:
    """A labelled row per folder, a column per image.

    Args:
        rows: label and folder of PNGs; all folders hold the stems of the first one.
        count: number of images, the first in the order of their names.
    """
    stems = sorted(path.stem for path in rows[0][1].glob("*.png"))[:count]
    font = ImageFont.load_default(size=17)
    texts = [label.replace(" (", "\n(").replace(", ", ",\n") for label, _ in rows]
    left = max(LABEL, *(round(font.getlength(line)) + 4 * GAP for text in texts for line in text.split("\n")))
    size = left + len(stems) * (TILE + GAP) + GAP, len(rows) * (TILE + GAP) + GAP
    page = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(page)
    for row, (text, (_, folder)) in enumerate(zip(texts, rows, strict=True)):
        top = GAP + row * (TILE + GAP)
        draw.text((left - 2 * GAP, top + TILE / 2), text, "black", font, anchor="rm", align="right")
        for column, stem in enumerate(stems):
            with Image.open(folder / f"{stem}.png") as file:
                how = Image.Resampling.NEAREST if file.width < TILE else Image.Resampling.LANCZOS
                page.paste(file.convert("RGB").resize((TILE, TILE), how), (left + column * (TILE + GAP), top))
    return page
