"""Means of scores by the kind of edit."""

import csv
import io
import math
from collections.abc import Mapping

from eval.edits import Edit

Means = dict[str, dict[str, tuple[float | None, int]]]  # category → key → mean and number of images that have a value


def means_by_category(rows: Mapping[str, Mapping[str, float | None]], edits: Mapping[str, Edit]) -> Means:
    """Means over the images of each kind of edit; those of an unknown kind are left out.

    Args:
        rows: by image id its values; None where it has none.
        edits: by image id.
    """
    found: Means = {}
    for category in sorted({edit.category for item, edit in edits.items() if item in rows and edit.category}):
        some = [rows[item] for item, edit in edits.items() if item in rows and edit.category == category]
        found[category] = {}
        for key in dict.fromkeys(key for row in some for key in row):
            values = [value for row in some if (value := row.get(key)) is not None]
            found[category][key] = (math.fsum(values) / len(values) if values else None, len(values))
    return found


def to_csv(rows: Mapping[str, Mapping[str, float | None]], edits: Mapping[str, Edit]) -> str:
    """A row for each category: its number of images, each mean, and of how many images that is."""
    means = means_by_category(rows, edits)
    keys = list(dict.fromkeys(key for row in rows.values() for key in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["category", "n", *(name for key in keys for name in (key, f"{key}_n"))])
    for category, found in means.items():
        count = sum(edit.category == category for item, edit in edits.items() if item in rows)
        cells = [cell for key in keys for cell in found.get(key, (None, 0))]
        writer.writerow([category, count, *("" if cell is None else cell for cell in cells)])
    return text.getvalue()
