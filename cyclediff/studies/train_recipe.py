"""What study=train knows of a method's training, and which methods have one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from omegaconf import OmegaConf

from cyclediff.errors import UserError
from cyclediff.runtime.settings import build
from cyclediff.studies.context import Context, get_class

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from cyclediff.runtime.training import Training

RECIPES = {  # class of a method → how it is trained
    "baselines.cut.CUT": "cyclediff.studies.train_cut.CutRecipe",
    "baselines.diffusionclip.DiffusionCLIP": "cyclediff.studies.train_diffusionclip.DiffusionCLIPRecipe",
}


class Recipe(Protocol):
    """How a method's network is trained; built from a `Context`. Nothing heavy is loaded before `training`.

    Attributes:
        kept: name of the network whose weights are the result.
    """

    kept: str

    def needs(self) -> None:
        """Check settings and files before anything slow.

        Raises:
            UserError: if something is wrong or missing.
        """
        ...

    def weights(self) -> Mapping[str, str]:
        """What identifies the weights from which it starts, by key of the task; its other networks are unused."""
        ...

    def data(self) -> Mapping[str, Mapping[str, Any]]:
        """The training images, prepared on disk: `name`, `digest` and `n` of each set.

        Raises:
            ValueError: if they cannot be used.
        """
        ...

    def length(self) -> tuple[int, str, int]:
        """Steps, the unit in which people count them (such as epoch), and the steps of a unit. After `data`."""
        ...

    def training(self, device: "torch.device") -> "Training":
        """What is trained, and how, without `sample`. After `data`.

        Raises:
            ValueError: if settings do not fit.
        """
        ...

    def translate(self, networks: "Mapping[str, nn.Module]", images: "Tensor") -> "Tensor":
        """Images (n, 3, h, w) in [-1, 1] → what the networks of a training make of them, same shape and range."""
        ...


def recipe_of(context: Context) -> Recipe:
    """How the chosen method is trained.

    Raises:
        UserError: if it has nothing to train.
    """
    recipe = RECIPES.get(context.cfg.method._target_)
    if recipe is None:
        raise UserError(
            f"{context.cfg.method.name} has no training; choose method={' or '.join(trained(context.config_dirs))}"
        )
    return get_class(recipe)(context)


def trained(config_dirs: Sequence[str]) -> list[str]:
    """Names of the methods that have a training."""
    files = {path.stem: path for folder in config_dirs for path in sorted(Path(folder, "method").glob("*.yaml"))}
    return [name for name, path in files.items() if _target(path) in RECIPES]


def training_settings(context: Context) -> Any:
    """`method.training` as an object of its class, with types and ranges checked.

    Raises:
        UserError: if a setting is wrong.
    """
    settings: Any = OmegaConf.to_container(context.cfg.method.training, resolve=True)
    return build(get_class(settings.pop("_target_")), settings, "method.training")


def _target(path: Path) -> str:
    node: Any = OmegaConf.load(path)
    return node.get("_target_", "")
