"""study=edit: images are changed as their texts say, by one text-to-image model; the best of N candidates is kept."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from cyclediff.data.edit_lists import read_prompts
from cyclediff.data.fitting import NATIVE
from cyclediff.errors import UserError
from cyclediff.runtime import distributed
from cyclediff.runtime.artifacts import Artifact, Pictures, Rows
from cyclediff.runtime.identity import artifact_settings
from cyclediff.runtime.settings import user_errors
from cyclediff.runtime.study import Execution, Items, Scored
from cyclediff.studies import requirements, round_trip, scoring
from cyclediff.studies.context import Context, build_method, load_network
from cyclediff.studies.edit_checks import listed_words, require_masks, require_shapes, shaped_scores, square_like
from cyclediff.studies.selection import METRICS_OF_CLIP, RANKING, Grid, grid_for, read_prune, with_unselected
from cyclediff.studies.sources import Sources, prepare_texts_and_images

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from cyclediff.runtime.meter import Meter
    from cyclediff.studies.round_trip import RoundTrip
    from eval.edits import Edit as ListedEdit
    from eval.metrics.clip import ClipScorer


class Edit:
    """Zero-shot editing with texts."""

    name = "edit"
    instead = "python run.py experiment=pets_edit"  # what runs without a download

    def __init__(self, context: Context):
        self.context, self.cfg = context, context.cfg
        self.candidates = Rows("candidates")
        self._protocol: Any = None

    @property
    def artifacts(self) -> Mapping[str, Artifact]:
        """All candidates' settings and scores, then a PNG of the best: a finished image has both."""
        return {"candidates": self.candidates, "images": Pictures()}

    def needs(self) -> None:
        """See `Study.needs`."""
        cfg, dirs = self.cfg, self.context.config_dirs
        requirements.require_items(cfg, ["image", "texts"], self.name)
        requirements.require_condition(cfg, "text", dirs, "cannot follow a text")
        if not cfg.selection:
            raise UserError(
                f"task {cfg.task.name} needs to know its candidates; choose tier=single, quick, paper, few or pets"
            )
        if cfg.selection.metric not in RANKING:
            raise UserError(f"selection.metric must be one of {', '.join(RANKING)}; got {cfg.selection.metric}")
        if cfg.method.get("mask") is not None:
            raise UserError("a mask is for models on pixels (study=translate); leave it out: method.mask=null")
        scoring.require_clip(cfg.protocol.clip, "protocol.clip")
        scoring.require_clip(cfg.task.ranking_clip, "task.ranking_clip")
        with user_errors():
            self._asked()
        nodes = {"model": cfg.task.model}
        if cfg.protocol.get("dino") and not cfg.protocol.dino.path.startswith(scoring.HUB):
            nodes["dino"] = cfg.protocol.dino
        requirements.require_files(cfg, nodes, list(nodes), self.context.assets, dirs, self.instead)

    @cached_property
    def sources(self) -> Sources:
        """The prepared images with their texts."""
        return prepare_texts_and_images(self.cfg, self.context.prepared)

    @cached_property
    def edits(self) -> "dict[str, ListedEdit]":
        """What each image's row of the list asks for."""
        from eval.edits import read_edits

        found = read_edits(self.sources.source.path)
        return {item: found[item] for item in self.sources.source.ids}

    @cached_property
    def weights(self) -> dict[str, requirements.Weights]:
        """Those of the text-to-image model."""
        return requirements.find_weights({"model": self.cfg.task.model})

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """What identifies the weights, also of the CLIP that ranks candidates."""
        found = requirements.fingerprints(self.weights, self.context.assets, self.context.cache)
        return found | {"ranking": scoring.clip_fingerprint(self.cfg.task.ranking_clip, self.context)}

    def items(self) -> Items:
        """The images."""
        return Items(self.sources.source.ids, self.sources.record(), self.sources.kinds)

    def identity(self) -> Mapping[str, Any]:
        """See `Study.identity`."""
        settings = artifact_settings(self.cfg)
        return settings | {"weights": self.fingerprints, "data": self.sources.identity()}

    def score_identity(self) -> Mapping[str, Any]:
        """See `Study.score_identity`."""
        return scoring.score_identity(self.context, self.sources)

    def record(self) -> Mapping[str, Any]:
        """The weights, and how candidates are chosen."""
        return {"weights": self.fingerprints, "tier": self.cfg.tier}

    def load(self, device: "torch.device") -> None:
        """Load the method, the model, and what ranks and scores: a wrong file is found before the slow part."""
        from cyclediff.models.inference import require_known
        from eval.metrics.candidates import candidate_scores

        require_known(self.cfg.task.model.dtype, self.cfg.compile_mode)
        self.device, self.method = device, build_method(self.cfg, {})
        with user_errors():
            self.grid = grid_for(self._asked(), self.method)
        self.texts = read_prompts(self.sources.source)
        self._require_words()
        require_masks(self.cfg, getattr(self.method, "takes_region", False), self.edits)
        self.model = self._model()
        for text in chain(*self.texts.values()):
            self.model.warn_of_cut(text)
        require_shapes(self.model, self.sources, Path(self.cfg.task.model.path).name)
        if self.sources.fit != NATIVE:
            self.model = self.model.for_size(self.cfg.protocol.size)
        self.ranking = self.scores = None
        if self.parts > 1:
            node = self.cfg.task.ranking_clip
            self.ranking = load_network(node, path=scoring.clip_path(node), device=str(device))
            self._read_texts(self.ranking)
            scores = candidate_scores(self.ranking, self.sources.source.path, device, self.cfg.selection.metric)
            self.scores = shaped_scores(scores, self.sources)
        self.protocol(device)
        self.decibels = None
        if self.cfg.task.model.dtype != "float32" or self.cfg.compile_mode:
            self.decibels = self._cast_within_bound()  # before the batch size and the time are measured

    def protocol(self, device: "torch.device") -> Any:
        """The protocol with its networks, loaded once."""
        if self._protocol is None:
            self._protocol = scoring.load_protocol(self.cfg, self.sources, str(device))
        return self._protocol

    @property
    def parts(self) -> int:
        """Candidates of an image."""
        return len(self.grid.candidates())

    def evaluate(self, count: int) -> None:
        """Evaluate the network once for so many candidates: each has its source, its target and the empty prompt."""
        from cyclediff.studies.editing import evaluate

        evaluate(self.model, 3 * count, square_like(self.sources, self.model.multiple), self.device)

    def batch_size_key(self) -> str:
        """Network, size and precision."""
        side = square_like(self.sources, self.model.multiple)
        return f"{Path(self.cfg.task.model.path).stem}, {side} pixels, {self._mode or 'float32'}"

    @property
    def _mode(self) -> str:
        from cyclediff.runtime.precision import precision_mode

        return precision_mode([{"dtype": self.cfg.task.model.dtype, "compile_mode": self.cfg.compile_mode}])

    def begin(self, execution: Execution, missing: int) -> Mapping[str, Any]:
        """Print an estimate of the time, and ask where it is long."""
        from cyclediff.models.checkpoint import carries_mark
        from cyclediff.studies.candidates import count_rows
        from cyclediff.studies.editing import require_patience

        shared = self.cfg.selection.shared_encoding
        with user_errors():
            rows = count_rows(
                self.method, self.model.schedule, self.grid, execution.batch_size, shared, self.cfg.inside_masks,
                self.model.abilities,
            )  # fmt: skip
        side, size = square_like(self.sources, self.model.multiple, mean), execution.batch_size
        distributed.from_first(
            lambda: require_patience(self.cfg, self.model, self.device, self.parts, rows, missing, size, side)
        )
        random = [part for part, w in self.weights.items() if carries_mark(w.path)]
        notes: dict[str, Any] = {
            "random_weights": [*random, "ranking"] if self.ranking and self.ranking.random else random,
            "selection": {
                "candidates": self.parts,
                "metric": self.cfg.selection.metric,
                "ranked_by": self.ranking and self.ranking.protocol,
                "asked": OmegaConf.to_container(self.cfg.selection, resolve=True),
            },
            "network_rows_per_image": rows,
        }
        if missing >= round_trip.FEWEST:
            notes |= round_trip.noted(self.cfg.method.name, distributed.from_first(lambda: self.round_trip(execution)))
        return notes if self.decibels is None else notes | {"psnr_to_float32": self.decibels}

    def round_trip(self, execution: Execution) -> "RoundTrip | None":
        """What comes back of the first image under its own text; None where the method promises nothing."""
        if not round_trip.promise(self.method):
            return None
        first = self.sources.source.ids[0]
        inputs = self.read([first])
        method, text = round_trip.neutral(self._method(inputs)), self.texts[first][0]
        got, shown, image = round_trip.edited_to_itself(method, self.model, first, text, inputs, self.grid, execution)
        is_float32 = self.cfg.task.model.dtype == "float32"
        return round_trip.compare(self.method, first, got, shown, image, is_float32)

    def read(self, ids: Sequence[str]) -> "Tensor":
        """Source images as the model sees them, uint8 (n, 3, h, w)."""
        return self.sources.read(ids, self.device, self.model.multiple)

    def make(
        self, ids: Sequence[str], inputs: "Tensor", size: int, execution: Execution, meter: "Meter"
    ) -> Sequence[Mapping[str, Any]]:
        """Edit images: every candidate of each, of which the best is kept."""
        from cyclediff.studies.editing import best_candidates, encoded

        edits = encoded(self.model, ids, self.texts, inputs, self._masks(ids), execution, meter, self.words)
        shared, metric = self.cfg.selection.shared_encoding, self.cfg.selection.metric
        watched = meter.watch(self.model, "text-to-image")
        method = self._method(inputs)
        best = best_candidates(method, watched, edits, self.grid, shared, metric, self.scores, size, meter)
        pictures = self.sources.shaped([picture for picture, _ in best], ids)
        return [{"images": picture, "candidates": rows} for picture, (_, rows) in zip(pictures, best, strict=True)]

    def finish(self, folder: Path, batches: Sequence[Mapping[str, Any]], device: "torch.device") -> Scored:
        """Score the pictures; beside each score stands its mean over all candidates, ranked ones being optimistic."""
        rows, ids = self.candidates.read(folder), self.sources.source.ids
        chosen = {row["id"]: {key: row[key] for key in Grid.SETTINGS} for row in rows if row["chosen"]}
        seconds = scoring.seconds_of(batches, ids)
        more = {item: {**chosen.get(item, {}), **seconds[item]} for item in ids}
        protocol = self.protocol(device)
        scored = scoring.score_pictures(folder / "images", self.sources, protocol, self.context.cache, more)
        same = scoring.is_same_clip(self.cfg.task.ranking_clip, self.cfg.protocol.clip, self.context)
        return with_unselected(scored, rows, () if same else METRICS_OF_CLIP)

    def _asked(self) -> Grid:
        """The candidates that the configuration asks for.

        Raises:
            ValueError: if they are out of range.
        """
        selection: Any = OmegaConf.to_container(self.cfg.selection, resolve=True)
        grid = {key: tuple(values) for key, values in selection["grid"].items()}
        return Grid(selection["trials"], **grid, prune=read_prune(selection["prune"]))

    def _method(self, images: "Tensor") -> Any:
        """The method for images (n, 3, h, w); attention control at their own size acts in the layers that it is for."""
        if self.sources.fit != NATIVE or not self.cfg.method.get("attention"):
            return self.method
        trained, height, width = (side // self.model.factor for side in (self.model.size, *images.shape[2:]))
        return replace(self.method, attention=self.method.attention.at_size(trained, height, width))

    def _require_words(self) -> None:
        """Require that the words that attention control names are in the texts, where they do something."""
        from cyclediff.attention_control import AttentionControl

        self.words: Mapping[str, tuple[str, str]] = {}
        if self.cfg.method.get("attention") and isinstance(self.method.attention, AttentionControl):
            sources, targets = zip(*self.texts.values(), strict=True)
            with user_errors():
                self.method.attention.require_words(targets, sources)
            if self.method.attention.listed:
                self.words = listed_words(self.method.attention.listed, self.sources.source, self.texts)

    def _masks(self, ids: Sequence[str]) -> "Tensor | None":
        """Where images may change, as the model sees them, bool (n, 1, h, w); None for everywhere."""
        import torch

        from eval.metrics.editing import read_mask

        if not self.cfg.inside_masks:
            return None
        size, multiple = (self.cfg.protocol.size,) * 2, self.model.multiple
        paths = {item: mask for item in ids if (mask := self.edits[item].mask)}
        masks = {item: read_mask(path, self.sources.shapes.get(item, size)) for item, path in paths.items()}
        found = [self.sources.padded(mask[None, None], item, multiple) for item, mask in masks.items()]
        return torch.cat(found).to(self.device)

    def _read_texts(self, ranking: "ClipScorer") -> None:
        """Warn of what the CLIP that ranks candidates cannot read, before the slow part."""
        from eval.metrics.editing import warn_without_direction, without_direction

        ranking.warn_of_cut(chain(*self.texts.values()))
        if self.cfg.selection.metric == "dclip":
            same = without_direction(self.edits, ranking)
            warn_without_direction(
                same, len(self.edits), "of their candidates the first is taken, whatever it looks like"
            )

    def _model(self) -> Any:
        found = self.weights["model"]
        more = {"revision": found.commit} if found.commit else {}
        return load_network(self.cfg.task.model, path=str(found.path), device=str(self.device), dtype="float32", **more)

    def _cast_within_bound(self) -> float:
        """Make some images in float32, cast the model, and make them again: one network is in memory at a time."""
        from cyclediff.runtime.execution import noise_device
        from cyclediff.runtime.precision import IMAGES, require_precision
        from cyclediff.studies.editing import first_candidates

        kinds, every, shared = self.sources.kinds, self.sources.source.ids, self.cfg.selection.shared_encoding
        ids = [item for item in every if kinds.get(item) == kinds.get(every[0])][:IMAGES]
        mode = self.cfg.task.model.dtype, self.cfg.compile_mode
        execution = Execution(self.cfg.seed, IMAGES, self.device, noise_device(self.cfg, self.device))

        def sample(exactly: bool) -> "Tensor":
            if not exactly:
                self.model = self.model.cast(*mode)
            read, masks = self.read(ids), self._masks(ids)
            method = self._method(read)
            return first_candidates(
                method, self.model, ids, self.texts, read, masks, self.grid, shared, execution, self.words
            )

        found = distributed.from_first(lambda: require_precision(self.cfg.method.name, self._mode, sample))
        if not distributed.is_first():
            self.model = self.model.cast(*mode)
        return found
