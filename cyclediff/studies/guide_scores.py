"""The numbers and curves of study=guide: how many images have what is wanted, and how good and different they are."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclediff.runtime.study import Scored
from eval.metrics.metric import Metric

if TYPE_CHECKING:
    from torch import Tensor

PROTOCOL = "guidance/1"
RESAMPLES = 1000
Columns = dict[str, tuple[Metric, str, Any]]  # key → column, how it is made, and its values (n,)
Sets = dict[str, tuple[Metric, str, float, int | None]]  # key → column, how it is made, value, number of references
SEED = 6006  # of the factors of true images; no network was trained on them


@dataclass(frozen=True)
class Wanted:
    """What images should be.

    Args:
        present: attributes that they should have.
        absent: attributes that they should not have.
        species: the animal of pets; "" for real images.
        judge: its judge's file; None for real images.
        references: how many true images they are compared with.
        size: of the images.
    """

    present: tuple[str, ...]
    absent: tuple[str, ...]
    species: str
    judge: Path | None
    references: int
    size: int

    def of(self, seen: "Tensor") -> "Tensor":
        """Which animals have all of it, bool (n,), from the judge's outputs or attributes in its order."""
        import torch

        from cyclediff.pets.attributes import has_attribute

        found = torch.ones(len(seen), dtype=torch.bool)
        for names, right in ((self.present, True), (self.absent, False)):
            for name in names:
                found &= has_attribute(seen, name) == right
        return found


def score(
    images: Path, ids: Sequence[str], rows: Sequence[Mapping[str, Any]], wanted: Wanted, energies: Sequence[str]
) -> Scored:
    """The numbers of a run.

    Args:
        images: folder of the PNGs.
        ids: of the images.
        rows: of each image and step of its chain: id, step, and the energies by name.
        wanted: what the images should be.
        energies: names of those that guide.
    """
    from eval.metrics.statistics import interval, mean_replicates, resamples

    found: dict[str, list[Mapping[str, Any]]] = {item: [] for item in ids}
    for row in rows:
        found[row["id"]].append(row)
    counts = resamples(len(ids), RESAMPLES)
    columns, sets = _judged(images, ids, wanted) if wanted.judge else (_guided(found, energies), {})
    entries, replicates = {}, {}
    for key, (metric, how, values) in columns.items():
        value, ci95 = None, None
        if not values.isnan().any():
            value, drawn = values.mean().item(), mean_replicates(values, counts)
            replicates[key], ci95 = drawn.tolist(), interval(value, drawn) if len(ids) > 1 else None
        entries[key] = metric.entry(f"{PROTOCOL}/{how}", value=value, ci95=ci95, n=len(ids), n_reference=None)
    for key, (metric, how, value, n) in sets.items():
        entries[key] = metric.entry(f"{PROTOCOL}/{how}", value=value, ci95=None, n=len(ids), n_reference=n)
    per_image = [
        {"id": item}
        | {f"{name}_{key}": found[item][k][name] for name in energies for key, k in (("before", 0), ("after", -1))}
        | {key: column[2][i].item() for key, column in columns.items() if key in replicates}
        for i, item in enumerate(ids)
    ]
    return Scored(entries, per_image, replicates, _curves(found, energies))


def _guided(found: Mapping[str, Sequence[Mapping[str, Any]]], energies: Sequence[str]) -> Columns:
    """The energies that guide, added up without weights, of each image, before and after; NaN where nothing guides.

    They have the same names whatever guides, so that all runs share a table.
    """
    import torch

    columns: Columns = {}
    for key, header, place in (("energy_before", "energy, start", 0), ("energy_after", "energy", -1)):
        values = [sum(rows[place][name] for name in energies) if rows else math.nan for rows in found.values()]
        how = f"sum-of-guiding-energies-{key.rpartition('_')[2]}"
        columns[key] = Metric(header, 3, higher_is_better=False), how, torch.tensor(values, dtype=torch.float64)
    return columns


def _judged(images: Path, ids: Sequence[str], wanted: Wanted) -> tuple[Columns, Sets]:
    """What the judge of pets says, which no guidance has seen: columns of images, and numbers of all together."""
    import torch

    from cyclediff.data.images import read_batch, to_uint8
    from cyclediff.pets.attributes import as_judged
    from cyclediff.pets.render import SPECIES, render, sample_factors
    from eval.metrics.features import file_digest
    from eval.metrics.frechet import frechet_distance
    from eval.metrics.pets import DOMAIN, attribute_error, load_pets_judge, observe

    assert wanted.judge is not None
    judge, name = load_pets_judge(wanted.judge), f"pets-judge-{file_digest(wanted.judge)}"
    features, seen = observe(judge, read_batch([images / f"{item}.png" for item in ids]))
    species = (seen[:, DOMAIN] > 0) == (wanted.species == SPECIES[1])
    columns: Columns = {
        "wanted": (
            Metric("has what is wanted", 3, higher_is_better=True),
            f"{name}/all-wanted-attributes",
            wanted.of(seen).double(),
        ),
        "species": (Metric(f"is a {wanted.species}", 3, higher_is_better=True), f"{name}/species", species.double()),
    }
    generator, chosen = torch.Generator().manual_seed(SEED), []
    while sum(map(len, chosen)) < wanted.references:
        factors = sample_factors(1024, generator)
        chosen.append(factors[wanted.of(as_judged(factors))])
    factors = torch.cat(chosen)[: wanted.references]
    true = to_uint8(torch.cat([render(part, wanted.species, wanted.size) for part in factors.split(64)]))
    true_features, _ = observe(judge, true)
    sets: Sets = {}
    if len(ids) > 1:
        sets["fd_wanted"] = (
            Metric("FD to true images of it", 2, higher_is_better=False),
            f"fid/{name}/vs-{wanted.references}-rendered-with-what-is-wanted",
            frechet_distance(features, true_features),
            wanted.references,
        )
        first, second = torch.triu_indices(len(ids), len(ids), 1)
        sets["diversity"] = (
            Metric("diversity", 3, higher_is_better=True),
            f"mean-attribute-difference-of-pairs/{name}",
            float(attribute_error(seen[first], seen[second]).mean()),
            None,
        )
    return columns, sets


def _curves(found: Mapping[str, Sequence[Mapping[str, Any]]], energies: Sequence[str]) -> dict[str, Any]:
    """Energies against the updates of the chain, and how many images the guiding classifier accepts."""
    import torch

    curves = {}
    for name in energies:
        values = torch.tensor([[row[name] for row in rows] for rows in found.values()], dtype=torch.float64)
        axis = {"header": "update of the chain"}
        curves[f"{name}_energy"] = {
            "title": f"Energy of the {name} while the chain runs",
            "x": axis,
            "y": {"header": "mean over the images, without its weight"},
            "points": [[k, v] for k, v in enumerate(values.mean(0).tolist())],
        }
        if name == "classifier":
            accepted = (values < math.log(2)).double().mean(0)
            curves["accepted"] = {
                "title": "Images that the guiding classifier accepts while the chain runs",
                "x": axis,
                "y": {"header": "share with a probability of all attributes above 1/2"},
                "points": [[k, v] for k, v in enumerate(accepted.tolist())],
            }
    return curves
