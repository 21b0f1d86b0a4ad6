"""What became of a sweep's cells, also of those that ran as jobs of a cluster: their record on disk tells."""

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

OUTPUTS: list[Path] = []  # where this process's sweep writes


class KnowOutputs(Callback):
    """Hydra calls this in the process that starts a sweep, where no cell tells it the output folder."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Note the output folder."""
        OUTPUTS.append(Path(config.paths.outputs))


def changed_tasks(since: float) -> list[Path]:
    """Folders of tasks whose table was written after a time, in seconds since 1970."""
    tables = [table for folder in dict.fromkeys(OUTPUTS) for table in sorted(folder.glob("*/table.md"))]
    return [table.parent for table in tables if table.stat().st_mtime >= since]


def failed_cells(task_folders: Iterable[Path], since: str) -> list[tuple[str, bool]]:
    """A line for each run that failed after a time, ISO 8601 in UTC, and whether its user can mend it."""
    told = []
    for folder in task_folders:
        for path in sorted(folder.glob("*/run.json")):
            with contextlib.suppress(ValueError):  # a damaged record has had its warning
                record = json.loads(path.read_bytes())
                if record["status"] == "failed" and record["end"] >= since:
                    line = f"{record['identity']['method']['name']} ({path.parent.name}): failed: {record['error']}"
                    told.append((line, record["error_type"] == "UserError"))
    return told
