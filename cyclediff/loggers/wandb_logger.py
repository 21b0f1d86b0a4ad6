"""A finished run → Weights & Biases. `send` runs in a process of its own: it may hang or die without harm."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cyclediff.loggers.view import RunView, read_view

MODES = ("auto", "online", "offline", "disabled")
OFFLINE_LIMIT = 60  # seconds; no server has a part in it
METRICS = ("metric", "value", "low", "high", "n", "n_reference", "protocol", "unselected")


def log(folder: Path, scores_folder: Path, settings: Mapping[str, Any]) -> None:
    """Log a finished run, in at most `timeout` seconds; what W&B does not take by then is kept offline.

    A run that is logged again keeps its id, and its offline files are replaced. An error becomes one warning.

    Args:
        folder: outputs/<task>/<run>.
        scores_folder: its scores.
        settings: project, entity, mode, images and timeout (conf/logger/wandb.yaml).
    """
    mode, home, run_id = settings["mode"], folder.parent.parent / ".wandb", id_of(folder, scores_folder)
    if mode == "disabled":
        return
    failure = _try(folder, scores_folder, settings, mode)
    rescued = failure and mode != "offline" and not _try(folder, scores_folder, settings, "offline")
    kept = next(_kept(home, run_id, "offline-run"), None)
    if failure:
        advice = f"`wandb sync {kept}` sends what was kept offline" if rescued else "the same command tries again"
        warnings.warn(f"{folder} is not in W&B: {failure}; the results are complete, {advice}", stacklevel=2)
    elif mode == "auto" and kept and "WANDB_MODE" not in os.environ:
        warnings.warn(
            f"not logged in to W&B: runs are kept in {home}; `wandb login`, then `wandb sync {home}/offline-run-*`, "
            "sends them",
            stacklevel=2,
        )


def id_of(folder: Path, scores_folder: Path) -> str:
    """The id of a run at W&B, from the names of its folders: the same whenever and wherever it is logged."""
    return re.sub(r"[^\w-]", "-", f"{folder.parent.name}-{folder.name}-{scores_folder.name}", flags=re.ASCII)


def _try(folder: Path, scores_folder: Path, settings: Mapping[str, Any], mode: str) -> str | None:
    """Send a run from another process; returns what went wrong."""
    home, run_id = folder.parent.parent / ".wandb", id_of(folder, scores_folder)
    limit = OFFLINE_LIMIT if mode == "offline" else settings["timeout"]
    staging = home / "staging" / run_id  # of tables and images, which `wandb sync` reads later
    environment = os.environ | {
        "PYTHONIOENCODING": "utf-8:backslashreplace",  # what is read below
        "WANDB_SILENT": "true",
        "WANDB_ERROR_REPORTING": "false",
        "WANDB_DATA_DIR": str(staging.resolve()),
        "WANDB_CACHE_DIR": str(staging.resolve()),
    }
    command = [
        sys.executable,
        "-m",
        "cyclediff.loggers.wandb_logger",
        str(folder),
        str(scores_folder),
        json.dumps({**settings, "mode": mode}),
    ]
    try:
        for earlier in (*_kept(home, run_id, "offline-run"), *_kept(home, run_id, "run"), staging):
            shutil.rmtree(earlier, ignore_errors=True)
        staging.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile() as output:  # no pipe, which W&B's own process could hold open
            result = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.DEVNULL,
                env=environment,
                timeout=limit,
            )
            output.seek(0)
            lines = output.read().decode(errors="replace").splitlines()
    except subprocess.TimeoutExpired:
        return f"it was not done within {limit:g} s"
    except OSError as error:
        return f"{error.filename or home}: {error.strerror}"
    if result.returncode:
        return lines[-1] if lines else f"its process ended with code {result.returncode}"
    return None


def _kept(home: Path, run_id: str, kind: str) -> Any:
    """Local folders of a run; W&B puts date and time into their names."""
    return home.glob(f"{kind}-{'[0-9]' * 8}_{'[0-9]' * 6}-{run_id}")


def send(view: RunView, settings: Mapping[str, Any]) -> None:
    """Make the run at W&B, or its offline files in outputs/.wandb (which must exist).

    Args:
        view: of the run.
        settings: as those of `log`; mode auto is WANDB_MODE, else online where there is a login, else offline.

    Raises:
        Exception: whatever W&B raises.
    """
    import wandb

    mode: Any = settings["mode"]
    if mode == "auto":  # this asks neither a person nor the server
        logged_in = wandb.login(prompt=False, verify=False)
        mode = os.environ.get("WANDB_MODE") or ("online" if logged_in else "offline")
    quiet = wandb.Settings(
        init_timeout=settings["timeout"],
        silent=True,
        console="off",
        symlink=False,
        save_code=False,
        disable_code=True,
        disable_git=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
    )
    with wandb.init(
        project=settings["project"],
        entity=settings["entity"],
        group=view.task,
        job_type=view.method,
        name=view.name,
        id=id_of(view.folder, view.scores_folder),
        resume="allow",
        tags=list(view.labels),
        notes="\n".join(f"{tag}: {sentence}" for tag, sentence in view.labels.items()),
        config={**view.config, "provenance": view.provenance},
        allow_val_change=True,
        dir=str(view.folder.parent.parent),
        mode=mode,
        settings=quiet,
    ) as run:
        run.summary.update(summary(view))
        run.log({"metrics": _metrics(view), "images": _images(view), **_chart(view)})


def summary(view: RunView) -> dict[str, Any]:
    """Each metric with its interval and protocol, and the costs; None replaces an earlier value, too."""
    entries = {}
    for key, entry in view.metrics.items():
        low, high = entry["ci95"] or (None, None)
        parts = {"low": low, "high": high, **{part: entry[part] for part in ("n", "n_reference", "protocol")}}
        parts |= {"unselected": entry["unselected"]} if "unselected" in entry else {}
        entries |= {key: entry["value"], **{f"{key}/{part}": value for part, value in parts.items()}}
    return entries | {f"costs/{key}": value for key, value in view.costs.items()}


def _metrics(view: RunView) -> Any:
    import wandb

    columns: list[Any] = list(METRICS)
    data = []
    for key, entry in view.metrics.items():
        low, high = entry["ci95"] or (None, None)
        row = {**entry, "metric": key, "low": low, "high": high}
        data.append([row.get(column) for column in columns])
    return wandb.Table(columns=columns, data=data)


def _images(view: RunView) -> Any:
    import wandb

    parts = ("source", "result", "ground_truth")
    pictures = [part for part in parts if any(getattr(row, part) for row in view.images)]
    values = list(view.images[0].values) if view.images else []
    columns: list[Any] = ["id", *pictures, *values]
    data = [
        [row.id, *(wandb.Image(str(getattr(row, part))) for part in pictures), *(row.values[key] for key in values)]
        for row in view.images
    ]
    return wandb.Table(columns=columns, data=data)


def _chart(view: RunView) -> dict[str, Any]:
    import wandb

    chart = view.tradeoff
    if chart is None:
        return {}
    columns: list[Any] = ["label", "method", chart.x, chart.y, f"{chart.x}/protocol", f"{chart.y}/protocol"]
    data = [[p.label, p.method, p.x, p.y, chart.x_protocol, chart.y_protocol] for p in chart.points]
    title = f"{chart.y} ({chart.y_protocol}) against {chart.x} ({chart.x_protocol})"
    return {"tradeoff": wandb.plot.scatter(wandb.Table(columns=columns, data=data), chart.x, chart.y, title=title)}


if __name__ == "__main__":
    chosen = json.loads(sys.argv[3])
    try:
        send(read_view(Path(sys.argv[1]), Path(sys.argv[2]), chosen["images"]), chosen)
    except Exception as error:
        print(" ".join(f"{type(error).__name__}: {error}".split()))  # the process that waits reads this
        sys.exit(1)
