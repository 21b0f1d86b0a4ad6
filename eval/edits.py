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
        category: the kind of edit; "" where that is not known.
        mask: a picture that is white where the edit may change something; None where that is not known.
    """

    source: str
    target: str
    category: str
    mask: Path | None


def read_edits(folder: Path) -> dict[str, Edit]:
    """The edits of a prepared folder by image id, from its edits.csv; none where there is no such file.

    Masks are named relative to the folder and lie in a folder of their own: every PNG beside edits.csv is an image.

    Raises:
        ValueError: if a column is missing.
    """
    path = folder / EDITS
    if not path.exists():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"{path} has no column {', '.join(missing)}; its columns must be {', '.join(COLUMNS)}")
        return {
            row["id"]: Edit(
                row["source"], row["target"], row["category"], folder / row["mask"] if row["mask"] else None
            )
            for row in ({name: row[name] or "" for name in COLUMNS} for row in reader)
        }
