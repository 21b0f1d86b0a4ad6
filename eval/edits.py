"""What an editing task asks for: texts and masks of the images of a prepared folder."""

import csv
from dataclasses import dataclass
from pathlib import Path

EDITS = "edits.csv"
COLUMNS = ("id", "source", "target", "category", "mask")


@dataclass(frozen=True)
class Edit:
    """One edit.

    Args:
        source: what is on the picture.
        target: what should be on it.
        category: the kind of edit; "" if not known.
        mask: a picture that is white where the edit may change something; None if not known.
    """

    source: str
    target: str
    category: str
    mask: Path | None


def read_edits(folder: Path) -> dict[str, Edit]:
    """The edits of a prepared folder by image id, from its edits.csv; none where there is no such file.

    Masks are named relative to the folder and lie in a folder of their own: every PNG beside edits.csv is an image.

    Raises:
        ValueError: if it is no CSV in UTF-8, a column is missing, an id comes twice, or a mask lies outside the folder.
    """
    path = folder / EDITS
    if not path.exists():
        return {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            names, rows = reader.fieldnames or (), []
            missing = [name for name in COLUMNS if name not in names]
            if missing:
                raise ValueError(f"{path} has no column {', '.join(missing)}; its columns must be {', '.join(COLUMNS)}")
            for row in reader:
                if None in row or None in row.values():
                    raise ValueError(
                        f"{path}, line {reader.line_num}: a row has a cell for each of the {len(names)} columns; put a "
                        'text that has commas in "quotes"'
                    )
                rows.append({name: row.get(name) or "" for name in COLUMNS})
    except (csv.Error, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no readable CSV in UTF-8 ({error}); prepare the folder again") from error
    found: dict[str, Edit] = {}
    for row in rows:
        if row["id"] in found:
            raise ValueError(f"{path} has two rows with the id {row['id']!r}; remove one")
        mask = _inside(folder, row["mask"]) if row["mask"] else None
        found[row["id"]] = Edit(row["source"], row["target"], row["category"], mask)
    return found


def _inside(folder: Path, mask: str) -> Path:
    """A mask's place. Links are followed for the check; a path that leads out of the folder is refused and not read."""
    try:
        if (folder / mask).resolve().is_relative_to(folder.resolve()):
            return folder / mask
    except (OSError, RuntimeError, ValueError):  # too long, links in a circle, a null character
        pass
    raise ValueError(f"the mask {mask[:80]!r} in {folder / EDITS} is not a path inside the folder; correct the list")
