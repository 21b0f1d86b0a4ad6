"""Published numbers beside ours, with how they are known. A difference is shown only where the protocols agree."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.report.rows import Entry

LEVELS = {
    "primary": ("p", "in the paper itself or its authors' repository"),
    "secondary": ("s", "re-tabulated in another paper or in notes"),
    "image": ("i", "read off a table's image"),
}


@dataclass(frozen=True)
class Published:
    """A number from a paper.

    Args:
        value: in the unit of metrics.json.
        std: over the paper's runs, if stated.
        verification: "primary", "secondary" or "image".
        source: key of the source.
        protocol: by which it was made, or None where that is not known.
        note: what else to know.
    """

    value: float
    std: float | None
    verification: str
    source: str
    protocol: str | None
    note: str | None


@dataclass(frozen=True)
class Paper:
    """All published numbers of a task, and what their sources are."""

    sources: dict[str, str]
    values: dict[tuple[str, str], Published]


def read_paper(task_folder: Path) -> Paper:
    """The published numbers in paper.json of a task's folder; none without that file."""
    path = task_folder / "paper.json"
    content: Any = json.loads(path.read_bytes()) if path.exists() else {"sources": {}, "values": []}
    values = {}
    for entry in content["values"]:
        fields = {key: entry.get(key) for key in ("value", "std", "verification", "source", "protocol", "note")}
        values[entry["method"], entry["metric"]] = Published(**fields)
    return Paper(content["sources"], values)


def agrees(published: Published, entry: Entry) -> bool:
    """Whether a run was made as the published number was, see `differences`."""
    return not differences(published, entry)


def differences(published: Published, entry: Entry) -> list[str]:
    """In what a run differs from how a published number was made: protocol, data set, count, settings, tier."""
    run, protocol = entry.run, entry.scores["protocol"]
    found = {
        f"protocol: {published.protocol or 'unknown'}, here {protocol}": published.protocol
        not in (protocol, protocol.split("/")[0]),
        "data set: not the published one, whole": not run["data"]["dataset"],
        f"count: {len(run['data'].get('missing') or ())} images are missing": bool(run["data"].get("missing")),
        "settings": not run["published_settings"],
        f"tier: {run.get('tier')}": run.get("tier") not in (None, "paper", "published"),
    }
    return [reason for reason, differs in found.items() if differs]


def explain(paper: Paper, shown: list[tuple[str, str, Published, bool]]) -> list[str]:
    """Footnotes for the published numbers in a table.

    Args:
        paper: all of them.
        shown: method, header, number, and whether it agrees with our protocol.
    """
    if not shown:
        return []
    used = {published.verification for *_, published, _ in shown}
    levels = "; ".join(f"{mark}: {text}" for level, (mark, text) in LEVELS.items() if level in used)
    notes = [f"paper columns: published numbers ({levels})"]
    if not all(agreed for *_, agreed in shown):
        protocols = sorted({p.protocol or "unknown" for *_, p, agreed in shown if not agreed})
        notes.append(
            f"*: no difference is shown, because it was published under another protocol ({', '.join(protocols)}), or "
            "this run is of other images, fewer images, or other settings"
        )
    notes += [f"{source}: {paper.sources[source]}" for source in sorted({p.source for *_, p, _ in shown})]
    notes += [f"{method}, {header}: {p.note}" for method, header, p, _ in shown if p.note]
    return notes
