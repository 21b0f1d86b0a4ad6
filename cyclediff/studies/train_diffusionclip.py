"""The training of DiffusionCLIP for study=train: a copy of the source's model, fine-tuned until results fit a text."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from baselines import diffusionclip
from cyclediff.data.assets import locate
from cyclediff.data.folders import Folder, prepare_photos
from cyclediff.errors import UserError
from cyclediff.pets.folders import PETS, prepare_pets
from cyclediff.runtime import distributed
from cyclediff.runtime.settings import require_whole_number
from cyclediff.studies import requirements
from cyclediff.studies.context import Context, build_method, load_network, require_image_size

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from cyclediff.diffusion.denoiser import Denoiser
    from cyclediff.runtime.training import Training, Update

MODEL, CLIP, FACES = "source_model", "clip", "identity"  # keys of the task
READ_BACK = ("pets.networks.load", "models.load.load_adm", "models.load.load_ddpm")  # loaders that take the result
CHUNK = 16  # images that are encoded together


class DiffusionCLIPRecipe:
    """How study=train fine-tunes a model by DiffusionCLIP."""

    kept = diffusionclip.NETWORK

    def __init__(self, context: Context):
        self.context, self.cfg = context, context.cfg

    @cached_property
    def method(self) -> diffusionclip.DiffusionCLIP:
        """The method with its settings."""
        return build_method(self.cfg, {})

    @property
    def nodes(self) -> dict[str, Any]:
        """Configuration of the networks, by their key of the task; of faces only where they have a weight."""
        faces = [FACES] if self.method.training.lambda_identity else []
        return {key: self.cfg.task.get(key) or DictConfig({"path": None}) for key in (MODEL, CLIP, *faces)}

    def needs(self) -> None:
        """See `Recipe.needs`."""
        cfg, how = self.cfg, self.method.training
        if not how.source_text or not how.target_text or how.source_text == how.target_text:
            raise UserError(
                "DiffusionCLIP is trained from one text to another; set method.training.source_text and target_text, "
                f"for example 'a cat' and 'a dog'; got {how.source_text!r} and {how.target_text!r}"
            )
        for key, node in self.nodes.items():
            if not node.path:
                raise UserError(
                    f"DiffusionCLIP is trained with the network {key}, and task {cfg.task.name} has none; name one: "
                    f"+model@task.{key}=NAME, or choose task=pets_cat2dog"
                )
        if not self.nodes[MODEL]._target_.endswith(READ_BACK):
            raise UserError(
                f"a fine-tuned network is a file, and {self.nodes[MODEL]._target_} reads no such file; choose a source "
                "model of pets, ADM or DDPM"
            )
        place = cfg.study.source
        if place is None:
            raise UserError(
                f"study=train needs images of the source domain to train on, and none are known for {cfg.task.name}; "
                "add study.source=FOLDER"
            )
        if place == PETS and not cfg.task.synthetic:
            raise UserError(f"task {cfg.task.name} is about real images; got study.source={PETS}, name a folder")
        if place == PETS:
            require_whole_number(cfg, "study.count", 1)
        elif not locate(place).is_dir():
            raise UserError(f"study.source={place} is no folder; name a folder of images")
        dirs, instead = self.context.config_dirs, "python run.py study=train method=diffusionclip task=pets_cat2dog"
        requirements.require_files(cfg, self.nodes, self.nodes, self.context.assets, dirs, instead)

    def weights(self) -> Mapping[str, str]:
        """Those of the model that is fine-tuned, and of what judges it."""
        found = requirements.find_weights(self.nodes)
        return requirements.fingerprints(found, self.context.assets, self.context.cache)

    @cached_property
    def images(self) -> Folder:
        """The training images, all that there are."""
        cfg, cache = self.cfg, self.context.prepared
        if cfg.study.source == PETS:
            return prepare_pets(cfg.task.source_domain, "training_source", cfg.study.count, cfg.protocol.size, cache)
        return prepare_photos(locate(cfg.study.source), None, cfg.protocol.size, cfg.protocol.resize, cache)

    def data(self) -> Mapping[str, Mapping[str, Any]]:
        """See `Recipe.data`."""
        folder, used = self.images, self.method.training.images
        if len(folder.ids) < used:
            raise ValueError(f"training.images must be at most the {len(folder.ids)} source images; got {used}")
        return {"source": {"name": folder.name, "digest": folder.digest, "n": len(folder.ids)}}

    def length(self) -> tuple[int, str, int]:
        """An iteration sees each image once; several processes share the images of a step."""
        how = self.method.training
        period = -(-how.images // distributed.world())
        return period * how.iterations, "iteration", period

    def training(self, device: "torch.device") -> "Training":
        """See `Recipe.training`; it encodes the images."""
        import copy

        import torch

        from cyclediff.data.images import from_uint8, read_batch
        from cyclediff.diffusion.clip_views import embed
        from cyclediff.runtime.training import Training

        method, how, folder = self.method, self.method.training, self.images
        self.device, self.model = device, self._load(MODEL, device)
        require_image_size(self.model, self.cfg.protocol.size, "the source model", "protocol.size")
        towers, faces = self._load(CLIP, device), self._load(FACES, device) if FACES in self.nodes else None
        if len(towers) != 1:
            raise ValueError(f"DiffusionCLIP is trained with one CLIP; got {len(towers)} in task.{CLIP}.models")
        direction = diffusionclip.text_direction(embed(towers[0], [(how.source_text or "", how.target_text or "")]))
        losses = diffusionclip.Losses(towers[0], direction, how, faces)
        source: Any = self.model.condition()
        levels = diffusionclip.levels_up_to(source.schedule, method.t0, how.steps)
        x0 = from_uint8(read_batch([folder.path / f"{i}.png" for i in folder.ids[: how.images]]))
        with torch.no_grad():
            latents = torch.cat([method.encode(part.to(device), source).cpu() for part in x0.split(CHUNK)])
        network = copy.deepcopy(source.network.module).requires_grad_(True)
        tuned, (steps, _, period) = self._denoiser(network), self.length()
        rank, world = distributed.rank(), distributed.world()

        def step(number: int, update: "Update") -> "Mapping[str, Tensor]":
            row = (number % period * world + rank) % how.images
            latent, image = (every[row : row + 1].to(device) for every in (latents, x0))
            _, found = diffusionclip.training_step(latent, image, tuned, levels, losses, update)
            return {key: torch.stack([each[key] for each in found]).mean() for key in found[0]}

        about = {key: value for key, value in asdict(method).items() if key != "name"}
        return Training(
            networks={self.kept: network},
            optimizers={self.kept: torch.optim.Adam(network.parameters(), how.lr)},
            step=step,
            steps=steps,
            settings={"diffusionclip": about, "data": folder.digest, "weights": dict(self.weights())},
            rate=lambda number: diffusionclip.rate(number // period * how.images, how),
        )

    def translate(self, networks: "Mapping[str, nn.Module]", images: "Tensor") -> "Tensor":
        """What the method makes with the fine-tuned network as its target."""
        source, target = self.model.condition(), self._denoiser(networks[self.kept])
        latent = self.method.encode(images, source)
        levels = diffusionclip.levels_up_to(target.schedule, self.method.t0, self.method.decoding_steps)
        return self.model.decode(diffusionclip.generate(latent, target, levels))

    def _load(self, key: str, device: "torch.device") -> Any:
        node = self.nodes[key]
        return load_network(node, path=str(locate(node.path)), device=str(device))

    def _denoiser(self, network: "nn.Module") -> "Denoiser":
        """The source model's denoiser with another network of its architecture."""
        own: Any = self.model.condition()
        return replace(own, network=own.network.of(network))
