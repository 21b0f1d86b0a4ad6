"""study=similarity: how far source and target are apart at each timestep of a translation. No image is kept."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclediff.errors import UserError
from cyclediff.runtime.artifacts import Artifact, Rows
from cyclediff.runtime.study import Execution, Items, Scored
from cyclediff.studies import requirements
from cyclediff.studies.context import Context
from cyclediff.studies.translate import SIDES, Translate

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from cyclediff.runtime.meter import Meter

PROTOCOL = "similarity/1"
RESAMPLES = 1000
COLUMNS = {"largest_distance": "largest distance", "mean_distance": "mean distance", "last_distance": "last distance"}


class Similarity:
    """An analysis of a method between two networks on pixels."""

    name = "similarity"

    def __init__(self, context: Context):
        self.cfg, self.translation, self.table = context.cfg, Translate(context), Rows("distances")

    @property
    def artifacts(self) -> Mapping[str, Artifact]:
        """A row per timestep of each image."""
        return {"distances": self.table}

    @property
    def parts(self) -> int:
        """One analysis of each image."""
        return 1

    def needs(self) -> None:
        """See `Study.needs`."""
        if requirements.declared(self.cfg).needs != set(SIDES):
            raise UserError(
                f"study=similarity compares two networks, and {self.cfg.method.name} does not evaluate a source and a "
                "target; choose method=cyclediffusion"
            )
        self.translation.needs()

    def items(self) -> Items:
        """The images of the source."""
        return self.translation.items()

    def identity(self) -> Mapping[str, Any]:
        """See `Study.identity`."""
        return self.translation.identity()

    def score_identity(self) -> Mapping[str, Any]:
        """The numbers are made of the artifacts alone."""
        return {"protocol": {"name": PROTOCOL}}

    def record(self) -> Mapping[str, Any]:
        """The weights."""
        return self.translation.record()

    def load(self, device: "torch.device") -> None:
        """Load the method and its networks."""
        self.translation.load_networks(device)
        if not self.translation.method.inverts:
            raise UserError(
                f"{self.cfg.method.name} does not evaluate source and target at equal timesteps; choose "
                "method=cyclediffusion"
            )

    def evaluate(self, count: int) -> None:
        """Evaluate each network once on so many images."""
        self.translation.evaluate(count)

    def batch_size_key(self) -> str:
        """Networks, size and precision."""
        return self.translation.batch_size_key()

    def begin(self, execution: Execution, missing: int) -> Mapping[str, Any]:
        """Measure what 16 bits and compiling change."""
        return self.translation.begin(execution, missing)

    def read(self, ids: Sequence[str]) -> "Tensor":
        """Source images, uint8 (n, 3, h, w)."""
        return self.translation.read(ids)

    def make(
        self, ids: Sequence[str], inputs: "Tensor", size: int, execution: Execution, meter: "Meter"
    ) -> Sequence[Mapping[str, Any]]:
        """Measure distances."""
        from cyclediff.data.images import from_uint8
        from cyclediff.diffusion.noise import Noise
        from cyclediff.similarity import distances

        models = self.translation.models
        source, target = (meter.watch(models[side].condition(), side) for side in SIDES)
        noise = Noise(execution.seed, ids, device=execution.noise_device)
        x0 = models["target"].encode(from_uint8(inputs.to(execution.device, non_blocking=True)), noise)
        try:
            timesteps, apart = distances(self.translation.method, x0, source, target, noise)
        except ValueError as error:
            raise UserError(str(error)) from error
        return [
            {"distances": [{"t": t, "distance": d} for t, d in zip(timesteps, row, strict=True)]}
            for row in apart.tolist()
        ]

    def finish(self, folder: Path, batches: Sequence[Mapping[str, Any]], device: "torch.device") -> Scored:
        """Largest, mean and last distance of each image, and the mean distance at each timestep."""
        import torch

        from eval.metrics.metric import Metric
        from eval.metrics.statistics import interval, mean_replicates, resamples

        found: dict[str, list[tuple[int, float]]] = {}
        for row in self.table.read(folder):
            found.setdefault(row["id"], []).append((row["t"], row["distance"]))
        apart = torch.tensor([[d for _, d in found[item]] for item in found], dtype=torch.float64)
        values = dict(zip(COLUMNS, (apart.max(1).values, apart.mean(1), apart[:, -1]), strict=True))
        counts = resamples(len(apart), RESAMPLES)
        replicates = {key: mean_replicates(column, counts) for key, column in values.items()}
        metrics = {
            key: Metric(COLUMNS[key], 4, higher_is_better=False).entry(
                f"{PROTOCOL}/rms-per-value/{key}",
                value=column.mean().item(),
                ci95=interval(column.mean().item(), replicates[key]),
                n=len(column),
                n_reference=None,
            )
            for key, column in values.items()
        }
        rows = [
            {"id": item, **{key: column[i].item() for key, column in values.items()}} for i, item in enumerate(found)
        ]
        timesteps = [t for t, _ in next(iter(found.values()))]
        curve = {
            "title": "Distance of source and target while a translation runs",
            "x": {"header": "timestep t (a translation runs from right to left)"},
            "y": {"header": "root mean squared distance per value"},
            "points": [[t, d] for t, d in zip(timesteps, apart.mean(0).tolist(), strict=True)],
        }
        return Scored(metrics, rows, {key: r.tolist() for key, r in replicates.items()}, {"distance": curve})
