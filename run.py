"""One run is one cell of a table: translate the sources with one method, score what was saved, refresh the table.

`python run.py` runs the embedded experiment; `python run.py --help` lists what can be set.
"""

import os
import resource
import sys
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from cyclediff import cli, results
from cyclediff.data import PETS, Folder, prepare_pets, prepare_photos

CONFIG = str(results.ROOT / "conf")
SHOWN: dict[Path, list[str]] = {}  # task folder → digests of the data that this process's cells ran on


@hydra.main(version_base=None, config_path=CONFIG, config_name="config")
def run_cell(cfg: DictConfig) -> None:
    """Make one cell; a mistake ends the program here, before Hydra can wrap it."""
    with cli.telling_mistakes(CONFIG):
        make_cell(cfg)


def make_cell(cfg: DictConfig) -> None:
    """Translate and score what is not yet done of one cell, and refresh its task's table."""
    for key, least in {"batch_size": 1, "seed": 0, "task.reference_count": 2}.items():
        cli.check_number(cfg, key, least)
    if cfg.data.limit is not None or cfg.data.source == PETS:
        cli.check_number(cfg, "data.limit", 1)
    task_folder = Path(cfg.paths.outputs) / cfg.task.name
    source, counterpart, reference = prepare(cfg, task_folder / "data")
    run = results.Run(task_folder, identity(cfg, source, reference))
    record = results.provenance() | {
        "embedded": cfg.task.embedded,
        "checkpoints": {
            side: results.sha256(results.ROOT / cfg.task[f"{side}_model"].path) for side in ("source", "target")
        },
        "data": {
            "name": source.name,
            "digest": source.digest,
            "n": len(source.ids),
            "source": source.path.name,
            "counterpart": counterpart and counterpart.path.name,
        },
    }
    if not run.is_finished(record, cfg.allow_code_change):
        method = make_method(cfg)
        run.start(OmegaConf.to_yaml(cfg, resolve=True), record)
        costs = translate(cfg, method, run, source)
        run.finish(*score(cfg, run, source, counterpart, reference), costs)

    from eval.report import write_tables

    write_tables(task_folder)
    SHOWN.setdefault(task_folder, []).append(source.digest)


def prepare(cfg: DictConfig, cache: Path) -> tuple[Folder, Folder | None, Folder]:
    """Source, true translations (embedded sources have them) and reference, as folders of PNGs."""
    task, protocol = cfg.task, cfg.task.protocol
    if cfg.data.source == PETS:
        pets = (task.source_species, task.target_species)
        source, counterpart = (prepare_pets(kind, "source", cfg.data.limit, protocol.size, cache) for kind in pets)
    else:
        source = prepare_photos(Path(cfg.data.source), cfg.data.limit, protocol.size, protocol.resize, cache)
        counterpart = None
    return (
        source,
        counterpart,
        prepare_pets(task.target_species, "reference", task.reference_count, protocol.size, cache),
    )


def identity(cfg: DictConfig, source: Folder, reference: Folder) -> dict[str, Any]:
    """All that decides a run's images and numbers."""
    method: Any = OmegaConf.to_container(cfg.method, resolve=True)
    return {
        "task": cfg.task.name,
        "protocol": cfg.task.protocol.name,
        "method": {key: value for key, value in method.items() if key != "_target_"},
        "models": {side: Path(cfg.task[f"{side}_model"].path).stem for side in ("source", "target")},
        "seed": cfg.seed,
        "data": {"digest": source.digest, "n": len(source.ids), "reference": reference.digest},
    }


def make_method(cfg: DictConfig) -> Any:
    """The method with its settings checked."""
    settings: Any = OmegaConf.to_container(cfg.method, resolve=True)
    return cli.build(hydra.utils.get_class(settings.pop("_target_")), settings)


def translate(cfg: DictConfig, method: Any, run: results.Run, source: Folder) -> dict[str, Any]:
    """Translate the sources; returns what it cost, and where."""
    from cyclediff.translate import pick_device, summarise, translate

    device = pick_device(cfg.device)
    nodes = {side: cfg.task[f"{side}_model"] for side in sorted(method.uses | {"target"})}
    models = {
        side: hydra.utils.instantiate(node, path=str(results.ROOT / node.path), device=str(device))
        for side, node in nodes.items()
    }
    noise_device = pick_device(cfg.noise.device or str(device))
    translate(method, models, source, run, cfg.seed, cfg.batch_size, device, noise_device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return {"device": str(device), "world_size": 1, **summarise(run, len(source.ids)), "peak_memory_mib": round(peak)}


def score(
    cfg: DictConfig, run: results.Run, source: Folder, counterpart: Folder | None, reference: Folder
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Metrics, and a row per image, of the saved PNGs."""
    from eval.evaluate import Protocol, evaluate

    node = cfg.task.protocol
    protocol = Protocol(node.name, node.size, node.resize, results.ROOT / node.judge)
    metrics, values = evaluate(run.images, source.path, reference.path, counterpart and counterpart.path, protocol)
    seconds = {i: batch["seconds"] / len(batch["ids"]) for batch in run.batches() for i in batch["ids"]}
    return metrics, [{"id": i, **values[i], "seconds": seconds.get(i, "")} for i in source.ids]


def main() -> None:
    """Do what the command line asks for, and print the tables that it changed."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra's errors reach us instead of its printer
    with cli.telling_mistakes(CONFIG):
        run_cell()
        for task_folder, digests in SHOWN.items():
            from eval.report import print_tables

            print_tables(task_folder, digests)


if __name__ == "__main__":
    main()
