"""The numbers and curves of study=similarity, from what was measured in each step of each image."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cyclediff.runtime.study import Scored
from eval.metrics.metric import Metric

if TYPE_CHECKING:
    from torch import Tensor

PROTOCOL = "similarity/2"
RESAMPLES = 1000
METRICS = {  # key → column, and how the number is made
    "distance": (Metric("distance", 3, higher_is_better=False), "rms-per-value-at-the-end"),
    "own_bound": (Metric("bound", 3, higher_is_better=False), "own-constants-of-each-image"),
    "tightness": (Metric("distance/bound", 2, higher_is_better=True), "mean-over-images"),
    "bound_of_all": (Metric("bound of all", 3, higher_is_better=False), "largest-constants-of-all-images"),
    "gaps": (Metric("sum of S", 3, higher_is_better=False), "rms-per-value"),
    "growth": (Metric("bound/sum of S", 2, higher_is_better=False), "mean-over-images"),
}
AXIS = "step of the sampler"
MEAN, LARGEST = "mean over the images", "largest of the images"


def score(rows: Sequence[Mapping[str, Any]], panel: str, label: str) -> Scored:
    """Distance and bounds at the end of each image, their parts, and curves over the steps.

    With one image there are no intervals: resamples of it are all the same. Where source and target are one, for some
    image, the ratios have no value.

    Args:
        rows: of all levels of all images: id, step, distance, and but for the last level stretch and gap.
        panel: the setting that the page gives a drawing of its own.
        label: the setting that the lines of a drawing differ in.
    """
    import torch

    from cyclediff.similarity import bound, bound_of_all
    from eval.metrics.statistics import interval, mean_replicates, resamples

    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["id"], []).append(row)
    distance, stretch, gap = (
        torch.tensor([[row[key] for row in every[: len(every) - cut]] for every in found.values()], dtype=torch.float64)
        for key, cut in (("distance", 0), ("stretch", 1), ("gap", 1))
    )
    own, of_all = bound(stretch, gap), bound_of_all(stretch, gap)
    gaps = gap.sum(1)
    values = {"distance": distance[:, -1], "own_bound": own[:, -1], "gaps": gaps}
    values |= {"tightness": _ratio(distance[:, -1], own[:, -1]), "growth": _ratio(own[:, -1], gaps)}
    known = {key: value for key, value in values.items() if not value.isnan().any()}
    counts = resamples(len(found), RESAMPLES) if len(found) > 1 else None
    replicates = {} if counts is None else {key: mean_replicates(value, counts) for key, value in known.items()}
    means = {key: value.mean().item() for key, value in known.items()} | {"bound_of_all": of_all[-1].item()}
    metrics = {
        key: metric.entry(
            f"{PROTOCOL}/{key}/{how}",
            value=means.get(key),
            ci95=interval(means[key], replicates[key]) if key in replicates else None,
            n=len(found),
            n_reference=None,
        )
        for key, (metric, how) in METRICS.items()
    }
    steps = [row["step"] for row in next(iter(found.values()))]
    place = {"x": {"header": AXIS}, "panel": panel, "label": label}
    curves = {
        "distance": _curve(
            "Distance of source and target, and its bound", "distance, RMS per value", place, steps, distance.mean(0)
        )
        | {"dashed": {"label": "mean of the images' own bounds", "points": _points(steps, own.mean(0))}},
        "gap": _curve(
            "Gap S: what the two models or texts see differently in one state",
            "S, RMS per value",
            place,
            steps[:-1],
            gap.mean(0),
        )
        | {"dashed": {"label": LARGEST, "points": _points(steps[:-1], gap.amax(0))}},
        "stretch": _curve(
            "Stretch K: by what a step multiplies the distance", "K", place, steps[1:-1], stretch[:, 1:].mean(0)
        )
        | {"dashed": {"label": LARGEST, "points": _points(steps[1:-1], stretch[:, 1:].amax(0))}},
    }
    return Scored(
        metrics,
        [{"id": item, **{key: value[i].item() for key, value in known.items()}} for i, item in enumerate(found)],
        {key: value.tolist() for key, value in replicates.items()},
        curves,
    )


def _ratio(a: "Tensor", b: "Tensor") -> "Tensor":
    """A / b; NaN where b is 0, which it is where source and target are one."""
    return (a / b).where(b > 0, float("nan"))


def _curve(title: str, y: str, place: Mapping[str, Any], steps: Sequence[int], means: "Tensor") -> dict[str, Any]:
    return {"title": title, **place, "y": {"header": y}, "solid": MEAN, "points": _points(steps, means)}


def _points(steps: Sequence[int], values: "Tensor") -> list[list[float]]:
    return [[step, value] for step, value in zip(steps, values.tolist(), strict=True)]
