"""What a run calls: `check` before the work, `log` after the results are on disk."""

import importlib.util
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cyclediff.errors import UserError
from cyclediff.loggers import tensorboard_logger, wandb_logger

LOGGERS = {"wandb": wandb_logger.log, "tensorboard": tensorboard_logger.log}
INSTALL = {"wandb": "pip install wandb", "tensorboard": "pip install 'cyclediff[tensorboard]'"}


def check(name: str, settings: Mapping[str, Any]) -> None:
    """Check that a logger can work, before anything slow.

    Args:
        name: none, wandb or tensorboard.
        settings: the chosen file of conf/logger.

    Raises:
        UserError: if its package is missing or a setting is out of range.
    """
    if name == "none":
        return
    package = importlib.util.find_spec(name)
    if package is None or package.origin is None:  # without an origin it is a folder of that name, such as W&B leaves
        raise UserError(f"logger={name} needs a package that is not installed; {INSTALL[name]}, or choose logger=none")
    images = settings["images"]
    if not isinstance(images, int) or isinstance(images, bool) or images < 0:
        raise UserError(f"logger.images must be a whole number of at least 0; got {images}")
    if name == "wandb":
        if settings["mode"] not in wandb_logger.MODES:
            raise UserError(f"logger.mode must be one of {', '.join(wandb_logger.MODES)}; got {settings['mode']}")
        timeout = settings["timeout"]
        if not isinstance(timeout, int | float) or isinstance(timeout, bool) or timeout <= 0:
            raise UserError(f"logger.timeout must be a number of seconds above 0; got {timeout}")


def log(run_folder: Path, scores_folder: Path, settings: Mapping[str, Any]) -> None:
    """Send a finished run to the chosen logger. An error there becomes a warning; the run is not touched.

    Args:
        run_folder: outputs/<task>/<run>, finished.
        scores_folder: the scores to show, <run>/scores/<protocol>-<hash>.
        settings: the chosen file of conf/logger.
    """
    if settings["name"] == "none":
        return
    try:
        LOGGERS[settings["name"]](run_folder, scores_folder, settings)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        warnings.warn(
            f"{run_folder} is not in {settings['name']}: {reason}; the results are complete, the same command logs "
            "them",
            stacklevel=2,
        )
