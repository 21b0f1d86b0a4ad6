"""Names of rows: the method, and the settings in which its runs differ."""

import math
from collections.abc import Sequence
from typing import Any

from eval.records import RunRecord
from eval.report.rows import TableRow, canonical

DIGITS = 8  # of a checksum
LAST = ("seed", "data", "weights", "scores")  # groups of settings that labels name only where nothing else differs


def label_rows(rows: Sequence[TableRow], with_selection: bool) -> None:
    """Write into each row its label: the method's name, followed by what distinguishes it from the method's other rows.

    A setting that repeats another one is left out. Seed, data, weights and scoring are named only where nothing else
    differs.

    Args:
        rows: of one table.
        with_selection: whether labels say how images were selected.
    """
    methods = {row.method for row in rows}
    for method in methods:
        alike = [row for row in rows if row.method == method]
        for row, settings in zip(alike, _differing(alike), strict=True):
            details = [best_of(row.run) if with_selection else ""]
            details += [f"{len(row.seeds)} seeds" if len(row.seeds) > 1 else ""]
            detail = ", ".join(filter(None, [*details, *settings]))
            row.label = method + (f" ({detail})" if detail else "")


def best_of(run: RunRecord) -> str:
    """How a run's images were selected: "best of 540 by dclip", or "" where each is the only one."""
    selection = run.get("selection")
    if not selection or selection["candidates"] == 1:
        return ""
    return f"best of {selection['candidates']} by {selection['metric']}"


def choice_of(run: RunRecord) -> Any:
    """The candidates of which a run keeps the best; None where it makes one, and nothing is chosen."""
    asked = (run.get("selection") or {}).get("asked")
    many = asked and asked["trials"] * math.prod(map(len, asked.get("grid", {}).values())) > 1
    return asked if many else None


def _differing(rows: Sequence[TableRow]) -> list[list[str]]:
    """The settings of each row that not all rows share, as texts."""
    settings = [_settings(row) for row in rows]
    columns: dict[str, list[Any]] = {}
    for key in dict.fromkeys(key for one in settings for key in one):
        values = [one.get(key) for one in settings]
        if len({repr(canonical(value)) for value in values}) > 1:
            columns[key] = values
    last = [key for key in columns if key.split(".")[0] in LAST]
    shown = _without_repetition({key: values for key, values in columns.items() if key not in last})
    for key in last:
        if len({repr([canonical(columns[k][i]) for k in shown]) for i in range(len(rows))}) < len(rows):
            shown.append(key)
    names = _short_names(shown)
    return [[f"{names[key]}={_text(columns[key][i])}" for key in shown if key in settings[i]] for i in range(len(rows))]


def _settings(row: TableRow) -> dict[str, Any]:
    """The leaves of what decides a row's images and numbers; settings of the method first."""
    entry = row.entries[0]
    found = _flat({**entry.run["identity"], "scores": entry.scores["identity"]})
    if len(row.entries) > 1:
        found.pop("seed", None)
    return dict(sorted(found.items(), key=lambda item: not item[0].startswith("method.")))


def _without_repetition(columns: dict[str, list[Any]]) -> list[str]:
    """One key of those that have the same values and the same last part, or that the method's own settings repeat."""
    shown: list[str] = []
    for key, values in columns.items():
        name = key.rpartition(".")[2]
        earlier = (k for k in shown if columns[k] == values)
        if not any(k.rpartition(".")[2] == name or key.startswith("task.") for k in earlier):
            shown.append(key)
    return shown


def _short_names(keys: Sequence[str]) -> dict[str, str]:
    """The last part of each key, with so many of the parts before it as it takes to be the only one of its name."""
    names = {}
    for key in keys:
        parts = key.split(".")
        for count in range(1, len(parts) + 1):
            names[key] = ".".join(parts[-count:])
            if not any(other != key and f".{other}".endswith(f".{names[key]}") for other in keys):
                break
    return names


def _text(value: Any) -> str:
    """A value for people; of a checksum, its first digits."""
    text = str(value)
    checksum = len(text) == 64 and set(text) <= set("0123456789abcdef")
    return text[:DIGITS] if checksum else text


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
