"""One run is one cell of a table: translate the sources with one method, score what was saved, refresh the table.

`python run.py` runs the embedded experiment; `python run.py --help` lists what can be set.
"""

import os
import re
import resource
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from cyclediff import cli, results
from cyclediff.assets import catalogue, fingerprint, locate, missing_screen
from cyclediff.data import PETS, Expected, Sources, check_dataset, prepare_pets, prepare_photos, raw_folder
from cyclediff.errors import UserError

CONFIG = str(results.ROOT / "conf")
ASSETS = catalogue(results.ROOT / "conf")
SHOWN: dict[Path, list[str]] = {}  # task folder → digests of the data that this process's cells ran on


@hydra.main(version_base=None, config_path=CONFIG, config_name="config")
def run_cell(cfg: DictConfig) -> None:
    """Make one cell; a mistake ends the program here, before Hydra can wrap it."""
    with cli.telling_mistakes(CONFIG):
        make_cell(cfg)


def make_cell(cfg: DictConfig) -> None:
    """Translate and score what is not yet done of one cell, and refresh its task's table."""
    check(cfg)
    weights = find_weights(cfg)
    task_folder = Path(cfg.paths.outputs) / cfg.task.name
    sources = prepare(cfg, task_folder / "data")
    run = results.Run(task_folder, identity(cfg, sources))
    overrides = HydraConfig.get().overrides.task
    record = results.provenance() | {
        "embedded": cfg.task.embedded,
        "checkpoints": {name: fingerprint(path, ASSETS) for name, path in weights.items()},
        "data": sources.record(),
        "published_settings": not any(re.match(r"\+*(method\.|task\.|steps|protocol\.|model@)", o) for o in overrides),
    }
    if not run.is_finished(record, cfg.allow_code_change):
        method = make_method(cfg, weights)
        run.start(OmegaConf.to_yaml(cfg, resolve=True), record)
        costs = translate(cfg, method, run, sources, weights)
        run.finish(*score(cfg, run, sources, weights), costs)
    results.write_json(OmegaConf.to_container(cfg.paper), task_folder / "paper.json")

    from eval.report import write_tables

    write_tables(task_folder)
    SHOWN.setdefault(task_folder, []).append(sources.source.digest)


def check(cfg: DictConfig) -> None:
    """Insist on settings that make sense together."""
    if cfg.task.embedded != (cfg.protocol.judge is not None):
        fitting = "protocol=pets" if cfg.task.embedded else "protocol=cyclediffusion or protocol=egsde"
        raise UserError(f"task {cfg.task.name} is not scored by protocol {cfg.protocol.name}; choose {fitting}")
    for key, least in {"batch_size": 1, "seed": 0}.items():
        cli.check_number(cfg, key, least)
    if cfg.task.embedded:
        cli.check_number(cfg, "task.reference_count", 2)
    if cfg.data.limit is not None or cfg.data.source == PETS:
        cli.check_number(cfg, "data.limit", 1)


def find_weights(cfg: DictConfig) -> dict[str, Path]:
    """The files of weights that this cell needs, by their part; insists that they and the data are here."""
    nodes = {"source": cfg.task.source_model, "target": cfg.task.target_model, "extractor": cfg.task.extractor}
    if cfg.protocol.features and cfg.data.reference:
        nodes["features"] = cfg.protocol.features
    paths = {part: locate(node.path) for part, node in nodes.items() if node.path}
    own = [folder for part in ("source", "reference") if (folder := cfg.data[part]) == cfg.task[part]]
    folders = [locate(folder) for folder in own if folder != PETS]
    uses = {method: needs(method) for method in sorted(Path(CONFIG, "method").glob("*.yaml"))}
    mine = uses[Path(CONFIG, "method", f"{cfg.method.name}.yaml")]
    if mine - paths.keys():
        others = ", ".join(method.stem for method, parts in uses.items() if not parts - paths.keys())
        raise UserError(
            f"{cfg.method.name} needs a {min(mine - paths.keys())} model, and none is known for {cfg.task.name}; "
            f"choose method={others}, or name one: model@task.source_model=diffusers task.source_model.path=FOLDER"
        )
    mine = {part: path for part, path in paths.items() if part in mine | {"features"}}
    hub = {part for part in mine if str(nodes[part].get("_target_")).endswith("load_diffusers")}
    if any(not path.exists() for path in [*folders, *(path for part, path in mine.items() if part not in hub)]):
        every = [*paths.values(), *folders]
        here = {part for part, path in paths.items() if path.exists()}
        ready = [method.stem for method, parts in uses.items() if parts | {"features"} <= here]
        hint = "python run.py   (the embedded world: all of this without any download)"
        if ready and all(folder.exists() for folder in folders):
            hint = f"python run.py experiment={cfg.task.name} method={','.join(ready)}   (their files are here)"
        raise UserError(missing_screen(cfg.task.name, every, ASSETS, hint))
    return mine


def needs(method: Path) -> set[str]:
    """Which models a method needs, from its file."""
    node = OmegaConf.load(method)
    return set(node.models)


def prepare(cfg: DictConfig, cache: Path) -> Sources:
    """Source, true translations (embedded sources have them) and reference, as folders of images."""
    task, data, protocol = cfg.task, cfg.data, cfg.protocol
    limit: Any = data.limit
    counterpart = reference = dataset = None
    names = {}
    if not task.embedded and data.check:
        node, splits = task.dataset, (task.dataset.source_split, task.dataset.reference_split)
        domains = (task.source_domain, task.target_domain)
        for part, split, domain in zip(("source", "reference"), splits, domains, strict=True):
            if data[part] == task[part]:
                count = node.counts.get(split, {}).get(domain)
                check_dataset(locate(data[part]), Expected(node.name, node.suffix, node.size, count))
                names[part] = f"{node.name}-{split}-{domain}"
        dataset = node.name if len(names) == 2 and data.limit is None else None
    if data.source == PETS:
        species = (task.source_domain, task.target_domain)
        source, counterpart = (prepare_pets(kind, "source", limit, protocol.size, cache) for kind in species)
    else:
        source = prepare_photos(locate(data.source), limit, protocol.size, protocol.resize, cache)
        source = source.named(names.get("source"))
    if data.reference == PETS:
        reference = prepare_pets(task.target_domain, "reference", task.reference_count, protocol.size, cache)
    elif data.reference and protocol.reference_resize:
        reference = prepare_photos(locate(data.reference), None, protocol.size, protocol.resize, cache)
        reference = reference.named(names.get("reference"), f"@{protocol.size}")
    elif data.reference:
        reference = raw_folder(locate(data.reference)).named(names.get("reference"), "@raw")
    return Sources(source, counterpart, reference, dataset)


def identity(cfg: DictConfig, sources: Sources) -> dict[str, Any]:
    """All that decides a run's images and numbers."""
    method: Any = OmegaConf.to_container(cfg.method, resolve=True)
    nodes = {part: cfg.task[part if part == "extractor" else f"{part}_model"] for part in method["models"]}
    return {
        "task": cfg.task.name,
        "protocol": cfg.protocol.name,
        "method": {key: value for key, value in method.items() if key not in ("_target_", "models", "extractor")},
        "models": {part: Path(node.path).stem for part, node in nodes.items()},
        "seed": cfg.seed,
        "data": {
            "digest": sources.source.digest,
            "n": len(sources.source.ids),
            "reference": sources.reference and sources.reference.digest,
        },
    }


def make_method(cfg: DictConfig, weights: dict[str, Path]) -> Any:
    """The method with its settings checked and its own network loaded."""
    from cyclediff.translate import pick_device

    settings: Any = OmegaConf.to_container(cfg.method, resolve=True)
    settings.pop("models")
    method = hydra.utils.get_class(settings.pop("_target_"))
    if "extractor" in weights:
        settings["extractor"] = hydra.utils.instantiate(
            cfg.task.extractor, path=str(weights["extractor"]), device=str(pick_device(cfg.device))
        )
    return cli.build(method, settings)


def translate(
    cfg: DictConfig, method: Any, run: results.Run, sources: Sources, weights: dict[str, Path]
) -> dict[str, Any]:
    """Translate the sources; returns what it cost, and where."""
    from cyclediff.models.checkpoint import carries_mark
    from cyclediff.translate import pick_device, summarise, translate

    device = pick_device(cfg.device)
    models = {
        side: hydra.utils.instantiate(cfg.task[f"{side}_model"], path=str(weights[side]), device=str(device))
        for side in ("source", "target")
        if side in weights
    }
    noise_device = pick_device(cfg.noise.device or str(device))
    translate(method, models, sources.source, run, cfg.seed, cfg.batch_size, device, noise_device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    costs = summarise(run, len(sources.source.ids))
    random = [part for part, path in weights.items() if part != "features" and carries_mark(path)]
    return {"device": str(device), "world_size": 1, **costs, "peak_memory_mib": round(peak), "random_weights": random}


def score(
    cfg: DictConfig, run: results.Run, sources: Sources, weights: dict[str, Path]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Metrics, and a row per image, of the saved PNGs."""
    from cyclediff.translate import pick_device
    from eval.evaluate import Protocol, evaluate

    node = cfg.protocol
    reference, counterpart = sources.reference, sources.counterpart
    with cli.values_are_mistakes():
        features = None
        if reference and "features" in weights:
            device = str(pick_device(cfg.device))
            features = hydra.utils.instantiate(node.features, path=str(weights["features"]), device=device)
        judge = node.judge and results.ROOT / node.judge
        protocol = Protocol(node.name, node.size, node.resize, features, reference.name if reference else "", judge)
        metrics, values = evaluate(
            run.images,
            sources.source.path,
            reference and reference.path,
            counterpart and counterpart.path,
            protocol,
            run.path.parent / "data",
        )
    seconds = {i: batch["seconds"] / len(batch["ids"]) for batch in run.batches() for i in batch["ids"]}
    return metrics, [{"id": i, **values[i], "seconds": seconds.get(i, "")} for i in sources.source.ids]


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
