"""Distances between the results as a set and a reference set: FID and KID, with intervals."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from eval import ranks
from eval.files import list_images, read_picture
from eval.metrics.features import Extractor
from eval.metrics.frechet import Statistics, frechet_distance, frechet_infinity, frechet_replicates
from eval.metrics.kid import kernel_distance, kernel_distance_subsets, kernel_replicates
from eval.metrics.metric import Metric
from eval.metrics.pictures import at_size
from eval.metrics.references import cached, read_statistics
from eval.metrics.statistics import interval, resamples
from eval.protocols import Protocol
from eval.records import MetricRecord

METRICS = {
    "fid": Metric("FID", 2, False),
    "fid_infinity": Metric("FID∞", 2, False),
    "kid": Metric("KID×10³", 2, False, 1000),
    "kid_subsets": Metric("KID×10³ by subsets", 2, False, 1000),
}
# by the judge of pets, not by an Inception network: these numbers must not be taken for a paper's
PETS_METRICS = {
    key: replace(metric, header=metric.header.replace("FID", "FD").replace("KID", "KD"))
    for key, metric in METRICS.items()
}
RESAMPLES = 200
SUBSETS = 100
LEAST = {"fid": 2, "kid": 2, "kid_subsets": 2, "fid_infinity": 8}  # images


def reference_features(
    reference: Path, protocol: Protocol, extractor: Extractor, cache: Path | None
) -> Tensor | Statistics | None:
    """Features of reference images, or statistics that another library saved; the other processes get None.

    The first process looks into the cache; the others help where the features are not there.
    """
    if reference.suffix == ".npz":
        return read_statistics(reference)
    paths = list_images(reference)
    if not paths:
        raise ValueError(f"{reference} has no images; give a folder of images of the target domain")
    size = protocol.size if protocol.reference_resize else None

    def compute_part() -> list[Tensor]:
        part = paths[ranks.rank() :: ranks.world()]
        return ranks.gather(extractor(at_size(read_picture(path), size, protocol.resize, path) for path in part))

    def compute() -> Tensor:
        ranks.from_first(True)
        parts = compute_part()
        features = parts[0].new_empty(len(paths), parts[0].shape[1])
        for first, found in enumerate(parts):
            if len(found):  # with more processes than images some have none
                features[first :: ranks.world()] = found
        helped.append(True)
        return features

    helped: list[bool] = []
    if ranks.rank() == 0:
        features = cached(f"{extractor.protocol} {size} {size and protocol.resize}", paths, compute, cache)
        if not helped:
            ranks.from_first(False)
        return features
    if ranks.from_first(None):
        compute_part()
    return None


def distances(
    features: Tensor, target: Tensor | Statistics, protocol: Protocol
) -> tuple[dict[str, MetricRecord], dict[str, list[float]]]:
    """FID and KID with intervals and replicates; they need two images, and fewer leave the values empty."""
    functions: dict[str, tuple[str, Callable[..., float], Callable[..., Tensor] | None]] = {
        "fid": ("fid", frechet_distance, frechet_replicates)
    }
    if protocol.infinity:
        functions["fid_infinity"] = "fid-extrapolated", frechet_infinity, None
    if isinstance(target, Tensor):  # KID needs more than mean and covariance
        functions["kid"] = "kid-unbiased-poly3-all", kernel_distance, kernel_replicates
    size = protocol.kid_subset
    if isinstance(target, Tensor) and size is not None:
        name = f"kid-unbiased-poly3-{SUBSETS}×{size}-seed0"
        functions["kid_subsets"] = name, lambda a, b: kernel_distance_subsets(a, b, size, SUBSETS).mean().item(), None
    n_reference = len(target) if isinstance(target, Tensor) else target.n
    fewest = min(len(features), len(features) if n_reference is None else n_reference)
    counts = resamples(len(features), RESAMPLES)
    network = protocol.features.protocol if protocol.features else ""
    headers = PETS_METRICS if protocol.judge else METRICS
    metrics, replicates = {}, {}
    for key, (name, distance, resampled) in functions.items():
        value = distance(features, target) if fewest >= LEAST[key] else None
        if value is not None and resampled is not None:
            replicates[key] = resampled(features, target, counts).tolist()
        metrics[key] = headers[key].entry(
            f"{name}/{network}/vs-{protocol.reference}",
            value=value,
            ci95=interval(value, torch.tensor(replicates[key])) if value is not None and key in replicates else None,
            n=len(features),
            n_reference=n_reference,
        )
    return metrics, replicates
