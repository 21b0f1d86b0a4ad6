"""Which weights and data a run needs, whether they are here, and which methods could run with those that are."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cyclediff.data.assets import Asset, fingerprint, locate, missing_screen
from cyclediff.data.hub import commit_of
from cyclediff.errors import UserError
from cyclediff.pets.folders import PETS
from cyclediff.pets.styles import STYLES

NOISE = "noise"  # as a data source: samples start from it
NO_FOLDER = (PETS, STYLES, NOISE)  # data that is made
HUB_LOADERS = ("load_diffusers", "load_text_to_image")  # loaders that also take the id of a repository of the hub
HUB = "hf-hub:"  # before such an id, for load_vit and CLIPs
OPENAI = "openai"  # as the path of a CLIP: the hub's copy of OpenAI's
SIZES = {"B": "base", "L": "large"}  # letters of OpenAI's ViT-B-32 and ViT-L-14 → the hub's names


@dataclass(frozen=True)
class MethodFile:
    """What a file of conf/method says of a method before it is built.

    Args:
        needs: the networks that it evaluates.
        conditions: of the model, under which it works: none, text, image.
    """

    needs: frozenset[str]
    conditions: frozenset[str]


@dataclass(frozen=True)
class Weights:
    """Where a network's weights are.

    Args:
        path: a file or folder or, with a commit, the id of a repository of the Hugging Face hub.
        commit: of that repository; None for files and folders.
    """

    path: Path
    commit: str | None = None


def method_files(config_dirs: Sequence[str]) -> dict[str, MethodFile]:
    """Every method that some folders of configuration name; the first folder counts where two name one."""
    found: dict[str, MethodFile] = {}
    for path in (path for folder in config_dirs for path in sorted(Path(folder, "method").glob("*.yaml"))):
        node: Any = OmegaConf.load(path)
        if "needs" in node and "conditions" in node:
            found.setdefault(path.stem, MethodFile(frozenset(node.needs), frozenset(node.conditions)))
    return found


def declared(cfg: DictConfig) -> MethodFile:
    """What the chosen method's file declares.

    Raises:
        UserError: if it declares nothing.
    """
    for key, example in (("needs", "[source, target]"), ("conditions", "[none]")):
        if key not in cfg.method:
            raise UserError(
                f"conf/method/{cfg.method.name}.yaml does not say {key}; add the class's own, for example "
                f"{key}: {example}"
            )
    return MethodFile(frozenset(cfg.method.needs), frozenset(cfg.method.conditions))


def require_condition(cfg: DictConfig, condition: str, config_dirs: Sequence[str], otherwise: str) -> None:
    """Require that the method works under a condition of the model.

    Raises:
        UserError: if it does not; the sentence names methods that do.
    """
    if condition not in declared(cfg).conditions:
        able = [name for name, file in method_files(config_dirs).items() if condition in file.conditions]
        raise UserError(f"{cfg.method.name} {otherwise}; choose method={', '.join(able)}")


def require_items(cfg: DictConfig, items: Sequence[str], study: str) -> None:
    """Require that task and protocol are of the items that a study works on.

    Raises:
        UserError: if one is not.
    """
    if not list(cfg.task.inputs):
        raise UserError(f"study={study} works on images, and task {cfg.task.name} has none; choose study=guide")
    if list(cfg.task.inputs) != list(items):
        other = "edit" if "texts" in cfg.task.inputs else "translate"
        raise UserError(
            f"study={study} works on items with {' and '.join(items)}, and those of task {cfg.task.name} have "
            f"{' and '.join(cfg.task.inputs)}; choose study={other}, or another task"
        )
    if list(cfg.protocol.inputs) != list(items) or cfg.task.synthetic != (cfg.protocol.judge is not None):
        fitting = {
            ("image", True): "pets",
            ("image", False): "cyclediffusion or egsde",
            ("texts", True): "pets_edit",
            ("texts", False): "zero_shot, pie_bench or emu_edit",
        }[items[-1], cfg.task.synthetic]
        raise UserError(f"protocol {cfg.protocol.name} does not score task {cfg.task.name}; choose protocol={fitting}")


def find_weights(nodes: Mapping[str, Any]) -> dict[str, Weights]:
    """Where the weights of some networks are, by their part; ids of the hub with their commit.

    Args:
        nodes: the networks' configuration; those without a path are left out.

    Raises:
        UserError: if there is no such file, folder or repository.
    """
    found = {}
    for part, node in nodes.items():
        path = locate(node.path) if node.path else None
        if path is not None and path.exists():
            found[part] = Weights(path)
        elif path is not None and (repository := repository_of(node)):
            found[part] = Weights(Path(node.path), commit_of(repository))
        if config := node.get("config"):  # where the configurations and tokenizers of a single file are
            here = locate(config).exists()
            found[f"{part}'s config"] = Weights(locate(config)) if here else Weights(Path(config), commit_of(config))
        if lora := node.get("lora"):
            found[f"{part}'s lora"] = Weights(_lora_file(lora))
    return found


def _lora_file(lora: str) -> Path:
    if not locate(lora).is_file():
        raise UserError(f"{lora} is not there; task.model.lora names the .safetensors file of a LoRA")
    return locate(lora)


def repository_of(node: Any) -> str | None:
    """The id of the hub's repository that a network's path may name, if it is no file or folder here."""
    path, loader = str(node.path), str(node.get("_target_"))
    if path == OPENAI and loader.endswith("open_clip_scorer"):
        _, size, patch, *_ = node.model.split("-")
        return f"timm/vit_{SIZES[size]}_patch{patch}_clip_224.openai"
    if loader.endswith(("load_vit", "open_clip_scorer")):
        return path.removeprefix(HUB) if path.startswith(HUB) else None
    return path if loader.endswith(HUB_LOADERS) else None


def fingerprints(weights: Mapping[str, Weights], assets: dict[str, Asset], cache: Path) -> dict[str, str]:
    """What identifies weights, by their part: a sha256, or a repository and its commit."""
    return {
        part: f"{w.path}@{w.commit}" if w.commit else fingerprint(w.path, assets, cache) for part, w in weights.items()
    }


def require_network_nodes(
    cfg: DictConfig, nodes: Mapping[str, Any], needed: Iterable[str], config_dirs: Sequence[str], condition: str
) -> None:
    """Require that the task names a network for each part that the method needs.

    Raises:
        UserError: if it names none; the sentence says which methods could run.
    """
    named = {part for part, node in nodes.items() if node.path}
    lacking = sorted(set(needed) - named)
    if lacking:
        able = [
            name
            for name, file in method_files(config_dirs).items()
            if condition in file.conditions and file.needs <= named
        ]
        way = "name one: model@task.source_model=diffusers task.source_model.path=FOLDER"
        if "training" in cfg.method:
            way = f"train one: python run.py hydra.mode=RUN study=train method={cfg.method.name} task={cfg.task.name}"
        choice = f"choose method={', '.join(able)}, or " if able else ""
        raise UserError(
            f"{cfg.method.name} needs a {lacking[0]} model, and none is known for {cfg.task.name}; {choice}{way}"
        )


def require_files(
    cfg: DictConfig, nodes: Mapping[str, Any], parts: Iterable[str], assets: dict[str, Asset],
    config_dirs: Sequence[str], instead: str,
) -> None:  # fmt: skip
    """Require that weights and data are here.

    Args:
        cfg: of the run.
        nodes: configuration of all networks of the task and its protocol.
        parts: those that this run loads.
        assets: the catalogue.
        config_dirs: folders of configuration.
        instead: a command that needs no download.

    Raises:
        UserError: a screen about what is missing.
    """
    paths = {part: locate(node.path) for part, node in nodes.items() if node.path}
    own = [folder for part in ("source", "reference") if (folder := cfg.data[part]) == cfg.task[part]]
    folders = [locate(folder) for folder in own if folder and folder not in NO_FOLDER]
    hub = {part for part in paths if repository_of(nodes[part])}
    used = [paths[part] for part in parts if part in paths and part not in hub]
    if all(path.exists() for path in [*folders, *used]):
        return
    here = {part for part, path in paths.items() if path.exists()} | hub
    compared = _compared(cfg.task.name, config_dirs)
    able = [name for name, file in method_files(config_dirs).items() if name in compared and file.needs <= here]
    hint = f"{instead}   (pets, the synthetic benchmark: all of this without a download)"
    if able and {"features"} & paths.keys() <= here and all(folder.exists() for folder in folders):
        hint = f"python run.py experiment={cfg.task.name} method={','.join(able)}   (their files are here)"
    shown = [path for part, path in paths.items() if part not in hub]
    raise UserError(missing_screen(cfg.task.name, [*shown, *folders], assets, hint))


def _compared(experiment: str, config_dirs: Sequence[str]) -> Sequence[str]:
    """The methods of an experiment; none without such a file."""
    for folder in config_dirs:
        file = Path(folder, "experiment", f"{experiment}.yaml")
        if file.exists():
            return str(OmegaConf.select(OmegaConf.load(file), "hydra.sweeper.params.method", default="")).split(",")
    return ()
