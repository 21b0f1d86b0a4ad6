"""`python run.py doctor`: what is installed and here, and which experiments can run now. Nothing is downloaded."""

import contextlib
import os
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig
from rich import box
from rich.table import Table

from cyclediff.data.assets import locate
from cyclediff.runtime.record import PACKAGES
from cyclediff.studies.requirements import NO_FOLDER, MethodFile, method_files, repository_of
from eval import terminal

MORE_PACKAGES = ("transformers", "open_clip_torch", "wandb")
KEYS = {"source_model": "source", "target_model": "target", "ranking_clip": "ranking"}  # of a task → part
SCORES = {"features": "features", "scorer": "clip"}  # part → key of a protocol


@dataclass(frozen=True)
class Experiment:
    """What a file of conf/experiment needs, and what of it is here.

    Args:
        name: of the experiment.
        missing: files and folders that are not here.
        hub: repositories of the Hugging Face hub that are not in its cache; a run downloads them.
        needed: number of files, folders and repositories.
        methods: those of its table.
        ready: those of its table whose files are here; a repository that a run can download counts as here.
        choices: what it chooses, such as its task, by the group's name.
    """

    name: str
    missing: tuple[Path, ...]
    hub: tuple[str, ...]
    needed: int
    methods: tuple[str, ...]
    ready: tuple[str, ...]
    choices: Mapping[str, str] = field(default_factory=dict)


def main(config_dir: str, overrides: Sequence[str] = ()) -> None:
    """Print versions, devices, room, caches, logins, and a line per experiment.

    Args:
        config_dir: the folder of the configuration.
        overrides: settings that move folders, such as paths.checkpoints=DIR.
    """
    console = terminal.console()
    base = compose_config(config_dir, list(overrides))
    facts = Table("here", "", box=box.SIMPLE_HEAD)
    for key, value in {**versions(), **devices(), **places(base.paths), **services()}.items():
        facts.add_row(key, value)
    console.print(facts)
    table = Table("experiment", "runs now", "methods that run now", "not here", box=box.SIMPLE_HEAD)
    found = [inspect(name, config_dir, overrides) for name in experiments(config_dir)]
    for experiment in found:
        table.add_row(experiment.name, *cells(experiment))
    console.print(table)
    if any(experiment.missing for experiment in found):
        console.print(
            "`python scripts/assets.py fetch EXPERIMENT` gets all that a program can get, the hub's files too, and "
            "says what a person must get; a run itself downloads from the hub, too.",
            soft_wrap=True,
        )


def versions() -> dict[str, str]:
    """Versions of Python and of what computes."""
    found = {"Python": f"{sys.version.split()[0]}, {platform.system()} {platform.machine()}"}
    for package in (*PACKAGES, *MORE_PACKAGES):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def devices() -> dict[str, str]:
    """Processors with their memory."""
    import torch

    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = {"CPU": f"{usable} of {os.cpu_count()} cores, torch uses {torch.get_num_threads()}", "memory": _memory()}
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        found[f"cuda:{index}"] = f"{torch.cuda.get_device_name(index)}, {_gb(free)} of {_gb(total)} free"
    if not torch.cuda.device_count():
        found["CUDA"] = "none"
    found["MPS"] = "yes" if torch.backends.mps.is_available() else "none"
    return found


def _memory() -> str:
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total = _gb(page * os.sysconf("SC_PHYS_PAGES"))
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, ValueError, StopIteration):  # no Linux
        return "not known"
    return f"{_gb(free)} of {total} free"


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def places(paths: Mapping[str, str]) -> dict[str, str]:
    """Room for what is written, and how large the caches are.

    Args:
        paths: outputs, checkpoints, data and cache, as in conf/paths.
    """
    found = {}
    for key in ("outputs", "checkpoints", "data", "cache"):
        folder = locate(paths[key]).expanduser().absolute()
        existing = next(place for place in (folder, *folder.parents) if place.exists())
        room = f"{_gb(shutil.disk_usage(existing).free)} free"
        found[f"paths.{key}"] = ", ".join(
            [str(folder), room]
            + ([] if os.access(existing, os.W_OK) else ["not writable"])
            + ([] if existing == folder else ["not there yet"])
            + ([f"{_gb(folder_size(folder))} used"] if key == "cache" else [])
        )
    hub = hub_cache()
    return found | {"Hugging Face hub's cache": f"{hub}, {_gb(folder_size(hub))} used"}


def folder_size(folder: Path) -> int:
    """Bytes of the files below a folder, links not followed; 0 where there is none."""
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # gone meanwhile
                size += os.lstat(os.path.join(place, name)).st_size
    return size


def hub_cache() -> Path:
    """Where the Hugging Face hub's files are kept."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def services() -> dict[str, str]:
    """Whether W&B and SLURM could be used; nobody is asked over the network."""
    return {
        "W&B": "logged in" if _logged_in() else "not logged in: logger=wandb keeps runs in files; `wandb login`",
        "SLURM": shutil.which("sinfo") or "no sinfo on PATH: hydra/launcher=slurm would find no cluster",
    }


def _logged_in() -> bool:
    """Whether there is a key where W&B looks for one; its own `login` would ask the server who that is."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return host in netrc(os.environ.get("NETRC") or Path("~/.netrc").expanduser()).hosts
    except (OSError, NetrcParseError):  # none, or not readable
        return False


def experiments(config_dir: str) -> list[str]:
    """The names of all experiments."""
    return sorted(path.stem for path in Path(config_dir, "experiment").glob("*.yaml"))


def inspect(name: str, config_dir: str, overrides: Sequence[str] = ()) -> Experiment:
    """What an experiment needs, and what of it is here."""
    cfg = compose_config(config_dir, [f"experiment={name}", *overrides])
    methods = tuple(str(cfg.hydra.sweeper.params.get("method", cfg.method.name)).split(","))
    files = _method_files(config_dir)
    parts = _weights(cfg)
    folders = {locate(f) for key in ("source", "reference") if (f := cfg.data[key]) and f not in NO_FOLDER}
    here = {part for part, (path, hub) in parts.items() if hub or path.exists()}
    whole = all(folder.exists() for folder in folders)
    used = set().union(*(_parts_of(files[method], cfg) for method in methods)) & parts.keys()
    absent = [parts[part][0] for part in sorted(used - here)] + [f for f in sorted(folders) if not f.exists()]
    hub = [repository for part in sorted(used) if (repository := parts[part][1]) and not in_hub_cache(repository)]
    return Experiment(
        name,
        tuple(dict.fromkeys(absent)),  # two parts can have one file
        tuple(dict.fromkeys(hub)),
        len({parts[part] for part in used}) + len(folders),
        methods,
        tuple(method for method in methods if whole and _parts_of(files[method], cfg) <= here),
        {key: str(value) for key, value in cfg.hydra.runtime.choices.items()},
    )


def cells(experiment: Experiment) -> tuple[str, str, str]:
    """What a table says of an experiment: whether it runs, by which methods, and what is missing."""
    ready, methods = experiment.ready, experiment.methods
    runs = "yes" if ready == methods else "in part" if ready else "no"
    if ready and experiment.hub:
        runs += ", with a download"
    names = "all" if ready == methods else ", ".join(ready) or "none"
    lines = [str(path) for path in experiment.missing]
    lines += [f"{repository} (Hugging Face hub)" for repository in experiment.hub]
    if experiment.missing:
        lines.insert(0, f"{len(experiment.missing)} of {experiment.needed}:")
    return runs, names, "\n".join(lines) or "–"


@cache
def _method_files(config_dir: str) -> dict[str, MethodFile]:
    return method_files([config_dir])


def compose_config(config_dir: str, overrides: list[str]) -> DictConfig:
    """The whole configuration with some settings."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir, version_base=None):
        return compose("config", overrides, return_hydra_config=True)


def _weights(cfg: DictConfig) -> dict[str, tuple[Path, str | None]]:
    """The files of weights of an experiment by their part, and the repository where a file is one of the hub's."""
    networks = {str(key): node for key, node in cfg.task.items() if isinstance(node, DictConfig) and "path" in node}
    nodes = {KEYS.get(key, key): node for key, node in networks.items()}
    nodes |= {part: cfg.protocol[key] for part, key in SCORES.items() if cfg.protocol[key]}
    return {part: (locate(node.path), _repository(node)) for part, node in nodes.items() if node.path}


def _repository(node: Any) -> str | None:
    """The hub's repository of a node whose path is no file."""
    return None if locate(node.path).exists() else repository_of(node)


def in_hub_cache(repository: str) -> bool:
    """Whether some version of a repository is in the hub's cache."""
    snapshots = hub_cache() / f"models--{repository.replace('/', '--')}" / "snapshots"
    return any(snapshots.glob("*/*"))


def _parts_of(method: MethodFile, cfg: DictConfig) -> set[str]:
    parts = {"model", "ranking"} if "model" in cfg.task else set(method.needs)
    if cfg.study.name == "train":
        parts -= {"generator", "target"}  # one of them is what it makes
    return parts | {part for part, key in SCORES.items() if cfg.protocol[key]}
