"""Tables of editing runs by the kind of edit: categories.md, a table for each metric."""

from collections.abc import Sequence
from pathlib import Path

from eval.edits import read_edits
from eval.metrics.categories import means_by_category
from eval.report.sections import Section, metric_columns


def categories_markdown(task_folder: Path, sections: Sequence[Section]) -> str:
    """All sections whose images have at least two kinds of edits; "" where none has. Of several seeds the first counts.

    Args:
        task_folder: outputs/<task>.
        sections: of `read_task`.
    """
    parts = []
    for section in sections:
        source = section.data["source"]
        edits = read_edits(task_folder / "data" / source) if source else {}
        counts = {kind: 0 for kind in sorted({edit.category for edit in edits.values() if edit.category})}
        if len(counts) < 2:
            continue
        for edit in edits.values():
            counts[edit.category] = counts.get(edit.category, 0) + 1
        kinds = [kind for kind in counts if kind]
        means = {row.label: means_by_category(row.per_image(), edits) for row in section.rows}
        parts += [f"## {section.title}, by kind of edit", ""]
        for column in metric_columns(section.rows):
            cells = {
                label: [found.get(kind, {}).get(column.key, (None, 0))[0] for kind in kinds]
                for label, found in means.items()
            }
            if all(value is None for line in cells.values() for value in line):
                continue
            parts.append(f"| {column.title} | {' | '.join(f'{kind} ({counts[kind]})' for kind in kinds)} |")
            parts.append("|---" + "|---:" * len(kinds) + "|")
            for label, line in cells.items():
                shown = ["–" if v is None else f"{v * column.scale:.{column.digits}f}" for v in line]
                parts.append(f"| {label} | {' | '.join(shown)} |")
            parts.append("")
    return "\n".join(parts)
