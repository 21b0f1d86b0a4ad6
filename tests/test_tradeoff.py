import itertools

import numpy as np
import pytest

from eval.report.rows import Entry, TableRow
from eval.report.tradeoff import Curve, curves, dominated_area, pareto_front, shares

HIGHER = list(itertools.product([True, False], repeat=2))


def dominates(a, b, higher):
    better = [(p > q) if up else (p < q) for p, q, up in zip(a, b, higher, strict=True)]
    worse = [(p < q) if up else (p > q) for p, q, up in zip(a, b, higher, strict=True)]
    return any(better) and not any(worse)


@pytest.mark.parametrize("higher", HIGHER)
def test_the_front_is_what_nothing_dominates(higher):
    for seed in range(30):
        generator = np.random.default_rng(seed)
        points = [tuple(map(float, p)) for p in generator.integers(0, 6, (generator.integers(1, 15), 2))]  # with ties
        front = pareto_front(points, higher)
        assert sorted(front) == [
            k for k, p in enumerate(points) if not any(dominates(other, p, higher) for other in points)
        ]
        assert [points[k][0] for k in front] == sorted(points[k][0] for k in front)


@pytest.mark.parametrize("higher", HIGHER)
def test_the_area_is_that_of_the_dominated_cells(higher):
    """On whole numbers, the area is the number of unit cells that lie between a point and the corner."""
    cells = np.stack(np.meshgrid(np.arange(20), np.arange(20)), -1) + 0.5
    for seed in range(20):
        generator = np.random.default_rng(seed)
        points, corner = generator.integers(0, 21, (5, 2)), generator.integers(0, 21, 2)
        covered = np.zeros((20, 20), bool)
        for point in points:
            inside = np.ones((20, 20), bool)
            for axis, up in enumerate(higher):
                low, high = (corner[axis], point[axis]) if up else (point[axis], corner[axis])
                inside &= (low < cells[..., axis]) & (cells[..., axis] < high)
            covered |= inside
        area = dominated_area([tuple(map(float, p)) for p in points], higher, tuple(map(float, corner)))
        assert area == covered.sum()


def test_the_area_agrees_with_random_points():
    generator = np.random.default_rng(0)
    points = generator.uniform(0, 1, (6, 2))
    drawn = generator.uniform(0, 1, (200_000, 2))
    beaten = (drawn[:, None] < points).all(-1).any(1).mean()
    assert dominated_area([tuple(p) for p in points], (True, True), (0.0, 0.0)) == pytest.approx(beaten, abs=0.005)


def curve(*points):
    return Curve("m", list(points), [""] * len(points), [(None, None)] * len(points))


def test_shares_are_of_the_box_of_all_points_and_have_no_unit():
    found = [curve((0.0, 10.0), (4.0, 0.0)), curve((2.0, 5.0))]
    assert shares(found, (True, True)) == [0.0, 0.25]
    assert shares(found, (True, False)) == [1.0, 0.25]
    scaled = [curve(*((1000 * x, y / 7) for x, y in each.points)) for each in found]
    assert shares(scaled, (True, False)) == pytest.approx([1.0, 0.25])


@pytest.mark.parametrize("found", [[], [curve((1.0, 2.0))], [curve((1.0, 2.0), (3.0, 2.0))]])
def test_a_flat_box_has_no_shares(found):
    assert shares(found, (True, True)) is None


def row(label, method, std=None, **values):
    metrics = {key: {"ci95": [value - 1, value + 2]} for key, value in values.items() if key == "psnr" and value}
    return TableRow(label, [Entry(None, None, {"method": method}, {})], metrics, values, std or {})


def test_runs_of_a_method_are_one_curve_from_low_to_high():
    rows = [
        row("m (a)", "m", psnr=20.0, fid=5.0),
        row("n", "n", psnr=1.0, fid=2.0),
        row("m (b)", "m", psnr=10.0, fid=7.0),
    ]
    rows += [row("m (c)", "m", psnr=None, fid=1.0), row("k", "k", fid=3.0)]
    first, second = curves(rows, "psnr", "fid")
    assert (first.method, second.method) == ("m", "n")
    assert first.points == [(10.0, 7.0), (20.0, 5.0)]
    assert first.labels == ["m (b)", "m (a)"]
    assert first.bars == [((9.0, 12.0), None), ((19.0, 22.0), None)]


def test_several_seeds_show_their_spread():
    (found,) = curves([row("m", "m", {"psnr": 0.5}, psnr=20.0, fid=5.0)], "psnr", "fid")
    assert found.bars == [((19.5, 20.5), None)]
