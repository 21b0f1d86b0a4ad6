"""study=similarity: how far source and target are apart in each step of CycleDiffusion, and why. No image is kept."""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig, OmegaConf

from cyclediff.data.edit_lists import read_prompts
from cyclediff.errors import UserError
from cyclediff.runtime import distributed
from cyclediff.runtime.artifacts import Artifact, Rows
from cyclediff.runtime.identity import artifact_settings
from cyclediff.runtime.settings import require_whole_number, user_errors
from cyclediff.runtime.study import Execution, Items, Scored
from cyclediff.studies import requirements
from cyclediff.studies.context import Context, build_method, load_network, require_image_size
from cyclediff.studies.similarity_scores import PROTOCOL, score
from cyclediff.studies.sources import Sources, prepare_images, prepare_texts_and_images

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from cyclediff.diffusion.denoiser import Denoiser
    from cyclediff.diffusion.noise import Noise
    from cyclediff.runtime.meter import Meter

METHOD = "cyclediff.cyclediffusion.CycleDiffusion"
SIDES = ("source", "target")


class Similarity:
    """An analysis of CycleDiffusion between two networks on pixels, or between two texts of one text-to-image model."""

    name = "similarity"
    instead = "python run.py experiment=pets_similarity"  # what runs without a download

    def __init__(self, context: Context):
        self.context, self.table = context, Rows("steps")
        without = OmegaConf.merge(context.cfg, {"data": {"reference": None}})  # nothing is compared with one
        self.cfg = cast(DictConfig, without)
        self.with_texts = "texts" in context.cfg.task.inputs

    @property
    def artifacts(self) -> Mapping[str, Artifact]:
        """A row for each level of each image."""
        return {"steps": self.table}

    @property
    def parts(self) -> int:
        """One analysis of each image."""
        return 1

    @cached_property
    def nodes(self) -> dict[str, Any]:
        """Configuration of the networks, by their part."""
        task = self.cfg.task
        return {"model": task.model} if self.with_texts else {side: task[f"{side}_model"] for side in SIDES}

    def needs(self) -> None:
        """See `Study.needs`."""
        cfg, dirs = self.cfg, self.context.config_dirs
        requirements.require_items(cfg, ["image", "texts"] if self.with_texts else ["image"], self.name)
        self._require_fitting_method()
        self._require_guidance()
        for node in self.nodes.values():
            if node.get("dtype", "float32") != "float32" or node.get("compile_mode"):
                raise UserError(
                    "study=similarity measures differences that rounding would hide; choose dtype=float32 and "
                    "compile_mode=null"
                )
        require_whole_number(cfg, "protocol.size", 1)
        requirements.require_network_nodes(cfg, self.nodes, self.nodes, dirs, "text" if self.with_texts else "none")
        requirements.require_files(cfg, self.nodes, self.nodes, self.context.assets, dirs, self.instead)

    @cached_property
    def sources(self) -> Sources:
        """The prepared images, with their texts if they have any."""
        prepare = prepare_texts_and_images if self.with_texts else prepare_images
        return prepare(self.cfg, self.context.prepared)

    @cached_property
    def weights(self) -> dict[str, requirements.Weights]:
        """Those of the networks."""
        return requirements.find_weights(self.nodes)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """What identifies the weights."""
        return requirements.fingerprints(self.weights, self.context.assets, self.context.cache)

    def items(self) -> Items:
        """The images."""
        return Items(self.sources.source.ids, self.sources.record())

    def identity(self) -> Mapping[str, Any]:
        """See `Study.identity`."""
        settings = artifact_settings(self.cfg, [] if self.with_texts else ["task.extractor.*"])
        return settings | {"weights": self.fingerprints, "data": self.sources.identity()}

    def score_identity(self) -> Mapping[str, Any]:
        """The numbers are made of the artifacts alone."""
        return {"protocol": {"name": PROTOCOL}}

    def record(self) -> Mapping[str, Any]:
        """The weights."""
        return {"weights": self.fingerprints}

    def load(self, device: "torch.device") -> None:
        """Load the method and its networks."""
        self.device, self.method = device, build_method(self.cfg, {})
        self.models = {part: self._model(part) for part in self.nodes}
        for part, model in self.models.items():
            require_image_size(model, self.cfg.protocol.size, f"the {part} model", "protocol.size")
        if self.with_texts:
            self.models["model"] = self.models["model"].for_size(self.cfg.protocol.size)
        self.texts = read_prompts(self.sources.source) if self.with_texts else {}

    def evaluate(self, count: int) -> None:
        """Evaluate on as many rows as a step of so many images takes at once."""
        import torch

        from cyclediff.studies.editing import evaluate

        if self.with_texts:
            return evaluate(self.models["model"], self._rows() * count, self.cfg.protocol.size, self.device)
        with torch.no_grad():
            denoiser, size = self.models["target"].condition(), self.cfg.protocol.size
            xt = torch.zeros(2 * count, 3, size, size, device=self.device)
            denoiser(xt, denoiser.schedule.at(denoiser.schedule.num_train // 2)).x0.sum().item()  # waits for a GPU

    def batch_size_key(self) -> str:
        """Networks, size and guidance."""
        names = " ".join(f"{part} {Path(node.path).stem}" for part, node in self.nodes.items())
        return f"similarity, {names}, {self.cfg.protocol.size} pixels, {self._rows()} rows"

    def begin(self, execution: Execution, missing: int) -> Mapping[str, Any]:
        """Print an estimate of the time of a text-to-image model, and ask where it is long."""
        from cyclediff.models.checkpoint import carries_mark
        from cyclediff.studies.editing import require_patience

        if self.with_texts:
            rows, size, side = self._rows() * self.method.T_es, execution.batch_size, self.cfg.protocol.size
            distributed.from_first(
                lambda: require_patience(self.cfg, self.models["model"], self.device, 1, rows, missing, size, side)
            )
        return {"random_weights": [part for part, w in self.weights.items() if carries_mark(w.path)]}

    def read(self, ids: Sequence[str]) -> "Tensor":
        """Source images, uint8 (n, 3, h, w)."""
        return self.sources.read(ids, self.device)

    def make(
        self, ids: Sequence[str], inputs: "Tensor", size: int, execution: Execution, meter: "Meter"
    ) -> Sequence[Mapping[str, Any]]:
        """Measure distance, stretch and gap in each step."""
        from cyclediff.data.images import from_uint8
        from cyclediff.diffusion.noise import Noise
        from cyclediff.similarity import measure

        noise = Noise(execution.seed, ids, device=execution.noise_device)  # as in a run that makes the images
        pictures = from_uint8(inputs.to(execution.device, non_blocking=True))
        with user_errors():
            found = measure(self.method, *self._pair(ids, pictures, noise, execution, meter), noise)
        first = self.method.T - self.method.T_es
        every = (found.distance.tolist(), found.stretch.tolist(), found.gap.tolist())
        return [
            {
                "steps": [
                    {"step": first + k, "t": level.t, "distance": d, "stretch": stretch, "gap": gap}
                    for k, (level, d, stretch, gap) in enumerate(
                        zip(found.levels, distances, [*stretches, None], [*gaps, None], strict=True)
                    )
                ]
            }
            for distances, stretches, gaps in zip(*every, strict=True)
        ]

    def finish(self, folder: Path, batches: Sequence[Mapping[str, Any]], device: "torch.device") -> Scored:
        """Distances, bounds and what they are made of."""
        method = self.cfg.method
        return score(self.table.read(folder), f"eta {method.eta:g}", f"T_es {method.T_es}")

    def _pair(
        self, ids: Sequence[str], pictures: "Tensor", noise: "Noise", execution: Execution, meter: "Meter"
    ) -> tuple["Tensor", "Denoiser", "Denoiser"]:
        """x0 of pictures (n, 3, h, w), the denoiser of the source for n, and that of the target for 2 n."""
        from cyclediff.diffusion.noise import Noise
        from cyclediff.studies.editing import POSTERIOR

        if not self.with_texts:
            source, target = (meter.watch(self.models[side].condition(), side) for side in SIDES)
            return self.models["target"].encode(pictures, noise), source, target
        model, study = self.models["model"], self.cfg.study
        sources, targets = zip(*(self.texts[item] for item in ids), strict=True)
        watched = meter.watch(model, "text-to-image")
        return (
            model.encode(pictures, Noise(execution.seed, ids, POSTERIOR, execution.noise_device)),
            watched.condition(sources, study.source_guidance),
            watched.condition(targets * 2, study.guidance),
        )

    def _rows(self) -> int:
        """Rows of the networks that an image takes in a step: one of the source and two of the target, each guided."""
        if not self.with_texts:
            return 3
        study, reads_scale = self.cfg.study, self.models["model"].abilities.reads_scale
        scales = (study.source_guidance, study.guidance, study.guidance)
        return sum(2 - (reads_scale or scale in (0, 1)) for scale in scales)

    def _model(self, part: str) -> Any:
        found = self.weights[part]
        more: dict[str, Any] = {"revision": found.commit} if found.commit else {}
        return load_network(self.nodes[part], path=str(found.path), device=str(self.device), **more)

    def _require_fitting_method(self) -> None:
        """Require CycleDiffusion, without what the bound is not about."""
        method = self.cfg.method
        if method._target_ != METHOD or method.attention is not None:
            raise UserError(
                "study=similarity is about source and target under one code and nothing else, and "
                f"{method.name} does not fit; choose method=cyclediffusion"
            )
        if self.cfg.inside_masks:
            raise UserError("study=similarity is about whole images; choose inside_masks=false")
        if method.refine_steps:
            raise UserError(
                f"study=similarity ends where the code ends, and method.refine_steps={method.refine_steps} adds new "
                "noise after it; choose method.refine_steps=0"
            )
        if self.cfg.selection is not None:
            raise UserError(
                "study=similarity makes no candidates; leave tier out, and choose method.T_es, study.source_guidance "
                "and study.guidance"
            )

    def _require_guidance(self) -> None:
        """Require guidance scales for texts, and none for networks on pixels."""
        for key in ("source_guidance", "guidance"):
            value = self.cfg.study[key]
            if not self.with_texts and value is not None:
                raise UserError(f"networks on pixels have no guidance; got study.{key}={value}, leave it out")
            scale = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
            if self.with_texts and not 0 <= scale < math.inf:
                raise UserError(f"study.{key} must be a guidance scale from 0 up, for example 3; got {value}")
