"""What every study gets: the configuration, and where things are."""

import importlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from cyclediff.data.assets import Asset, catalogue, locate
from cyclediff.data.images import read_mask
from cyclediff.errors import UserError
from cyclediff.runtime import distributed
from cyclediff.runtime.settings import build, user_errors


@dataclass(frozen=True)
class Context:
    """The surroundings of a run.

    Args:
        cfg: its configuration.
        config_dirs: folders of configuration, the user's own first.
        project: this project's folder of configuration.
    """

    cfg: DictConfig
    config_dirs: tuple[str, ...]
    project: str

    @cached_property
    def assets(self) -> dict[str, Asset]:
        """The catalogue of known files."""
        return catalogue(Path(self.project))

    @property
    def task_folder(self) -> Path:
        """Where the task's runs are."""
        return Path(self.cfg.paths.outputs) / self.cfg.task.name

    @property
    def prepared(self) -> Path:
        """Where prepared images are kept."""
        return self.task_folder / "data"

    @property
    def cache(self) -> Path:
        """What is kept between runs of all tasks."""
        return Path(self.cfg.paths.cache).expanduser()


def build_method(cfg: DictConfig, guidance: dict[str, Any]) -> Any:
    """The method with its settings checked; a setting `mask` names a picture, see `read_mask`.

    Args:
        cfg: of the run.
        guidance: the guidance networks that it needs, by their part.

    Raises:
        UserError: if there is no such class, a setting is wrong, or the class declares something else than its file.
    """
    settings: Any = OmegaConf.to_container(cfg.method, resolve=True)
    cls = get_class(settings.pop("_target_"))
    declared = {key: frozenset(settings.pop(key)) for key in ("needs", "conditions", "given") if key in settings}
    for key, value in settings.items():
        if isinstance(value, dict) and "_target_" in value:
            settings[key] = build(get_class(value.pop("_target_")), value)
    if settings.get("mask") is not None:
        settings["mask"] = read_mask(locate(settings["mask"]), cfg.protocol.size)
    method = build(cls, settings | guidance)
    for key, value in declared.items():
        if getattr(method, key) != value:
            raise UserError(
                f"conf/method/{cfg.method.name}.yaml says {key}: [{', '.join(sorted(value))}], and {cls.__name__} "
                f"declares [{', '.join(sorted(getattr(method, key)))}]; write what the class declares"
            )
    return method


def get_class(name: str) -> type:
    """A class by its full name.

    Raises:
        UserError: if it cannot be imported.
    """
    module, _, cls = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), cls)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{name} cannot be imported ({error}); check _target_ and PYTHONPATH") from error


def require_image_size(model: Any, size: int, what: str, setting: str) -> None:
    """Require that a model can work on images of a size; say where it was trained on another one.

    Args:
        model: with `size` and `multiple`.
        size: height and width.
        what: the model, for people.
        setting: which states the size, for people.

    Raises:
        UserError: if the size is no multiple of what the network or the codec halves.
    """
    if size % model.multiple:
        below = size // model.multiple * model.multiple
        nearby = " or ".join(str(number) for number in (below, below + model.multiple) if number)
        raise UserError(
            f"{what} works on images whose sides are multiples of {model.multiple}; got {setting}={size}, choose "
            f"{nearby}"
        )
    if size != model.size and distributed.is_first():
        print(f"note: {what} was trained on images of {model.size} pixels, and {setting}={size}")


def load_network(node: Any, **settings: Any) -> Any:
    """A network from its node of the configuration, with settings that replace the node's own.

    Raises:
        UserError: if its weights do not fit.
    """
    with user_errors():
        return hydra.utils.instantiate(node, **settings)
