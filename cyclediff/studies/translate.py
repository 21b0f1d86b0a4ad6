"""study=translate: images of one domain become images of another, by networks on pixels."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from cyclediff.data.assets import file_sha256, locate
from cyclediff.errors import UserError
from cyclediff.pets.folders import PETS
from cyclediff.runtime import distributed
from cyclediff.runtime.artifacts import Artifact, Pictures
from cyclediff.runtime.identity import artifact_settings
from cyclediff.runtime.progress import format_duration
from cyclediff.runtime.settings import require_whole_number
from cyclediff.runtime.study import Execution, Items, Scored
from cyclediff.studies import requirements, round_trip, scoring
from cyclediff.studies.context import Context, build_method, load_network, require_image_size
from cyclediff.studies.given import Given
from cyclediff.studies.sources import Sources, prepare_images, prepare_texts_and_images

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from cyclediff.runtime.meter import Meter
    from cyclediff.studies.round_trip import RoundTrip

SIDES = ("source", "target")
ALONE = 1 << 20  # parts of an image that is a batch
NODES = {  # part → key of the task
    "source": "source_model", "target": "target_model",
    "extractor": "extractor", "vit": "vit", "clip": "clip", "identity": "identity", "generator": "generator",
}  # fmt: skip


class Translate:
    """Translation of unpaired images."""

    name = "translate"
    instead = "python run.py"  # what runs without a download

    def __init__(self, context: Context):
        self.context, self.cfg = context, context.cfg
        self.given = Given(self.cfg, context.prepared)
        self._protocol: Any = None

    @cached_property
    def nodes(self) -> dict[str, Any]:
        """Configuration of the task's networks, by their part."""
        return {part: node for part, key in NODES.items() if (node := self.cfg.task.get(key))}

    @property
    def artifacts(self) -> Mapping[str, Artifact]:
        """A PNG of each image."""
        return {"images": Pictures()}

    @property
    def parts(self) -> int:
        """One translation of each image; more than any batch holds where a method works on one image at a time."""
        return ALONE if getattr(self.method, "one_by_one", False) else 1

    def needs(self) -> None:
        """See `Study.needs`."""
        cfg, dirs = self.cfg, self.context.config_dirs
        self.given.require()
        requirements.require_items(cfg, ["image", "texts"] if self.given.listed else ["image"], self.name)
        requirements.require_condition(
            cfg,
            "none",
            dirs,
            "needs a text-to-image model (experiments such as pets_edit)",
        )
        if cfg.inside_masks:
            raise UserError("inside_masks is for editing tasks; leave it out, or use method=sdedit method.mask=FILE")
        if cfg.method.get("mask") is not None and not locate(str(cfg.method.mask)).is_file():
            raise UserError(
                f"method.mask={cfg.method.mask} does not exist; name a picture, white where images are kept"
            )
        if cfg.data.reference == PETS:
            require_whole_number(cfg, "task.reference_count", 2)
        needed = requirements.declared(cfg).needs
        requirements.require_network_nodes(cfg, self.nodes, needed, dirs, "none")
        features = {"features": cfg.protocol.features} if cfg.protocol.features and cfg.data.reference else {}
        nodes, parts = self.nodes | features, [*needed, *features]
        requirements.require_files(cfg, nodes, parts, self.context.assets, dirs, self.instead)

    @cached_property
    def sources(self) -> Sources:
        """The prepared images."""
        prepare = prepare_texts_and_images if self.given.listed else prepare_images
        found = prepare(self.cfg, self.context.prepared)
        self.given.require_each(found)
        return found

    @cached_property
    def weights(self) -> dict[str, requirements.Weights]:
        """Those of the networks that the method needs."""
        needed = requirements.declared(self.cfg).needs
        return requirements.find_weights({part: node for part, node in self.nodes.items() if part in needed})

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """What identifies the weights."""
        return requirements.fingerprints(self.weights, self.context.assets, self.context.cache)

    @cached_property
    def mask(self) -> dict[str, str]:
        """The checksum of the method's mask, where it has one."""
        path = self.cfg.method.get("mask")
        return {} if path is None else {"mask": file_sha256(locate(path))}

    def items(self) -> Items:
        """The images of the source."""
        return Items(self.sources.source.ids, self.sources.record(), self.sources.kinds)

    def identity(self) -> Mapping[str, Any]:
        """See `Study.identity`."""
        unused = [f"task.{key}.*" for part, key in NODES.items() if part not in self.weights]
        settings = artifact_settings(self.cfg, unused)
        more = {**self.mask, **self.given.identity(self.sources)}
        return settings | more | {"weights": self.fingerprints, "data": self.sources.identity()}

    def score_identity(self) -> Mapping[str, Any]:
        """See `Study.score_identity`."""
        return scoring.score_identity(self.context, self.sources)

    def record(self) -> Mapping[str, Any]:
        """The weights."""
        return {"weights": self.fingerprints}

    def load(self, device: "torch.device") -> None:
        """Load the method, its networks, and those of the scores: a wrong file is found before the slow part."""
        self.load_networks(device)
        self.protocol(device)

    def load_networks(self, device: "torch.device") -> None:
        """Load the method and the networks that it evaluates."""

        def network(part: str) -> Any:
            found = self.weights[part]
            more = {"revision": found.commit} if found.commit else {}
            return load_network(self.nodes[part], path=str(found.path), device=str(device), **more)

        guidance = {part: network(part) for part in self.weights if part not in SIDES}
        self.method = build_method(self.cfg, guidance)
        self.models = {side: network(side) for side in SIDES if side in self.weights}
        for side, model in self.models.items():
            require_image_size(model, self.cfg.protocol.size, f"the {side} model", "protocol.size")
        self.device = device

    def protocol(self, device: "torch.device") -> Any:
        """The protocol with its networks, loaded once."""
        if self._protocol is None:
            self._protocol = scoring.load_protocol(self.cfg, self.sources, str(device))
        return self._protocol

    def evaluate(self, count: int) -> None:
        """Evaluate each network once on so many images."""
        import torch

        size = self.cfg.protocol.size
        with torch.no_grad():
            xt = torch.zeros(count, 3, size, size, device=self.device)
            for model in self.models.values():
                denoiser = model.condition()
                middle = denoiser.schedule.at(denoiser.schedule.num_train // 2)
                denoiser(xt, middle).x0.sum().item()  # .item() waits for a GPU

    def batch_size_key(self) -> str:
        """Networks, size and precision."""
        from cyclediff.runtime.precision import precision_mode

        used = [self.nodes[side] for side in self.models]
        models = " ".join(f"{side} {Path(self.nodes[side].path).stem}" for side in self.models)
        return f"{models}, {self.cfg.protocol.size} pixels, {precision_mode(used) or 'float32'}"

    def begin(self, execution: Execution, missing: int) -> Mapping[str, Any]:
        """Measure what 16 bits and compiling change."""
        import torch

        from cyclediff.models.checkpoint import carries_mark
        from cyclediff.runtime.meter import Meter
        from cyclediff.runtime.precision import IMAGES, exact, precision_mode, require_precision

        notes: dict[str, Any] = {"random_weights": [p for p, w in self.weights.items() if carries_mark(w.path)]}
        mode = precision_mode(self.nodes[side] for side in self.models)

        @torch.no_grad()
        def sample(exactly: bool) -> "Tensor":
            ids = self.sources.source.ids[:IMAGES]
            found = {side: model.condition() for side, model in self.models.items()}
            denoisers = {side: exact(denoiser) if exactly else denoiser for side, denoiser in found.items()}
            meter = Meter(ids, lambda: None)
            return self._translated(self.method, denoisers, ids, self.read(ids), execution, meter)

        if missing and getattr(self.method, "one_by_one", False):
            notes["estimate"] = distributed.from_first(lambda: self._estimate(missing))
        if mode and missing:
            notes["psnr_to_float32"] = distributed.from_first(
                lambda: require_precision(self.cfg.method.name, mode, sample)
            )
        if missing >= round_trip.FEWEST:
            notes |= round_trip.noted(self.cfg.method.name, distributed.from_first(lambda: self.round_trip(execution)))
        return notes

    def round_trip(self, execution: Execution) -> "RoundTrip | None":
        """What comes back of the first image where the target is the source; None where the method promises nothing."""
        import torch

        from cyclediff.data.images import from_uint8
        from cyclediff.runtime.meter import Meter
        from cyclediff.runtime.precision import precision_mode

        if not round_trip.promise(self.method):
            return None
        ids, method = self.sources.source.ids[:1], round_trip.neutral(self.method)
        inputs, source = self.read(ids), self.models["source"].condition()
        with torch.no_grad():
            meter = Meter(ids, lambda: None)
            got = self._translated(method, {"source": source, "target": source}, ids, inputs, execution, meter)
        image = from_uint8(inputs.to(execution.device))
        is_float32 = precision_mode(self.nodes[side] for side in self.models) is None
        return round_trip.compare(self.method, ids[0], got, image, image, is_float32)

    def _estimate(self, missing: int) -> Mapping[str, float]:
        """Print what a method that is trained on each image will take."""
        import torch

        size, steps = self.cfg.protocol.size, self.method.num_steps
        seconds, kept = self.method.measure(torch.zeros(1, 3, size, size, device=self.device))
        total = missing * seconds / distributed.world()
        print(
            f"{self.cfg.method.name}: {steps} steps an image, about {format_duration(seconds)} and "
            f"{kept / 2**20:.0f} MiB for gradients; {missing} images to do: about {format_duration(total)} on this "
            f"{self.device.type}"
        )
        return {"seconds_per_image": seconds, "gradient_mib": kept / 2**20}

    def read(self, ids: Sequence[str]) -> "Tensor":
        """Source images, uint8 (n, 3, h, w)."""
        return self.sources.read(ids, self.device)

    def make(
        self, ids: Sequence[str], inputs: "Tensor", size: int, execution: Execution, meter: "Meter"
    ) -> Sequence[Mapping[str, Any]]:
        """Translate images."""
        from cyclediff.data.images import to_uint8

        denoisers = {side: meter.watch(model.condition(), side) for side, model in self.models.items()}
        guidance = {p: counted(getattr(self.method, p), p, meter) for p in self.method.needs if p not in SIDES}
        method = replace(self.method, **guidance) if guidance else self.method
        images = self._translated(method, denoisers, ids, inputs, execution, meter)
        return [{"images": image} for image in self.sources.shaped(list(to_uint8(images, ids)), ids)]

    def _translated(
        self,
        method: Any,
        denoisers: Mapping[str, Any],
        ids: Sequence[str],
        inputs: "Tensor",
        execution: Execution,
        meter: "Meter",
    ) -> "Tensor":
        from cyclediff.data.images import from_uint8
        from cyclediff.diffusion.noise import Noise

        noise = Noise(execution.seed, ids, device=execution.noise_device)
        model, images = self.models.get("target"), from_uint8(inputs.to(execution.device, non_blocking=True))
        with meter.stage("encoder"):
            x0 = model.encode(images, noise) if model else images
        given = self.given.read(self.sources, ids, execution.device)
        try:
            out = method(x0, denoisers.get("source"), denoisers.get("target"), noise, **given)
        except ValueError as error:
            raise UserError(str(error)) from error
        if not out.isfinite().all():
            bad = [i for i, image in zip(ids, out, strict=True) if not image.isfinite().all()]
            raise UserError(
                f"{method.name} gave NaN or Inf for image {bad[0]}; finished images are kept, check method.*"
            )
        with meter.stage("decoder"):
            return model.decode(out) if model else out.clamp(-1, 1)

    def finish(self, folder: Path, batches: Sequence[Mapping[str, Any]], device: "torch.device") -> Scored:
        """Score the pictures."""
        pictures, more = folder / "images", scoring.seconds_of(batches, self.sources.source.ids)
        return scoring.score_pictures(pictures, self.sources, self.protocol(device), self.context.cache, more)


def counted(network: Any, part: str, meter: "Meter") -> Any:
    """A guidance network, or several, with every evaluation counted.

    Args:
        network: a function, a dataclass with a field `network`, or a sequence of such.
        part: what it is for, for messages.
        meter: of the batch.
    """
    if isinstance(network, Sequence):
        return [counted(one, part, meter) for one in network]
    if is_dataclass(network) and "network" in {field.name for field in fields(network)}:
        return meter.watch(network, part)
    return meter.count(cast(Any, network), part)
