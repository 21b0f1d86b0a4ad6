"""What became of the runs of a sweep, also of those that ran as jobs of a cluster: their records on disk say it."""

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser

from cyclediff.errors import TrainingFailed, UserError

USERS = (UserError.__name__, TrainingFailed.__name__)  # types of errors that the user can fix


def count_runs(choices: Mapping[str, str], arguments: Sequence[str]) -> int:
    """How many runs a sweep has.

    Args:
        choices: of the experiment: `hydra.sweeper.params`.
        arguments: of the command line, whose choices replace those.
    """
    given = [f"{key}={value}" for key, value in choices.items()] + [
        one for one in arguments if "=" in one and one[0] != "-"
    ]
    parsed = OverridesParser.create().parse_overrides(given)
    counts = {one.get_key_element(): one for one in parsed}
    return prod(len(list(one.sweep_string_iterator())) for one in counts.values() if one.is_sweep_override())


def changed_tasks(outputs: Path, since: float) -> list[Path]:
    """Folders of tasks whose table was written after a time, in seconds since 1970."""
    return [table.parent for table in sorted(outputs.glob("*/table.md")) if table.stat().st_mtime >= since]


def failed_runs(task_folders: Iterable[Path], since: str) -> list[tuple[str, bool]]:
    """A line for each run that failed after a time, ISO 8601 in UTC, and whether that is a mistake of its user."""
    lines = []
    for folder in task_folders:
        for path in sorted(folder.glob("*/run.json")):
            with contextlib.suppress(ValueError, KeyError):  # a damaged record has had its warning
                record = json.loads(path.read_bytes())
                failures = (
                    [(f"{record['method']} ({path.parent.name})", record)] if record["status"] == "failed" else []
                )
                failures += [
                    (f"{record['method']} ({path.parent.name}, {name})", failure)
                    for name, failure in record.get("unscored", {}).items()
                ]
                lines += [
                    (f"{name}: failed: {failure['error']}", failure["error_type"] in USERS)
                    for name, failure in failures
                    if failure["end"] >= since
                ]
    return lines
