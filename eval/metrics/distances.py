"""The results as a set beside a reference set: FID, KID and others that a protocol chooses, with intervals.

All of one network are computed from the same features. Coverage has no interval: a resample of the images has fewer
different ones, and covers less.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from eval import ranks
from eval.files import list_images, read_picture
from eval.metrics.features import Extractor
from eval.metrics.frechet import Statistics
from eval.metrics.pictures import at_size
from eval.metrics.references import cached, read_statistics
from eval.metrics.sets import METRICS, chosen_metrics, of_own
from eval.metrics.statistics import interval, resamples
from eval.protocols import Protocol
from eval.records import MetricRecord

# by the judge of pets, not by an Inception network: these numbers must not be taken for a paper's
PETS_METRICS = {
    key: replace(metric, header=metric.header.replace("FID", "FD").replace("KID", "KD"))
    for key, metric in METRICS.items()
}
RESAMPLES = 200


def reference_features(
    reference: Path, protocol: Protocol, extractor: Extractor, cache: Path | None
) -> Tensor | Statistics | None:
    """Features of reference images, or statistics that another library saved; the other processes get None.

    The first process looks into the cache; the others help where the features are not there.
    """
    if reference.suffix == ".npz":
        if extractor is not protocol.features:
            raise ValueError(
                f"{reference} has features or statistics of one network, and protocol.sets asks for another; give the "
                f"folder of the images, or leave out what is not of {', '.join(of_own())}"
            )
        found = read_statistics(reference)
        lacking = [key for key in protocol.sets if key in ("density", "coverage")]
        if lacking and isinstance(found, Statistics):
            raise ValueError(
                f"{reference} has a mean and a covariance only, and {' and '.join(lacking)} need features; give the "
                "folder of the images, or an .npz with feats"
            )
        return found
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
    features: Mapping[str, Tensor], targets: Mapping[str, Tensor | Statistics], protocol: Protocol
) -> tuple[dict[str, MetricRecord], dict[str, list[float]]]:
    """The protocol's set metrics with intervals and replicates; with too few images a value is empty.

    Args:
        features: of the results, by network.
        targets: of the reference, by network.
        protocol: which metrics.
    """
    chosen = chosen_metrics(protocol.sets, protocol.infinity, protocol.kid_subset)
    headers = PETS_METRICS if protocol.judge else METRICS
    metrics, replicates = {}, {}
    prepared = f"{protocol.shape}/" if protocol.shape else ""  # of the results; the reference's is in its name
    for key, (network, metric) in chosen.items():
        target = targets.get(network)
        if target is None or (isinstance(target, Statistics) and not metric.statistics):
            continue  # KID and neighbours need more than mean and covariance
        seen, n_reference = features[network], len(target) if isinstance(target, Tensor) else target.n
        fewest = min(len(seen), len(seen) if n_reference is None else n_reference)
        value = metric.value(seen, target) if fewest >= metric.least else None
        if value is not None and metric.replicates is not None:
            replicates[key] = metric.replicates(seen, target, resamples(len(seen), RESAMPLES)).tolist()
        metrics[key] = headers[key].entry(
            f"{metric.name}/{protocol.extractors[network].protocol}/{prepared}vs-{protocol.reference}",
            value=value,
            ci95=interval(value, torch.tensor(replicates[key])) if value is not None and key in replicates else None,
            n=len(seen),
            n_reference=n_reference,
        )
    return metrics, replicates
