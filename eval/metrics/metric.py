"""What a metric is called, and how tables show it."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Metric:
    """A column of a table.

    Args:
        header: its name, with the unit and the scale.
        digits: after the point.
        higher_is_better: whether more is better.
        scale: by which a table multiplies the value.
    """

    header: str
    digits: int
    higher_is_better: bool
    scale: float = 1.0

    def entry(self, protocol: str, **values: Any) -> dict[str, Any]:
        """A metric of metrics.json: `values` (value, ci95, n, n_reference) and all that a table needs to show them."""
        shown = {"header": self.header, "digits": self.digits, "scale": self.scale}
        return {**values, "higher_is_better": self.higher_is_better, "protocol": protocol, **shown}
