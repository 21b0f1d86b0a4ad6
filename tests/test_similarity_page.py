"""Curves with a bound on the page: panels with common axes, labels, and a logarithmic axis where it is needed."""

import re
import shutil
from xml.etree import ElementTree

import pytest

from eval.report.charts import HEIGHT, TOP, Line, draw_lines

from .finished_run import metric, write_run, write_scores
from .test_page import Tree, write

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def add_run(task, eta, T_es, end, *, label=None, seed=1):
    curve = {
        "title": "Distance", "x": {"header": "step"}, "y": {"header": "d"}, "points": [[5 - T_es, 0], [5, end]],
        "panel": f"eta {eta}", "label": label or f"T_es {T_es}", "solid": "the mean",
        "dashed": {"label": "its bound", "points": [[5 - T_es, 0], [5, 2 * end]]},
    }  # fmt: skip
    settings = {"eta": eta, "T_es": T_es}
    folder = write_run(task, "cyclediffusion", images=False, study="similarity", settings=settings, seed=seed)
    write_scores(folder, {"psnr": metric("psnr", 18.0)}, curves={"distance": curve})


def drawings(text):
    return [ElementTree.fromstring(svg) for svg in re.findall(r'<svg viewBox="0 0 440.*?</svg>', text, re.DOTALL)]


def lines(svg, kind):
    return [e for e in svg.iter("path") if e.get("class") == kind]


def last(path):
    return float(path.get("d").split()[-1])


def legend(text):
    return re.findall(r'<li class="s(\d)">.*?<span class="method">(.*?)</span>', text)


def test_a_panel_for_each_eta_with_the_same_axes(tmp_path):
    for eta, T_es, end in ((0.1, 3, 1.0), (0.1, 5, 2.0), (1, 3, 3.0), (1, 5, 4.0)):
        add_run(tmp_path / "t", eta, T_es, end)
    text = write(tmp_path / "t")
    tree = Tree(text)
    assert [name for tag, name in tree.texts if tag == "p" and name.startswith("eta")] == ["eta 0.1", "eta 1"]
    assert ("p", "Solid: the mean. Dashed: its bound.") in tree.texts
    assert legend(text) == [("0", "T_es 3"), ("1", "T_es 5")]
    first, second = drawings(text)
    ticks = [[e.text for e in svg.iter("text")] for svg in (first, second)]
    assert ticks[0] == ticks[1]
    ends = [last(path) for svg in (first, second) for kind in ("curve", "curve dashed") for path in lines(svg, kind)]
    zero = float(lines(first, "curve")[0].get("d")[1:].split("L")[0].split()[1])
    heights = [zero - end for end in ends]  # in the order of the table's rows: T_es 3, then T_es 5
    assert [height / heights[0] for height in heights] == pytest.approx([1, 2, 2, 4, 3, 4, 6, 8], abs=0.05)
    groups = [[g.get("class") for g in svg.iter("g") if g.get("class") != "axes"] for svg in (first, second)]
    assert groups == [["s0", "s0", "s1", "s1"]] * 2  # the dashed line of a run has its colour


def test_runs_of_one_label_are_called_by_their_rows(tmp_path):
    """Two runs that differ in something else are not one line with two ends."""
    add_run(tmp_path / "t", 1, 3, 1.0, label="same")
    add_run(tmp_path / "t", 1, 4, 2.0, label="same")
    text = write(tmp_path / "t")
    assert legend(text) == [("0", "cyclediffusion (T_es=3)"), ("1", "cyclediffusion (T_es=4)")]


def test_seeds_of_one_run_share_a_label(tmp_path):
    for seed in (1, 2):
        add_run(tmp_path / "t", 1, 3, 1.0, seed=seed)
    text = write(tmp_path / "t")
    assert legend(text) == [("0", "T_es 3")]
    assert len(lines(drawings(text)[0], "curve")) == 2


def test_an_analysis_has_no_chart_of_quality(tmp_path):
    add_run(tmp_path / "t", 1, 3, 1.0)
    assert "Quality against cost" not in write(tmp_path / "t")


@pytest.mark.parametrize(("top", "log"), [(19.0, False), (21.0, True)])
def test_a_bound_far_above_makes_the_axis_logarithmic(top, log):
    solid = Line("m", 0, [(0.0, 0.0), (1.0, 0.1), (2.0, 1.0)])
    dashed = Line("b", 0, [(0.0, 0.0), (1.0, 0.1), (2.0, top)], dashed=True)
    svg = ElementTree.fromstring(draw_lines([dashed, solid], "step", "d"))
    assert [e.text for e in svg.iter("text")][-2:] == ["step", "d, log scale" if log else "d"]
    (path,) = lines(svg, "curve")
    places = path.get("d")[1:].split("L")
    assert len(places) == (2 if log else 3)  # 0 has no place on a logarithmic axis
    assert all(TOP <= float(place.split()[1]) <= HEIGHT for place in places)
    assert len([e for e in svg.iter("path") if e.get("class") == "marker"]) == 1  # the dashed line has none


def test_steps_are_never_logarithmic():
    svg = ElementTree.fromstring(draw_lines([Line("m", 0, [(1.0, 1.0), (2.0, 2.0), (100.0, 3.0)])], "step", "d"))
    (path,) = lines(svg, "curve")
    x0, x1, x2 = (float(place.split()[0]) for place in path.get("d")[1:].split("L"))
    assert (x2 - x0) / (x1 - x0) == pytest.approx(99, rel=0.03)


@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM, reason="no chromium here")
def test_panels_stand_in_a_row_or_below_each_other(tmp_path):
    from playwright.sync_api import sync_playwright

    for eta in (0.1, 0.5, 1):
        add_run(tmp_path / "t", eta, 3, 1.0)
    write(tmp_path / "t")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        for width, rows, columns in ((1280, 1, 3), (390, 3, 1)):
            page = browser.new_page(viewport={"width": width, "height": 800})
            page.goto((tmp_path / "t" / "report.html").as_uri())
            boxes = [chart.bounding_box() for chart in page.locator(".panels .chart").all()]
            assert (len({box["y"] for box in boxes}), len({box["x"] for box in boxes})) == (rows, columns)
            assert page.evaluate("document.documentElement.scrollWidth") == width
            assert page.locator(".panels text").first.evaluate("e => e.getBoundingClientRect().height") > 11
        browser.close()
