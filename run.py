"""One run is one cell of a table: translate the sources with one method, score what was saved, refresh the table.

`python run.py` runs the embedded experiment; `python run.py --help` lists what can be set.
"""

import os
import re
import resource
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from cyclediff import cli, results
from cyclediff.assets import catalogue, fingerprint, locate
from cyclediff.data import PETS, Expected, Sources, check_dataset, prepare_pets, prepare_photos, raw_folder
from cyclediff.edits import prepare_edits, prepare_pet_edits, read_edit_list, read_prompts
from cyclediff.errors import UserError
from cyclediff.needs import editing_weights, method_files, unpaired_weights
from cyclediff.selection import Grid

CONFIG = str(results.ROOT / "conf")
ASSETS = catalogue(results.ROOT / "conf")
CHANGES = r"\+*(method\.|task\.|steps|timesteps|selection|protocol\.|model@)"  # overrides of published settings
RANKING = ("dclip", "clip", "psnr", "ssim")  # scores by which a candidate can win
SHOWN: dict[Path, list[str]] = {}  # task folder → digests of the data that this process's cells ran on


@hydra.main(version_base=None, config_path=CONFIG, config_name="config")
def run_cell(cfg: DictConfig) -> None:
    """Make one cell; a mistake ends the program here, before Hydra can wrap it."""
    with cli.telling_mistakes(CONFIG):
        make_cell(cfg)


def make_cell(cfg: DictConfig) -> None:
    """Translate and score what is not yet done of one cell, and refresh its task's table."""
    check(cfg)
    weights = editing_weights(cfg, ASSETS) if cfg.task.editing else unpaired_weights(cfg, ASSETS, CONFIG)
    task_folder = Path(cfg.paths.outputs) / cfg.task.name
    sources = prepare(cfg, task_folder / "data")
    run = results.Run(task_folder, identity(cfg, sources))
    overrides = HydraConfig.get().overrides.task
    record = results.provenance() | {
        "embedded": cfg.task.embedded,
        "checkpoints": {name: fingerprint(path, ASSETS) for name, path in weights.items()},
        "data": sources.record(),
        "published_settings": not any(re.match(CHANGES, o) for o in overrides),
    }
    if cfg.task.editing:
        record |= {"tier": cfg.tier, "selection": selection_record(cfg)}
    if not run.is_finished(record, cfg.allow_code_change):
        method = make_method(cfg, weights)
        work = edit if cfg.task.editing else translate
        start = partial(run.start, OmegaConf.to_yaml(cfg, resolve=True), record)
        costs = work(cfg, method, run, sources, weights, start)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
        costs |= {"world_size": 1, "peak_memory_mib": round(peak)}
        run.finish(*score(cfg, run, sources, weights), costs)
    results.write_json(OmegaConf.to_container(cfg.paper), task_folder / "paper.json")

    from eval.report import write_tables

    write_tables(task_folder)
    SHOWN.setdefault(task_folder, []).append(sources.source.digest)


def check(cfg: DictConfig) -> None:
    """Insist on settings that make sense together."""
    if cfg.task.editing != cfg.protocol.editing:
        fitting = "pets_edit, zero_shot or pie_bench" if cfg.task.editing else "pets, cyclediffusion or egsde"
        raise UserError(
            f"task {cfg.task.name} is not scored by protocol {cfg.protocol.name}; choose protocol={fitting}"
        )
    methods = method_files(CONFIG)
    if cfg.task.editing and not methods[cfg.method.name].edits:
        able = ", ".join(name for name, method in methods.items() if method.edits)
        raise UserError(f"{cfg.method.name} cannot follow a text; choose method={able}")
    if not cfg.task.editing and methods[cfg.method.name].controls:
        raise UserError(
            f"{cfg.method.name} controls attention and needs a text-to-image model; choose an editing experiment "
            "(pets_edit, zero_shot_sd14), or the method without _cac"
        )
    if cfg.task.editing and not cfg.selection:
        raise UserError(
            f"task {cfg.task.name} needs to know its candidates; choose tier=single, quick, paper, few or pets"
        )
    if cfg.task.editing and cfg.selection.metric not in RANKING:
        raise UserError(f"selection.metric must be one of {', '.join(RANKING)}; got {cfg.selection.metric}")
    if cfg.task.embedded != (cfg.protocol.judge is not None):
        fitting = "protocol=pets" if cfg.task.embedded else "protocol=cyclediffusion or protocol=egsde"
        raise UserError(f"task {cfg.task.name} is not scored by protocol {cfg.protocol.name}; choose {fitting}")
    for key, least in {"batch_size": 1, "seed": 0}.items():
        cli.check_number(cfg, key, least)
    if cfg.task.embedded and not cfg.task.editing:
        cli.check_number(cfg, "task.reference_count", 2)
    if cfg.data.limit is not None or cfg.data.source == PETS:
        cli.check_number(cfg, "data.limit", 1)


def prepare(cfg: DictConfig, cache: Path) -> Sources:
    """Source, true translations (embedded sources have them) and reference, as folders of images."""
    task, data, protocol = cfg.task, cfg.data, cfg.protocol
    limit: Any = data.limit
    if task.editing and data.source == PETS:
        return Sources(*prepare_pet_edits(limit, protocol.size, cache), None, None)
    if task.editing:
        edits = read_edit_list(locate(data.source))
        source = prepare_edits(edits, limit, protocol.size, protocol.resize, cache)
        whole = edits.name if limit is None and not edits.missing and data.source == task.source else None
        return Sources(source, None, None, whole, missing=edits.missing, found=len(edits.found))
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
    if cfg.task.editing:
        nodes = {"model": cfg.task.model}
    else:
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
    } | (
        {"tier": cfg.tier, "selection": selection_record(cfg), "dtype": cfg.task.model.dtype}
        if cfg.task.editing
        else {}
    )


def grid_of(cfg: DictConfig) -> Grid:
    """The candidates of an image; a method without noise or without a starting level has fewer of them."""
    selection: Any = OmegaConf.to_container(cfg.selection, resolve=True)
    T = int(cfg.method.get("T", cfg.method.get("timesteps")))
    grid = {key: tuple(values) for key, values in selection["grid"].items()}
    if max(grid["skip"]) >= T:
        given = max(grid["skip"])
        raise UserError(f"selection.grid.skip must be less than the {T} timesteps of {cfg.method.name}; got {given}")
    if "T" not in cfg.method:  # DDIB
        return Grid(1, grid["source_guidance"], (0,), grid["guidance"])
    return Grid(selection["trials"], **grid)


def selection_record(cfg: DictConfig) -> dict[str, Any]:
    """How candidates are made and chosen, for the record: what was asked for, and what the method has of it."""
    with cli.values_are_mistakes():
        grid = grid_of(cfg)
    asked: Any = OmegaConf.to_container(cfg.selection, resolve=True)
    return {"candidates": len(grid.candidates()), "metric": cfg.selection.metric, "asked": asked}


def make_method(cfg: DictConfig, weights: dict[str, Path]) -> Any:
    """The method with its settings checked and its own network loaded."""
    from cyclediff.translate import pick_device

    settings: Any = OmegaConf.to_container(cfg.method, resolve=True)
    settings.pop("models")
    method = hydra.utils.get_class(settings.pop("_target_"))
    if settings.get("attention"):
        from cyclediff.attention_control import AttentionControl

        settings["attention"] = cli.build(AttentionControl, settings["attention"])
    if "extractor" in weights:
        settings["extractor"] = hydra.utils.instantiate(
            cfg.task.extractor, path=str(weights["extractor"]), device=str(pick_device(cfg.device))
        )
    return cli.build(method, settings)


def translate(
    cfg: DictConfig,
    method: Any,
    run: results.Run,
    sources: Sources,
    weights: dict[str, Path],
    start: Callable[[], None],
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
    start()
    translate(method, models, sources.source, run, cfg.seed, cfg.batch_size, device, noise_device)
    random = [part for part, path in weights.items() if part != "features" and carries_mark(path)]
    return {"random_weights": random, "device": str(device), **summarise(run, len(sources.source.ids))}


def edit(
    cfg: DictConfig,
    method: Any,
    run: results.Run,
    sources: Sources,
    weights: dict[str, Path],
    start: Callable[[], None],
) -> dict[str, Any]:
    """Edit the sources as their texts say; returns what it cost, and where."""
    from cyclediff.candidates import count_rows
    from cyclediff.editing import Selection, edit_images, seconds_per_row
    from cyclediff.models.checkpoint import carries_mark
    from cyclediff.translate import pick_device, summarise
    from eval.candidates import candidate_scores

    device = pick_device(cfg.device)
    noise_device = pick_device(cfg.noise.device or str(device))
    model = hydra.utils.instantiate(cfg.task.model, path=str(weights["model"]), device=str(device))
    grid, shared, texts = grid_of(cfg), bool(cfg.selection.shared_path), read_prompts(sources.source)
    with cli.values_are_mistakes():  # also for one candidate: CLIP's weights are missed before the slow part
        scorer = hydra.utils.instantiate(cfg.protocol.clip, path=clip_path(cfg, weights), device=str(device))
    selection = Selection(grid, cfg.selection.metric, candidate_scores(scorer, sources.source.path, device), shared)
    missing = len(run.missing(sources.source.ids))
    rows = count_rows(method, grid, cfg.batch_size, shared)
    hours = missing and missing * rows * seconds_per_row(model, min(rows, 3 * cfg.batch_size), device) / 3600
    told = (
        f"{cfg.method.name}: {len(grid.candidates())} candidates, {rows} network rows an image, {missing} images to do"
    )
    print(f"{told}: about {f'{hours:.1f} hours' if hours >= 1 else f'{60 * hours:.1f} minutes'} on this {device.type}")
    if hours > cfg.confirm_above and not cfg.confirm:
        raise UserError(
            f"{cfg.method.name} would take about {hours:.1f} hours, more than confirm_above={cfg.confirm_above}; start "
            "it with confirm=true, or choose a smaller tier (tier=quick, tier=single)"
        )
    start()
    edit_images(method, model, sources.source, texts, selection, run, cfg.seed, cfg.batch_size, device, noise_device)
    run.write_candidates()
    random = ["model"] if carries_mark(weights["model"]) else []
    costs = summarise(run, len(sources.source.ids)) | {"network_rows_per_image": rows}
    return {"random_weights": random, "device": str(device), **costs}


def clip_path(cfg: DictConfig, weights: dict[str, Path]) -> str:
    """A local file or folder of CLIP, or the name that open_clip knows."""
    return str(weights["clip"]) if weights["clip"].exists() else cfg.protocol.clip.path


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
        clip = None
        if node.clip:
            clip = hydra.utils.instantiate(node.clip, path=clip_path(cfg, weights), device=str(pick_device(cfg.device)))
        judge = node.judge and results.ROOT / node.judge
        protocol = Protocol(
            node.name, node.size, node.resize, features, reference.name if reference else "", judge, clip
        )
        metrics, values = evaluate(
            run.images,
            sources.source.path,
            reference and reference.path,
            counterpart and counterpart.path,
            protocol,
            run.path.parent / "data",
        )
    seconds = {i: batch["seconds"] / len(batch["ids"]) for batch in run.batches() for i in batch["ids"]}
    candidates = run.candidates()
    for key, entry in metrics.items():
        scores = [row[key] for row in candidates if key in row]
        if scores:
            entry["unselected"] = sum(scores) / len(scores)
    settings = ("trial", "source_guidance", "skip", "guidance")
    chosen = {row["id"]: {key: row[key] for key in settings} for row in candidates if row["chosen"]}
    rows = [{"id": i, **values[i], **chosen.get(i, {}), "seconds": seconds.get(i, "")} for i in sources.source.ids]
    return metrics, rows


def main() -> None:
    """Do what the command line asks for, and print the tables that it changed."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra's errors reach us instead of its printer
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    with cli.telling_mistakes(CONFIG):
        run_cell()
        for task_folder, digests in SHOWN.items():
            from eval.report import print_tables

            print_tables(task_folder, digests)


if __name__ == "__main__":
    main()
