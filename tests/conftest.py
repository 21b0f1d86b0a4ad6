"""`parity`: compare with an official code's numbers, and note how close it was for docs/parity.md (`make parity`)."""

import os
from collections import defaultdict
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers share two cores, and so do the programs that they start
os.environ["HF_HUB_OFFLINE"] = "1"  # no test asks the hub for anything

import pytest
import torch

from .nets import OFFICIAL

RECORDS = defaultdict(list)


def pytest_addoption(parser):
    parser.addoption("--parity", type=Path, help="write what the golden tests measured to this file")


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture
def parity(request):
    """Asserts max|diff| <= tolerance × the largest value (but at least 1, unless `relative`)."""

    def check(code, what, actual, expected, tolerance=1e-4, relative=False):
        assert actual.shape == expected.shape
        scale = expected.abs().max().item()
        limit = tolerance * (scale if relative else max(1.0, scale))
        difference = (actual.double() - expected.double()).abs().max().item()
        RECORDS[code, what].append((difference, limit, request.node.name))
        assert difference <= limit

    return check


def pytest_sessionfinish(session, exitstatus):
    path = session.config.getoption("parity")
    if not path or exitstatus:
        return
    lines = [
        "# Parity with the official codes",
        "",
        "Written by `make parity`, which replays the official codes' recorded inputs, weights and noise (tests/golden)",
        f"on this project's code: float32, CPU, torch {torch.__version__.split('+')[0]}. A row is the worst of its",
        "comparisons, measured against its limit.",
    ]
    for code, repository in OFFICIAL.items():
        rows = {what: found for (c, what), found in RECORDS.items() if c == code}
        if rows:
            lines += ["", f"## {code}: {repository}", "", "| compared | comparisons | max abs difference | limit |"]
            lines += ["|---|---:|---:|---:|"]
            for what, found in rows.items():
                worst = max(found, key=lambda record: record[0] / (record[1] or 1))
                lines.append(f"| {what} | {len(found)} | {worst[0]:.1e} | {worst[1]:.1e} |")
    path.write_text("\n".join(lines) + "\n")
