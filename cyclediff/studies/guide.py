"""study=guide: images are sampled under energies, by Langevin dynamics on the code of a diffusion model's sampler."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from cyclediff.data.assets import file_sha256, locate
from cyclediff.data.folders import Folder, digest_of, prepare_photos
from cyclediff.errors import UserError
from cyclediff.pets.folders import PETS, prepare_pets
from cyclediff.runtime.artifacts import Artifact, Pictures, Rows, Tensors
from cyclediff.runtime.identity import artifact_settings
from cyclediff.runtime.record import hash_of
from cyclediff.runtime.settings import build, require_whole_number, user_errors
from cyclediff.runtime.study import Execution, Items, Scored
from cyclediff.studies import requirements
from cyclediff.studies.context import Context, load_network, require_image_size
from cyclediff.studies.guide_energies import ENERGIES, build_energies, counted, require_wanted
from cyclediff.studies.guide_scores import PROTOCOL, Wanted, score

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from cyclediff.diffusion.white_box import WhiteBox
    from cyclediff.guidance import Guidance
    from cyclediff.runtime.meter import Meter

NODES = {"target": "target_model"} | {name: name for name in ENERGIES}  # part → key of the task
METHODS = "unguided, guided_by_classifier, guided_by_clip or guided_by_identity"


class Guide:
    """Guided sampling, and with data.source editing by guidance."""

    name = "guide"
    instead = "python run.py experiment=pets_guidance"  # what runs without a download

    def __init__(self, context: Context):
        self.context, self.cfg = context, context.cfg
        self.rows = Rows("energies")

    @property
    def artifacts(self) -> Mapping[str, Artifact]:
        """The energies along the chain of each image, its code, and a PNG."""
        return {"energies": self.rows, "codes": Tensors("codes"), "images": Pictures()}

    @property
    def parts(self) -> int:
        """One chain of each image."""
        return 1

    @cached_property
    def nodes(self) -> dict[str, Any]:
        """Configuration of the networks that are used, by their part."""
        parts = ("target", *self.cfg.method.weights)
        return {part: self.cfg.task[key] for part, key in NODES.items() if part in parts}

    def needs(self) -> None:
        """See `Study.needs`."""
        cfg, dirs = self.cfg, self.context.config_dirs
        if list(cfg.task.inputs):
            raise UserError(
                f"study=guide samples images, and task {cfg.task.name} has some; choose experiment=pets_guidance, or "
                "study=translate or edit"
            )
        if "sampler" not in cfg.method:
            raise UserError(f"{cfg.method.name} does not sample under energies; choose method={METHODS}")
        if cfg.dtype != "float32" or cfg.compile_mode:
            raise UserError("study=guide computes gradients in float32; leave out dtype and compile_mode")
        if cfg.inside_masks:
            raise UserError("inside_masks is for editing by texts; leave it out")
        known: tuple[str, ...] = ()
        if cfg.task.synthetic:
            from cyclediff.pets.attributes import ATTRIBUTES

            known = ATTRIBUTES
            require_whole_number(cfg, "task.reference_count", 2)
        require_whole_number(cfg, "data.limit", 1)
        with user_errors():
            require_wanted(cfg, list(cfg.method.weights), known)
            self._guidance()
        needed = list(self.nodes)
        requirements.require_network_nodes(cfg, self.nodes, needed, dirs, "none")
        requirements.require_files(cfg, self.nodes, needed, self.context.assets, dirs, self.instead)

    @cached_property
    def start_images(self) -> Folder | None:
        """The images to start from; None for noise."""
        source, size, limit = self.cfg.data.source, self.cfg.protocol.size, self.cfg.data.limit
        if source == requirements.NOISE:
            return None
        if source == PETS:
            return prepare_pets(self.cfg.task.target_domain, "source", limit, size, self.context.prepared)
        return prepare_photos(locate(source), limit, size, self.cfg.protocol.resize, self.context.prepared)

    @cached_property
    def weights(self) -> dict[str, requirements.Weights]:
        """Those of the networks that are used."""
        return requirements.find_weights(self.nodes)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """What identifies the weights."""
        return requirements.fingerprints(self.weights, self.context.assets, self.context.cache)

    @cached_property
    def faces(self) -> list[str]:
        """Checksums of the pictures of the person."""
        return [file_sha256(locate(face)) for face in self.cfg.task.faces]

    def items(self) -> Items:
        """Samples, or the images to start from."""
        folder = self.start_images
        if folder is None:
            ids = [f"sample{i:04d}" for i in range(self.cfg.data.limit)]
            about: dict[str, Any] = {"name": "samples", "digest": digest_of(ids), "source": None}
        else:
            ids, about = list(folder.ids), {"name": folder.name, "digest": folder.digest, "source": folder.path.name}
        return Items(ids, about | {"n": len(ids), "dataset": None, "ground_truth": None})

    def identity(self) -> Mapping[str, Any]:
        """See `Study.identity`."""
        unused = [f"task.{key}.*" for part, key in NODES.items() if part not in self.nodes]
        data = {key: self.items().record[key] for key in ("digest", "n")}
        settings = artifact_settings(self.cfg, unused)
        return settings | {"weights": self.fingerprints, "data": data, "faces": self.faces}

    def score_identity(self) -> Mapping[str, Any]:
        """The judge, and the images of what is wanted."""
        judge = self.cfg.protocol.judge
        found = requirements.fingerprint(locate(judge), self.context.assets, self.context.cache) if judge else None
        return {"protocol": {"name": PROTOCOL}, "judge": found, "reference_count": self.cfg.task.get("reference_count")}

    def record(self) -> Mapping[str, Any]:
        """The weights, and what is wanted."""
        keys = ("present", "absent", "text")
        wanted: Any = {key: OmegaConf.to_container(self.cfg.task)[key] for key in keys}  # type: ignore[index]
        return {"weights": self.fingerprints, "wanted": wanted}

    def load(self, device: "torch.device") -> None:
        """Load the model and the networks of the energies."""
        self.device = device
        paths = {part: str(found.path) for part, found in self.weights.items()}
        self.model = load_network(self.nodes["target"], path=paths["target"], device=str(device))
        require_image_size(self.model, self.cfg.protocol.size, "the model", "protocol.size")
        self.energies = build_energies(self.cfg, paths, str(device))
        self.guidance = self._guidance()
        with user_errors():
            self.white_box(self.model.condition())
        if self.start_images is not None and self.cfg.task.synthetic:
            self._require_species()

    def _guidance(self) -> "Guidance | None":
        """The settings of the chain; None for sampling without one."""
        from cyclediff.guidance import Guidance

        method: Any = OmegaConf.to_container(self.cfg.method, resolve=True)
        keys = ("step_size", "steps", "weights", "prior_weight", "best_by", "judge_last")
        return build(Guidance, {key: method[key] for key in keys}) if method["weights"] else None

    def white_box(self, denoiser: Any) -> "WhiteBox":
        """The generator."""
        from cyclediff.diffusion.white_box import WhiteBox

        settings: Any = OmegaConf.to_container(self.cfg.method.sampler, resolve=True)
        levels = denoiser.schedule.levels(settings.pop("T"), settings.pop("spacing"))
        return build(WhiteBox, {"denoiser": denoiser, "levels": levels, **settings})

    def evaluate(self, count: int) -> None:
        """Take one gradient of so many images."""
        import torch

        from cyclediff.diffusion.noise import Noise

        ids = [str(i) for i in range(count)]
        white_box = self.white_box(self.model.condition())
        with torch.enable_grad():
            z = self._like(count)[:, None].repeat(1, white_box.white_box_steps, 1, 1, 1).requires_grad_()
            white_box(z, Noise(0, ids)).sum().backward()
        assert z.grad is not None
        z.grad.sum().item()  # .item() waits for a GPU

    def batch_size_key(self) -> str:
        """Network, size and number of steps."""
        name = Path(self.nodes["target"].path).stem
        return f"guide {name}, {self.cfg.protocol.size} pixels, {self.cfg.method.sampler.T} steps"

    def begin(self, execution: Execution, missing: int) -> Mapping[str, Any]:
        """Say which weights are random."""
        from cyclediff.models.checkpoint import carries_mark

        return {"random_weights": [part for part, found in self.weights.items() if carries_mark(found.path)]}

    def read(self, ids: Sequence[str]) -> "Tensor | None":
        """The images to start from, uint8 (n, 3, h, w); None for noise."""
        from cyclediff.data.images import read_batch

        return None if self.start_images is None else read_batch([self.start_images.path / f"{i}.png" for i in ids])

    def make(
        self, ids: Sequence[str], inputs: "Tensor | None", size: int, execution: Execution, meter: "Meter"
    ) -> Sequence[Mapping[str, Any]]:
        """Run a chain for each image."""
        from cyclediff.data.images import from_uint8, to_uint8
        from cyclediff.diffusion.noise import Noise
        from cyclediff.studies.chains import run_chain

        white_box = self.white_box(meter.watch(self.model.condition(), "target"))
        energies = {name: counted(energy, name, meter) for name, energy in self.energies.items()}
        x0 = None if inputs is None else from_uint8(inputs.to(execution.device))

        def noise_of(k: int) -> Noise:
            return Noise(execution.seed, ids, k + 1, execution.noise_device)

        with user_errors():
            chain = run_chain(white_box, self.guidance, energies, noise_of, self._like(len(ids)), x0, self._kept(ids))
        pictures = to_uint8(chain.images, ids)
        return [
            {"images": pictures[i].cpu(), "codes": chain.z[i], "energies": [self._row(row, i) for row in chain.rows]}
            for i in range(len(ids))
        ]

    def finish(self, folder: Path, batches: Sequence[Mapping[str, Any]], device: "torch.device") -> Scored:
        """How many images have what is wanted, how good and how different they are; and the energies of the chain."""
        ids, task, judge = self.items().ids, self.cfg.task, self.cfg.protocol.judge
        wanted = Wanted(
            tuple(task.present), tuple(task.absent), task.target_domain if task.synthetic else "",
            locate(judge) if judge else None, task.get("reference_count") or 0, self.cfg.protocol.size,
        )  # fmt: skip
        return score(folder / "images", ids, self.rows.read(folder), wanted, list(self.cfg.method.weights))

    def _like(self, count: int) -> "Tensor":
        import torch

        size = self.cfg.protocol.size
        return torch.zeros(count, 3, size, size, device=self.device)

    def _row(self, row: "Mapping[str, Tensor | int]", image: int) -> dict[str, float]:
        return {key: value if isinstance(value, int) else value[image].item() for key, value in row.items()}

    def _kept(self, ids: Sequence[str]) -> Path:
        """Where the state of a batch's chain is kept while it runs."""
        identity = self.identity()
        run = self.context.task_folder / f"{self.cfg.method.name}-{hash_of(identity)}"
        return run / f"chain-{digest_of(list(ids))}.safetensors"

    def _require_species(self) -> None:
        """Refuse images of pets that show another animal than the model's."""
        import torch

        from eval.metrics.pets import DOMAIN, load_pets_judge, observe

        assert self.start_images is not None
        ids, dogs = self.start_images.ids, self.cfg.task.target_domain == "dog"
        seen = observe(load_pets_judge(locate(self.cfg.protocol.judge)), torch.as_tensor(self.read(ids)))[1]
        other = [item for item, dog in zip(ids, (seen[:, DOMAIN] > 0).tolist(), strict=True) if dog != dogs]
        if other:
            raise UserError(
                f"{len(other)} of {len(ids)} images show no {self.cfg.task.target_domain}, the first "
                f"{other[0]}; the code of an image that the model cannot make has no meaning, remove it"
            )
