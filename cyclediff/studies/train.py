"""study=train: the network of a method that has to be trained, with its curves and what it makes on the way."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from cyclediff.errors import UserError
from cyclediff.pets.folders import PETS
from cyclediff.runtime import distributed
from cyclediff.runtime.artifacts import Artifact, Pictures
from cyclediff.runtime.identity import artifact_settings, score_settings
from cyclediff.runtime.record import code_digest, hash_of
from cyclediff.runtime.settings import require_whole_number, user_errors
from cyclediff.runtime.study import Execution, Items, Scored
from cyclediff.studies import requirements, scoring
from cyclediff.studies.context import Context
from cyclediff.studies.sources import Sources, prepare_images
from cyclediff.studies.train_recipe import Recipe, recipe_of
from cyclediff.studies.train_scores import PROTOCOL, score
from cyclediff.studies.train_snapshots import Snapshots, TrainedWeights, keep, rounded

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from cyclediff.runtime.meter import Meter

FOLDER = "training"  # of a run: the checkpoint, and what is made on the way
DTYPES = ("float32", "float16")
SHOWN, ROW = 8, 4  # images on a sheet, and in one of its rows, below which are their results


class Train:
    """Training of the chosen method. Its items are snapshots: a sheet of pictures, and scores."""

    name = "train"
    instead = "python run.py study=train method=cut task=pets_cat2dog"  # what runs without a download

    def __init__(self, context: Context):
        self.context, self.cfg = context, context.cfg

    @cached_property
    def recipe(self) -> Recipe:
        """How the method is trained."""
        return recipe_of(self.context)

    @property
    def artifacts(self) -> Mapping[str, Artifact]:
        """The trained weights, and a sheet of each snapshot."""
        return {"weights": TrainedWeights(), "images": Pictures()}

    @property
    def parts(self) -> int:
        """A snapshot translates all images that are scored."""
        return len(self.sources.source.ids)

    def needs(self) -> None:
        """See `Study.needs`."""
        cfg, recipe = self.cfg, self.recipe
        requirements.require_items(cfg, ["image"], self.name)
        if cfg.dtype != "float32" or cfg.compile_mode:
            raise UserError("study=train computes gradients in float32; leave out dtype and compile_mode")
        if cfg.study.weights not in DTYPES:
            raise UserError(f"study.weights must be {' or '.join(DTYPES)}; got {cfg.study.weights}")
        require_whole_number(cfg, "study.checkpoint_every", 1)
        if cfg.study.sample_every is not None:
            require_whole_number(cfg, "study.sample_every", 1)
        if cfg.data.reference == PETS:
            require_whole_number(cfg, "task.reference_count", 2)
        recipe.needs()
        nodes = {"features": cfg.protocol.features} if cfg.protocol.features and cfg.data.reference else {}
        requirements.require_files(cfg, nodes, nodes, self.context.assets, self.context.config_dirs, self.instead)

    @cached_property
    def sources(self) -> Sources:
        """The images by which snapshots are scored."""
        return prepare_images(self.cfg, self.context.prepared)

    @cached_property
    def trained_on(self) -> Mapping[str, Mapping[str, Any]]:
        """The training images."""
        with user_errors():
            return self.recipe.data()

    @cached_property
    def snapshots(self) -> Snapshots:
        """What is made on the way."""
        steps, unit, period = self.recipe.length()
        return Snapshots(self.folder / FOLDER, steps, self.cfg.study.sample_every or period, unit, period)

    @cached_property
    def folder(self) -> Path:
        """Of the run."""
        return self.context.task_folder / f"{self.cfg.method.name}-{hash_of(self.identity())}"

    def items(self) -> Items:
        """The snapshots."""
        sets = self.trained_on.values()
        about = {"name": " and ".join(each["name"] for each in sets), "digest": "-".join(e["digest"] for e in sets)}
        about |= {"n": sum(each["n"] for each in sets), "dataset": None, "source": None, "ground_truth": None}
        return Items(self.snapshots.ids, about)

    def identity(self) -> Mapping[str, Any]:
        """See `Study.identity`; the protocol is part of it, as it says which snapshot is the best."""
        weights, task = self.recipe.weights(), self.cfg.task
        networks = [key for key, node in task.items() if isinstance(node, DictConfig) and "path" in node]
        settings = artifact_settings(self.cfg, [f"task.{key}.*" for key in networks if key not in weights])
        evaluation = {"images": self.sources.identity(), **scoring.score_identity(self.context, self.sources)}
        training = OmegaConf.to_container(self.cfg.method.training, resolve=True)
        more = {"training": training, "trained_on": dict(self.trained_on), "weights": dict(weights)}
        return settings | more | {"evaluation": evaluation, "protocol": score_settings(self.cfg)["protocol"]}

    def score_identity(self) -> Mapping[str, Any]:
        """The numbers are those of the snapshots, which are made while the network is trained."""
        return {"protocol": {"name": PROTOCOL}}

    def record(self) -> Mapping[str, Any]:
        """The weights from which the training starts, and the images."""
        return {"random_weights": [], "weights": dict(self.recipe.weights()), "trained_on": dict(self.trained_on)}

    def load(self, device: "torch.device") -> None:
        """Build the networks, and load those of the scores: a wrong file is found before the slow part."""
        with user_errors():
            self.device, self.training = device, self.recipe.training(device)
        self.protocol = scoring.load_protocol(self.cfg, self.sources, str(device))

    def evaluate(self, count: int) -> None:
        """Translate so many images."""
        import torch

        size = self.cfg.protocol.size
        with torch.no_grad():
            images = torch.zeros(count, 3, size, size, device=self.device)
            self.recipe.translate(self.training.networks, images).sum().item()  # .item() waits for a GPU

    def batch_size_key(self) -> str:
        """Size of the images."""
        return f"train, {self.cfg.protocol.size} pixels"

    def begin(self, execution: Execution, missing: int) -> Mapping[str, Any]:
        """Train: all processes together, from where an earlier start was stopped."""
        from cyclediff.runtime.training import train

        cfg = self.cfg

        def sample(step: int, networks: "Mapping[str, nn.Module]") -> None:
            network = rounded(networks[self.recipe.kept], cfg.study.weights)
            sheet, scores = self._snapshot(networks, execution.batch_size)
            distributed.from_first(lambda: self.snapshots.add(step, sheet, scores, network, cfg.study.weights))

        code = code_digest(cfg.method._target_.rpartition(".")[0])
        distributed.from_first(lambda: self.snapshots.require_code(code, cfg.allow_code_change))
        more = {"sample": sample, "sample_every": self.snapshots.every, "checkpoint_every": cfg.study.checkpoint_every}
        trained = train(replace(self.training, **more), self.folder / FOLDER, f"train {cfg.method.name}")
        seconds, processes = round(trained.seconds, 1), distributed.world()
        if distributed.is_first():
            about = {
                "method": cfg.method.name, "task": cfg.task.name, "seed": cfg.seed,
                "settings": OmegaConf.to_container(cfg.method.training, resolve=True),
                "trained_on": dict(self.trained_on), "weights": dict(self.recipe.weights()),
                "seconds": seconds, "processes": processes, "device": str(self.device), "code": code,
            }  # fmt: skip
            keep(self.folder, self.snapshots, trained.history, about)
        distributed.wait_for_all()
        return {"training": {"steps": self.training.steps, "seconds": seconds}}

    def read(self, ids: Sequence[str]) -> "Tensor":
        """Sheets, uint8 (n, 3, h, w)."""
        from cyclediff.data.images import read_batch

        return read_batch([self.snapshots.sheet(item) for item in ids])

    def make(
        self, ids: Sequence[str], inputs: "Tensor", size: int, execution: Execution, meter: "Meter"
    ) -> Sequence[Mapping[str, Any]]:
        """Put the sheets, which the training has made, where all pictures of runs are."""
        return [{"weights": None, "images": sheet} for sheet in inputs]

    def finish(self, folder: Path, batches: Sequence[Mapping[str, Any]], device: "torch.device") -> Scored:
        """Scores of the last snapshot and of the best one, and curves."""
        return score(self.snapshots)

    def _snapshot(self, networks: "Mapping[str, nn.Module]", size: int) -> tuple["Tensor", Mapping[str, Any]]:
        """Translate the images that are scored; returns a sheet, uint8 (3, h, w), and the metrics."""
        import torch
        import torch.nn.functional as F

        from cyclediff.data.images import from_uint8, to_pil, to_uint8, write_png

        source, made = self.sources.source, []
        for first in range(0, len(source.ids), size):
            ids = source.ids[first : first + size]
            images = from_uint8(self.sources.read(ids, self.device).to(self.device))
            made.append(to_uint8(self.recipe.translate(networks, images), ids).cpu())
        pictures, folder = torch.cat(made), self.snapshots.pictures

        def write() -> None:
            for item, picture in zip(source.ids, pictures, strict=True):
                write_png(to_pil(picture), folder / f"{item}.png")

        distributed.from_first(write)  # scoring is shared by all processes
        scored = scoring.score_pictures(folder, self.sources, self.protocol, self.context.cache, {})
        sources = self.sources.read(source.ids[:SHOWN], torch.device("cpu"))
        pairs = zip(sources.split(ROW), pictures[:SHOWN].split(ROW), strict=True)
        rows = [torch.cat(part.unbind(), -1) for pair in pairs for part in pair]
        return torch.cat([F.pad(row, (0, rows[0].shape[-1] - row.shape[-1])) for row in rows], -2), scored.metrics
