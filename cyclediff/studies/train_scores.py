"""The numbers and curves of study=train: the last snapshot beside the best one, and losses over the steps."""

from collections.abc import Mapping
from typing import Any

from cyclediff.runtime.study import Scored
from cyclediff.studies.train_snapshots import CHOICE, Snapshots
from eval.metrics.metric import Metric

PROTOCOL = "training/1"
NOT_LOSSES = ("step", "rate", "seconds")


def score(snapshots: Snapshots) -> Scored:
    """The numbers of a whole training.

    The best of many snapshots is too good by the score that chose it, so it has a column of its own, which says of how
    many, and never the place of the last one.
    """
    rows, history, best = snapshots.rows(), snapshots.history(), snapshots.best()
    last, unit = rows[-1]["metrics"], snapshots.unit
    metrics: dict[str, Mapping[str, Any]] = {}
    for key, entry in last.items():
        metrics[key] = {**entry, "header": f"{entry['header']}, last {unit}"} if key == CHOICE else entry
        if key == CHOICE and best:
            chosen = best["metrics"][CHOICE]
            metrics[f"{key}_best"] = {
                **chosen,
                "header": f"{chosen['header']}, best of {len(rows)}",
                "protocol": f"{chosen['protocol']}/best-of-{len(rows)}-chosen-by-it",
            }
            metrics["best_at"] = _plain(f"best {unit}", 1, snapshots.units(best["step"]))
    metrics[f"{unit}s"] = _plain(f"{unit}s", 1, snapshots.units(snapshots.steps))
    metrics["training_seconds"] = _plain("training, s", 0, history[-1]["seconds"])
    found = [
        {"id": item, **{key: row["metrics"].get(key, {}).get("value") for key in last}}
        for item, row in zip(snapshots.ids, rows, strict=True)
    ]
    return Scored(metrics, found, curves=_curves(snapshots))


def _plain(header: str, digits: int, value: float) -> Mapping[str, Any]:
    return Metric(header, digits, higher_is_better=None).entry(
        f"{PROTOCOL}/{header}", value=value, ci95=None, n=1, n_reference=None
    )


def _curves(snapshots: Snapshots) -> dict[str, Mapping[str, Any]]:
    """Scores of the snapshots, and the losses, each a mean over the steps since the point before."""
    axis, curves = {"header": snapshots.unit}, {}
    points = [
        [snapshots.units(row["step"]), row["metrics"][CHOICE]["value"]]
        for row in snapshots.rows()
        if CHOICE in row["metrics"]
    ]
    if points:
        header = snapshots.rows()[-1]["metrics"][CHOICE]["header"]
        curves[CHOICE] = {"title": f"{header} while the network is trained", "x": axis, "y": {"header": header}}
        curves[CHOICE]["points"] = points
    for key in [key for key in snapshots.history()[-1] if key not in NOT_LOSSES]:
        points = [[snapshots.units(int(row["step"])), row[key]] for row in snapshots.history()]
        curves[f"loss_{key}"] = {
            "title": f"Loss {key.replace('_', ' ')}", "x": axis, "y": {"header": "mean since the last point"},
            "points": points,
        }  # fmt: skip
    return curves
