"""`python run.py`: one run per line of a table, made and scored; then the tables, the page, and what failed."""

import os
import re
import shlex
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from cyclediff.cli import errors, sweep
from cyclediff.cli.arguments import as_written, require_texts
from cyclediff.data.assets import ROOT
from cyclediff.errors import UserError
from cyclediff.loggers import log as loggers
from cyclediff.pets.folders import PETS
from cyclediff.pets.styles import STYLES
from cyclediff.runtime import distributed, stop
from cyclediff.runtime.record import now, write_json
from cyclediff.runtime.runner import complete
from cyclediff.runtime.settings import require_whole_number
from cyclediff.studies.context import Context, get_class
from cyclediff.studies.sources import require_fit

CONFIG = str(ROOT / "conf")
JUDGED = 64  # height and width of the images that the judge of pets reads
NOISE_DEVICES = ("cpu", "cuda", "mps")
COMMANDS = ("doctor", "list", "explain", "check")  # first words that are no settings
CHANGES = r"\+*(method\.|task\.|steps|timesteps|strength|selection|protocol\.|model@)"  # published settings


def run_one(cfg: DictConfig, place: str = "") -> tuple[Path, str]:
    """Complete one run and refresh its task's table; returns the task's folder and the digest of its data.

    Args:
        cfg: of the run.
        place: which of several it is, for people.
    """
    distributed.start()
    require_texts(cfg)
    logger: Any = OmegaConf.to_container(cfg.logger, resolve=True)
    require_whole_number(cfg, "batch_size", 1, "auto")
    require_whole_number(cfg, "seed", 0)
    if cfg.noise.device not in NOISE_DEVICES:
        raise UserError(f"noise.device must be one of {', '.join(NOISE_DEVICES)}; got {cfg.noise.device}")
    loggers.check(logger["name"], logger)
    _require_size(cfg)
    require_fit(cfg)
    context = Context(cfg, config_dirs(), CONFIG)
    study = get_class(cfg.study._target_)(context)
    study.needs()
    if cfg.data.limit is not None or cfg.data.source in (PETS, STYLES):
        require_whole_number(cfg, "data.limit", 1)
    overrides = HydraConfig.get().overrides.task
    about = {
        "command": shlex.join(["python", "run.py", *overrides]),
        "published_settings": not any(re.match(CHANGES, o) for o in overrides),
    }
    keep_going = distributed.world() == 1 and HydraConfig.get().mode == RunMode.MULTIRUN
    run, scores, items = complete(cfg, study, context.task_folder, about, keep_going, place)
    if distributed.is_first():
        from eval.report.tables import write_tables

        write_json(OmegaConf.to_container(cfg.paper), context.task_folder / "paper.json")
        write_json(OmegaConf.to_container(cfg.claims), context.task_folder / "claims.json")
        write_tables(context.task_folder)
        if (scores.path / "metrics.json").exists():  # else there is a sentence why not
            loggers.log(run.path, scores.path, logger)
    return context.task_folder, str(items.record["digest"])


def _require_size(cfg: DictConfig) -> None:
    """Require one size of images, and that of the judge of pets where the protocol has it."""
    if "size" in cfg.task:
        require_whole_number(cfg, "task.size", 1)
    require_whole_number(cfg, "protocol.size", 1)
    size = cfg.protocol.size
    if cfg.protocol.judge is not None and size != JUDGED:
        raise UserError(f"protocol {cfg.protocol.name} is for images of {JUDGED} pixels; got protocol.size={size}")
    if "size" in cfg.task and cfg.task.size != size:
        raise UserError(
            f"task.size={cfg.task.size} and protocol.size={size} differ, and images are made and scored at one size; "
            "set both to it"
        )


def config_dirs() -> tuple[str, ...]:
    """The folders of configuration that Hydra reads, one given by --config-dir first."""
    found = [source.path for source in HydraConfig.get().runtime.config_sources if source.schema == "file"]
    return tuple(sorted(found, key=lambda path: path == CONFIG))


def outputs_of(arguments: Sequence[str]) -> Path:
    """The folder of outputs that a command line asks for."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(CONFIG, version_base=None):
        return Path(compose("config", [a for a in arguments if a.startswith("paths")]).paths.outputs)


def show(shown: dict[Path, set[str] | None]) -> None:
    """Write the page of each task, and print its tables: those of some data's digests, or all."""
    from eval.report.tables import write_page

    for task_folder in shown:
        write_page(task_folder)
    print_tables_of(shown)


def print_tables_of(shown: Mapping[Path, set[str] | None]) -> None:
    """Print tables of tasks, see `show`."""
    from eval.report.tables import print_tables

    for task_folder, digests in shown.items():
        print_tables(task_folder, digests)


def main() -> None:
    """Do what the command line asks for."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra's errors reach us instead of its printer
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # remarks of torch's profiler are of no use to a user
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    if not distributed.is_first():
        warnings.simplefilter("ignore")  # the first process has the same
    began, since, lost = time.time(), now(), False
    shown: dict[Path, set[str] | None] = {}

    @hydra.main(version_base=None, config_path=CONFIG, config_name="config")
    def run_job(cfg: DictConfig) -> None:
        with errors.reported(CONFIG):  # here, before Hydra can wrap an error in its own
            job, several = HydraConfig.get(), HydraConfig.get().mode == RunMode.MULTIRUN
            count = sweep.count_runs(job.sweeper.params or {}, sys.argv[1:]) if several else 1
            number = job.job.num + 1 if several else 1
            task_folder, digest = run_one(cfg, f"run {number} of {count}: " if count > 1 else "")
            digests = shown.setdefault(task_folder, set())
            assert digests is not None
            digests.add(digest)
            if number < count and sys.stdout.isatty():  # whoever looks sees the table grow
                print_tables_of({task_folder: digests})

    with errors.reported(CONFIG):
        sys.argv[1:] = as_written(sys.argv[1:])
        if sys.argv[1:] and sys.argv[1] in COMMANDS:
            from cyclediff.cli import check, doctor, explain, listing

            modules = {"doctor": doctor, "list": listing, "explain": explain, "check": check}
            return modules[sys.argv[1]].main(CONFIG, sys.argv[2:])
        stop.listen()
        try:
            run_job()
        except Exception as error:
            if not type(error).__module__.startswith("submitit"):
                raise
            lost = True
        if not distributed.is_first():
            return
        if not shown:  # the runs were jobs of a cluster, or there was none
            outputs = outputs_of(sys.argv[1:])
            shown.update(dict.fromkeys(sweep.changed_tasks(outputs, began)))
        show(shown)
        failed = sweep.failed_runs(shown, since)
        if lost:
            place = outputs_of(sys.argv[1:]) / ".hydra" / ".submitit"
            failed.append((f"a job ended without a result; its log is in {place}", False))
        if failed:
            lines = "\nerror: ".join(line for line, _ in failed)
            errors.fail(lines, code=2 if all(mistake for _, mistake in failed) else 1)
