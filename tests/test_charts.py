"""Charts as SVG: places, ticks, fronts and lines."""

import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest

from eval.report.charts import COLOURS, HEIGHT, SHAPES, WIDTH, Axis, Line, _Span, draw_chart, draw_lines, ticks
from eval.report.tradeoff import Curve


@pytest.mark.parametrize("seed", range(40))
def test_ticks_are_round_and_cover_the_axis(seed):
    generator = np.random.default_rng(seed)
    low = float(generator.normal(0, 10 ** generator.uniform(-3, 4)))
    high = low + float(10 ** generator.uniform(-3, 4))
    found = ticks(low, high)
    assert 3 <= len(found) <= 8
    steps = np.diff(found)
    assert steps == pytest.approx(steps[0])
    assert low - 1e-6 * steps[0] <= found[0] < low + steps[0]
    assert high - steps[0] < found[-1] <= high + 1e-6 * steps[0]
    assert f"{steps[0]:.6e}"[0] in "125"


def test_ticks_of_a_logarithmic_axis():
    assert ticks(9, 230, log=True) == [10, 20, 50, 100, 200]
    assert ticks(0.5, 20_000, log=True) == [1, 10, 100, 1000, 10_000]


def markers(svg):
    """Positions of the markers in the order drawn, and the text of each tooltip."""
    found = [element for element in ElementTree.fromstring(svg).iter("path") if element.get("class") == "marker"]
    places = [tuple(map(float, re.findall(r"[\d.]+", element.get("transform")))) for element in found]
    return places, [element.findtext("title") for element in found]


def test_a_chart_places_its_points_true_to_scale():
    curve = Curve("m", [(0.0, 1.0), (1.0, 3.0), (4.0, 2.0)], ["m (a)", "m (<b>)", "c"], [((-1, 1), None)] * 3)
    svg = draw_chart([curve], Axis("PSNR dB", True, 2), Axis("KID×10³", False, 1, 1000), {"m": 0})
    places, tooltips = markers(svg)
    (x0, y0), (x1, y1), (x2, y2) = places
    assert (x2 - x0) / (x1 - x0) == pytest.approx(4, abs=0.01)
    assert (y0 - y2) / (y0 - y1) == pytest.approx(0.5, abs=0.01)
    assert y1 < y0  # larger is higher up
    assert all(0 < x < WIDTH and 0 < y < HEIGHT for x, y in places)
    texts = {(e.get("text-anchor"), e.text): e for e in ElementTree.fromstring(svg).iter("text")}
    assert float(texts["middle", "1"].get("x")) == x1
    assert float(texts["end", "2000"].get("y")) == pytest.approx(y2 + 4.5, abs=0.1)  # letters are centred on the tick
    assert tooltips[1] == "m (<b>)\nPSNR dB 1.00\nKID×10³ 3000.0"
    assert "better →" in svg
    assert "better ↓" in svg
    bars = [e.get("d") for e in ElementTree.fromstring(svg).iter("path") if e.get("class") == "bar"]
    left, right = (float(part.split()[0]) for part in bars[0][1:].split("L"))
    assert (right - left) / (x1 - x0) == pytest.approx(2, abs=0.01)


def test_a_cost_axis_of_many_decades_is_logarithmic():
    curve = Curve("m", [(10.0, 1.0), (100.0, 2.0), (1000.0, 3.0)], list("abc"), [(None, None)] * 3)
    svg = draw_chart([curve], Axis("evaluations", False, 0), Axis("FID", False, 2), {"m": 3})
    (x0, _), (x1, _), (x2, _) = markers(svg)[0]
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert "evaluations, log scale (← better)" in svg


@pytest.mark.parametrize("x_higher", [True, False])
@pytest.mark.parametrize("y_higher", [True, False])
def test_the_front_goes_around_what_is_dominated(x_higher, y_higher):
    points = [(1.0, 1.0), (2.0, 2.0), (3.0, 3.0)] if x_higher != y_higher else [(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)]
    curve = Curve("m", points, list("abc"), [(None, None)] * 3)
    svg = draw_chart([curve], Axis("x", x_higher, 0), Axis("y", y_higher, 0), {"m": 0})
    (front,) = [e.get("d") for e in ElementTree.fromstring(svg).iter("path") if e.get("class") == "front"]
    places, _ = markers(svg)
    at, corners = list(map(float, re.match(r"M([\d.]+) ([\d.]+)", front).groups())), []
    for letter, value in re.findall(r"([HV])([\d.]+)", front):
        at[letter == "V"] = float(value)
        corners.append(tuple(at))
    assert corners[1::2] == places[1:]
    for corner, (one, two) in zip(corners[::2], pairwise(places), strict=True):
        worse = (min if x_higher else max)(one[0], two[0]), (max if y_higher else min)(one[1], two[1])
        assert corner == worse  # on the screen, y grows downwards


def test_one_point_and_equal_points_can_be_drawn():
    for points in ([(1.0, 0.0)], [(2.0, 5.0), (2.0, 5.0)]):
        curve = Curve("m", points, list("ab")[: len(points)], [(None, None)] * len(points))
        places, _ = markers(draw_chart([curve], Axis("x", True, 0), Axis("y", True, 0), {"m": 0}))
        assert all(0 < x < WIDTH and 0 < y < HEIGHT for x, y in places)


def test_colour_and_shape_tell_methods_apart():
    assert len({(k % COLOURS, SHAPES[k % len(SHAPES)]) for k in range(COLOURS * len(SHAPES))}) == COLOURS * len(SHAPES)


def test_lines_are_joined_in_their_order_true_to_scale():
    lines = [Line("m <1>", 0, [(0.0, 0.0), (1.0, 2.0), (4.0, 1.0)]), Line("n", 1, [(2.0, 1.0), (0.0, math.nan)])]
    svg = draw_lines(lines, "step", "energy")
    first, second = [e.get("d") for e in ElementTree.fromstring(svg).iter("path") if e.get("class") == "curve"]
    (x0, y0), (x1, y1), (x2, y2) = [tuple(map(float, place.split())) for place in first[1:].split("L")]
    assert (x2 - x0) / (x1 - x0) == pytest.approx(4, abs=0.01)
    assert (y0 - y1) / (y0 - y2) == pytest.approx(2, abs=0.01)
    assert y1 < y0  # larger is higher up
    assert "L" not in second  # what is not finite is left out
    places, tooltips = markers(svg)
    assert places[0] == (x2, y2)
    assert tooltips == ["m <1>", "n"]
    texts = [element.text for element in ElementTree.fromstring(svg).iter("text")]
    assert texts[-2:] == ["step", "energy"]  # no axis has a better side
    assert draw_lines([Line("n", 0, [(0.0, math.inf)])], "x", "y") == draw_lines([], "x", "y") == ""


@pytest.mark.parametrize("value", [16.9, 0.0, -3e-7, 1e9])
def test_an_axis_has_room_around_values_that_differ_by_rounding_alone(value):
    """The interval of one image is such."""
    span = _Span.around([value, value + abs(value) * 2e-16], 0, 100)
    assert 0 < span.at(value) < 100
