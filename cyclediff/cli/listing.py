"""`python run.py list`: experiments, tasks, methods, models, protocols, and what can run here. Nothing is downloaded.

`python run.py list methods` shows one of these. Nothing heavy is imported.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich import box
from rich.table import Table
from rich.text import Text

from cyclediff.cli import doctor
from cyclediff.cli.errors import listed
from cyclediff.cli.method_notes import title_of
from cyclediff.data.assets import locate
from cyclediff.errors import UserError
from cyclediff.studies.requirements import repository_of
from eval import terminal

WIDEST = 100  # columns
MOST = 8  # processes
KINDS = {"experiments": "experiment", "tasks": "task", "methods": "method", "models": "model", "protocols": "protocol"}
OF_FILES = (
    "model",
    "protocol",
)  # these need their own files; the others an experiment that runs
STATES = ("no", "if you name its file", "if the task names it", "yes, with a download", "yes")  # the first one counts


def main(config_dir: str, arguments: Sequence[str]) -> None:
    """Print a line for each thing that a run can have.

    Args:
        config_dir: the folder of the configuration.
        arguments: which kinds, all without one; and settings that move folders, such as paths.checkpoints=DIR.

    Raises:
        UserError: if there is no such kind.
    """
    overrides = [argument for argument in arguments if "=" in argument]
    kinds = [argument for argument in arguments if "=" not in argument] or list(KINDS)
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"there is no list of {kind}; choose {listed(kind, KINDS)}")
    groups = [KINDS[kind] for kind in kinds]
    names = doctor.experiments(config_dir) if set(groups) - set(OF_FILES) else []
    console = terminal.console()
    console.width = min(console.width, WIDEST)
    with ProcessPoolExecutor(min(os.cpu_count() or 1, MOST)) as pool:  # Hydra takes 0.1 s for an experiment
        files = {
            group: pool.submit(files_here, group, stems(group, config_dir), config_dir, overrides)
            for group in OF_FILES
            if group in groups
        }
        found = list(pool.map(partial(doctor.inspect, config_dir=config_dir, overrides=overrides), names))
        here = {group: future.result() for group, future in files.items()}
    for group in groups:
        shown = [(group, "runs here", "what"), *lines(group, config_dir, found, here.get(group, {}))]
        table = Table(box=box.SIMPLE_HEAD, show_edge=False)
        for index, header in enumerate(shown[0]):
            whole = max(len(line[index]) for line in shown) if index < 2 else None  # only what it is may be cut
            table.add_column(header, min_width=whole, no_wrap=True, overflow="ellipsis")
        for line in shown[1:]:
            table.add_row(*(Text(terminal.fitted(cell)) for cell in line))
        console.print(table)
        console.print()
    console.print("`python run.py doctor` says what is missing, `python run.py explain METHOD` what a method does.")


def stems(group: str, config_dir: str) -> list[str]:
    """Names of the files of a group of the configuration."""
    return [path.stem for path in sorted(Path(config_dir, group).glob("*.yaml"))]


def lines(
    group: str,
    config_dir: str,
    experiments: Sequence[doctor.Experiment],
    here: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[tuple[str, str, str]]:
    """Name, whether it runs here, and what it is, of each file of a group of the configuration.

    Args:
        group: "experiment", "task", "method", "model" or "protocol".
        config_dir: the folder of the configuration.
        experiments: all of them, where the group is one of the first three.
        here: of a model or protocol, what `files_here` says of it.
    """
    if group == "experiment":
        for experiment in experiments:
            choices, count = experiment.choices, len(experiment.methods)
            what = f"{choices['study']}: {choices['task']}, protocol {choices['protocol']}, "
            what += experiment.methods[0] if count == 1 else f"{count} methods"
            yield experiment.name, doctor.cells(experiment)[0], what
        return
    for name in stems(group, config_dir):
        title = title_of(Path(config_dir, group, f"{name}.yaml"))
        yield name, here.get(name) or _runs_in(group, name, experiments), title


def _runs_in(group: str, name: str, experiments: Sequence[doctor.Experiment]) -> str:
    """An experiment with this task or method that runs here, if there is one."""
    if group == "task":
        fitting = [experiment for experiment in experiments if experiment.choices["task"] == name]
        ready = [experiment.name for experiment in fitting if experiment.ready]
    else:
        fitting = [experiment for experiment in experiments if name in experiment.methods]
        ready = [experiment.name for experiment in fitting if name in experiment.ready]
    return f"in {ready[0]}" if ready else "no" if fitting else "in no experiment"


def files_here(group: str, names: Sequence[str], config_dir: str, overrides: Sequence[str] = ()) -> dict[str, str]:
    """Whether the files of some models or protocols are here, by their name.

    Args:
        group: "model" or "protocol".
        names: of files in that group.
        config_dir: the folder of the configuration.
        overrides: settings that move folders.
    """
    cfg = doctor.compose_config(config_dir, [*(f"+{group}@listed.{name}={name}" for name in names), *overrides])
    found = {}
    for name in names:
        node = cfg.listed[name]
        networks = [node[key] for key in doctor.SCORES.values() if node[key]] if group == "protocol" else [node]
        states = {_state(network) for network in networks if group == "model" or network.path}
        found[name] = next((state for state in STATES if state in states), "yes")
    return found


def _state(network: DictConfig) -> str:
    """Whether the file of a network is here."""
    written: Any = OmegaConf.to_container(network, resolve=False)
    if "{task." in str(written.get("path")):
        return "if the task names it"
    if OmegaConf.is_missing(network, "path") or network.get("path") is None:
        return "if you name its file"
    if locate(network.path).exists():
        return "yes"
    repository = repository_of(network)
    if not repository:
        return "no"
    return "yes" if doctor.in_hub_cache(repository) else "yes, with a download"
