"""The training of CUT and FastCUT for study=train: a generator, from unpaired images of two domains."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from baselines import cut
from cyclediff.data.assets import locate, missing_screen
from cyclediff.data.folders import Folder, prepare_photos
from cyclediff.errors import UserError
from cyclediff.pets.folders import PETS, prepare_pets
from cyclediff.runtime import distributed
from cyclediff.runtime.settings import require_whole_number, user_errors
from cyclediff.studies.context import Context
from cyclediff.studies.train_recipe import training_settings

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from cyclediff.runtime.training import Training, Update

SIDES = ("source", "target")
RESIZE = "bicubic"  # of the official code (PIL)
RANKS = 1_000_003  # between the seeds of two processes


@dataclass(frozen=True)
class Domain:
    """Training images of a domain.

    Args:
        loaded: of the size from which squares are cut.
        whole: of the size of those squares.
    """

    loaded: Folder
    whole: Folder


class CutRecipe:
    """How study=train trains a generator of CUT or FastCUT."""

    kept = "generator"

    def __init__(self, context: Context):
        self.context, self.cfg = context, context.cfg

    @cached_property
    def how(self) -> cut.Training:
        """`method.training`."""
        return training_settings(self.context)

    def needs(self) -> None:
        """See `Recipe.needs`."""
        cfg, how = self.cfg, self.how
        with user_errors():
            from cyclediff.models.cut_networks import Generator

            Generator(how.width, how.blocks).feature_widths(how.layers)
        folders = {}
        for side in SIDES:
            place = cfg.study[side]
            if place is None:
                raise UserError(
                    f"study=train needs images of the {side} domain to train on, and none are known for "
                    f"{cfg.task.name}; add study.{side}=FOLDER (trainA and trainB of CUT's data sets)"
                )
            if place != PETS:
                folders[side] = locate(place)
            elif not cfg.task.synthetic:
                raise UserError(f"task {cfg.task.name} is about real images; got study.{side}={PETS}, name a folder")
        if PETS in [cfg.study[side] for side in SIDES]:
            require_whole_number(cfg, "study.count", cut.LEAST)
        if not all(folder.exists() for folder in folders.values()):
            hint = "python run.py study=train method=cut task=pets_cat2dog   (pets, without a download)"
            raise UserError(missing_screen(cfg.task.name, folders.values(), self.context.assets, hint))

    def weights(self) -> Mapping[str, str]:
        """It starts from random weights."""
        return {}

    @cached_property
    def domains(self) -> dict[str, Domain]:
        """The training images."""
        return {side: Domain(*(self._folder(side, size) for size in self.sizes)) for side in SIDES}

    @property
    def sizes(self) -> tuple[int, int]:
        """Of what is loaded, and of what the networks see."""
        return self.how.load_size, self.how.crop_size

    def data(self) -> Mapping[str, Mapping[str, Any]]:
        """See `Recipe.data`; a domain needs two images."""
        found = {side: domain.loaded for side, domain in self.domains.items()}
        cut.steps_per_epoch(self.how, *(len(folder.ids) for folder in found.values()))
        return {side: {"name": f.name, "digest": f.digest, "n": len(f.ids)} for side, f in found.items()}

    def length(self) -> tuple[int, str, int]:
        """Epochs are as long as the larger domain."""
        period = cut.steps_per_epoch(self.how, *(len(domain.loaded.ids) for domain in self.domains.values()))
        return cut.total_steps(self.how, period), "epoch", period

    def training(self, device: "torch.device") -> "Training":
        """See `Recipe.training`."""
        return cut_training(self.how, self.domains["source"], self.domains["target"], self.cfg.seed, device)

    def translate(self, networks: "Mapping[str, nn.Module]", images: "Tensor") -> "Tensor":
        """What the generator makes."""
        return networks[self.kept](images)

    def _folder(self, side: str, size: int) -> Folder:
        cfg, cache = self.cfg, self.context.prepared
        if cfg.study[side] == PETS:
            return prepare_pets(cfg.task[f"{side}_domain"], f"training_{side}", cfg.study.count, size, cache)
        return prepare_photos(locate(cfg.study[side]), None, size, RESIZE, cache)


def cut_training(how: cut.Training, source: Domain, target: Domain, seed: int, device: "torch.device") -> "Training":
    """What `train` needs for a generator of CUT.

    Args:
        how: the settings.
        source: images of the source domain.
        target: images of the target domain.
        seed: of weights and draws; each of several processes draws batches of its own.
        device: where it is trained.

    Raises:
        ValueError: if a domain has too few images.
    """
    import torch

    from cyclediff.data.images import read_batch
    from cyclediff.models.cut_networks import Discriminator, Generator, Projections, initialise
    from cyclediff.runtime.training import Training

    counts = len(source.loaded.ids), len(target.loaded.ids)
    per_epoch, own = cut.steps_per_epoch(how, *counts), seed + RANKS * distributed.rank()
    rng, draws = (torch.Generator().manual_seed(number) for number in (seed, own))
    generator = initialise(Generator(how.width, how.blocks), rng)
    widths = generator.feature_widths(how.layers)
    discriminator = initialise(Discriminator(how.discriminator_width, how.discriminator_layers), rng)
    projections = initialise(Projections(widths, how.projection), rng)
    parts = {"generator": generator, "discriminator": discriminator, "projections": projections}
    for part in parts.values():
        part.to(device)
    networks = cut.Networks(generator, discriminator, projections)

    def read(domain: Domain, rows: "Tensor", number: int) -> "Tensor":
        folder = domain.loaded if cut.crops(number, per_epoch, how) else domain.whole
        images = read_batch([folder.path / f"{folder.ids[row]}.png" for row in rows.tolist()])
        return cut.augment(images, how.crop_size, draws).to(device)

    def step(number: int, update: "Update") -> "Mapping[str, Tensor]":
        rows = cut.batch_of(number, how, *counts, own)
        a, b = (read(domain, row, number) for domain, row in zip((source, target), rows, strict=True))
        return cut.training_step(a, b, networks, how, draws, update)

    def adam(*parts: "nn.Module") -> "torch.optim.Optimizer":
        parameters = [parameter for part in parts for parameter in part.parameters()]
        return torch.optim.Adam(parameters, how.lr, (how.beta1, how.beta2))

    data = {side: domain.loaded.digest for side, domain in (("source", source), ("target", target))}
    return Training(
        networks=parts,
        optimizers={"discriminator": adam(discriminator), "generator": adam(generator, projections)},
        step=step,
        steps=cut.total_steps(how, per_epoch),
        settings={"cut": asdict(how), "data": data, "seed": seed},
        generators={"draws": draws},
        rate=lambda number: cut.rate(number, per_epoch, how),
        averages={"generator": how.average} if how.average else {},
    )
