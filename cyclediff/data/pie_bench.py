"""What PIE-Bench's mapping_file.json has besides images and texts: kinds of edits and blended words."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cyclediff.data.folders import Folder
from cyclediff.errors import UserError

CATEGORIES = (  # by editing_type_id
    "random",
    "change-object",
    "add-object",
    "delete-object",
    "change-content",
    "change-pose",
    "change-color",
    "change-material",
    "change-background",
    "change-style",
)
BLEND = "blended_words.json"  # of a prepared folder: by id, the words of its source and of its target
OF_PLUS_PLUS = ("source_prompt", "target_prompt", "edit_action", "aspect_mapping", "blended_words")


def refuse_plus_plus(entry: Any, where: str) -> None:
    """Refuse an entry of PIE-Bench++.

    Raises:
        UserError: if it is one.
    """
    found = [key for key in OF_PLUS_PLUS if isinstance(entry, dict) and key in entry]
    if found:
        raise UserError(
            f"{where} has {found[0]!r}, as PIE-Bench++ has: the pictures of PIE-Bench under other texts, often with "
            "several edits at once, so its numbers are not PIE-Bench's and would stand in its columns; give "
            "PIE-Bench's own mapping_file.json, or write PIE-Bench++ as a CSV of your own (image, source, target)"
        )


def category_of(entry: Mapping[str, Any], where: str) -> str:
    """The kind of an entry's edit; "" where it has none.

    Raises:
        UserError: if it is none of the published ones.
    """
    kind = entry.get("editing_type_id")
    if kind is not None and str(kind) not in map(str, range(len(CATEGORIES))):
        raise UserError(f"{where}: editing_type_id should be 0 … {len(CATEGORIES) - 1}, as published; got {kind!r}")
    return "" if kind is None else CATEGORIES[int(kind)]


def blended_words(entry: Mapping[str, Any], where: str) -> tuple[str, str] | None:
    """The words of source and target between which an entry's edit is blended; None where it names none.

    As in the official code, these are the first two words of `blended_word`.

    Raises:
        UserError: if it is no text, or has one word only, with which the official code ends.
    """
    text = entry.get("blended_word") or ""
    found = text.replace("[", "").replace("]", "").split() if isinstance(text, str) else [text]
    if not isinstance(text, str) or len(found) == 1:
        raise UserError(
            f"{where}: blended_word should be a word of the source prompt and one of the target prompt, or empty; got "
            f"{str(text)[:60]!r}; take the published file again"
        )
    return (found[0], found[1]) if found else None


def read_blended_words(folder: Folder) -> dict[str, tuple[str, str]]:
    """By image id the words between which its edit is blended; images for which the list names none are left out."""
    path: Path = folder.path / BLEND
    if not path.exists():
        return {}
    return {item: (words[0], words[1]) for item, words in json.loads(path.read_bytes()).items()}
