"""Which files a cell of a table needs, and which methods could run with those that are here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cyclediff.data.assets import Asset, locate, missing_screen
from cyclediff.data.folders import PETS
from cyclediff.errors import UserError

PETS_HINT = "python run.py{}   (the embedded world: all of this without any download)"


@dataclass(frozen=True)
class MethodFile:
    """What conf/method says of a method before it is built.

    Args:
        models: the networks of an unpaired task that it needs: source, target, extractor.
        edits: whether it can follow a text.
        controls: whether it controls attention, and so can do nothing else.
    """

    models: frozenset[str]
    edits: bool
    controls: bool


def method_files(config_dir: str) -> dict[str, MethodFile]:
    """Every method by its name."""
    found = {}
    for path in sorted(Path(config_dir, "method").glob("*.yaml")):
        node: Any = OmegaConf.load(path)
        found[path.stem] = MethodFile(frozenset(node.models), "attention" in node, bool(node.get("attention")))
    return found


def editing_weights(cfg: DictConfig, assets: dict[str, Asset]) -> dict[str, Path]:
    """The text-to-image model and the CLIP of an editing cell; insists that the data are here.

    Raises:
        UserError: a screen about what is missing.
    """
    source = locate(cfg.data.source)
    if cfg.data.source != PETS and cfg.data.source == cfg.task.source and not source.exists():
        raise UserError(missing_screen(cfg.task.name, [source], assets, PETS_HINT.format(" experiment=pets_edit")))
    return {part: locate(node.path) for part, node in {"model": cfg.task.model, "clip": cfg.protocol.clip}.items()}


def unpaired_weights(cfg: DictConfig, assets: dict[str, Asset], config_dir: str) -> dict[str, Path]:
    """The files of weights of an unpaired cell by their part; insists that they and the data are here.

    Raises:
        UserError: if no network is known, or a screen about what is missing.
    """
    nodes = {"source": cfg.task.source_model, "target": cfg.task.target_model, "extractor": cfg.task.extractor}
    if cfg.protocol.features and cfg.data.reference:
        nodes["features"] = cfg.protocol.features
    paths = {part: locate(node.path) for part, node in nodes.items() if node.path}
    own = [folder for part in ("source", "reference") if (folder := cfg.data[part]) == cfg.task[part]]
    folders = [locate(folder) for folder in own if folder != PETS]
    methods = method_files(config_dir)
    others = {name: method.models for name, method in methods.items() if not method.controls}
    needed = methods[cfg.method.name].models
    if needed - paths.keys():
        possible = ", ".join(name for name, parts in others.items() if not parts - paths.keys())
        raise UserError(
            f"{cfg.method.name} needs a {min(needed - paths.keys())} model, and none is known for {cfg.task.name}; "
            f"choose method={possible}, or name one: model@task.source_model=diffusers task.source_model.path=FOLDER"
        )
    mine = {part: path for part, path in paths.items() if part in needed | {"features"}}
    hub = {part for part in mine if str(nodes[part].get("_target_")).endswith("load_diffusers")}
    if any(not path.exists() for path in [*folders, *(path for part, path in mine.items() if part not in hub)]):
        here = {part for part, path in paths.items() if path.exists()}
        ready = [name for name, parts in others.items() if parts | {"features"} <= here]
        hint = PETS_HINT.format("")
        if ready and all(folder.exists() for folder in folders):
            hint = f"python run.py experiment={cfg.task.name} method={','.join(ready)}   (their files are here)"
        raise UserError(missing_screen(cfg.task.name, [*paths.values(), *folders], assets, hint))
    return mine
