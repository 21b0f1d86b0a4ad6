"""What a metric is called, and how tables show it."""

from collections.abc import Sequence
from dataclasses import dataclass

from eval.records import MetricRecord


@dataclass(frozen=True)
class Metric:
    """A column of a table.

    Args:
        header: its name, with the unit and the scale.
        digits: after the point.
        higher_is_better: whether more is better; None where nothing is.
        scale: by which a table multiplies the value.
    """

    header: str
    digits: int
    higher_is_better: bool | None
    scale: float = 1.0

    def entry(
        self, protocol: str, *, value: float | None, ci95: Sequence[float] | None, n: int, n_reference: int | None
    ) -> MetricRecord:
        """A metric of metrics.json; see `MetricRecord`."""
        return {
            "value": value,
            "ci95": ci95,
            "n": n,
            "n_reference": n_reference,
            "higher_is_better": self.higher_is_better,
            "protocol": protocol,
            "header": self.header,
            "digits": self.digits,
            "scale": self.scale,
        }
