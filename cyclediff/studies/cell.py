"""What a cell of the configuration asks for: checked, its images prepared, and its identity."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cyclediff.cli import errors as cli
from cyclediff.data.assets import locate
from cyclediff.data.edit_lists import prepare_edits, read_edit_list
from cyclediff.data.folders import PETS, Expected, Sources, check_dataset, prepare_pets, prepare_photos, raw_folder
from cyclediff.errors import UserError
from cyclediff.pets.folders import prepare_pet_edits
from cyclediff.studies.requirements import method_files
from cyclediff.studies.selection import Grid

RANKING = ("dclip", "clip", "psnr", "ssim")  # scores by which a candidate can win


def check(cfg: DictConfig, config_dir: str) -> None:
    """Insist on settings that make sense together."""
    if cfg.task.editing != cfg.protocol.editing:
        fitting = "pets_edit, zero_shot or pie_bench" if cfg.task.editing else "pets, cyclediffusion or egsde"
        raise UserError(
            f"task {cfg.task.name} is not scored by protocol {cfg.protocol.name}; choose protocol={fitting}"
        )
    methods = method_files(config_dir)
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
    cli.check_number(cfg, "batch_size", 1, "auto")
    cli.check_number(cfg, "seed", 0)
    if cfg.task.editing and cfg.compile_mode:
        raise UserError("compile_mode is for networks on pixels, and text-to-image models have none; leave it out")
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
    dtypes = {part: node.dtype for part, node in nodes.items() if "dtype" in node}
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
        "dtype": dtypes,
    } | ({"tier": cfg.tier, "selection": selection_record(cfg)} if cfg.task.editing else {})


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
