"""Numbers of a set of results beside a reference set: what they are called, and which network they need."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from eval.metrics.cmmd import cmmd, cmmd_replicates
from eval.metrics.frechet import frechet_distance, frechet_infinity, frechet_replicates
from eval.metrics.kid import kernel_distance, kernel_distance_subsets, kernel_replicates
from eval.metrics.metric import Metric
from eval.metrics.neighbours import K, coverage, density
from eval.metrics.statistics import mean_replicates

METRICS = {
    "fid": Metric("FID", 2, False),
    "fid_infinity": Metric("FID∞", 2, False),
    "kid": Metric("KID×10³", 2, False, 1000),
    "kid_subsets": Metric("KID×10³ by subsets", 2, False, 1000),
    "density": Metric("density", 3, True),
    "coverage": Metric("coverage", 3, True),
    "fd_dinov2": Metric("FD DINOv2", 1, False),
    "kd_dinov2": Metric("KD×10³ DINOv2", 1, False, 1000),
    "density_dinov2": Metric("density DINOv2", 3, True),
    "coverage_dinov2": Metric("coverage DINOv2", 3, True),
    "cmmd": Metric("CMMD", 3, False),
}
SUBSETS = 100


@dataclass(frozen=True)
class SetMetric:
    """A number of two sets of features.

    Args:
        name: for protocol strings.
        value: of generated and reference features.
        replicates: on resamples of the generated ones, see `statistics.resamples`; None for no interval.
        least: images that are needed on each side.
        statistics: whether mean and covariance of the reference are enough.
    """

    name: str
    value: Callable[..., float]
    replicates: Callable[..., Tensor] | None
    least: int
    statistics: bool = False


FD = SetMetric("fid", frechet_distance, frechet_replicates, 2, True)
KD = SetMetric("kid-unbiased-poly3-all", kernel_distance, kernel_replicates, 2)
DENSITY = SetMetric(
    f"density-k{K}-strict",
    lambda a, b: density(a, b).mean().item(),
    lambda a, b, counts: mean_replicates(density(a, b), counts),
    K + 1,
)
COVERAGE = SetMetric(f"coverage-k{K}-strict", coverage, None, K + 1)
OWN, DINOV2, CLIP = "features", "dinov2", "cmmd"  # networks: the protocol's own features, and two others
SETS: dict[str, tuple[str, SetMetric]] = {  # by key: network and metric
    "fid": (OWN, FD),
    "kid": (OWN, KD),
    "density": (OWN, DENSITY),
    "coverage": (OWN, COVERAGE),
    "fd_dinov2": (DINOV2, replace(FD, name="fd")),
    "kd_dinov2": (DINOV2, KD),
    "density_dinov2": (DINOV2, DENSITY),
    "coverage_dinov2": (DINOV2, COVERAGE),
    "cmmd": (CLIP, SetMetric("cmmd-sigma10-biased", cmmd, cmmd_replicates, 1)),
}


def networks_of(sets: Sequence[str]) -> list[str]:
    """The networks that some set metrics need: features, dinov2 and cmmd, in this order.

    Raises:
        ValueError: if one is unknown, or named twice.
    """
    unknown = [str(key) for key in sets if key not in SETS]
    if unknown or len(set(sets)) < len(sets):
        raise ValueError(
            f"protocol.sets must be some of {', '.join(SETS)}, each once; got {', '.join(map(str, sets)) or 'none'}"
        )
    return [name for name in (OWN, DINOV2, CLIP) if name in {SETS[key][0] for key in sets}]


def of_own() -> list[str]:
    """The set metrics on the protocol's own features."""
    return [key for key, (network, _) in SETS.items() if network == OWN]


def chosen_metrics(sets: Sequence[str], infinity: bool, kid_subset: int | None) -> dict[str, tuple[str, SetMetric]]:
    """The metrics that a protocol asks for, by key, each with its network, in the order of a table.

    Args:
        sets: keys of `SETS`.
        infinity: whether FID is extrapolated, too.
        kid_subset: images of a subset, for KID by subsets, too; None leaves that out.
    """
    found: dict[str, tuple[str, SetMetric]] = {}
    for key in sets:
        found[key] = SETS[key]
        if key == "fid" and infinity:
            found["fid_infinity"] = OWN, SetMetric("fid-extrapolated", frechet_infinity, None, 8, True)
    if kid_subset is not None:
        name = f"kid-unbiased-poly3-{SUBSETS}×{kid_subset}-seed0"
        found["kid_subsets"] = OWN, SetMetric(name, lambda a, b: _by_subsets(a, b, kid_subset), None, 2)
    return found


def _by_subsets(a: Tensor, b: Tensor, size: int) -> float:
    return kernel_distance_subsets(a, b, size, SUBSETS).mean().item()
