"""Comparing the rows of a table: which differences are real, and whether claims hold.

Differences are paired: both rows are resampled on the same images, so what they share cancels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from eval.report.rows import TableRow

BOUNDS = (0.025, 0.975)
SURE = 0.975


@dataclass(frozen=True)
class Verdict:
    """What the runs say of a claim that an experiment makes.

    Args:
        text: the claim.
        verdict: "holds" or "fails" where at least 97.5 % of the bootstrap's resamples say so.
        support: the share of the resamples in which it holds, from 0 to 1; None where a run or a number is missing.
        reason: why it fails, where it does and the experiment knows it.
    """

    text: str
    verdict: Literal["holds", "fails", "undecided"]
    support: float | None
    reason: str = ""


def format_verdict(verdict: Verdict) -> str:
    """A verdict in a line."""
    return f"{verdict.verdict}: {verdict.text} ({format_support(verdict)})"


def format_support(verdict: Verdict) -> str:
    """How much supports a claim, "bootstrap support 97 %", and why it fails."""
    if verdict.support is None:
        return "a run or a number is missing"
    return f"bootstrap support {100 * verdict.support:.3g} %" + (f"; {verdict.reason}" if verdict.reason else "")


def difference(value_a: float, value_b: float, a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of a difference: percentiles of the replicates' differences, moved to the value's difference.

    Args:
        value_a: of the metric, first row.
        value_b: second row.
        a: values on resamples of the images, (B,); pairs with a NaN are left out.
        b: on the same resamples, (B,).

    Returns:
        Low and high, of first minus second.
    """
    apart = a - b
    apart = apart[~np.isnan(apart)]
    low, high = np.quantile(apart - apart.mean() + (value_a - value_b), BOUNDS).tolist()
    return low, high


def mark(rows: Sequence[TableRow]) -> None:
    """Write into each row which of its values are the best of their column or tied with it."""
    for key in dict.fromkeys(key for row in rows for key in row.metrics):
        known = [row for row in rows if key in row.metrics and row.metrics[key]["value"] is not None]
        if len(known) < 2 or known[0].metrics[key]["higher_is_better"] is None:
            continue
        sign = 1 if known[0].metrics[key]["higher_is_better"] else -1
        best = max(known, key=lambda row: sign * _value(row, key))
        best.marks[key] = "best"
        for other in known:
            if other is best or not _pairs(best, other, key):
                continue
            replicates = (row.replicates[key] for row in (best, other))
            low, high = difference(_value(best, key), _value(other, key), *replicates)
            if low <= 0 <= high:
                other.marks[key] = "tied"


def judge_claims(claims: Sequence[Mapping[str, Any]], rows: Sequence[TableRow]) -> list[Verdict]:
    """What the rows say of an experiment's claims.

    Args:
        claims: each with text, method, than (another method), and better: metrics in which the first is the better one.
            A method is its name, or a mapping of its name (`method`) and some of its settings. reason: why it fails,
            shown where it does.
        rows: of one table.
    """
    return [_judge(claim, rows) for claim in claims]


def _judge(claim: Mapping[str, Any], rows: Sequence[TableRow]) -> Verdict:
    sides = [[row for row in rows if _is_meant(row, claim[side])] for side in ("method", "than")]
    if any(len(side) != 1 for side in sides):
        return Verdict(claim["text"], "undecided", None)
    one, other = sides[0][0], sides[1][0]
    keys = claim["better"]
    if not all(_pairs(one, other, key) for key in keys):
        return Verdict(claim["text"], "undecided", None)
    count = min(len(one.replicates[key]) for key in keys)  # the first resamples are the same for all metrics
    holds = np.ones(count, dtype=bool)
    for key in keys:
        apart = one.replicates[key][:count] - other.replicates[key][:count]
        apart = apart - np.nanmean(apart) + _value(one, key) - _value(other, key)
        holds &= apart > 0 if one.metrics[key]["higher_is_better"] else apart < 0
    support = holds.mean().item()
    verdict = "holds" if support >= SURE else "fails" if support <= 1 - SURE else "undecided"
    return Verdict(claim["text"], verdict, support, claim.get("reason", "") if verdict == "fails" else "")


def _is_meant(row: TableRow, side: str | Mapping[str, Any]) -> bool:
    wanted = {"method": side} if isinstance(side, str) else side
    own = {**row.run["identity"].get("method", {}), "method": row.method}
    return all(key in own and own[key] == value for key, value in wanted.items())


def _pairs(one: TableRow, other: TableRow, key: str) -> bool:
    """Whether both rows have a metric, on the same number of resamples."""
    if any(row.metrics.get(key, {}).get("value") is None or key not in row.replicates for row in (one, other)):
        return False
    return len(one.replicates[key]) == len(other.replicates[key]) > 0


def _value(row: TableRow, key: str) -> float:
    value = row.metrics[key]["value"]
    assert value is not None
    return value
