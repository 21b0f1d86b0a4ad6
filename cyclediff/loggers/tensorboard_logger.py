"""A finished run → TensorBoard: one event file in outputs/<task>/.tensorboard/<run>-<scores>."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cyclediff.loggers.view import ImageRow, RunView, read_view

GAP = 4  # white pixels between the pictures of a row


def log(folder: Path, scores_folder: Path, settings: Mapping[str, Any]) -> None:
    """Log a finished run; a run that is logged again replaces its event file.

    Args:
        folder: outputs/<task>/<run>.
        scores_folder: its scores.
        settings: images, how many are shown (conf/logger/tensorboard.yaml).
    """
    from torch.utils.tensorboard import SummaryWriter

    view = read_view(folder, scores_folder, settings["images"])
    target = folder.parent / ".tensorboard" / view.name
    if target.exists():
        shutil.rmtree(target)
    with SummaryWriter(str(target)) as writer:
        for key, entry in view.metrics.items():
            low, high = entry["ci95"] or (None, None)
            for part, value in {"value": entry["value"], "low": low, "high": high}.items():
                if value is not None:
                    writer.add_scalar(f"{key}/{part}", value)
        for key, value in view.costs.items():
            writer.add_scalar(f"costs/{key}", value)
        for row in view.images:
            if row.result is not None:
                writer.add_image(f"images/{row.id}", picture(row), dataformats="HWC")
        for tag, text in texts(view).items():
            writer.add_text(tag, text)


def picture(row: ImageRow) -> np.ndarray:
    """Source, result and ground truth, where there are such, side by side: uint8 (h, w, 3)."""
    parts = [_pixels(path) for path in (row.source, row.result, row.ground_truth) if path is not None]
    gap = np.full((parts[0].shape[0], GAP, 3), 255, np.uint8)
    return np.concatenate([part for image in parts for part in (gap, image)][1:], axis=1)


def texts(view: RunView) -> dict[str, str]:
    """What TensorBoard shows as Markdown: the metrics with their protocols, labels first, and the configuration."""
    lines = [f"**{tag}**: {sentence}\n" for tag, sentence in view.labels.items()]
    lines += ["| metric | value | 95 % interval | unselected | n | n reference | protocol |", "|---" * 7 + "|"]
    for key, entry in view.metrics.items():
        interval = " … ".join(f"{bound:.6g}" for bound in entry["ci95"] or ())
        value, unselected = (_text(entry.get(part)) for part in ("value", "unselected"))
        counts = str(entry["n"]), str(entry["n_reference"] or "–")
        lines.append(f"| {' | '.join([key, value, interval or '–', unselected, *counts, entry['protocol']])} |")
    about = {"record/config": view.config, "record/provenance": view.provenance}
    blocks = {
        tag: "\n".join(f"    {line}" for line in json.dumps(part, indent=2).splitlines()) for tag, part in about.items()
    }
    return {"metrics": "\n".join(lines), **blocks}


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def _text(value: float | None) -> str:
    return "–" if value is None else f"{value:.6g}"
