"""Where and in what batches a run is computed, which is no part of what it is."""

from math import ceil
from pathlib import Path

import torch
from omegaconf import DictConfig

from cyclediff.errors import UserError
from cyclediff.runtime import distributed
from cyclediff.runtime.batch_size import find_batch_size, remember, remembered
from cyclediff.runtime.record import Run
from cyclediff.runtime.study import Execution, Study


def pick_device(name: str) -> torch.device:
    """A torch device; "auto" is CUDA, else MPS, else the CPU. Of several GPUs, each process has its own.

    Raises:
        UserError: if there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and distributed.world() > 1 and torch.cuda.is_available():
        own = distributed.local_rank() % torch.cuda.device_count()  # SLURM can show each process one GPU only
        name = f"cuda:{own}"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name} is not available here; choose auto or cpu") from error


def noise_device(cfg: DictConfig, device: torch.device) -> torch.device:
    """Where noise is drawn, if networks run on `device`."""
    return device if cfg.noise.device == device.type else pick_device(cfg.noise.device)


def execution_of(cfg: DictConfig, run: Run, study: Study, device: torch.device, results: int) -> Execution:
    """The execution of a run. A batch size of auto is an earlier start's, or a remembered one, or it is measured.

    Args:
        cfg: of the run.
        run: its record.
        study: what is made, with its networks loaded.
        device: where networks run.
        results: how many are made, by all processes.
    """
    size = cfg.batch_size
    if size == "auto":
        size = distributed.from_first(lambda: run.noted("batch_size") or _measured(cfg, study, device, results))
    trace = run.path / ("trace.json.gz" if distributed.is_first() else f"trace-{distributed.rank()}.json.gz")
    return Execution(cfg.seed, size, device, noise_device(cfg, device), trace if cfg.profile else None)


def remember_smaller(cfg: DictConfig, study: Study, execution: Execution, held: int) -> None:
    """Remember the batch size that memory held, where the one that was measured on networks alone was too large."""
    if cfg.batch_size == "auto" and held < execution.batch_size:
        remember(_cache(cfg), _key(cfg, study, execution.device), held)


def _measured(cfg: DictConfig, study: Study, device: torch.device, results: int) -> int:
    most, cache, key = ceil(results / distributed.world()), _cache(cfg), _key(cfg, study, device)
    found, how = remembered(cache, key), "remembered"
    if found is None:
        found, how = find_batch_size(study.evaluate, most), "measured"
        if found < most:  # else it might have been larger
            remember(cache, key, found)
    print(f"{cfg.method.name}: batch size {min(found, most)} ({how})")
    return min(found, most)


def _cache(cfg: DictConfig) -> Path:
    return Path(cfg.paths.cache).expanduser()


def _key(cfg: DictConfig, study: Study, device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return f"{name}, {cfg.method.name}, {study.batch_size_key()}"
