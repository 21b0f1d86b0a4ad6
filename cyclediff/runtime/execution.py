"""How the images of a cell are computed, which is no part of what they are: device, batch size, forms of networks."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from cyclediff.errors import UserError
from cyclediff.runtime import distributed
from cyclediff.runtime.batch_size import find_batch_size, remember, remembered
from cyclediff.runtime.record import Run


@dataclass(frozen=True)
class Setup:
    """How the images of a run are computed.

    Args:
        seed: the run's seed.
        batch_size: what goes through the networks at once: images, or candidates of edits.
        device: where the networks are.
        noise_device: where noise is drawn.
        trace: where the trace of a profile goes; None for no profile.
    """

    seed: int
    batch_size: int
    device: torch.device
    noise_device: torch.device
    trace: Path | None = None


def pick_device(name: str) -> torch.device:
    """A torch device; "auto" is CUDA, else MPS, else the CPU. Of several GPUs, each process has its own.

    Raises:
        UserError: if there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and distributed.world() > 1 and torch.cuda.is_available():
        name = (
            f"cuda:{distributed.local_rank() % torch.cuda.device_count()}"  # SLURM can show each process one GPU only
        )
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name} is not available here; choose auto or cpu") from error


def setup_of(cfg: DictConfig, run: Run, nodes: Mapping[str, Any], evaluate: Callable[[int], None], most: int) -> Setup:
    """The setup of a cell; a batch size of auto is an earlier start's, or a remembered one, or it is measured.

    Args:
        cfg: of the cell.
        run: its record.
        nodes: configuration of its networks.
        evaluate: see `find_batch_size`.
        most: images, or candidates of edits, of all processes.
    """
    device = pick_device(cfg.device)
    size = cfg.batch_size
    if size == "auto":
        size = distributed.from_first(lambda: run.noted("batch_size") or _measured(cfg, nodes, evaluate, most))
    trace = run.path / ("trace.json.gz" if distributed.is_first() else f"trace-{distributed.rank()}.json.gz")
    return Setup(cfg.seed, size, device, pick_device(cfg.noise.device or str(device)), trace if cfg.profile else None)


def note_smaller(cfg: DictConfig, setup: Setup, nodes: Mapping[str, Any], held: int) -> None:
    """Remember the batch size that memory held, where the one that was measured on networks alone was too large."""
    if cfg.batch_size == "auto" and held < setup.batch_size:
        remember(_cache(cfg), _key(cfg, nodes), held)


def forms(nodes: Iterable[Any]) -> str:
    """In which form networks are evaluated, for people; empty where all are in float32 and not compiled."""
    told = []
    for node in nodes:
        dtype, mode = node.get("dtype", "float32"), node.get("compile_mode")
        told.append(dtype + (f" compiled ({mode})" if mode else ""))
    return "" if set(told) == {"float32"} else " and ".join(dict.fromkeys(told))


def _measured(cfg: DictConfig, nodes: Mapping[str, Any], evaluate: Callable[[int], None], most: int) -> int:
    most, cache, key = ceil(most / distributed.world()), _cache(cfg), _key(cfg, nodes)
    found, how = remembered(cache, key), "remembered"
    if found is None:
        found, how = find_batch_size(evaluate, most), "measured"
        if found < most:  # else it might have been larger
            remember(cache, key, found)
    print(f"{cfg.method.name}: batch size {min(found, most)} ({how})")
    return min(found, most)


def _cache(cfg: DictConfig) -> Path:
    return Path(cfg.paths.cache).expanduser()


def _key(cfg: DictConfig, nodes: Mapping[str, Any]) -> str:
    device = pick_device(cfg.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    models = " ".join(f"{side} {Path(node.path).stem}" for side, node in nodes.items())
    return f"{name}, {cfg.method.name}, {models}, {cfg.protocol.size} pixels, {forms(nodes.values()) or 'float32'}"
